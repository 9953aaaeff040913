"""What every level of differential privacy is given: noise or a budget, the delta, and where to stop."""

import math
from dataclasses import dataclass
from typing import Literal

from fedit.errors import ConfigError
from fedit.privacy.accounting import Charge, SamplingKind


@dataclass(frozen=True, kw_only=True)
class Level:
    """A level of privacy. A subclass is a frozen dataclass whose fields are its options.

    Exactly one of noise_multiplier and epsilon is given; with epsilon the noise is found before round 1.

    clip_norm:        what one unit's contribution is clipped to (Euclidean norm).
    noise_multiplier: standard deviation of the noise over the clip norm; larger protects more.
    epsilon:          what all rounds of the job together may spend.
    delta:            chance that the guarantee fails; auto: a tenth of one over the units (clients or examples).
    max_epsilon:      the run ends before the round that would spend more; None: where epsilon is given, that.
    """

    clip_norm: float
    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float | Literal["auto"] = "auto"
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ConfigError("privacy_options: give exactly one of noise_multiplier and epsilon.")
        for name, value in (("epsilon", self.epsilon), ("max_epsilon", self.max_epsilon)):
            if value is not None and not 0 < value < math.inf:
                raise self._bad(name, value, "more than 0")
        if not self.clip_norm > 0:
            raise self._bad("clip_norm", self.clip_norm, "more than 0")
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < math.inf:
            raise self._bad("noise_multiplier", self.noise_multiplier, "0 or more")
        if self.clip_norm == math.inf and self.noise_multiplier != 0:
            raise self._bad("clip_norm", self.clip_norm, "a number: noise is in proportion to it")
        if isinstance(self.delta, float | int) and not 0 < self.delta < 1:
            raise self._bad("delta", self.delta, "a number between 0 and 1, below one over the units")

    def _bad(self, name: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"privacy option '{name}' is {value}; expected {expected}.")

    def delta_for(self, units: int) -> float:
        """Return delta where so many units (clients or examples) are protected."""
        return 0.1 / units if self.delta == "auto" else float(self.delta)

    @property
    def limit(self) -> float:
        """Epsilon that a run may not exceed; infinite: none was given."""
        return next((value for value in (self.max_epsilon, self.epsilon) if value is not None), math.inf)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Who may be in a round, as an accountant sees it.

    rate:      probability that a client is asked, whether its update is waited for or not.
    expected:  the fixed denominator of the mean: clients that a round wants, on average.
    changes:   what a neighbouring federation can change the sum by, in clip norms: 1 where a client is there or
               not, 2 where somebody else comes in its place.
    neighbours: the two federations that cannot be told apart, in words.
    reason:    why the draw hides clients, or why it does not, in words.
    """

    kind: SamplingKind
    rate: float
    expected: float
    population: int
    changes: int
    neighbours: str
    reason: str

    def charge(self, noise_multiplier: float, steps: int = 1) -> Charge:
        """Return the charge of rounds whose noise is ``noise_multiplier`` clip norms."""
        population = self.population if self.kind == "without_replacement" else 0
        return Charge(noise_multiplier / self.changes, steps, self.kind, self.rate, population)
