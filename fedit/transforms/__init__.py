"""What happens to tensors on their way. The table says what there is; nothing is imported before it is used."""

import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedit import registry
from fedit.errors import ConfigError

if TYPE_CHECKING:
    from fedit.transforms.base import Transform

TRANSFORMS: dict[str, str] = {
    "top_k": "fedit.transforms.top_k:TopK",
    "flasc": "fedit.transforms.flasc:FLASC",
    "cast": "fedit.transforms.cast:Cast",
    "quantize": "fedit.transforms.quantize:Quantize",
    "zstd": "fedit.transforms.zstd:Zstd",
}


def build_transforms(settings: Sequence[Mapping[str, Mapping[str, object]]]) -> "tuple[Transform, ...]":
    """Return the transforms that a job lists: each item maps one name (or "file.py:Class") to its options.

    Raises:
        UnknownName: no such transform.
        ConfigError: no such option, a value of the wrong type, or an order that cannot work.
    """
    from fedit.transforms.base import Transform

    named = [(name, options) for item in settings for name, options in item.items()]
    built = tuple(
        typing.cast(Transform, registry.build("transform", name, options, TRANSFORMS, Transform))
        for name, options in named
    )
    for (name, _), transform in zip(named, built, strict=True):
        if not hasattr(transform, "stage"):
            raise ConfigError(
                f"transform '{name}' does not say its stage; give its class a line: stage = Stage.BITS."
            )
    for place in range(1, len(built)):
        if built[place].stage <= built[place - 1].stage:
            first, second = named[place - 1][0], named[place][0]
            raise ConfigError(
                f"transform '{second}' cannot follow '{first}'. Take at most one of each kind, in this order: "
                "which entries are sent (top_k, flasc), in how many bits (cast, quantize), packed as bytes (zstd)."
            )
    return built
