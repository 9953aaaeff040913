"""Privacy: what a run may tell of a client or of an example; nothing is imported before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from fedit import registry

if TYPE_CHECKING:
    from fedit.privacy.base import Level

LEVELS: dict[str, str] = {
    "client": "fedit.privacy.client:ClientLevel",
    "example": "fedit.privacy.example:ExampleLevel",
}


def build_privacy(name: str, options: Mapping[str, object]) -> "Level | None":
    """Return the level called ``name`` with its options; None for "none".

    Raises:
        UnknownName: no such level.
        ConfigError: no such option, or a value of the wrong type or size.
    """
    if name == "none":
        return None
    from fedit.privacy.base import Level

    return cast(Level, registry.build("privacy", name, options, LEVELS, Level))
