"""Algorithms: one file, one paper. The table says what there is; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry
from fedit.variants import Variant

if TYPE_CHECKING:
    from fedit.strategies.base import Strategy

STRATEGIES: dict[str, str] = {
    "bulyan": "fedit.strategies.bulyan:Bulyan",
    "centred_clipping": "fedit.strategies.centred_clipping:CentredClipping",
    "clustered": "fedit.strategies.clustered:Clustered",
    "ditto": "fedit.strategies.ditto:Ditto",
    "fed_sb": "fedit.strategies.fed_sb:FedSB",
    "fedadagrad": "fedit.strategies.fedopt:FedAdagrad",
    "fedadam": "fedit.strategies.fedopt:FedAdam",
    "fedasync": "fedit.strategies.fedasync:FedAsync",
    "fedavg": "fedit.strategies.fedavg:FedAvg",
    "fedavgm": "fedit.strategies.fedavgm:FedAvgM",
    "fedbuff": "fedit.strategies.fedbuff:FedBuff",
    "feddpa": "fedit.strategies.feddpa:FedDPA",
    "feddyn": "fedit.strategies.feddyn:FedDyn",
    "fedex_lora": "fedit.strategies.fedex_lora:FedExLoRA",
    "fedit": "fedit.strategies.fedit:FedIT",
    "fedmomentum": "fedit.strategies.fedmomentum:FedMomentum",
    "fednova": "fedit.strategies.fednova:FedNova",
    "fedper": "fedit.strategies.fedper:FedPer",
    "fedprox": "fedit.strategies.fedprox:FedProx",
    "fedrep": "fedit.strategies.fedrep:FedRep",
    "fedrot_lora": "fedit.strategies.fedrot_lora:FedRotLoRA",
    "fedsa_lora": "fedit.strategies.fedsa_lora:FedSALoRA",
    "fedsvd": "fedit.strategies.fedsvd:FedSVD",
    "fedyogi": "fedit.strategies.fedopt:FedYogi",
    "ffa_lora": "fedit.strategies.ffa_lora:FFALoRA",
    "flexlora": "fedit.strategies.flexlora:FlexLoRA",
    "flora": "fedit.strategies.flora:FLoRA",
    "fltrust": "fedit.strategies.fltrust:FLTrust",
    "geometric_median": "fedit.strategies.geometric_median:GeometricMedian",
    "hetlora": "fedit.strategies.hetlora:HetLoRA",
    "krum": "fedit.strategies.krum:Krum",
    "lora_fair": "fedit.strategies.lora_fair:LoRAFair",
    "median": "fedit.strategies.coordinate_wise:Median",
    "multi_krum": "fedit.strategies.multi_krum:MultiKrum",
    "norm_clipping": "fedit.strategies.norm_clipping:NormClipping",
    "ravan": "fedit.strategies.ravan:Ravan",
    "rolora": "fedit.strategies.rolora:RoLoRA",
    "scaffold": "fedit.strategies.scaffold:Scaffold",
    "trimmed_mean": "fedit.strategies.coordinate_wise:TrimmedMean",
}


def build_strategy(name: str, options: Mapping[str, object]) -> "Strategy":
    """Return the strategy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    from fedit.strategies.base import Strategy

    return cast(Strategy, registry.build("strategy", name, options, STRATEGIES, Strategy))


def build_variant(text: str) -> "Strategy":
    """Return the strategy of a name that carries its options, such as "fed_sb(bases=first_update)".

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    variant = Variant.parse(text)
    return build_strategy(variant.name, variant.options)
