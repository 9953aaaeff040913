"""Algorithms: one file, one paper. The table says what there is; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.strategies.base import Strategy

STRATEGIES: dict[str, str] = {
    "fedit": "fedit.strategies.fedit:FedIT",
    "norm_clipping": "fedit.strategies.norm_clipping:NormClipping",
    "median": "fedit.strategies.median:Median",
    "trimmed_mean": "fedit.strategies.trimmed_mean:TrimmedMean",
    "krum": "fedit.strategies.krum:Krum",
    "multi_krum": "fedit.strategies.multi_krum:MultiKrum",
    "bulyan": "fedit.strategies.bulyan:Bulyan",
    "geometric_median": "fedit.strategies.geometric_median:GeometricMedian",
    "centred_clipping": "fedit.strategies.centred_clipping:CentredClipping",
    "fltrust": "fedit.strategies.fltrust:FLTrust",
}


def build_strategy(name: str, options: Mapping[str, object]) -> "Strategy":
    """Return the strategy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such strategy.
        ConfigError: no such option, or a value of the wrong type.
    """
    from fedit.strategies.base import Strategy

    return cast(Strategy, registry.build("strategy", name, options, STRATEGIES, Strategy))
