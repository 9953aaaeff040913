import math

import numpy as np
import pytest

from fedit.evaluation.intervals import (
    bootstrap,
    difference_of_means,
    mean,
    minimum_detectable_difference,
    nested_bootstrap,
    percentile_interval,
    permutation_test,
    ratio_of_sums,
    resampled_counts,
    sign_test,
)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- bootstrap ---


def test_an_interval_of_a_mean_is_as_wide_as_theory_says():
    values = rng().normal(size=400)
    interval = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.estimate == pytest.approx(half, rel=0.08)
    assert interval.estimate - interval.low == pytest.approx(half, rel=0.08)


def test_an_interval_depends_on_the_seed_alone():
    values = rng().normal(size=30)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_columns_are_drawn_together():
    """Two arms that always differ by one differ by one in every replicate, however much they vary."""
    one = rng().normal(scale=100, size=20)
    interval = bootstrap(np.stack([one + 1, one], axis=1), difference_of_means)
    assert interval.bounds() == pytest.approx([1, 1])


def test_a_ratio_of_sums_is_of_sums_not_of_means():
    values = np.array([[1.0, 2.0], [9.0, 3.0]])
    assert bootstrap(values, ratio_of_sums).estimate == 2.0


def test_undefined_replicates_are_left_out():
    interval = bootstrap(np.array([[1.0, 0.0], [1.0, 1.0]]), ratio_of_sums)
    assert interval.estimate == 2.0
    assert math.isfinite(interval.low)
    assert math.isfinite(interval.high)
    assert all(map(math.isnan, percentile_interval(0.0, np.array([np.nan])).bounds()))


def test_one_item_gives_a_point_and_none_is_refused():
    assert bootstrap([2.0]).bounds() == [2.0, 2.0]
    with pytest.raises(ValueError, match="not empty"):
        bootstrap([])
    with pytest.raises(ValueError, match="resamples"):
        bootstrap([1.0], resamples=0)


def test_many_items_are_drawn_in_blocks(monkeypatch):
    monkeypatch.setattr("fedit.evaluation.intervals._NUMBERS_AT_ONCE", 100)
    interval = bootstrap(rng().normal(size=30), resamples=1000)
    assert interval.low < interval.estimate < interval.high


def test_a_statistic_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="one number a sample"):
        bootstrap([1.0, 2.0], lambda samples: samples.mean())


def test_counts_of_a_replicate_sum_to_the_items(monkeypatch):
    monkeypatch.setattr("fedit.evaluation.intervals._NUMBERS_AT_ONCE", 100)
    blocks = list(resampled_counts(7, resamples=500, seed=1))
    assert len(blocks) > 1
    counts = np.concatenate(blocks)
    assert counts.shape == (500, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)


# --- nested ---


def slow_nested(values, resamples, seed):
    """The definition, in loops."""
    generator = rng(seed)
    replicates = []
    for _ in range(resamples):
        means = []
        for drawn in generator.integers(len(values), size=len(values)):
            items = values[drawn]
            means.append(items[generator.integers(len(items), size=len(items))].mean())
        replicates.append(np.mean(means))
    return np.array(replicates)


def test_seeds_and_then_items_are_drawn():
    generator = rng(5)
    values = [generator.normal(loc=shift, size=size) for shift, size in ((0, 10), (2, 15), (1, 40))]
    interval = nested_bootstrap(values, resamples=20_000)
    replicates = slow_nested(values, 5000, 1)
    assert interval.estimate == pytest.approx(np.mean([v.mean() for v in values]))
    assert interval.bounds() == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=0.06)


def test_the_spread_between_seeds_counts_although_items_agree():
    values = [np.zeros(50), np.ones(50)]
    assert nested_bootstrap(values).bounds() == [0.0, 1.0]
    assert nested_bootstrap([np.full(50, 0.5)] * 2).bounds() == [0.5, 0.5]


def test_one_seed_is_the_plain_bootstrap():
    values = rng().normal(size=60)
    nested, plain = nested_bootstrap([values]), bootstrap(values)
    assert nested.estimate == plain.estimate
    assert nested.bounds() == pytest.approx(plain.bounds(), abs=0.02)


def test_arms_are_compared_in_pairs_within_seeds():
    base = [rng(seed).normal(scale=50, size=12) for seed in range(4)]
    values = [np.stack([items + 2, items], axis=1) for items in base]
    assert nested_bootstrap(values, difference_of_means).bounds() == pytest.approx([2, 2])


def test_no_seed_and_an_empty_seed_are_refused():
    with pytest.raises(ValueError, match="no seeds"):
        nested_bootstrap([])
    with pytest.raises(ValueError, match="not empty"):
        nested_bootstrap([[1.0], []], mean)


# --- tests of pairs ---


@pytest.mark.parametrize(
    ("plus", "minus", "p"), [(0, 0, 1.0), (1, 0, 1.0), (6, 0, 2 / 64), (8, 2, 2 * 56 / 1024), (3, 3, 1.0)]
)
def test_a_sign_test_is_exact(plus, minus, p):
    assert sign_test([1] * plus + [-1] * minus + [0] * 5) == pytest.approx(p)


def test_a_sign_test_of_thousands_keeps_its_tail():
    assert 0 < sign_test([1] * 900 + [-1] * 100) < 1e-150


def test_permutations_of_few_differences_are_counted():
    # Of the eight sign patterns of 1, 2, 4 only all plus and all minus reach a sum of 7.
    assert permutation_test([1, 2, 4]) == 2 / 8
    assert permutation_test([]) == 1.0
    assert permutation_test([1, -1]) == 1.0


def test_permutations_of_many_differences_are_drawn(monkeypatch):
    values = rng(2).normal(loc=0.4, size=14)
    exact = permutation_test(values)
    monkeypatch.setattr("fedit.evaluation.intervals._ENUMERATED", 0)
    assert permutation_test(values) == pytest.approx(exact, abs=0.02)
    assert permutation_test(np.ones(40)) > 0


def test_the_detectable_difference_shrinks_with_the_root_of_the_questions():
    differences = np.array([-1.0, 1.0] * 40)
    found = minimum_detectable_difference(differences)
    assert found == pytest.approx((1.95996 + 0.84162) * differences.std(ddof=1) / math.sqrt(80), rel=1e-4)
    assert minimum_detectable_difference(differences, items=320) == pytest.approx(found / 2)
    assert minimum_detectable_difference([1.0]) is None
