"""Selection: who takes part in a round, from hashes of (seed, round, client) and what the server heard before."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedit import seeds
from fedit.types import ClientInfo


@dataclass(frozen=True, slots=True)
class Known:
    """What the server knows of a client from earlier rounds.

    asked:   how often it was asked.
    heard:   the last round whose update of it was accepted; 0: none.
    loss:    its mean training loss in that round, nats a token; None: not heard of.
    seconds: what that round took it on the virtual clock; None: no clock, or not heard of.
    """

    asked: int = 0
    heard: int = 0
    loss: float | None = None
    seconds: float | None = None


UNKNOWN = Known()


@dataclass(frozen=True, slots=True)
class Pool:
    """Whom a round may ask, and how many.

    clients:    those who are available, in any order.
    size:       clients that are wanted.
    population: clients of the federation, available or not.
    known:      client id -> what was heard of it; those who were never asked are left out.
    """

    clients: Sequence[ClientInfo]
    size: int
    population: int
    round: int
    seed: int
    known: Mapping[str, Known] = field(default_factory=dict)

    def of(self, client_id: str) -> Known:
        """Return what is known of a client."""
        return self.known.get(client_id, UNKNOWN)


@dataclass(frozen=True)
class Selection(ABC):
    """A policy. A subclass is a frozen dataclass whose fields are its options."""

    @abstractmethod
    def choose(self, pool: Pool) -> list[str]:
        """Return the ids of the cohort, each once (or as often as it was drawn, where draws are replaced).

        It follows from the pool alone, whatever the order of its clients.
        """

    @property
    def remembers(self) -> bool:
        """Whether it looks at what is known of clients, which is then kept from round to round."""
        return False

    @property
    def needs_losses(self) -> bool:
        """Whether it chooses by what single clients tell of their training, which secure sums and noise hide."""
        return False

    @property
    def averages_draws(self) -> bool:
        """Whether clients are drawn by their size, so that an update weighs as often as it was drawn, no more."""
        return False

    @property
    def fixed_size(self) -> bool:
        """Whether the cohort has exactly the size that is wanted, as far as there are clients."""
        return True


def uniforms(seed: int, *path: str | int, ids: Sequence[str]) -> list[float]:
    """Return a number in (0, 1) for every id, each from its own hash: who else is there does not move it."""
    # 52 bits: the halves between them are exact, and neither 0 nor 1 is reached.
    return [((draw >> 11) + 0.5) / 2**52 for draw in seeds.derive_each(seed, *path, ends=ids)]


def race(seed: int, *path: str | int, weights: Mapping[str, float]) -> list[str]:
    """Return ids in the order of draws without replacement, each next one proportional to its weight.

    An exponential race: id k arrives at -ln(u_k) / w_k (Efraimidis and Spirakis, 2006). Those without weight
    come last.
    """
    draws = uniforms(seed, *path, ids=list(weights))
    times = {
        client_id: (-math.log(u) / weight if weight > 0 else math.inf, u)
        for (client_id, weight), u in zip(weights.items(), draws, strict=True)
    }
    return sorted(times, key=lambda client_id: (times[client_id], client_id))
