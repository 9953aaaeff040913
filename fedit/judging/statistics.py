"""What verdicts add up to: win rates, rankings, length control, position bias, agreement of two judges."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedit.evaluation.intervals import RESAMPLES, Array, Interval, bootstrap, percentile_interval, resampled_counts

RIDGE = 0.01
"""Pull to zero in both regressions: a hundredth of a question's weight, enough to stay finite."""
ELO_CENTRE = 1000.0
_ELO_PER_NAT = 400 / np.log(10)
_STEPS = 100
_CONVERGED = 1e-10


@dataclass(frozen=True, slots=True)
class Tally:
    """Questions won, tied and lost."""

    win: int
    tie: int
    loss: int

    @property
    def n(self) -> int:
        """All questions."""
        return self.win + self.tie + self.loss


def tally(outcomes: ArrayLike) -> Tally:
    """Count outcomes: 1 is a win, 0.5 a tie, 0 a loss."""
    values = np.asarray(outcomes, dtype=np.float64)
    return Tally(int((values == 1).sum()), int((values == 0.5).sum()), int((values == 0).sum()))


def outcomes_of(differences: ArrayLike, within: float = 0.0) -> Array:
    """Return 1, 0.5 or 0 for each difference; those not further than ``within`` from zero are ties."""
    values = np.asarray(differences, dtype=np.float64)
    # Rounded, as 1.1 - 1 is a little more than 0.1.
    decided = np.abs(values).round(9) > within
    return np.where(decided, (values > 0).astype(np.float64), 0.5)


