"""How sure is a number? Bootstrap intervals over questions and over seeds, and tests for paired numbers.

Everything is seeded and computed in float64; a replicate is never drawn in a Python loop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Takes samples, (resamples, items) or (resamples, items, columns), and returns one number each, (resamples,)."""

RESAMPLES = 10_000
_NUMBERS_AT_ONCE = 2_000_000
"""Most float64 numbers of a block of replicates: 16 MB."""
_ENUMERATED = 16
"""Most differences whose sign patterns are all counted instead of drawn: 65,536 patterns."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval of a bootstrap around the estimate from the data themselves.

    level: the share of replicates between ``low`` and ``high``.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def bounds(self) -> list[float]:
        """Return ``[low, high]``."""
        return [self.low, self.high]


def mean(samples: Array) -> Array:
    """Return the mean over items, (resamples,)."""
    return np.asarray(samples.mean(axis=1))


def ratio_of_sums(samples: Array) -> Array:
    """Return the sum of column 0 over the sum of column 1, (resamples,); NaN where the latter is 0."""
    top, bottom = samples[:, :, 0].sum(axis=1), samples[:, :, 1].sum(axis=1)
    return np.asarray(np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom != 0))


def difference_of_means(samples: Array) -> Array:
    """Return the mean of column 0 minus the mean of column 1, (resamples,)."""
    return np.asarray(samples[:, :, 0].mean(axis=1) - samples[:, :, 1].mean(axis=1))


def resampled_counts(items: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Array]:
    """Yield how often each item is in each replicate, in blocks of (replicates, items); rows sum to ``items``.

    For statistics of weighted items, which need no copies of them.
    """
    generator = np.random.default_rng(seed)
    for size in _block_sizes(resamples, items):
        yield generator.multinomial(items, np.full(items, 1 / items), size=size).astype(np.float64)


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of ``statistic`` when items are drawn anew with replacement.

    values: (items,) or (items, columns). A row stays whole, so columns are resampled in pairs: two arms' numbers
    on the same questions belong into two columns of one call.

    >>> interval = bootstrap([1.0, 2.0, 3.0, 4.0], resamples=2000)
    >>> interval.estimate, interval.low < 2.5 < interval.high
    (2.5, True)

    Raises:
        ValueError: there are no items, or ``level`` or ``resamples`` is out of range.

    Efron, 1979, doi:10.1214/aos/1176344552.
    """
    items = _checked(values, resamples, level)
    generator = np.random.default_rng(seed)
    blocks = [
        _applied(statistic, items[generator.integers(len(items), size=(size, len(items)))])
        for size in _block_sizes(resamples, items.size)
    ]
    return percentile_interval(float(_applied(statistic, items[np.newaxis])[0]), np.concatenate(blocks), level)


