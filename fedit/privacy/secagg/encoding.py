"""Real numbers as whole ones modulo 2^64, so that sums are exact: fixed point over a range that all are told."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedit.errors import ConfigError, ProtocolError
from fedit.privacy.secagg.crypto import Words

MOST_BITS = 44
"""Finest grid: float64 holds what falls on it exactly, and float32 entries need no finer one."""
LEAST_BITS = 20
_HALF = 63
"""Sums stay below 2 to this, so that both signs have room in 64 bits."""
_CHUNK = 1 << 16

Reals = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Entries between -limit and limit as multiples of limit / 2^bits, times whole weights up to ``heaviest``.

    The mean that sums give is off by half a multiple at most, limit / (2 * 2^bits), whatever the weights are.
    """

    limit: float
    bits: int
    heaviest: int = 1

    @classmethod
    def for_cohort(cls, limit: float, clients: int, heaviest: int, finest: int = MOST_BITS) -> "FixedPoint":
        """Return the finest grid on which no sum over so many clients can overflow.

        Raises:
            ConfigError: there is none that is fine enough to be of use.
        """
        bits = min(finest, _HALF - (clients * heaviest).bit_length())
        if bits < LEAST_BITS:
            raise ConfigError(
                f"sums over {clients} clients that weigh up to {heaviest} leave secure aggregation no room: "
                "set weighting to uniform, or clients_per_round lower."
            )
        return cls(limit, bits, heaviest)

    @property
    def step(self) -> float:
        """Distance of two neighbours on the grid."""
        return self.limit / (1 << self.bits)

    def overflows(self, clients: int) -> bool:
        """Return whether a sum over so many clients may leave 64 bits."""
        return clients * self.heaviest << self.bits >= 1 << _HALF

    def encode(self, values: Reals, weight: int, out: Words, noise: Reals | None = None) -> None:
        """Write ``weight`` times the values, rounded to the grid, to ``out``.

        noise: is added before rounding; then only the sum of both must be in the range of 64 bits.

        Raises:
            ProtocolError: a value is beyond the limit or no number, or the weight too large.
        """
        if not 0 <= weight <= self.heaviest:
            raise ProtocolError(f"a weight is {weight}; expected 0 to {self.heaviest}")
        for start in range(0, len(values), _CHUNK):
            piece = values[start : start + _CHUNK].astype(np.float64)
            largest = float(np.abs(piece).max(initial=0.0))
            if not largest <= self.limit:
                raise ProtocolError(f"an entry is {largest:.4g}; expected at most {self.limit:.4g}")
            if noise is not None:
                piece += noise[start : start + _CHUNK]
            whole = np.rint(piece / self.limit * (1 << self.bits)).astype(np.int64)
            np.multiply(whole, weight, out=out[start : start + _CHUNK].view(np.int64))

    def decode(self, total: Words) -> NDArray[np.float64]:
        """Return the sum of weighted values whose encodings add up to ``total``."""
        return np.multiply(total.view(np.int64), self.step, dtype=np.float64)
