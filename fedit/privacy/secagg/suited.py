"""What cannot go with secure aggregation, found before training."""

from collections.abc import Sequence

from fedit.config import RunConfig
from fedit.errors import ConfigError, SealedUpdates
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.rehearsal import rehearse
from fedit.selection import build_selection
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform


def refuse_unsuited(
    options: SecureAggregation, config: RunConfig, strategy: Strategy, transforms: Sequence[Transform], cohort: int
) -> None:
    """Make sure that a job's updates can be added up without being seen.

    cohort: clients of a round.

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
    if options.noise == "distributed" and config.privacy != "client":
        raise ConfigError(
            "secure_aggregation option 'noise' is distributed, but there is none to distribute; set privacy to "
            "client."
        )
