"""A virtual clock for simulations: what a client's round would take on its device, from seeds and sizes alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, cast

from fedit import clientfiles, registry, seeds
from fedit.errors import ConfigError

if TYPE_CHECKING:  # `fedit list` reads the table, without the library behind these
    from fedit.types import ClientInfo, LocalTraining

DEVICES: dict[str, str] = {
    "equal": "fedit.clock:Equal",
    "lognormal": "fedit.clock:Lognormal",
    "file": "fedit.clock:Listed",
}

MEGABIT = 1e6 / 8
"""Bytes of a megabit."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a client computes and sends with.

    speed: tokens trained a second; up, down: megabits a second; latency: seconds, each way.
    """

    speed: float = 1000.0
    up: float = 10.0
    down: float = 50.0
    latency: float = 0.05

    def problem(self) -> str | None:
        """Return what is wrong with it."""
        for name in ("speed", "up", "down"):
            if not 0 < getattr(self, name) < math.inf:
                return f"{name} is {getattr(self, name)}; expected more than 0"
        return None if 0 <= self.latency < math.inf else f"latency is {self.latency}; expected 0 or more"


@dataclass(frozen=True)
class Devices(ABC):
    """Which device each client has."""

    @abstractmethod
    def device(self, client_id: str, seed: int) -> Device:
        """Return the client's device, the same in every round."""

    def check(self, clients: Sequence[str]) -> None:
        """Raise ``ConfigError`` if it does not fit these clients."""


@dataclass(frozen=True)
class Equal(Devices):
    """All devices are alike.

    speed: tokens trained a second.
    up: megabits a second to the server.
    down: megabits a second from the server.
    latency: seconds, each way.
    """

    speed: float = 1000.0
    up: float = 10.0
    down: float = 50.0
    latency: float = 0.05

    def __post_init__(self) -> None:
        _refuse("equal", self.device("", 0).problem())

    def device(self, client_id: str, seed: int) -> Device:
        """Return the device of all clients."""
        return Device(self.speed, self.up, self.down, self.latency)


@dataclass(frozen=True)
class Lognormal(Devices):
    """Speeds and bandwidths are drawn once a client from log-normal distributions.

    speed: median of the tokens trained a second.
    speed_sigma: standard deviation of the logarithm of the speed; 0.5: its 90th percentile is 3.6 times its 10th.
    up: median megabits a second to the server.
    down: median megabits a second from the server.
    bandwidth_sigma: that of the bandwidth; both directions of a client share one draw.
    latency: seconds, each way.
    """

    speed: float = 1000.0
    speed_sigma: float = 0.5
    up: float = 10.0
    down: float = 50.0
    bandwidth_sigma: float = 0.5
    latency: float = 0.05

    def __post_init__(self) -> None:
        _refuse("lognormal", Device(self.speed, self.up, self.down, self.latency).problem())
        for name in ("speed_sigma", "bandwidth_sigma"):
            if not 0 <= getattr(self, name) <= 5:
                _refuse("lognormal", f"{name} is {getattr(self, name)}; expected 0 to 5")

    def device(self, client_id: str, seed: int) -> Device:
        """Return the client's draw."""
        compute, network = (_normal(seed, what, client_id) for what in ("speed", "bandwidth"))
        faster, wider = math.exp(self.speed_sigma * compute), math.exp(self.bandwidth_sigma * network)
        return Device(self.speed * faster, self.up * wider, self.down * wider, self.latency)


@dataclass(frozen=True)
class Listed(Devices):
    """A JSON file says what each client has.

    file: {"client": {"speed": …, "up": …, "down": …, "latency": …}, …}, what is left out as in devices=equal;
        "*" stands for all clients that it does not name.
    """

    file: str

    def __post_init__(self) -> None:
        for client, says in self._found().items():
            self._device(client, says)

    def device(self, client_id: str, seed: int) -> Device:
        """Return what the file says."""
        return self._device(client_id, clientfiles.entry(self._found(), client_id))

    def check(self, clients: Sequence[str]) -> None:
        """Refuse a file that says nothing of some client."""
        clientfiles.check(self.file, self._found(), clients)

    def _found(self) -> Mapping[str, object]:
        return clientfiles.read("devices", self.file)

    def _device(self, client_id: str, says: object) -> Device:
        known = Device.__dataclass_fields__
        if not isinstance(says, dict) or not set(says) <= set(known):
            raise ConfigError(f"{self.file}: '{client_id}' is {says!r}; expected some of {', '.join(known)}.")
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in says.values()):
            raise ConfigError(f"{self.file}: '{client_id}' is {says!r}; expected numbers.")
        device = Device(**{name: float(value) for name, value in says.items()})
        if problem := device.problem():
            raise ConfigError(f"{self.file}: '{client_id}': {problem}.")
        return device


@dataclass(frozen=True, slots=True)
class Duration:
    """What a client's round takes, in simulated seconds.

    steps: that it takes; step: seconds of one of them.
    """

    download: float
    steps: int
    step: float
    upload: float

    @property
    def total(self) -> float:
        """Download, computing, upload."""
        return self.download + self.steps * self.step + self.upload

    def steps_within(self, seconds: float) -> int:
        """Return how many of its steps fit into so many seconds with both transfers."""
        left = seconds - self.download - self.upload
        # So that steps that fit exactly are not lost to rounding.
        return min(max(int(left / self.step + 1e-9), 0), self.steps)

    def cut(self, steps: int) -> "Duration":
        """Return what it takes with so many steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True)
class Clock:
    """Says what rounds take, before anybody trains.

    A step is taken to have the mean tokens of the client's steps, so that a duration depends on nothing but
    sizes; over whole epochs that is exact.

    tokens: client id -> tokens of all its rows.
    """

    devices: Devices
    tokens: Callable[[str], int]
    seed: int

    def duration(self, client: "ClientInfo", training: "LocalTraining", down: int, up: int) -> Duration:
        """Return what a client's round takes; down, up: bytes that it is sent and sends."""
        device = self.devices.device(client.client_id, self.seed)
        per_epoch = math.ceil(client.num_examples / training.batch_size)
        step = max(self.tokens(client.client_id) / per_epoch, 1.0)
        if training.tokens is not None:
            steps = math.ceil(training.tokens / step)
        else:
            steps = training.steps or (training.epochs or 1) * per_epoch
        return Duration(
            device.latency + down / (device.down * MEGABIT),
            steps,
            step / device.speed,
            device.latency + up / (device.up * MEGABIT),
        )


def build_devices(name: str, options: Mapping[str, object]) -> Devices:
    """Return the devices called ``name`` (or "file.py:Class") with their options.

    Raises:
        UnknownName: no such name.
        ConfigError: no such option, or a value of the wrong type or size.
    """
    return cast(Devices, registry.build("devices", name, options, DEVICES, Devices))


def _normal(seed: int, what: str, client_id: str) -> float:
    draw = seeds.derive(seed, "device", what, client_id) >> 11
    return NormalDist().inv_cdf((draw + 0.5) / 2**52)


def _refuse(name: str, problem: str | None) -> None:
    if problem is not None:
        raise ConfigError(f"devices '{name}': {problem}.")
