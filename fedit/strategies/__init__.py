"""Algorithms: one file, one paper. The table says what there is; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.strategies.base import Strategy

STRATEGIES: dict[str, str] = {
    "fedit": "fedit.strategies.fedit:FedIT",
    "fedex_lora": "fedit.strategies.fedex_lora:FedExLoRA",
    "fedmomentum": "fedit.strategies.fedmomentum:FedMomentum",
    "fedsvd": "fedit.strategies.fedsvd:FedSVD",
    "flexlora": "fedit.strategies.flexlora:FlexLoRA",
    "flora": "fedit.strategies.flora:FLoRA",
    "fedavg": "fedit.strategies.fedavg:FedAvg",
    "fedavgm": "fedit.strategies.fedavgm:FedAvgM",
    "fedadagrad": "fedit.strategies.fedadagrad:FedAdagrad",
    "fedadam": "fedit.strategies.fedadam:FedAdam",
    "fedyogi": "fedit.strategies.fedyogi:FedYogi",
    "fedprox": "fedit.strategies.fedprox:FedProx",
    "scaffold": "fedit.strategies.scaffold:Scaffold",
    "fednova": "fedit.strategies.fednova:FedNova",
    "feddyn": "fedit.strategies.feddyn:FedDyn",
}


def build_strategy(name: str, options: Mapping[str, object]) -> "Strategy":
    """Return the strategy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    from fedit.strategies.base import Strategy

    return cast(Strategy, registry.build("strategy", name, options, STRATEGIES, Strategy))
