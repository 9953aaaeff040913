"""Ranks of a run: the server's, given or as large as a budget of bytes allows, and those of single clients."""

import itertools
from bisect import bisect_left
from collections.abc import Collection, Sequence

from fedit.config import RunConfig
from fedit.errors import ConfigError, NoUpdates, did_you_mean
from fedit.facts import bytes_of_a_round
from fedit.model.shapes import largest_rank, shapes_of
from fedit.model.sources import ModelSource
from fedit.rehearsal import rehearse
from fedit.strategies.base import Strategy

MOST_REHEARSED = 128
"""Clients of a rehearsal that is only to tell what one of them sends."""


def with_rank(config: RunConfig, strategy: Strategy, source: ModelSource) -> RunConfig:
    """Return the settings with a number for ``lora_r``: the largest whose uploads fit ``upload_megabytes``.

    Raises:
        ConfigError: not even rank 1 fits, or a client's own rank is larger.
    """
    if config.lora_r != "auto" or config.upload_megabytes is None:
        return config
    shapes = shapes_of(source, config.lora_target_modules)
    budget = 1e6 * config.upload_megabytes
    cohort = _least_cohort(strategy)

    def too_large(rank: int) -> bool:
        return bytes_of_a_round(strategy, shapes, rank, cohort=cohort)[0] > budget

    rank = bisect_left(range(1, largest_rank(shapes) + 1), True, key=too_large)
    if rank == 0:
        least = bytes_of_a_round(strategy, shapes, 1, cohort=cohort)[0] / 1e6
        raise ConfigError(
            f"upload_megabytes is {config.upload_megabytes:g}, but at rank 1 a client sends {least:.3g}; "
            "raise it or adapt fewer layers (lora_target_modules)."
        )
    if max(config.own_ranks(), default=0) > rank:
        raise ConfigError(
            f"upload_megabytes of {config.upload_megabytes:g} allows rank {rank}, "
            f"but client_ranks go up to {max(config.own_ranks())}."
        )
    return config.model_copy(update={"lora_r": rank, "upload_megabytes": None})


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
