"""The statistics of attacks against closed forms, brute force and SciPy."""

import numpy as np
import pytest

from fedit.privacy.audit.exposure import CHANCE, exposures, extrapolated
from fedit.privacy.audit.scores import lira
from fedit.privacy.audit.separation import clopper_pearson, epsilon_bound, separation
from fedit.privacy.audit.shadows import halves


def normal(seed, shift=0.0, size=400):
    return np.random.default_rng(seed).normal(shift, 1.0, size)


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (3, 10), (250, 2000), (1, 500)])
def test_bounds_of_a_share_are_those_of_scipy(right, total):
    stats = pytest.importorskip("scipy.stats", reason="needs fedit[privacy]")
    exact = stats.binomtest(right, total).proportion_ci(confidence_level=0.9, method="exact")
    assert clopper_pearson(right, total, 0.05) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_area_counts_pairs_and_ties_as_half():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(6, size=37) + 1.0, rng.integers(6, size=53) * 1.0
    brute = np.mean([[(a > b) + (a == b) / 2 for b in outside] for a in inside])
    found = separation(inside, outside, seed=0).auc
    assert found.estimate == pytest.approx(brute, abs=1e-12)
    assert found.low < brute < found.high


def test_members_found_at_few_false_alarms_are_counted_where_there_are_others_enough():
    inside, outside = normal(0, 2.0, 300), normal(1, 0.0, 300)
    found = separation(inside, outside, seed=0)
    cut = np.sort(outside)[-4]  # three of 300 are above
    assert found.caught[0.01].estimate == pytest.approx((inside > cut).mean())
    assert set(found.caught) == {0.01}
    assert separation(inside, outside[:99], seed=0).caught == {}
    assert set(separation(inside, normal(2, size=2000), seed=0).caught) == {0.01, 0.001}


def test_what_says_nothing_is_said_to_say_nothing():
    found = [separation(normal(seed, size=150), normal(seed + 100, size=150), seed=seed) for seed in range(12)]
    assert sum(one.auc.low <= 0.5 <= one.auc.high for one in found) >= 10
    # Thresholds that are judged where they were found would all be above a half.
    assert abs(np.mean([one.accuracy.estimate for one in found]) - 0.5) < 0.02
    assert sum(one.epsilon > 0 for one in found) <= 2


def test_what_tells_all_apart_is_said_to():
    found = separation(np.arange(10, 60), np.arange(-50, 0), seed=0)
    assert (found.auc.estimate, found.accuracy.estimate) == (1.0, 1.0)
    # 25 of 25 and 0 of 25 judged: both bounds in closed form.
    assert found.epsilon == pytest.approx(np.log(0.025 ** (1 / 25) / (1 - 0.025 ** (1 / 25))), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_of_epsilon_stays_below_it_for_a_mechanism_that_has_it(epsilon):
    # Randomised response tells the truth with probability e^eps / (1 + e^eps): exactly eps, and no more.
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found.append(epsilon_bound(rng.random(4000) < truth, rng.random(4000) >= truth, seed=seed))
    assert np.mean(np.array(found) <= epsilon) >= 0.9
    assert np.mean(found) > 0.7 * epsilon


def test_delta_is_taken_off_before_the_ratio():
    inside, outside = np.ones(200), np.zeros(200)
    assert epsilon_bound(inside, outside, seed=0, delta=0.5) < epsilon_bound(inside, outside, seed=0)
    assert epsilon_bound(inside, outside, seed=0, delta=1.0) == 0.0


def test_exposure_is_the_rank_among_references_by_brute_force():
    rng = np.random.default_rng(0)
    losses, references = rng.integers(20, size=9) * 1.0, rng.integers(20, size=(9, 64)) * 1.0
    brute = [
        np.log2(64) - np.log2(1 + sum(r <= own for r in refs))
        for own, refs in zip(losses, references, strict=True)
    ]
    assert exposures(losses, references) == pytest.approx(brute)
    assert exposures([-1.0], references[:1]) == pytest.approx([6.0])
    assert exposures([0.0], np.zeros((1, 64))) == pytest.approx([np.log2(64 / 65)])


def test_secrets_that_are_not_known_have_the_exposure_of_chance():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(4000, 257))
    assert exposures(losses[:, 0], losses[:, 1:]).mean() == pytest.approx(CHANCE, abs=0.1)


def test_a_fitted_tail_goes_beyond_the_ranks_and_a_bad_fit_says_nothing():
    stats = pytest.importorskip("scipy.stats", reason="needs fedit[privacy]")
    references = np.random.default_rng(1).normal(10.0, 1.0, 1000)
    exact = -stats.norm.logcdf(-4.0) / np.log(2)
    assert extrapolated(6.0, references) == pytest.approx(exact, rel=0.2)
    assert extrapolated(-90.0, references) == pytest.approx(np.log2(10**6))  # a code has no more bits
    assert extrapolated(0.0, np.where(references > 10, 30.0, -30.0)) is None
    assert extrapolated(0.0, np.ones(50)) is None


def test_every_row_is_in_half_of_the_shadows_and_the_ratio_finds_what_they_learnt():
    inside = halves(8, 61, seed=0)
    assert (inside.sum(axis=0) == 4).all()
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, 61)  # rows differ by far more than membership does
    shadows = hard + inside * 1.0 + rng.normal(0, 0.3, inside.shape)
    member = rng.random(61) < 0.5
    attacked = hard + member * 1.0 + rng.normal(0, 0.3, 61)
    plain = separation(attacked[member], attacked[~member], seed=0).auc.estimate
    for scores in lira(attacked, shadows, inside).values():
        assert separation(scores[member], scores[~member], seed=0).auc.estimate > max(0.9, plain)