def nested_bootstrap(
    values: Sequence[ArrayLike],
    statistic: Statistic | Sequence[Statistic] = mean,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of the mean over seeds of ``statistic``: seeds are drawn anew, then items within each.

    statistic: one for all seeds, or each seed's own.
    values[s]: the items of seed s, (items,) or (items, columns); seeds may have different numbers of items. A row
    stays whole, so to compare arms, put their numbers on the same item into columns and use
    `difference_of_means` (or `ratio_of_sums`), or give the differences themselves. With one seed this is
    `bootstrap` and says nothing about other seeds. Items are drawn independently for every drawn seed: where all
    seeds share one set of questions, what is common to them is not accounted for.

    >>> nested_bootstrap([[1.0, 2.0], [3.0, 4.0, 5.0]], resamples=500).estimate
    2.75

    Raises:
        ValueError: there is no seed, a seed has no items or no statistic, or ``level`` or ``resamples`` is out of
            range.

    Davison and Hinkley, 1997, Bootstrap Methods and their Application, section 3.8 (both levels resampled).
    """
    seeds = [_checked(of_seed, resamples, level) for of_seed in values]
    if not seeds:
        raise ValueError("there are no seeds to resample.")
    statistics = [statistic] * len(seeds) if callable(statistic) else list(statistic)
    if len(statistics) != len(seeds):
        raise ValueError(f"there are {len(statistics)} statistics for {len(seeds)} seeds.")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(seeds), size=(resamples, len(seeds)))
    results = np.empty(drawn.shape)
    for number, items in enumerate(seeds):
        places = np.flatnonzero(drawn == number)
        start = 0
        for size in _block_sizes(len(places), items.size):
            picked = generator.integers(len(items), size=(size, len(items)))
            results.flat[places[start : start + size]] = _applied(statistics[number], items[picked])
            start += size
    whole = [_applied(own, items[np.newaxis])[0] for own, items in zip(statistics, seeds, strict=True)]
    estimate = float(np.mean(whole))
    return percentile_interval(estimate, results.mean(axis=1), level)


def percentile_interval(estimate: float, replicates: Array, level: float = 0.95) -> Interval:
    """Return the interval between the outer quantiles of ``replicates``, (resamples,).

    Replicates that are undefined (a ratio to nothing) are left out; without any other the bounds are NaN.
    """
    defined = replicates[np.isfinite(replicates)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), level)


def sign_test(differences: ArrayLike) -> float:
    """Return the exact two-sided p value of as many positive and negative differences; zeros do not count.

    >>> sign_test([1, 1, 1, 1, 1]), sign_test([1, -1, 0])
    (0.0625, 1.0)
    """
    numbers = np.asarray(differences, dtype=np.float64)
    positive, negative = int((numbers > 0).sum()), int((numbers < 0).sum())
    total = positive + negative
    # In whole numbers: a float would lose the tail of a thousand questions.
    tail = sum(math.comb(total, k) for k in range(min(positive, negative) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def permutation_test(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p value of the mean of paired differences when signs are exchanged.

    Up to 16 differences all sign patterns are counted; beyond, ``resamples`` are drawn and the data's own
    pattern counts as one of them, so that p is never 0.

    >>> permutation_test([1.0, 2.0, 3.0])
    0.25
    """
    numbers = np.asarray(differences, dtype=np.float64)
    n = len(numbers)
    observed = abs(numbers.sum()) * (1 - 1e-12)
    if n <= _ENUMERATED:
        signs = 1 - 2 * ((np.arange(2**n)[:, np.newaxis] >> np.arange(n)) & 1)
        return float((np.abs(signs @ numbers) >= observed).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for size in _block_sizes(resamples, n):
        signs = 1 - 2 * generator.integers(2, size=(size, n))
        extreme += int((np.abs(signs @ numbers) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def minimum_detectable_difference(
    differences: ArrayLike, *, items: int | None = None, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Return the smallest true mean difference that would be found with ``power`` at two-sided level ``alpha``.

    It is (z(1 - alpha/2) + z(power)) · sd / √n, with the standard deviation of the paired differences at hand.

    items: n, if it is not the number of differences; None without two differences.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    if len(numbers) < 2:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return float(z * numbers.std(ddof=1) / math.sqrt(items or len(numbers)))


def _checked(values: ArrayLike, resamples: int, level: float) -> Array:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim not in (1, 2) or not len(items):
        raise ValueError(f"values have the shape {items.shape}; expected (items,) or (items, columns), not empty.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples is {resamples} and level {level}; expected at least 1, and between 0 and 1.")
    return items


def _applied(statistic: Statistic, samples: Array) -> Array:
    numbers = np.asarray(statistic(samples))
    if numbers.shape != samples.shape[:1]:
        raise ValueError(
            f"the statistic made {numbers.shape} of samples {samples.shape}; expected one number a sample, as "
            "fedit.evaluation.intervals.mean gives."
        )
    return numbers


def _block_sizes(resamples: int, numbers: int) -> Iterator[int]:
    """Cut ``resamples`` replicates of so many numbers into blocks that fit into memory."""
    block = max(1, _NUMBERS_AT_ONCE // max(numbers, 1))
    for start in range(0, resamples, block):
        yield min(block, resamples - start)
