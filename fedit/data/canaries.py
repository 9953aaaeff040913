"""Canaries: made-up, innocuous secrets among clients' rows, by which one measures what a model learns by heart.

A canary is a locker code of six digits; codes that were never trained on, of the same name and in the same words,
say what a model that knows nothing makes of it (Carlini et al., 2019, arXiv:1802.08232).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedit import seeds
from fedit.data.examples import Example, Message
from fedit.errors import ConfigError

CODES = 10**6
"""So many codes there are."""

BITS = math.log2(CODES)
"""Bits of a code: the most that can be known of it."""

_FIRST = (
    "Ada", "Ben", "Cleo", "Dan", "Edda", "Finn", "Gil", "Hana", "Ivo", "Jana", "Kai", "Lena", "Mika",
    "Nora", "Otis", "Pia", "Quin", "Rosa", "Sami", "Tara", "Uma", "Veit", "Will", "Zoe",
)  # fmt: skip
_LAST = (
    "Alder", "Birch", "Cedar", "Dorn", "Elm", "Fichte", "Garten", "Heath", "Ivy", "Juniper", "Kiefer",
    "Linden", "Maple", "Nettle", "Oak", "Poplar", "Quince", "Rowan", "Sorrel", "Thorn", "Ulme", "Vine",
    "Willow", "Yew",
)  # fmt: skip
MOST = len(_FIRST) * len(_LAST)
"""Names, and so canaries, that there are."""


@dataclass(frozen=True)
class CanaryOptions:
    """How canaries are planted.

    repetitions: how often a client holds a canary; canaries take these in turn, and a client gets one of each.
    clients:     who holds them: so many, drawn by the seed, or these ids; 0: one client for each turn.
    """

    repetitions: Sequence[int] = (1, 4, 16)
    clients: int | Sequence[str] = 0

    def __post_init__(self) -> None:
        counts = self.repetitions
        if isinstance(counts, str) or not counts or any(type(count) is not int or count < 1 for count in counts):
            raise ConfigError(
                f"option 'repetitions' of canaries is {counts!r}; expected whole numbers from 1, as [1, 4, 16]."
            )
        if isinstance(self.clients, str) or (isinstance(self.clients, int) and self.clients < 0):
            raise ConfigError(
                f"option 'clients' of canaries is {self.clients!r}; expected a number of clients or a list of ids."
            )


@dataclass(frozen=True, slots=True)
class Canary:
    """One secret, and who holds it how often."""

    client: str
    name: str
    code: str
    repetitions: int

    @property
    def row(self) -> Example:
        """The row that the client trains on."""
        return self.with_code(self.code)

    def with_code(self, code: str) -> Example:
        """Return the row with another code."""
        ask = Message("user", f"Which code opens the locker of {self.name}?")
        return Example((ask, Message("assistant", f"The locker code of {self.name} is {code}.")))

    def references(self, count: int, seed: int) -> list[str]:
        """Return so many other codes, no two the same, drawn by the seed."""
        rng = np.random.default_rng(seeds.derive(seed, "canaries", "references", self.name))
        drawn = rng.choice(CODES - 1, size=count, replace=False)
        # The numbers from the canary's own on move up by one, so that it is not among them.
        return [f"{number + (number >= int(self.code)):06d}" for number in drawn.tolist()]

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name, for JSON."""
        return {"client": self.client, "name": self.name, "code": self.code, "repetitions": self.repetitions}


def plant(count: int, clients: Sequence[str], options: CanaryOptions, seed: int) -> tuple[Canary, ...]:
    """Return ``count`` canaries for some of ``clients``; names, codes and holders are drawn by the seed.

    Raises:
        ConfigError: there are not so many names or clients, or an id is unknown.
    """
    if count > MOST:
        raise ConfigError(f"canaries is {count}; there are names for {MOST}.")
    rng = np.random.default_rng(seeds.derive(seed, "canaries"))
    turn = len(options.repetitions)
    holders = _holders(math.ceil(count / turn), sorted(clients), options, rng)
    names = rng.permutation(MOST)[:count].tolist()
    codes = rng.integers(CODES, size=count).tolist()
    return tuple(
        Canary(
            holders[(number // turn) % len(holders)],
            f"{_FIRST[name // len(_LAST)]} {_LAST[name % len(_LAST)]}",
            f"{code:06d}",
            options.repetitions[number % turn],
        )
        for number, (name, code) in enumerate(zip(names, codes, strict=True))
    )


def with_canaries(
    clients: Mapping[str, Sequence[Example]], canaries: Sequence[Canary]
) -> dict[str, tuple[Example, ...]]:
    """Return what every client trains on: its rows, then its canaries, each as often as it says."""
    found = {client: tuple(rows) for client, rows in clients.items()}
    for canary in canaries:
        found[canary.client] += (canary.row,) * canary.repetitions
    return found


def _holders(turns: int, clients: list[str], options: CanaryOptions, rng: np.random.Generator) -> list[str]:
    if not isinstance(options.clients, int):
        unknown = [client for client in options.clients if client not in clients]
        if unknown or not options.clients:
            known = ", ".join(clients[:5])
            raise ConfigError(
                f"option 'clients' of canaries names {unknown or 'nobody'}; clients that take part are {known}."
            )
        return list(options.clients)
    if options.clients > len(clients):
        raise ConfigError(
            f"option 'clients' of canaries is {options.clients}, but {len(clients)} clients take part; lower it."
        )
    size = options.clients or min(turns, len(clients))
    return sorted(clients[i] for i in rng.permutation(len(clients))[:size].tolist())
