"""The learning rate runs through the whole federation."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.schedule import SCHEDULES, learning_rate
from fedit.types import LocalTraining


def rates(schedule, rounds, steps, **changes):
    training = LocalTraining(learning_rate=0.5, num_rounds=rounds, steps=steps, schedule=schedule, **changes)
    return [learning_rate(training, r, s, steps) for r in range(1, rounds + 1) for s in range(steps)]


def test_constant_stays():
    assert rates("constant", 3, 4) == [0.5] * 12


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_a_decay_starts_at_the_top_and_would_end_at_the_minimum_one_step_after_the_last(schedule, ratio):
    training = LocalTraining(learning_rate=0.5, num_rounds=5, steps=4, schedule=schedule, min_lr_ratio=ratio)
    assert learning_rate(training, 1, 0, 4) == 0.5
    assert learning_rate(training, 5, 4, 4) == pytest.approx(0.5 * ratio, abs=1e-15)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_falls_in_every_step_and_across_rounds(schedule):
    found = rates(schedule, 4, 5)
    assert all(later < earlier for earlier, later in pairwise(found))


def test_the_cosine_is_the_published_one():
    # lr_min + (lr_max - lr_min) (1 + cos(pi t / T)) / 2
    training = LocalTraining(learning_rate=5e-5, num_rounds=200, steps=1, schedule="cosine", min_lr_ratio=0.02)
    for t in (0, 1, 77, 199):
        expected = 1e-6 + 0.5 * (5e-5 - 1e-6) * (1 + math.cos(math.pi * t / 200))
        assert learning_rate(training, t + 1, 0, 1) == pytest.approx(expected, rel=1e-12)


@given(
    st.sampled_from(sorted(SCHEDULES)), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.floats(0, 1)
)
@settings(max_examples=60)
def test_cutting_a_run_into_more_rounds_changes_no_bit(schedule, rounds, factor, steps, warmup):
    few = rates(schedule, rounds, factor * steps, warmup_ratio=warmup)
    many = rates(schedule, rounds * factor, steps, warmup_ratio=warmup)
    assert few == many


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_warm_up_rises_to_the_top_and_then_the_decay_begins(schedule):
    found = rates(schedule, 4, 5, warmup_ratio=0.25)  # 5 of 20 steps
    assert all(later > earlier for earlier, later in pairwise(found[:6]))
    assert 0 < found[0] < 0.5
    assert found[5] == max(found) == 0.5


def test_a_run_that_is_all_warm_up_never_falls():
    found = rates("cosine", 2, 4, warmup_ratio=1.0)
    assert found == sorted(found)
    assert found[-1] <= 0.5


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60)
def test_a_rate_is_never_negative_or_above_the_top(schedule, warmup, ratio, rounds, steps):
    for rate in rates(schedule, rounds, steps, warmup_ratio=warmup, min_lr_ratio=ratio):
        assert 0 <= rate <= 0.5
