"""What cannot go with secure aggregation, found before training."""

from collections.abc import Sequence

from fedit.config import RunConfig
from fedit.errors import ConfigError, SealedUpdates
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.privacy.setup import client_level, client_sampling
from fedit.rehearsal import rehearse
from fedit.selection import build_selection
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform

NEGLIGIBLE = 0.01
"""Share of delta that need not be accounted for."""


def refuse_unsuited(
    options: SecureAggregation,
    config: RunConfig,
    strategy: Strategy,
    transforms: Sequence[Transform],
    cohort: int,
    population: int,
) -> None:
    """Make sure that a job's updates can be added up without being seen.

    cohort: clients of a round; population: of the federation.

    Raises:
        ConfigError: a setting needs single updates, or what single clients say.
    """
    name = type(strategy).__name__
    if strategy.buffer is not None:
        raise ConfigError(
            f"strategy '{name}' takes updates as they arrive, and a secure sum needs a cohort that starts "
            "together; take a strategy with rounds, such as fedit, or set secure_aggregation to false."
        )
    if config.client_ranks:
        raise ConfigError(
            "client_ranks give adapters of several sizes, which have no sum; leave them away, or set "
            "secure_aggregation to false."
        )
    try:
        rehearse(strategy, rounds=2, sealed=True)
    except SealedUpdates as error:
        raise ConfigError(
            f"strategy '{name}' reads single updates, which secure_aggregation hides; take one that needs the "
            "mean alone (fedit, ffa_lora, fedsvd and others; see fedit list strategies)."
        ) from error
    for transform in transforms:
        if type(transform).on_client is not Transform.on_client:
            raise ConfigError(
                f"transform '{type(transform).__name__}' makes updates smaller, and masked ones cannot be; remove "
                "it from transforms, or set secure_aggregation to false."
            )
    selection = build_selection(config.selection, config.selection_options)
    if selection.needs_losses or selection.averages_draws:
        raise ConfigError(
            f"selection {config.selection} looks at single clients' losses, or weighs some anew, and "
            "secure_aggregation hides who sent what; take uniform, poisson or round_robin."
        )
    if config.update_attack:
        raise ConfigError(
            f"attack '{config.update_attack}' changes updates on their way, where they are masked; attacks on "
            "rows go with secure_aggregation."
        )
    if selection.fixed_size and cohort < 2:
        raise ConfigError(f"a round asks {cohort} client, whose update would be the sum; raise clients_per_round.")
    if config.privacy == "client":
        _refuse_unsuited_privacy(options, config, strategy, population)
    elif options.noise == "distributed":
        raise ConfigError(
            "secure_aggregation option 'noise' is distributed, but there is none to distribute; set privacy to "
            "client."
        )


def _refuse_unsuited_privacy(
    options: SecureAggregation, config: RunConfig, strategy: Strategy, population: int
) -> None:
    """Make sure that client-level privacy accounts for what a secure sum shows.

    A cohort below two has no sum, and the round is noise alone. So a federation can differ from the same with a
    client more by another client as well: one of two counts with the other and not without. The chance of that
    over all rounds must be of no account beside delta.
    """
    level = client_level(config)
    if level is None:
        return
    if options.noise == "distributed" and (level.adaptive or level.noise_multiplier == 0):
        raise ConfigError(
            "secure_aggregation option 'noise' is distributed, where every client adds its part of some noise to "
            "its update; with adaptive a count would need noise as well. Set adaptive to false and "
            "noise_multiplier above 0, or noise to central."
        )
    sampling = client_sampling(config, strategy, population)
    others, rate = population - 1, sampling.rate
    if sampling.kind != "poisson" or rate >= 1:
        return
    chance = config.num_rounds * rate * others * rate * (1 - rate) ** (others - 1)
    delta = level.delta_for(population)
    if chance > NEGLIGIBLE * delta:
        raise ConfigError(
            f"rounds of {rate * population:.3g} clients on average are so small that one of two alone comes up "
            f"with chance {chance:.1g}, which secure_aggregation would show; delta is {delta:.1g}. Raise "
            "clients_per_round, or take selection=uniform."
        )
