"""Cohorts: deterministic, uniform, and nobody's draw depends on who else is there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.cohort import cohort_size, uniform
from fedit.errors import ConfigError
from fedit.types import ClientInfo


def clients(count):
    return [ClientInfo(f"client-{i}", 10) for i in range(count)]


@pytest.mark.parametrize(
    ("per_round", "there", "expected"),
    [
        (0.29, 100, 29),
        (0.1, 100, 10),
        (1.0, 7, 7),
        (1, 7, 1),
        (7, 7, 7),
        (0.001, 10, 1),
        (0.57, 100, 57),
        (0.99, 3, 3),
    ],
)
def test_a_cohort_has_the_size_that_was_asked_for(per_round, there, expected):
    assert cohort_size(per_round, there) == expected


@given(st.floats(0.0001, 1.0), st.integers(1, 500))
def test_a_fraction_gives_at_least_one_and_never_more_than_there_are(fraction, there):
    assert 1 <= cohort_size(fraction, there) <= there
    assert abs(cohort_size(fraction, there) - fraction * there) <= 0.5 + 1e-9 or cohort_size(fraction, there) == 1


def test_more_clients_than_there_are_is_a_mistake():
    with pytest.raises(ConfigError, match="clients_per_round is 8, but there are 7"):
        cohort_size(8, 7)


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 20))
@settings(max_examples=50)
def test_a_cohort_is_sorted_distinct_and_reproducible(seed, round, size):
    there = clients(20)
    chosen = uniform(there, size, seed=seed, round=round)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == size
    assert chosen == uniform(there[::-1], size, seed=seed, round=round)


def test_all_clients_take_part_when_all_are_asked():
    assert uniform(clients(5), 1.0, seed=3, round=9) == [f"client-{i}" for i in range(5)]


def test_every_client_is_as_likely_in_every_round():
    there, rounds, size = clients(20), 2000, 5
    counts = dict.fromkeys((c.client_id for c in there), 0)
    for round in range(1, rounds + 1):
        for client in uniform(there, size, seed=0, round=round):
            counts[client] += 1
    expected = rounds * size / len(there)
    # Without replacement the variance is a little below a multinomial's.
    chi_square = sum((count - expected) ** 2 for count in counts.values()) / expected
    assert chi_square < 45  # 19 degrees of freedom: exceeded by chance once in 1500


def test_pairs_of_clients_meet_as_often_as_chance_has_it():
    there, rounds = clients(8), 3000
    together = np.zeros((8, 8))
    for round in range(rounds):
        chosen = [int(c.removeprefix("client-")) for c in uniform(there, 4, seed=1, round=round)]
        together[np.ix_(chosen, chosen)] += 1
    pairs = together[np.triu_indices(8, 1)] / rounds
    assert abs(pairs - 4 * 3 / (8 * 7)).max() < 0.04


def test_a_new_client_does_not_reshuffle_the_others():
    for round in range(1, 60):
        before = set(uniform(clients(10), 4, seed=5, round=round))
        after = set(uniform(clients(11), 4, seed=5, round=round))
        assert after - before <= {"client-10"}
        assert len(before - after) <= 1


def test_rounds_and_seeds_differ():
    there = clients(30)
    assert len({tuple(uniform(there, 5, seed=0, round=r)) for r in range(20)}) == 20
    assert uniform(there, 5, seed=0, round=1) != uniform(there, 5, seed=1, round=1)
