import itertools
import math

import numpy as np
import pytest

from fedit.judging.statistics import (
    Tally,
    bradley_terry,
    cohen_kappa,
    first_position_wins,
    length_controlled_win_rate,
    longer_wins,
    outcomes_of,
    position_consistency,
    rank,
    spearman,
    tally,
    win_rate,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- wins ---


def test_small_differences_are_ties():
    assert outcomes_of([0.2, 1.1 - 1, 0, -0.1, -0.2], within=0.1).tolist() == [1, 0.5, 0.5, 0.5, 0]
    assert tally([1, 0.5, 0.5, 0]) == Tally(1, 2, 1)


def test_a_tie_is_half_a_win():
    found = win_rate([1, 1, 0.5, 0])
    assert found.estimate == 0.625
    assert found.low < 0.625 < found.high


# --- Bradley-Terry ---


def test_two_arms_have_a_closed_form():
    strengths = bradley_terry([[0, 30], [10, 0]], ridge=1e-9)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), abs=1e-7)
    assert strengths.sum() == pytest.approx(0)


def penalised(strengths, wins, ridge):
    value = -ridge / 2 * (strengths**2).sum()
    for i, j in itertools.permutations(range(len(wins)), 2):
        value += wins[i, j] * np.log(sigmoid(strengths[i] - strengths[j]))
    return value


def test_the_likelihood_is_largest_where_it_is_found():
    """Beside a search that knows nothing but the likelihood."""
    wins = np.array([[0, 7, 3.5], [3, 0, 9], [1.5, 2, 0]])
    best, step = np.zeros(3), 1.0
    while step > 1e-7:
        around = [best + step * np.array(move) for move in itertools.product((-1, 0, 1), repeat=3)]
        nearest = max(around, key=lambda strengths: penalised(strengths, wins, 0.3))
        step = step / 2 if np.array_equal(nearest, best) else step
        best = nearest
    assert bradley_terry(wins, ridge=0.3) == pytest.approx(best, abs=1e-5)


def test_arms_that_always_win_or_never_met_stay_finite():
    always = bradley_terry([[0, 50], [0, 0]])
    assert 3 < always[0] - always[1] < 20
    apart = bradley_terry([[0, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 5], [0, 0, 1, 0]])
    assert np.isfinite(apart).all()
    assert apart[:2].sum() == pytest.approx(apart[2:].sum(), abs=1e-6)


def test_replicates_are_fitted_as_they_are_alone():
    wins = np.random.default_rng(0).integers(0, 9, size=(6, 4, 4)).astype(float)
    wins[:, range(4), range(4)] = 0
    assert bradley_terry(wins) == pytest.approx(np.array([bradley_terry(one) for one in wins]))


def test_a_ranking_stands_on_an_elo_scale_above_its_anchor():
    games = [{("good", "base"): 1.0}] * 30 + [{("good", "base"): 0.0}] * 3
    games += [{("bad", "base"): 0.0}] * 20 + [{("bad", "base"): 0.5}] * 20
    ranked = rank(["base", "bad", "good"], games, "base", resamples=2000)
    assert [strength.arm for strength in ranked] == ["good", "base", "bad"]
    good, base, bad = ranked
    assert (base.elo, base.low, base.high) == (1000, 1000, 1000)
    assert good.elo == pytest.approx(1400, abs=3)  # ten to one
    assert bad.elo == pytest.approx(1000 - 400 * math.log10(3), abs=3)
    assert good.low < good.elo < good.high
    assert good.low > 1000 > bad.high


# --- length ---


def test_length_control_finds_the_largest_likelihood():
    generator = np.random.default_rng(1)
    lengths, others = generator.integers(50, 900, size=(2, 60))
    won = (generator.random(60) < sigmoid(0.4 + (lengths - others) / 300)).astype(float)
    terms = np.tanh((lengths - others) / (lengths - others).std())
    grid = np.linspace(-4, 4, 801)
    constant, slope = np.meshgrid(grid, grid, indexing="ij")
    likelihood = -0.005 * (constant**2 + slope**2)
    for outcome, term in zip(won, terms, strict=True):
        likelihood += np.log(sigmoid((2 * outcome - 1) * (constant + slope * term)))
    best = constant.flat[likelihood.argmax()]
    found = length_controlled_win_rate(won, lengths, others, resamples=200)
    assert found.estimate == pytest.approx(sigmoid(best), abs=0.003)
    assert found.low < found.estimate < found.high


def test_winning_by_length_alone_is_no_win_at_equal_length():
    generator = np.random.default_rng(2)
    difference = np.where(np.arange(400) % 5 > 0, 1, -1) * generator.integers(50, 400, size=400)
    won = (generator.random(400) < sigmoid(3 * np.tanh(difference / difference.std()))).astype(float)
    controlled = length_controlled_win_rate(won, 500 + difference, np.full(400, 500))
    assert won.mean() > 0.65
    assert controlled.low < 0.5 < controlled.high
    assert longer_wins(won, 500 + difference, np.full(400, 500)) == np.mean(won == (difference > 0))


def test_equal_lengths_leave_the_win_rate_as_it_is():
    won = [1.0] * 30 + [0.5] * 4 + [0.0] * 10
    found = length_controlled_win_rate(won, [5] * 44, [5] * 44)
    assert found.estimate == pytest.approx(np.mean(won), abs=0.001)
    assert longer_wins(won, [5] * 44, [5] * 44) is None


def test_a_clean_sweep_stays_finite():
    found = length_controlled_win_rate([1.0] * 10, range(10, 20), [3] * 10)
    assert 0.9 < found.low <= found.high < 1


# --- order ---


def test_a_verdict_that_turns_with_the_order_is_inconsistent():
    assert position_consistency([(1, 1), (1, 0), (0.5, 0.5), (0, 1)]) == 0.5
    assert position_consistency([]) is None
    assert first_position_wins([1, 1, 1, 0, 0.5]) == 0.75
    assert first_position_wins([0.5]) is None


# --- agreement ---


def test_rank_correlation_shares_the_ranks_of_ties():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4.
    assert spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [1]) is None


def test_kappa_is_agreement_beyond_chance():
    # Cohen's layout: 20 and 15 of 50 agree, chance is (25·30 + 25·20) / 2500.
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx((0.7 - 0.5) / 0.5)
    assert cohen_kappa([1, 1], [1, 1]) is None
    assert cohen_kappa([], []) is None