def win_rate(outcomes: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return (wins + ties / 2) / n with its bootstrap interval over questions."""
    return bootstrap(outcomes, resamples=resamples, seed=seed)


# --- ranking ---


@dataclass(frozen=True, slots=True)
class Strength:
    """One arm's place: ``elo`` is 1000 for the anchor and 400 higher for ten to one odds against it."""

    arm: str
    elo: float
    low: float
    high: float


def bradley_terry(wins: ArrayLike, *, ridge: float = RIDGE) -> Array:
    """Return log strengths θ with mean 0; the odds that i beats j are exp(θi - θj).

    wins: (arms, arms) or (replicates, arms, arms); [i, j] is how often i beat j, a tie half for each.

    Maximises Σ wins[i, j] · log σ(θi - θj) - ridge / 2 · |θ|² by Newton's method. The ridge keeps arms that always
    win, or were never compared with some others, at finite distance; with it the maximum is unique.

    Bradley and Terry, 1952, doi:10.2307/2334029.
    """
    counts = np.asarray(wins, dtype=np.float64)
    single = counts.ndim == 2
    counts = counts[np.newaxis] if single else counts
    arms = counts.shape[-1]
    games = counts + counts.swapaxes(1, 2)
    strengths = np.zeros(counts.shape[:2])
    diagonal = np.arange(arms)
    for _ in range(_STEPS):
        probability = _sigmoid(strengths[:, :, np.newaxis] - strengths[:, np.newaxis, :])
        gradient = (counts - games * probability).sum(axis=2) - ridge * strengths
        weights = games * probability * (1 - probability)
        weights[:, diagonal, diagonal] = 0
        hessian = -weights
        hessian[:, diagonal, diagonal] += weights.sum(axis=2) + ridge
        # Far from the maximum the curvature vanishes and a whole step would overshoot.
        step = np.clip(np.linalg.solve(hessian, gradient[..., np.newaxis])[..., 0], -1, 1)
        strengths += step
        if np.abs(step).max() < _CONVERGED:
            break
    strengths -= strengths.mean(axis=1, keepdims=True)
    return strengths[0] if single else strengths


def rank(
    arms: Sequence[str],
    games: Sequence[Mapping[tuple[str, str], float]],
    anchor: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Strength]:
    """Return the arms by Bradley-Terry strength on an Elo scale, with bootstrap intervals over questions.

    games: for every question the outcome of each pair (a, b) that was judged on it: 1, 0.5 or 0 for a.
    """
    place = {arm: index for index, arm in enumerate(arms)}
    wins = np.zeros((len(games), len(arms), len(arms)))
    for number, outcomes in enumerate(games):
        for (a, b), outcome in outcomes.items():
            wins[number, place[a], place[b]] += outcome
            wins[number, place[b], place[a]] += 1 - outcome
    blocks = [
        bradley_terry(np.tensordot(counts, wins, axes=1))
        for counts in resampled_counts(len(games), resamples=resamples, seed=seed)
    ]
    anchored = _elo(np.concatenate(blocks), place[anchor])
    estimates = _elo(bradley_terry(wins.sum(axis=0))[np.newaxis], place[anchor])[0]
    intervals = [percentile_interval(float(estimates[i]), anchored[:, i]) for i in range(len(arms))]
    ranked = [Strength(arm, i.estimate, i.low, i.high) for arm, i in zip(arms, intervals, strict=True)]
    return sorted(ranked, key=lambda strength: -strength.elo)


def _elo(strengths: Array, anchor: int) -> Array:
    return np.asarray(ELO_CENTRE + _ELO_PER_NAT * (strengths - strengths[:, [anchor]]))


# --- length ---


def length_controlled_win_rate(
    outcomes: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the win rate that a logistic regression predicts for answers as long as the baseline's.

    The model is P(win) = σ(β₀ + β₁ · tanh(Δ / sd(Δ))), Δ the difference of lengths; the result is σ(β₀).

    outcomes: (questions,), 1, 0.5 or 0; the lengths: (questions,), in any one unit.

    Dubois et al., 2024, arXiv:2404.04475, in its smallest form: of the paper's terms the one for the model and the
    one for length.
    """
    # Deviation: no term for the question's difficulty, which takes many models to be known, and a ridge of 0.01
    # on both coefficients instead of a cross-validated one on length.
    won = np.asarray(outcomes, dtype=np.float64)
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    spread = difference.std()
    # Divided, not centred: zero has to go on meaning equally long.
    terms = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    design = np.stack([np.ones_like(terms), terms], axis=1)
    everything = np.ones((1, len(won)))
    estimate = _sigmoid(_logistic(design, won, everything)[:, 0])
    blocks = [
        _sigmoid(_logistic(design, won, counts)[:, 0])
        for counts in resampled_counts(len(won), resamples=resamples, seed=seed)
    ]
    return percentile_interval(float(estimate[0]), np.concatenate(blocks))


def longer_wins(outcomes: ArrayLike, lengths: ArrayLike, baseline_lengths: ArrayLike) -> float | None:
    """Return the share of decided questions that the longer answer won; None where there is none."""
    won = np.asarray(outcomes, dtype=np.float64)
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    counted = (won != 0.5) & (difference != 0)
    return float(((won > 0.5) == (difference > 0))[counted].mean()) if counted.any() else None


def _logistic(design: Array, outcomes: Array, weights: Array) -> Array:
    """Return the ridge regression's coefficients for every row of ``weights``, (replicates, terms).

    design: (questions, terms); outcomes: (questions,); weights: (replicates, questions).
    """
    coefficients = np.zeros((len(weights), design.shape[1]))
    ridge = RIDGE * np.eye(design.shape[1])
    for _ in range(_STEPS):
        probability = _sigmoid(coefficients @ design.T)
        gradient = (weights * (outcomes - probability)) @ design - RIDGE * coefficients
        curvature = weights * probability * (1 - probability)
        hessian = np.einsum("rq,qi,qj->rij", curvature, design, design, optimize=True) + ridge
        step = np.clip(np.linalg.solve(hessian, gradient[..., np.newaxis])[..., 0], -1, 1)
        coefficients += step
        if np.abs(step).max() < _CONVERGED:
            break
    return coefficients


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


# --- order ---


def position_consistency(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of pairs whose two orders have the same winner.

    pairs: for the same question and repeat the outcome of one arm when it is shown first and when it is shown
    second, each 1, 0.5 or 0.
    """
    return float(np.mean([first == second for first, second in pairs])) if pairs else None


def first_position_wins(outcomes_of_first: ArrayLike) -> float | None:
    """Return the share of decided verdicts in favour of the answer that was shown first; 0.5 is no bias."""
    values = np.asarray(outcomes_of_first, dtype=np.float64)
    decided = values[values != 0.5]
    return float(decided.mean()) if len(decided) else None


# --- agreement ---


def spearman(one: ArrayLike, other: ArrayLike) -> float | None:
    """Return the rank correlation, ties at their mean rank; None where one of them does not vary."""
    a, b = _ranks(one), _ranks(other)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Return agreement beyond chance of two raters' labels, unweighted; None where chance already agrees fully.

    Cohen, 1960, doi:10.1177/001316446002000104.
    """
    n = len(one)
    if not n:
        return None
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    labels = set(one) | set(other)
    chance = sum((list(one).count(label) / n) * (list(other).count(label) / n) for label in labels)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
