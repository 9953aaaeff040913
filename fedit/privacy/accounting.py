"""What noise is worth: (epsilon, delta) of Gaussian mechanisms over rounds, through the library dp-accounting.

Privacy loss distributions (PLD, arXiv:2106.08567) give the figure that counts; Renyi differential privacy (RDP,
arXiv:1702.07476, with sampling arXiv:1908.10530) bounds it from above by other mathematics and stands beside it.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedit.errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

SamplingKind = Literal["poisson", "without_replacement", "none"]

FINEST = 1e-4
"""Width of the bins of a privacy loss distribution, where epsilon is small."""
BINS = 2e5
"""Bins up to epsilon: where that is large, finer ones would cost gigabytes and show nothing."""
CLOSE = 1e-3
"""What a calibrated noise multiplier may leave unspent, relative to the target."""
MOST_NOISE = 1e4
WHOLE = (*range(2, 65), 96, 128, 256, 512, 1024)
"""Orders that are computed fast; what they say is never too little."""


@dataclass(frozen=True, slots=True)
class Charge:
    """Some rounds of one Gaussian mechanism.

    noise_multiplier: standard deviation of the noise over what one unit can change the sum by.
    sampling: how a round's units are drawn: each by its own coin; so many of all; or in a way that hides nobody.
    rate:     the coin's probability, or the share that is drawn; read where a draw is made.
    population: units that so many are drawn of; read where they are drawn without replacement.
    """

    noise_multiplier: float
    steps: int
    sampling: SamplingKind = "poisson"
    rate: float = 1.0
    population: int = 0


@dataclass(frozen=True, slots=True)
class Epsilon:
    """Epsilon by both accountants; pld is None where no such accountant knows the sampling."""

    pld: float | None
    rdp: float

    @property
    def value(self) -> float:
        """The figure that counts: the tight one where there is one."""
        return self.rdp if self.pld is None else self.pld

    @property
    def shown(self) -> str:
        """The figure that counts, for people."""
        return shown(self.value)

    @property
    def shown_rdp(self) -> str:
        """The looser figure, for people."""
        return shown(self.rdp)


def steps_within(charge: Charge, most: int, limit: float, delta: float) -> int:
    """Return how many steps of a mechanism spend at most ``limit``, where ``most`` spend more."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        within = epsilon_of((replace(charge, steps=middle),), delta).value <= limit
        low, high = (middle, high) if within else (low, middle)
    return low


def shown(epsilon: float) -> str:
    """Return an epsilon for people."""
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else "unbounded"


def finite(epsilon: float) -> float | None:
    """Return an epsilon for JSON, which has no infinity: None."""
    return epsilon if math.isfinite(epsilon) else None


def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> Epsilon:
    """Return what ``steps`` rounds spend whose units each take part by a coin, neighbours differing in one unit.

    Raises:
        ConfigError: a number is out of its range, or dp-accounting is not installed.
    """
    return epsilon_of((Charge(noise_multiplier, steps, "poisson", sampling_rate),), delta)


@lru_cache(maxsize=256)
def epsilon_of(charges: tuple[Charge, ...], delta: float) -> Epsilon:
    """Return what all charges together spend; nothing spent is 0, no noise is infinite.

    Raises:
        ConfigError: a number is out of its range, charges suppose different neighbours, or dp-accounting is not
            installed.
    """
    _check(charges, delta)
    charges = tuple(charge for charge in charges if charge.steps and charge.rate)
    if not charges:
        return Epsilon(0.0, 0.0)
    if any(charge.noise_multiplier == 0 for charge in charges):
        return Epsilon(math.inf, math.inf)
    rdp = _rdp(charges, delta)
    replaces = any(charge.sampling == "without_replacement" for charge in charges)
    return Epsilon(None if replaces else _pld(charges, delta, max(FINEST, rdp / BINS)), rdp)


