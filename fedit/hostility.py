"""Who is hostile in a simulation, and what the clients train on then."""

from collections.abc import Collection, Mapping, Sequence

from fedit.attacks import hostile_clients
from fedit.config import RunConfig
from fedit.data.examples import Example
from fedit.data.poison import poisoned, policy_rows
from fedit.errors import ConfigError
from fedit.job import unseen_of
from fedit.strategies.base import Strategy

POLICY_ROWS = 64
"""Rows of the policy that the server defends it with, and most that measure it."""


def hostile_of(config: RunConfig, clients: Collection[str], strategy: Strategy) -> list[str]:
    """Return who is hostile; clients that a strategy has to trust, or that take no part, never are."""
    if not config.attack:
        return []
    trusted = strategy.always() | unseen_of(config, clients, strategy)
    most = len(set(clients) - trusted)
    if isinstance(config.attackers, int) and config.attackers > most:
        raise ConfigError(f"attackers is {config.attackers}, but only {most} clients may be hostile; lower it.")
    return hostile_clients(clients, config.attackers, seed=config.seed, spared=trusted)


def rows_under_attack(
    config: RunConfig, clients: Mapping[str, tuple[Example, ...]], hostile: Sequence[str]
) -> dict[str, tuple[Example, ...]]:
    """Return what every client trains on where rows are poisoned; nothing where they are not."""
    if config.poison is None:
        return {}
    return poisoned(clients, config.poison, hostile, share=config.poison_share, seed=config.seed)


def policy_of(config: RunConfig) -> tuple[Example, ...]:
    """Return rows of the agreed policy that the server defends with, where it does."""
    if config.poison != "forget_policy" or config.defence_steps == 0:
        return ()
    return tuple(policy_rows(POLICY_ROWS, split="defence", seed=config.seed))
