"""Algorithms: one file, one paper. The table says what there is; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.strategies.base import Strategy

STRATEGIES: dict[str, str] = {
    "fedit": "fedit.strategies.fedit:FedIT",
    "ditto": "fedit.strategies.ditto:Ditto",
    "fedper": "fedit.strategies.fedper:FedPer",
    "fedrep": "fedit.strategies.fedrep:FedRep",
    "feddpa": "fedit.strategies.feddpa:FedDPA",
    "clustered": "fedit.strategies.clustered:Clustered",
}


def build_strategy(name: str, options: Mapping[str, object]) -> "Strategy":
    """Return the strategy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    from fedit.strategies.base import Strategy

    return cast(Strategy, registry.build("strategy", name, options, STRATEGIES, Strategy))
