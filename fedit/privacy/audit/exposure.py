"""How far a planted secret stands out among secrets that were never trained on (arXiv:1802.08232)."""

import importlib.util
import math
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedit.data.canaries import BITS

CHANCE = 1 / math.log(2)
"""Mean exposure, in bits, of secrets that a model does not know, for many references."""

WORST_FIT = 0.05
"""A fitted distribution whose Kolmogorov-Smirnov p value is lower says nothing about its tail."""


def exposures(losses: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Return log2 R - log2 rank, (secrets,): log2 R where no reference is as likely, 0 where about all are.

    losses: (secrets,); references: (secrets, R), losses of other secrets in the same words. The rank is counted
    among references alone; those that lose as much rank first.
    """
    own, others = np.asarray(losses, dtype=np.float64), np.asarray(references, dtype=np.float64)
    ranks = 1 + (others <= own[:, np.newaxis]).sum(axis=1)
    return np.asarray(math.log2(others.shape[1]) - np.log2(ranks))


def extrapolated(loss: float, references: ArrayLike) -> float | None:
    """Return -log2 of the chance of so low a loss under a skew normal fitted to references, (R,).

    It goes beyond log2 R, where ranks end, up to the bits that a secret has. None: the fit is bad, or SciPy is not
    installed. That the test knows the fitted parameters makes it lenient.
    """
    if not can_extrapolate():
        return None
    from scipy import stats

    others = np.asarray(references, dtype=np.float64)
    if np.ptp(others) == 0:
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of the search for parameters
        fitted = stats.skewnorm.fit(others)
        if not stats.kstest(others, stats.skewnorm(*fitted).cdf).pvalue >= WORST_FIT:
            return None
        bits = float(-stats.skewnorm.logcdf(loss, *fitted) / math.log(2))
    return min(bits, BITS) if not math.isnan(bits) else None


def can_extrapolate() -> bool:
    """Whether SciPy is there."""
    return importlib.util.find_spec("scipy") is not None
