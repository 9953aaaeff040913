"""When clients can be asked: always, by day and night, or as a file says."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from fedit import clientfiles, registry, seeds
from fedit.errors import ConfigError

AVAILABILITIES: dict[str, str] = {
    "always": "fedit.availability:Always",
    "diurnal": "fedit.availability:Diurnal",
    "trace": "fedit.availability:Trace",
}


@dataclass(frozen=True)
class Availability(ABC):
    """When a client can be asked. Times are seconds of the virtual clock; without one, rounds before this one."""

    @abstractmethod
    def wait(self, client_id: str, now: float, seed: int) -> float:
        """Return how long from ``now`` until the client can be asked: 0 at once, infinity never."""

    def check(self, clients: Sequence[str]) -> None:
        """Raise ``ConfigError`` if it does not fit these clients."""


@dataclass(frozen=True)
class Always(Availability):
    """Everybody can be asked at any time."""

    def wait(self, client_id: str, now: float, seed: int) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class Diurnal(Availability):
    """Every client is there for a part of each day, from an hour of its own on.

    period: length of a day.
    share: part of the day that a client is there.
    """

    period: float = 86400.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.period <= 0 or not 0 < self.share <= 1:
            raise ConfigError(
                f"availability 'diurnal' has period {self.period} and share {self.share}; "
                "expected a period above 0 and a share above 0, up to 1."
            )

    def wait(self, client_id: str, now: float, seed: int) -> float:
        """Return the time until the client's next day begins, 0 within it."""
        start = seeds.derive(seed, "availability", client_id) / 2**63 * self.period
        into = (now - start) % self.period
        return 0.0 if into < self.share * self.period else self.period - into


@dataclass(frozen=True)
class Trace(Availability):
    """Clients are there in the intervals of a JSON file.

    file: {"client": [[start, end], …], …}, ends excluded; "*" stands for all clients that it does not name.
    period: repeat the file after this time; 0: it holds once.
    """

    file: str
    period: float = 0.0

    def __post_init__(self) -> None:
        for client, intervals in self._intervals().items():
            if not isinstance(intervals, list) or not all(map(_is_interval, intervals)):
                raise ConfigError(f"{self.file}: '{client}' is {intervals!r}; expected a list of [start, end].")

    def wait(self, client_id: str, now: float, seed: int) -> float:
        """Return the time until the client's next interval begins, 0 within one."""
        intervals = cast(list[list[float]], clientfiles.entry(self._intervals(), client_id))
        at = now % self.period if self.period > 0 else now
        if any(start <= at < end for start, end in intervals):
            return 0.0
        ahead = [start - at for start, _ in intervals if start > at]
        if self.period > 0:
            ahead += [start + self.period - at for start, _ in intervals]
        return min(ahead, default=math.inf)

    def check(self, clients: Sequence[str]) -> None:
        """Refuse a file that says nothing of some client."""
        clientfiles.check(self.file, self._intervals(), clients)

    def _intervals(self) -> Mapping[str, object]:
        return clientfiles.read("availability", self.file)


def build_availability(name: str, options: Mapping[str, object]) -> Availability:
    """Return the availability called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such name.
        ConfigError: no such option, or a value of the wrong type or size.
    """
    return cast(Availability, registry.build("availability", name, options, AVAILABILITIES, Availability))


def _is_interval(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(end, int | float) and not isinstance(end, bool) for end in value)
        and value[0] < value[1]
    )