def calibrate(
    target: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    sampling: SamplingKind = "poisson",
    population: int = 0,
) -> float:
    """Return the least noise multiplier, that spends at most ``target``, to a thousandth of that.

    Raises:
        ConfigError: as `epsilon_of`, or no noise is enough.
    """
    if not 0 < target < math.inf:
        raise ConfigError(f"epsilon is {target}; expected more than 0.")

    def excess(noise: float, *, tight: bool) -> float:
        """Return the logarithm of what is spent over what may be."""
        charges = (Charge(noise, steps, sampling, sampling_rate, population),)
        spent = epsilon_of(charges, delta).value if tight else _rdp(charges, delta, WHOLE)
        return math.log(max(spent, 1e-12) / target)

    _check((Charge(1.0, steps, sampling, sampling_rate, population),), delta)
    if steps == 0 or sampling_rate == 0:
        return 0.0
    # The loose accountant is fast, and what suffices by it suffices by the other one.
    low, high = 1e-2, MOST_NOISE
    if excess(high, tight=False) > 0:
        raise ConfigError(f"no noise multiplier up to {MOST_NOISE:g} spends as little as epsilon {target:g}.")
    while high > 1.05 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if excess(middle, tight=False) <= 0 else (middle, high)
    return _refined(lambda noise: excess(noise, tight=True), high)


def _refined(excess: Callable[[float], float], enough: float) -> float:
    """Return a noise multiplier below ``enough`` whose excess is just below 0.

    Epsilon is close to a power of the noise, so that logarithms are drawn through by straight lines.
    """
    high, over = enough, excess(enough)
    low, under = high, over
    while under <= 0:  # until there is one on the other side
        high, over = low, under
        low = high / (1.02 + min(-over, 1.0))
        under = excess(low)
    while over < -CLOSE and high > (1 + 1e-5) * low:
        aim = (over + 0.3 * CLOSE) / (over - under)
        middle = math.exp(math.log(high) + min(max(aim, 0.02), 0.98) * math.log(low / high))
        found = excess(middle)
        if found <= 0:
            high, over = middle, found
        else:
            low, under = middle, found
    return high


def _check(charges: Sequence[Charge], delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta is {delta}; expected a number between 0 and 1.")
    for charge in charges:
        if not 0 <= charge.noise_multiplier < math.inf:
            raise ConfigError(f"the noise multiplier is {charge.noise_multiplier}; expected 0 or more.")
        if not 0 <= charge.rate <= 1:
            raise ConfigError(f"the sampling rate is {charge.rate}; expected 0 to 1.")
        if charge.steps < 0:
            raise ConfigError(f"the number of steps is {charge.steps}; expected 0 or more.")
    if len({charge.sampling == "without_replacement" for charge in charges}) > 1:
        raise ConfigError("rounds that suppose different neighbours (added or replaced units) cannot be added up.")


def _rdp(charges: Sequence[Charge], delta: float, orders: Sequence[float] | None = None) -> float:
    with _library():
        from dp_accounting import NeighboringRelation
        from dp_accounting.rdp import RdpAccountant

        replaces = any(charge.sampling == "without_replacement" for charge in charges)
        relation = NeighboringRelation.REPLACE_ONE if replaces else NeighboringRelation.ADD_OR_REMOVE_ONE
        accountant = RdpAccountant(orders, relation)
        for charge in charges:
            accountant.compose(_event(charge), charge.steps)
        return float(accountant.get_epsilon(delta))


def _pld(charges: Sequence[Charge], delta: float, width: float) -> float:
    with _library():
        from dp_accounting.pld import PLDAccountant

        accountant = PLDAccountant(value_discretization_interval=width)
        for charge in charges:
            accountant.compose(_event(charge), charge.steps)
        return float(accountant.get_epsilon(delta))


def _event(charge: Charge) -> "DpEvent":
    """Return one round of ``charge`` in the library's words."""
    import dp_accounting as dp

    noise = dp.GaussianDpEvent(charge.noise_multiplier)
    if charge.sampling == "poisson" and charge.rate < 1:
        return dp.PoissonSampledDpEvent(charge.rate, noise)
    if charge.sampling == "without_replacement":
        return dp.SampledWithoutReplacementDpEvent(
            charge.population, round(charge.rate * charge.population), noise
        )
    return noise


@contextmanager
def _library() -> Iterator[None]:
    """Use dp-accounting: say how to get it, and keep it from warning of orders that it then leaves out."""
    log = logging.getLogger("absl")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        yield
    except ImportError as error:
        raise ConfigError(
            f"accounting for privacy needs dp-accounting ({error}); install it with: pip install 'fedit[privacy]'"
        ) from error
    finally:
        log.setLevel(level)
