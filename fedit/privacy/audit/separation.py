"""How well a score tells members from others: AUC, balanced accuracy, true positives at few false ones, epsilon.

Scores are higher for members. Members and others are resampled apart for intervals; thresholds that are chosen
are judged on rows that did not choose them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedit.evaluation.intervals import Interval, percentile_interval

Numbers = NDArray[np.float64]

RESAMPLES = 1000
FALSE_POSITIVES = (0.01, 0.001)
"""Rates at which true positives are reported, each where there are others enough."""
FEWEST_OTHERS = {0.01: 100, 0.001: 2000}
"""Rate of false positives -> others that it takes to speak of it."""
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Separation:
    """What a score is worth to somebody who wants to know who was a member.

    auc:      chance that a member scores higher than another row; ties count as half.
    accuracy: balanced, of thresholds found on the other half of the rows.
    caught:   rate of false positives -> share of members above a threshold that so many others pass.
    epsilon:  a lower bound, at 95 % confidence, of the epsilon of the mechanism; see `epsilon_bound`.
    """

    members: int
    others: int
    auc: Interval
    accuracy: Interval
    caught: dict[float, Interval]
    epsilon: float

    def as_dict(self) -> dict[str, object]:
        """Return the numbers by name, for JSON."""
        return {
            "auc": _plain(self.auc),
            "balanced_accuracy": _plain(self.accuracy),
            "tpr_at_fpr": {f"{rate:g}": _plain(found) for rate, found in self.caught.items()},
            "epsilon_lower_bound": self.epsilon,
        }


def separation(members: ArrayLike, others: ArrayLike, *, seed: int, delta: float = 0.0) -> Separation:
    """Return how well scores of members, (members,), and of others, (others,), are told apart.

    Raises:
        ValueError: there are fewer than two of either.
    """
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if min(len(inside), len(outside)) < 2:
        raise ValueError(f"{len(inside)} members and {len(outside)} others are too few to compare.")
    rates = [rate for rate in FALSE_POSITIVES if len(outside) >= FEWEST_OTHERS[rate]]
    measures: list[Callable[[Numbers, Numbers], Numbers]] = [_auc, *(_caught_at(rate) for rate in rates)]
    auc, *caught = _resampled(inside, outside, measures, seed)
    return Separation(
        len(inside),
        len(outside),
        auc,
        _accuracy(inside, outside, seed),
        dict(zip(rates, caught, strict=True)),
        epsilon_bound(inside, outside, seed=seed, delta=delta),
    )


def epsilon_bound(
    members: ArrayLike, others: ArrayLike, *, seed: int, delta: float = 0.0, level: float = LEVEL
) -> float:
    """Return a lower bound of epsilon from one threshold: ln((TPR - delta) / FPR), 0 where nothing shows.

    A mechanism that is (epsilon, delta)-private keeps TPR <= e^epsilon FPR + delta for every test. The threshold
    and its direction are chosen on half of the rows; on the other half Clopper-Pearson bounds, which hold
    together at ``level``, stand for both rates (Jagielski et al., 2020, arXiv:2006.07709). Rows of one run are not
    independent draws of the mechanism, so over a single run the bound is an estimate.
    """
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    rng = np.random.default_rng(seed)
    (search_in, judge_in), (search_out, judge_out) = _halves(inside, rng), _halves(outside, rng)
    if min(map(len, (search_in, judge_in, search_out, judge_out))) == 0:
        return 0.0
    best, bound = -math.inf, 0.0
    for sign in (1.0, -1.0):  # the other direction speaks of those that are surely no members
        hit, miss = (search_in, search_out) if sign > 0 else (search_out, search_in)
        cuts = np.unique(np.concatenate([hit, miss]) * sign)
        hits = _share_from(np.sort(hit * sign), cuts) * len(hit)
        misses = _share_from(np.sort(miss * sign), cuts) * len(miss)
        promise = _log_ratio(_wilson(hits, len(hit))[0], _wilson(misses, len(miss))[1], delta)
        at = int(promise.argmax())
        if promise[at] <= best:
            continue
        best = float(promise[at])
        # Half way to the next score below: other rows of the same kind may lie a little lower.
        cut = cuts[at] if at == 0 else (cuts[at - 1] + cuts[at]) / 2
        judged, against = (judge_in, judge_out) if sign > 0 else (judge_out, judge_in)
        tail = (1 - level) / 2
        low, _ = clopper_pearson(int((judged * sign >= cut).sum()), len(judged), tail)
        _, high = clopper_pearson(int((against * sign >= cut).sum()), len(against), tail)
        bound = float(_log_ratio(np.array([low]), np.array([high]), delta)[0])
    return max(bound, 0.0)


def clopper_pearson(right: int, total: int, tail: float) -> tuple[float, float]:
    """Return the exact bounds of a share, each of which fails with probability at most ``tail``.

    They solve P(X >= right) = tail and P(X <= right) = tail for binomial X (Clopper and Pearson, 1934,
    doi:10.1093/biomet/26.4.404).

    >>> low, high = clopper_pearson(0, 10, 0.05)
    >>> low, round(high, 6)
    (0.0, 0.258866)
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} of {total} is no share.")
    low = 0.0 if right == 0 else _solve(lambda p: _tail(right, total, total, p) < tail)
    high = 1.0 if right == total else _solve(lambda p: _tail(0, right, total, p) > tail)
    return low, high


