"""Algorithms: one file, one paper. The table says what there is; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.strategies.base import Strategy

STRATEGIES: dict[str, str] = {
    "fedit": "fedit.strategies.fedit:FedIT",
    "fedbuff": "fedit.strategies.fedbuff:FedBuff",
    "fedasync": "fedit.strategies.fedasync:FedAsync",
}


def build_strategy(name: str, options: Mapping[str, object]) -> "Strategy":
    """Return the strategy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    from fedit.strategies.base import Strategy

    return cast(Strategy, registry.build("strategy", name, options, STRATEGIES, Strategy))
