"""From settings to client-level privacy: how clients are drawn, how much noise a budget needs, what cannot be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

from fedit.availability import build_availability
from fedit.cohort import cohort_size
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.pace.stragglers import build_stragglers
from fedit.privacy import build_privacy
from fedit.privacy.accounting import Charge, calibrate, epsilon_of
from fedit.privacy.base import Sampling
from fedit.privacy.client import ClientLevel, ClientPrivacy
from fedit.privacy.ledger import Ledger
from fedit.privacy.rehearsing import refuse_single_updates
from fedit.privacy.sampling import sampling_of
from fedit.selection import build_selection
from fedit.strategies.base import Strategy


def client_level(config: RunConfig) -> ClientLevel | None:
    """Return the options of privacy=client; None where a job does not ask for that.

    Raises:
        ConfigError: an option that cannot work.
    """
    level = build_privacy("client", config.privacy_options) if config.privacy == "client" else None
    return cast("ClientLevel | None", level)


def client_sampling(config: RunConfig, strategy: Strategy, population: int) -> Sampling:
    """Return how the job's rounds draw of so many clients.

    Raises:
        ConfigError: in a way that no accountant covers.
    """
    if strategy.buffer is not None:
        raise ConfigError(
            f"strategy '{config.strategy}' takes updates as they arrive, so that fast clients are in it more "
            "often than any accountant knows; privacy=client needs rounds that begin together, such as those of "
            "strategy=fedit."
        )
    return sampling_of(
        build_selection(config.selection, config.selection_options),
        build_stragglers(config.stragglers, config.stragglers_options),
        build_availability(config.availability, config.availability_options),
        cohort_size(config.clients_per_round, population),
        population,
        sorted(strategy.always()),
    )


def with_noise(config: RunConfig, strategy: Strategy, population: int) -> RunConfig:
    """Return settings whose noise is known: with epsilon given, the least that all rounds can do with.

    What epsilon was remains the limit of what is spent.

    Raises:
        ConfigError: no noise is enough, or the privacy cannot go with the other settings.
    """
    level = client_level(config)
    if level is None or level.epsilon is None:
        return config
    found = client_sampling(config, strategy, population)
    unit = found.charge(1.0)
    noise = found.changes * calibrate(
        level.epsilon, found.rate, config.num_rounds, level.delta_for(population), found.kind, unit.population
    )
    options = {name: value for name, value in config.privacy_options.items() if name != "epsilon"}
    # Rounded up: a digit less must not cost more.
    options |= {"noise_multiplier": math.ceil(noise * 1e6) / 1e6, "max_epsilon": level.limit}
    return config.model_copy(update={"privacy_options": options})


def client_privacy(config: RunConfig, strategy: Strategy, population: int, ledger: Path | None) -> ClientPrivacy:
    """Return the privacy of a federation of so many clients, with the ledger that a file holds.

    Raises:
        ConfigError: the options cannot work.
        RunFolderError: the ledger cannot be read.
    """
    config = with_noise(config, strategy, population)
    level = cast(ClientLevel, client_level(config))
    sampling = client_sampling(config, strategy, population)
    return ClientPrivacy(level, sampling, Ledger(ledger, level.delta_for(population)))


def planned(privacy: ClientPrivacy, rounds: int) -> Charge:
    """Return what so many rounds will be charged."""
    return replace(privacy.sampling.charge(cast(float, privacy.level.noise_multiplier)), steps=rounds)


def refuse_unprotected(config: RunConfig, strategy: Strategy, population: int) -> None:
    """Make sure that privacy=client, where a job asks for it, can hold.

    Raises:
        ConfigError: something would tell of single clients, or not even one round can be afforded.
    """
    if client_level(config) is None:
        return
    for bad, why in (
        (config.min_clients > 1, "min_clients would show who delivered; leave it at 1: an empty round is noise"),
        (config.personal_evaluation, "personal_evaluation measures what single clients made of their rows"),
        (bool(config.client_ranks), "client_ranks differ, and clipped updates are summed at one rank"),
    ):
        if bad:
            raise ConfigError(f"privacy=client: {why}.")
    refuse_single_updates(strategy, config.strategy)
    privacy = client_privacy(config, strategy, population, None)
    level, delta = privacy.level, privacy.ledger.delta
    if delta >= 1 / population:
        raise ConfigError(
            f"privacy option 'delta' is {delta:g}; expected less than one over the {population} clients, or it "
            "would allow to publish one of them."
        )
    if not math.isinf(level.limit):
        first = epsilon_of((planned(privacy, 1),), delta).value
        if first > level.limit:
            raise ConfigError(
                f"a single round spends epsilon {first:.3g}, and {level.limit:g} is the most; raise "
                "noise_multiplier or the limit. fedit privacy plan JOB says what a job comes to."
            )
