"""Arithmetic on named tensors; sets that are views of one buffer (`Flat`) are handled in single passes over it."""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fedit.types import Tensors

CHUNK = 65_536
"""Entries that are widened to float64 at a time: half a megabyte, which stays in the cache."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Layout:
    """Where each tensor lies in a flat buffer: names ascending, one after the other, without gaps.

    There is one object a set of names and shapes (`layout_of`), so that layouts are compared by identity.

    offsets, strides: of each tensor, in entries.
    size: entries in all.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    size: int

    def fits(self, a: Mapping[str, Tensor]) -> bool:
        """Return whether ``a`` has these names and shapes; it may come from anybody and is not remembered."""
        if isinstance(a, Flat):
            return a.layout is self
        return len(a) == len(self.names) and all(
            name in a and a[name].shape == shape for name, shape in zip(self.names, self.shapes, strict=True)
        )

    def views(self, buffer: Tensor) -> Tensors:
        """Return name -> view of ``buffer``, which holds ``size`` entries in one dimension."""
        start = buffer.storage_offset()
        places = zip(self.names, self.shapes, self.strides, self.offsets, strict=True)
        return {name: buffer.as_strided(shape, stride, start + at) for name, shape, stride, at in places}

    def stacked_views(self, buffer: Tensor) -> Tensors:
        """Return name -> view (count, *shape) of ``buffer`` (count, size), one set on top of the other."""
        start, (count, _), (step, _) = buffer.storage_offset(), buffer.shape, buffer.stride()
        places = zip(self.names, self.shapes, self.strides, self.offsets, strict=True)
        return {
            name: buffer.as_strided((count, *shape), (step, *stride), start + at)
            for name, shape, stride, at in places
        }


class Flat(dict[str, Tensor]):
    """Named tensors that are views of one contiguous buffer, in ascending order of their names.

    It is a ``dict[str, Tensor]`` for everything that reads one, and cannot gain, lose or exchange entries;
    ``dict(flat)`` and comprehensions give ordinary dictionaries. Writing *into* a view or into the buffer
    changes both. An operation that meets two sets of one layout and dtype makes one pass over their
    buffers, with the same bits as tensor by tensor.

    buffer: ``layout.size`` entries of one floating dtype in one dimension and one piece, maybe of a larger one.
    """

    __slots__ = ("buffer", "layout")

    def __init__(self, layout: Layout, buffer: Tensor) -> None:
        if buffer.shape != (layout.size,) or not buffer.is_contiguous():
            raise ValueError(f"the buffer is {tuple(buffer.shape)}; expected {layout.size} entries in one piece")
        super().__init__(layout.views(buffer))
        self.layout = layout
        self.buffer = buffer

    def clone(self) -> "Flat":
        """Return a copy with a buffer of its own."""
        return Flat(self.layout, self.buffer.clone())

    def to(self, device: torch.device) -> "Flat":
        """Return a copy with a buffer of its own on ``device``."""
        return Flat(self.layout, self.buffer.to(device, copy=True))

    def matches(self, other: Mapping[str, Tensor]) -> bool:
        """Return whether ``other`` is flat with the same names, shapes, dtype and device."""
        return (
            isinstance(other, Flat)
            and other.layout is self.layout
            and other.buffer.dtype == self.buffer.dtype
            and other.buffer.device == self.buffer.device
        )

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise TypeError("the entries of a flat set are views of its buffer; take dict(...) of it to change them")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def layout_of(a: Mapping[str, Tensor]) -> Layout:
    """Return the layout of the names and shapes of ``a``, in whatever order it has them."""
    if isinstance(a, Flat):
        return a.layout
    names = tuple(sorted(a))
    return _layout(names, tuple(a[name].shape for name in names))


def flatten(a: Mapping[str, Tensor]) -> Flat:
    """Return ``a`` over one new buffer; a flat set is returned as it is.

    Raises:
        ValueError: its tensors are of several dtypes or devices; see `can_flatten`.
    """
    if isinstance(a, Flat):
        return a
    if not can_flatten(a):
        raise ValueError("a flat set has one dtype and one device; these tensors have several")
    layout = layout_of(a)
    pieces = [a[name].detach().reshape(-1) for name in layout.names]
    return Flat(layout, torch.cat(pieces) if pieces else torch.zeros(0))


def can_flatten(a: Mapping[str, Tensor]) -> bool:
    """Return whether all tensors of ``a`` have one dtype and one device."""
    return isinstance(a, Flat) or len({(tensor.dtype, tensor.device) for tensor in a.values()}) <= 1


