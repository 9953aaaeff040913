"""Which tensors of an adapter are personal: those of the last layers, or those that a pattern finds."""

import re
from collections.abc import Iterable

from fedit.errors import ConfigError

LAST_HALF = "last_half"

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None where its name has none.

    >>> layer_of("model.layers.11.self_attn.q_proj.A")
    11
    """
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def count_layers(names: Iterable[str]) -> int:
    """Return how many layers there are up to the last that has a tensor; 0 if no name has a number."""
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=-1) + 1


def is_kept(name: str, keep: str, num_layers: int) -> bool:
    """Return whether a tensor stays with its client.

    keep:       "last_half", layers from half their number on, or a pattern that is searched for in the name.
    num_layers: of the model, for "last_half"; 0: not known, and then nothing does.
    """
    if keep != LAST_HALF:
        return re.search(keep, name) is not None
    layer = layer_of(name)
    return layer is not None and num_layers > 0 and layer >= (num_layers + 1) // 2


def check_pattern(strategy: str, keep: str) -> None:
    """Raise ``ConfigError`` if ``keep`` is neither "last_half" nor a regular expression."""
    try:
        re.compile(keep)
    except re.error as error:
        raise ConfigError(
            f"option 'keep' of strategy '{strategy}' is {keep!r}: {error}; expected 'last_half' or a regular "
            "expression that finds the tensors that stay with their client, such as 'v_proj'."
        ) from error


def check_split(strategy: str, keep: str, shared: Iterable[bool]) -> None:
    """Raise ``ConfigError`` if all tensors stay with their clients or none does; shared: of each, whether not."""
    answers = {not one for one in shared}
    if answers != {True, False}:
        what = "all tensors of the adapter, so nothing would be shared" if answers == {True} else "no tensor"
        raise ConfigError(
            f"option 'keep' of strategy '{strategy}' is {keep!r}, which finds {what}; names look like "
            "'model.layers.3.self_attn.q_proj.A'."
        )
