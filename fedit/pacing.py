"""From settings to the pace of a federation: selection, virtual clock, slow clients, rounds of arrivals."""

from collections.abc import Callable, Sequence

from fedit.availability import Availability, build_availability
from fedit.clock import Clock, build_devices
from fedit.cohort import cohort_size
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.pace.asynchronous import Asynchronous
from fedit.pace.base import Pace
from fedit.pace.stragglers import build_stragglers
from fedit.pace.synchronous import Synchronous
from fedit.selection import build_selection
from fedit.selection.base import Selection
from fedit.strategies.base import Strategy


def pace_of(
    config: RunConfig,
    strategy: Strategy,
    clients: Sequence[str],
    tokens: Callable[[str], int],
    secret: int | None = None,
) -> Pace:
    """Return the pace that the settings and the strategy ask for.

    clients: ids of all; tokens: client id -> tokens of all its rows.
    secret:  what cohorts are drawn by in place of the seed.

    Raises:
        ConfigError: a name, an option or a combination that cannot work.
    """
    selection = build_selection(config.selection, config.selection_options)
    stragglers = build_stragglers(config.stragglers, config.stragglers_options)
    availability = build_availability(config.availability, config.availability_options)
    availability.check(clients)
    size = cohort_size(config.clients_per_round, len(clients))
    clock = _clock(config, clients, tokens)
    if strategy.buffer is not None:
        return _asynchronous(config, strategy.buffer, len(clients), size, selection, clock, availability)
    if config.min_clients > size:
        raise ConfigError(
            f"min_clients is {config.min_clients}, but a round has {size} clients; lower it or raise "
            "clients_per_round."
        )
    if clock is None and stragglers.needs_clock:
        raise ConfigError(
            f"stragglers is {config.stragglers}, which needs durations; set devices, for instance to lognormal."
        )
    return Synchronous(selection, size, config.seed, clock, stragglers, availability, secret)


def _clock(config: RunConfig, clients: Sequence[str], tokens: Callable[[str], int]) -> Clock | None:
    if config.devices == "none":
        if config.devices_options:
            raise ConfigError(
                "devices_options are given, but devices is none; set devices, for instance to equal."
            )
        return None
    devices = build_devices(config.devices, config.devices_options)
    devices.check(clients)
    return Clock(devices, tokens, config.seed)


def _asynchronous(
    config: RunConfig,
    buffer: int,
    population: int,
    concurrency: int,
    selection: Selection,
    clock: Clock | None,
    availability: Availability,
) -> Asynchronous:
    """Return rounds of arrivals, after making sure that the other settings can go with them."""
    name = f"strategy {config.strategy} takes a step after {buffer} arrivals"
    if clock is None:
        raise ConfigError(f"{name}, which needs durations; set devices, for instance to lognormal.")
    if buffer > population:
        raise ConfigError(f"{name}, but there are {population} clients; set its buffer_size lower.")
    if config.min_clients > buffer:
        raise ConfigError(f"{name}, but min_clients is {config.min_clients}; lower it.")
    if config.stragglers != "wait_all":
        raise ConfigError(f"{name} and waits for nobody; leave stragglers at wait_all.")
    if not selection.fixed_size:
        raise ConfigError(
            f"{name} and fills free places one by one; selection {config.selection} cannot: take another one."
        )
    return Asynchronous(selection, concurrency, buffer, config.seed, clock, availability)