def empty_like(a: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Flat:
    """Return a flat set of the names and shapes of ``a`` whose entries are not set."""
    first = a.buffer if isinstance(a, Flat) else next(iter(a.values()), torch.zeros(0))
    layout = layout_of(a)
    return Flat(layout, torch.empty(layout.size, dtype=dtype or first.dtype, device=first.device))


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Tensors:
    """Return ``a + scale * b``; names that only ``a`` has are kept as they are."""
    if isinstance(a, Flat) and a.matches(b) and isinstance(b, Flat):
        return Flat(a.layout, _sum(a.buffer, b.buffer, scale))
    return {name: _sum(tensor, b[name], scale) if name in b else tensor for name, tensor in a.items()}


def add_to(a: Flat, b: Mapping[str, Tensor], scale: float) -> None:
    """Add ``scale * b`` to ``a`` in place; names that only ``a`` has are kept as they are."""
    if isinstance(b, Flat) and b.layout is a.layout:
        a.buffer.add_(b.buffer, alpha=scale)
    else:
        for name, tensor in b.items():
            a[name].add_(tensor, alpha=scale)


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Return ``a - b`` over the names of ``a``."""
    if isinstance(a, Flat) and a.matches(b) and isinstance(b, Flat):
        return Flat(a.layout, a.buffer - b.buffer)
    return {name: tensor - b[name] for name, tensor in a.items()}


def scaled(a: Mapping[str, Tensor], factor: float) -> Tensors:
    """Return ``factor * a``."""
    if isinstance(a, Flat):
        return Flat(a.layout, a.buffer * factor)
    return {name: tensor * factor for name, tensor in a.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the inner product over the names of ``a``, accumulated in float64."""
    if isinstance(a, Flat) and a.matches(b) and isinstance(b, Flat):
        return _dot(a.buffer, b.buffer)
    return sum((_dot(tensor.flatten(), b[name].flatten()) for name, tensor in a.items()), 0.0)


def norm(a: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all entries together, accumulated in float64."""
    return math.sqrt(dot(a, a))


def is_finite(a: Mapping[str, Tensor]) -> bool:
    """Return whether no entry is NaN or infinite."""
    pieces = [a.buffer] if isinstance(a, Flat) else a.values()
    # NaN and infinity survive every addition, so a finite sum proves it in one read; finite entries may
    # still add up to infinity, which the second look settles.
    return all(math.isfinite(float(piece.sum())) or bool(torch.isfinite(piece).all()) for piece in pieces)


def num_bytes(a: Mapping[str, Tensor]) -> int:
    """Return the bytes that the entries take."""
    if isinstance(a, Flat):
        return a.layout.size * a.buffer.element_size()
    return sum(tensor.numel() * tensor.element_size() for tensor in a.values())


class RunningMean:
    """A weighted mean that holds one set of tensors, however many are added.

    Sums are float64: with integer weights below 2**29 the mean of a single float32 set
    is that set, bit for bit, and the order of addition hardly matters. Flat sets of one layout
    are added up in one buffer; sets of other names are added up name by name. Means of coarser
    numbers than float32 are float32: rounded back they would lose what averaging gains.
    """

    def __init__(self) -> None:
        self._flat: _FlatSum | None = None
        self._sums: Tensors = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weights: dict[str, float] = {}
        self._value: Tensors | None = None
        self.weight = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> float:
        """Add one set with ``weight`` > 0; return its squared Euclidean norm, which costs nothing here."""
        self.weight += weight
        self._value = None
        if isinstance(tensors, Flat):
            if self._flat is None:
                self._flat = _FlatSum(tensors)
            if self._flat.matches(tensors):
                return self._flat.add(tensors, weight)
        squares = 0.0
        for name, tensor in tensors.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
                self._dtypes[name] = _precise(tensor.dtype)
                self._weights[name] = 0.0
            piece = tensor.contiguous().view(-1)
            squares += _add_chunks(self._sums[name].view(-1), piece, weight)
            self._weights[name] += weight
        return squares

    def value(self) -> Tensors:
        """Return the mean, flat where all sets were; a name counts the weight of those who sent it."""
        if self._value is None:
            self._value = self._divide()
        return self._value

    def _divide(self) -> Tensors:
        if self._flat is not None and not self._sums:
            return self._flat.mean()
        sums, weights, dtypes = dict(self._sums), dict(self._weights), dict(self._dtypes)
        if self._flat is not None:
            for name, total in self._flat.layout.views(self._flat.sums).items():
                sums[name] = sums[name] + total if name in sums else total
                weights[name] = weights.get(name, 0.0) + self._flat.weight
                dtypes.setdefault(name, _precise(self._flat.dtype))
        return {name: (total / weights[name]).to(dtypes[name]) for name, total in sums.items()}


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _FlatSum:
    """Weighted sums of flat sets that share one layout, float64."""

    def __init__(self, first: Flat) -> None:
        self.layout, self.dtype = first.layout, first.buffer.dtype
        self.sums = torch.zeros(self.layout.size, dtype=torch.float64, device=first.buffer.device)
        self.weight = 0.0

    def matches(self, tensors: Flat) -> bool:
        return tensors.layout is self.layout and tensors.buffer.dtype == self.dtype

    def add(self, tensors: Flat, weight: float) -> float:
        self.weight += weight
        return _add_chunks(self.sums, tensors.buffer, weight)

    def mean(self) -> Flat:
        buffer = torch.empty(self.layout.size, dtype=_precise(self.dtype), device=self.sums.device)
        for out, total in zip(buffer.split(CHUNK), self.sums.split(CHUNK), strict=True):
            out.copy_(total / self.weight)
        return Flat(self.layout, buffer)


class FixedSum:
    """A weighted sum of sets of one layout, kept flat in float64, and divided by a number that was agreed before.

    like: names and shapes of what is added; nothing added is zero.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.layout = layout_of(like)
        self.sums = torch.zeros(self.layout.size, dtype=torch.float64)
        self._dtype = _precise(next(iter(like.values())).dtype) if like else torch.float32

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one set of the layout."""
        if isinstance(tensors, Flat):
            _add_chunks(self.sums, tensors.buffer, weight)
            return
        for name, total in self.layout.views(self.sums).items():
            _add_chunks(total.view(-1), tensors[name].contiguous().view(-1), weight)

    def over(self, denominator: float) -> Flat:
        """Return the sum over ``denominator``."""
        return Flat(self.layout, (self.sums / denominator).to(self._dtype))


def mean(pairs: Iterable[tuple[Mapping[str, Tensor], float]]) -> Tensors:
    """Return the weighted mean of (tensors, weight) pairs."""
    running = RunningMean()
    for tensors, weight in pairs:
        running.add(tensors, weight)
    return running.value()


_Key = tuple[tuple[str, ...], tuple[torch.Size, ...]]
_layouts: "WeakValueDictionary[_Key, Layout]" = WeakValueDictionary()
_layouts_lock = threading.Lock()


def _layout(names: tuple[str, ...], shapes: tuple[torch.Size, ...]) -> Layout:
    """Return the one layout of these names and shapes, which is forgotten when nobody has it any more.

    Names and shapes may be what somebody sent: remembering all of them would let a client fill the memory.
    """
    with _layouts_lock:
        found = _layouts.get((names, shapes))
        if found is None:
            found = _layouts[names, shapes] = _new_layout(names, shapes)
        return found


def _new_layout(names: tuple[str, ...], shapes: tuple[torch.Size, ...]) -> Layout:
    offsets, strides, size = [], [], 0
    for shape in shapes:
        offsets.append(size)
        strides.append(tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
        size += math.prod(shape)
    return Layout(names, shapes, tuple(offsets), tuple(strides), size)


def _sum(a: Tensor, b: Tensor, scale: float) -> Tensor:
    # Not one fused call: whether it rounds once or twice depends on where an entry lies in memory.
    return a + b if scale == 1.0 else a + scale * b


def _dot(a: Tensor, b: Tensor) -> float:
    """Return the inner product of two vectors, widened piece by piece."""
    total, wide = 0.0, _scratch(a)
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        left = wide[: len(x)].copy_(x)
        total += float(torch.dot(left, left if a is b else y.double()))
    return total


def _scratch(values: Tensor) -> Tensor:
    """Return room for a widened piece: asked for once, since fresh memory costs more than the arithmetic."""
    return torch.empty(min(CHUNK, values.numel()), dtype=torch.float64, device=values.device)


def _add_chunks(sums: Tensor, values: Tensor, weight: float) -> float:
    """Add ``weight * values`` to float64 ``sums`` in place, in one pass; return the square of values' norm."""
    squares, room = 0.0, _scratch(values)
    for total, piece in zip(sums.split(CHUNK), values.split(CHUNK), strict=True):
        wide = room[: len(piece)].copy_(piece)
        squares += float(torch.dot(wide, wide))
        total.add_(wide, alpha=weight)
    return squares
