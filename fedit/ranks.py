"""Ranks of a run: the server's, given or as large as budgets of bytes allow, and those of single clients."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fedit.config import RunConfig
from fedit.errors import ConfigError, NoUpdates, did_you_mean
from fedit.facts import bytes_in_training, bytes_of_a_round
from fedit.model.shapes import largest_rank, shapes_of
from fedit.model.sources import ModelSource
from fedit.rehearsal import rehearse
from fedit.strategies.base import Strategy

MOST_REHEARSED = 128
"""Clients of a rehearsal that is only to tell what one of them sends."""


def with_rank(config: RunConfig, strategy: Strategy, source: ModelSource) -> RunConfig:
    """Return the settings with a number for ``lora_r``: the largest at which all budgets are kept.

    ``upload_megabytes`` is for what a client sends in a round, ``adapter_megabytes`` for what its adapter takes in
    memory while it trains (`fedit.facts.bytes_in_training`).

    Raises:
        ConfigError: not even rank 1 fits, or a client's own rank is larger.
    """
    if config.lora_r != "auto":
        return config
    shapes = shapes_of(source, config.lora_target_modules)
    most = largest_rank(shapes)
    budgets = _budgets(config, strategy, shapes)
    found = {name: bisect_left(range(1, most + 1), True, key=one.too_large) for name, one in budgets.items()}
    name = min(found, key=lambda name: found[name])
    rank, tightest = found[name], budgets[name]
    if rank == 0:
        raise ConfigError(
            f"{name} is {tightest.megabytes:g}, but at rank 1 {tightest.what} {tightest.takes(1) / 1e6:.3g}; "
            "raise it or adapt fewer layers (lora_target_modules)."
        )
    if max(config.own_ranks(), default=0) > rank:
        raise ConfigError(
            f"{name} of {tightest.megabytes:g} allows rank {rank}, "
            f"but client_ranks go up to {max(config.own_ranks())}."
        )
    return config.model_copy(update={"lora_r": rank, **dict.fromkeys(budgets)})


@dataclass(frozen=True, slots=True)
class _Budget:
    """A limit in millions of bytes, what is said of it, and the bytes that a rank takes."""

    megabytes: float
    what: str
    takes: Callable[[int], float]

    def too_large(self, rank: int) -> bool:
        return self.takes(rank) > 1e6 * self.megabytes


def _budgets(config: RunConfig, strategy: Strategy, shapes: Sequence[tuple[int, int]]) -> dict[str, _Budget]:
    """Return the budgets that are set, by the settings' names."""
    cohort = _least_cohort(strategy)
    moments = 2 if config.optimizer == "adamw" else int(config.momentum > 0)
    entry = 8 if config.dtype == "fp64" else 4

    def sent(rank: int) -> float:
        # A masked entry has 64 bits.
        wider = 2 if config.secure_aggregation else 1
        return wider * bytes_of_a_round(strategy, shapes, rank, cohort=cohort)[0]

    def held(rank: int) -> float:
        return bytes_in_training(strategy, shapes, rank, moments=moments, entry=entry, cohort=cohort)

    found: dict[str, _Budget] = {}
    if config.upload_megabytes is not None:
        found["upload_megabytes"] = _Budget(config.upload_megabytes, "a client sends", sent)
    if config.adapter_megabytes is not None:
        found["adapter_megabytes"] = _Budget(config.adapter_megabytes, "the adapter takes in training", held)
    return found


def _least_cohort(strategy: Strategy) -> int:
    """Return how few clients a rehearsal takes, a power of two: rules that outvote somebody need several."""
    size = 1
    while size < MOST_REHEARSED:
        try:
            rehearse(strategy, rounds=1, ranks=(None,) * size)
            break
        except NoUpdates:
            size *= 2
    return size


def ranks_of_clients(config: RunConfig, clients: Sequence[str]) -> dict[str, int]:
    """Return the rank of every client that has one of its own; clients: all, in order of their ids."""
    given = config.client_ranks
    return given if isinstance(given, dict) else dict(zip(clients, itertools.cycle(given), strict=False))


def check_ranks(config: RunConfig, strategy: Strategy, clients: Collection[str]) -> None:
    """Refuse ranks of clients that do not exist, and ranks that the strategy cannot serve.

    Raises:
        ConfigError: so it is.
    """
    given = config.client_ranks
    if isinstance(given, dict) and (unknown := sorted(set(given) - set(clients))):
        raise ConfigError(
            f"client_ranks names '{unknown[0]}'{did_you_mean(unknown[0], clients)} "
            f"Clients: {', '.join(sorted(clients)[:5])}, …"
        )
    if given:
        rehearse(strategy, rounds=1, rank=config.rank, ranks=[None, min(config.own_ranks())])
