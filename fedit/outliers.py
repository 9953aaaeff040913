"""What no honest client sends, whatever the strategy: updates out of all proportion, and copies of another's.

Robust strategies compare clients closely (`fedit.screening`). This is the screen of every run: it lets pass all
that honest clients of different sizes may send, and keeps few updates in memory.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from fedit import robust, tensors
from fedit.types import ClientUpdate

STRETCH = 1 << 16
"""Entries that one number of an update's print is of."""
WINDOW = 8
"""Updates that wait for others to be compared with; smaller cohorts are compared as a whole."""
FEWEST = 3
"""Updates that a median is taken of; fewer say nothing of what is usual."""


def without_outliers(
    updates: Iterable[ClientUpdate], most: float, reject: Callable[[ClientUpdate, str], None]
) -> Iterator[ClientUpdate]:
    """Yield updates in their order but those whose delta or extra is too long or a copy, which are rejected.

    An update is compared with all that came before it and `WINDOW` that come after it, so the first ones wait.

    most: times the median norm that a norm may be.
    """
    waiting: deque[tuple[ClientUpdate, tuple[float, float]]] = deque()
    norms: tuple[list[float], list[float]] = ([], [])
    first: dict[tuple[float, ...], str] = {}
    for update in updates:
        if tensors.can_flatten(update.delta):  # the same numbers in the same order
            update = replace(update, delta=tensors.flatten(update.delta))
        sizes = (_size(update.delta), _size(update.extra))
        mark = _print(update.delta)
        if sizes[0] > 0 and first.setdefault(mark, update.client_id) != update.client_id:
            reject(update, f"the update is a copy of that of {first[mark]}")
            continue
        for known, size in zip(norms, sizes, strict=True):
            known.append(size)
        waiting.append((update, sizes))
        if len(waiting) > WINDOW:
            yield from _judged(*waiting.popleft(), norms, most, reject)
    while waiting:
        yield from _judged(*waiting.popleft(), norms, most, reject)


def _judged(
    update: ClientUpdate,
    sizes: tuple[float, float],
    norms: tuple[list[float], list[float]],
    most: float,
    reject: Callable[[ClientUpdate, str], None],
) -> Iterator[ClientUpdate]:
    for what, size, known in zip(("the adapter", "what goes with it"), sizes, norms, strict=True):
        middle = float(robust.median(torch.tensor(known, dtype=torch.float64)))
        if len(known) >= FEWEST and 0 < middle < math.inf and size > most * middle:
            told = f"{size:.3g}, more than {most:g} times the median {middle:.3g} of the others"
            reject(update, f"the update changes {what} by {told}")
            return
    yield update


def _size(held: Mapping[str, Tensor]) -> float:
    """Return the norm as one fast pass gives it, which is enough to compare."""
    return math.hypot(*(float(torch.linalg.vector_norm(piece)) for piece in _pieces(held)))


def _print(held: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Return what two sets share that are the same, and no others.

    Norms and sums will not do: after one step of Adam all entries are plus or minus the rate.
    """
    return tuple(number for piece in _pieces(held) for number in _projected(piece).tolist())


def _projected(piece: Tensor) -> Tensor:
    """Return the products of a vector's stretches with one fixed random vector."""
    directions = _directions().to(piece)
    whole = piece.numel() // STRETCH * STRETCH
    rest = torch.dot(piece[whole:], directions[: piece.numel() - whole])
    return torch.cat([piece[:whole].view(-1, STRETCH) @ directions, rest[None]])


@cache
def _directions() -> Tensor:
    return torch.randn(STRETCH, generator=torch.Generator().manual_seed(0))


def _pieces(held: Mapping[str, Tensor]) -> list[Tensor]:
    """Return all entries as vectors of at least float32."""
    pieces = [held.buffer] if isinstance(held, tensors.Flat) else list(held.values())
    return [piece.flatten().to(torch.promote_types(piece.dtype, torch.float32)) for piece in pieces]