def _solve(below: Callable[[float], bool]) -> float:
    """Return where ``below`` turns from true to false between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _tail(first: int, last: int, total: int, p: float) -> float:
    """Return the probability of first to last successes of ``total``."""
    if p in (0.0, 1.0):
        return float(first <= total * p <= last)
    k = np.arange(first, last + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    logs = factorials[total] - factorials[k] - factorials[total - k] + k * math.log(p)
    return float(np.exp(logs + (total - k) * math.log1p(-p)).sum())


def _accuracy(inside: Numbers, outside: Numbers, seed: int) -> Interval:
    """Return the balanced accuracy when each half of the rows is judged by the other half's best threshold."""
    rng = np.random.default_rng(seed)
    (first_in, second_in), (first_out, second_out) = _halves(inside, rng), _halves(outside, rng)
    hits = rejected = 0
    for own_in, own_out, other_in, other_out in (
        (first_in, first_out, second_in, second_out),
        (second_in, second_out, first_in, first_out),
    ):
        known = np.unique(np.concatenate([other_in, other_out]))
        cuts = np.concatenate([[-np.inf], (known[1:] + known[:-1]) / 2, [np.inf]])
        gain = _share_from(np.sort(other_in), cuts) - _share_from(np.sort(other_out), cuts)
        cut = cuts[int(gain.argmax())]
        hits += int((own_in >= cut).sum())
        rejected += int((own_out < cut).sum())
    shares = np.array([hits / len(inside), rejected / len(outside)])
    again = rng.binomial([len(inside), len(outside)], shares, size=(RESAMPLES, 2)) / [len(inside), len(outside)]
    return percentile_interval(float(shares.mean()), again.mean(axis=1), LEVEL)


def _resampled(
    inside: Numbers, outside: Numbers, measures: list[Callable[[Numbers, Numbers], Numbers]], seed: int
) -> list[Interval]:
    """Return measures of how often each distinct score is there, with intervals by resampling both sides apart."""
    places = np.unique(np.concatenate([inside, outside]), return_inverse=True)[1]
    ours = np.bincount(places[: len(inside)], minlength=places.max() + 1)
    theirs = np.bincount(places[len(inside) :], minlength=places.max() + 1)
    rng = np.random.default_rng(seed)
    drawn_in, drawn_out = (
        rng.multinomial(side.sum(), side / side.sum(), size=RESAMPLES).astype(np.float64)
        for side in (ours, theirs)
    )
    return [
        percentile_interval(
            float(measure(ours[np.newaxis].astype(np.float64), theirs[np.newaxis].astype(np.float64))[0]),
            measure(drawn_in, drawn_out),
            LEVEL,
        )
        for measure in measures
    ]


def _auc(inside: Numbers, outside: Numbers) -> Numbers:
    """Return the chance that a member scores higher, by counts (resamples, scores) from the lowest score up."""
    below = outside.cumsum(axis=1) - outside / 2
    return np.asarray((inside * below).sum(axis=1) / (inside.sum(axis=1) * outside.sum(axis=1)))


def _caught_at(rate: float) -> Callable[[Numbers, Numbers], Numbers]:
    def caught(inside: Numbers, outside: Numbers) -> Numbers:
        true, false = (
            side[:, ::-1].cumsum(axis=1) / side.sum(axis=1, keepdims=True) for side in (inside, outside)
        )
        return np.asarray(np.where(false <= rate + 1e-12, true, 0.0).max(axis=1))

    return caught


def _halves(values: Numbers, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    order = rng.permutation(len(values))
    return values[order[: len(values) // 2]], values[order[len(values) // 2 :]]


def _share_from(ascending: Numbers, cuts: Numbers) -> Numbers:
    """Return the share of the values that are at least each cut."""
    return np.asarray(1 - np.searchsorted(ascending, cuts, side="left") / max(len(ascending), 1))


def _wilson(right: Numbers, total: int, z: float = 1.959964) -> tuple[Numbers, Numbers]:
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return np.asarray(centre - half), np.asarray(centre + half)


def _log_ratio(hits: Numbers, misses: Numbers, delta: float) -> Numbers:
    over = np.maximum(hits - delta, 1e-300)
    return np.asarray(np.log(over) - np.log(np.maximum(misses, 1e-300)))


def _plain(interval: Interval) -> dict[str, float | None]:
    ends = {"value": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}
