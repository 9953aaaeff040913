"""Arithmetic on named tensors."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedit.types import Tensors


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Tensors:
    """Return ``a + scale * b``; names that only ``a`` has are kept as they are."""
    return {name: tensor + scale * b[name] if name in b else tensor for name, tensor in a.items()}


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Return ``a - b`` over the names of ``a``."""
    return {name: tensor - b[name] for name, tensor in a.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the inner product over the names of ``a``, accumulated in float64."""
    total = 0.0
    for name, tensor in a.items():
        total += float(torch.dot(tensor.double().flatten(), b[name].double().flatten()))
    return total


def norm(a: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all entries together, accumulated in float64."""
    return math.sqrt(dot(a, a))


def is_finite(a: Mapping[str, Tensor]) -> bool:
    """Return whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in a.values())


def num_bytes(a: Mapping[str, Tensor]) -> int:
    """Return the bytes that the entries take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in a.values())


class RunningMean:
    """A weighted mean that holds one set of tensors, however many are added.

    Sums are float64: with integer weights below 2**29 the mean of a single float32 set
    is that set, bit for bit, and the order of addition hardly matters.
    """

    def __init__(self) -> None:
        self._sums: Tensors = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weights: dict[str, float] = {}
        self.weight = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one set with ``weight`` > 0."""
        self.weight += weight
        for name, tensor in tensors.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
                self._dtypes[name] = tensor.dtype
                self._weights[name] = 0.0
            self._sums[name].add_(tensor.double(), alpha=weight)
            self._weights[name] += weight

    def value(self) -> Tensors:
        """Return the mean; a name counts the weight of those who sent it."""
        return {name: (total / self._weights[name]).to(self._dtypes[name]) for name, total in self._sums.items()}


def mean(pairs: Iterable[tuple[Mapping[str, Tensor], float]]) -> Tensors:
    """Return the weighted mean of (tensors, weight) pairs."""
    running = RunningMean()
    for tensors, weight in pairs:
        running.add(tensors, weight)
    return running.value()
