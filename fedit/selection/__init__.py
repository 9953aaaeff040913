"""Who takes part in a round: the table of policies; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.selection.base import Selection

SELECTIONS: dict[str, str] = {
    "uniform": "fedit.selection.draws:Uniform",
    "poisson": "fedit.selection.draws:Poisson",
    "weighted": "fedit.selection.draws:Weighted",
    "round_robin": "fedit.selection.draws:RoundRobin",
    "power_of_choice": "fedit.selection.power_of_choice:PowerOfChoice",
    "oort": "fedit.selection.oort:Oort",
}


def build_selection(name: str, options: Mapping[str, object]) -> "Selection":
    """Return the policy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such policy.
        ConfigError: no such option, or a value of the wrong type or size.
    """
    from fedit.selection.base import Selection

    return cast(Selection, registry.build("selection", name, options, SELECTIONS, Selection))
