"""What a simulation's audit needs of its run: which clients hold canaries, whose uploads are kept."""

from collections.abc import Collection
from typing import cast

import numpy as np

from fedit import registry, seeds
from fedit.config import RunConfig
from fedit.data.canaries import Canary, CanaryOptions, plant
from fedit.errors import ConfigError
from fedit.job import unseen_of
from fedit.strategies.base import Strategy

_OPTIONS = {"codes": "fedit.data.canaries:CanaryOptions"}


def canaries_of(config: RunConfig, clients: Collection[str], strategy: Strategy) -> tuple[Canary, ...]:
    """Return the canaries that a job plants, with clients that take part.

    Raises:
        ConfigError: an option is unknown or cannot work.
    """
    if config.canaries == 0:
        return ()
    built = registry.build("canaries", "codes", config.canaries_options, _OPTIONS, CanaryOptions)
    seen = sorted(set(clients) - unseen_of(config, clients, strategy))
    return plant(config.canaries, seen, cast(CanaryOptions, built), config.seed)


def kept_of(config: RunConfig, clients: Collection[str]) -> frozenset[str]:
    """Return the ids of those whose uploads are kept; clients: those that take part.

    Raises:
        ConfigError: one is not among them, or there are fewer.
    """
    wanted, known = config.keep_uploads, sorted(clients)
    if isinstance(wanted, int):
        if wanted > len(known):
            raise ConfigError(f"keep_uploads is {wanted}, but {len(known)} clients take part; lower it.")
        order = np.random.default_rng(seeds.derive(config.seed, "keep_uploads")).permutation(len(known))
        return frozenset(known[i] for i in order[:wanted].tolist())
    if unknown := sorted(set(wanted) - set(known)):
        raise ConfigError(f"keep_uploads names '{unknown[0]}', which is no client that takes part: {known[:5]}.")
    return frozenset(wanted)
