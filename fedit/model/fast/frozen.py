"""Frozen linear layers: those that read the same input are one product."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Packed:
    """4-bit weights of bitsandbytes layers, one on top of the other, unpacked whenever they are multiplied."""

    def __init__(self, weights: Sequence[Any], dtype: torch.dtype) -> None:
        self._weights = weights
        self.dtype = dtype

    def dense(self) -> Tensor:
        """Return the weights (out, in) in compute dtype."""
        from bitsandbytes.functional import dequantize_4bit

        parts = [dequantize_4bit(weight.data, weight.quant_state).to(self.dtype) for weight in self._weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(slots=True)
class Group:
    """Linear layers that read the same input and are computed as one product.

    weight:   compute dtype (out, in), of which the layers' own weights are views; or 4-bit ones.
    bias:     compute dtype (out,) or None.
    adapted:  (canonical module name, first output, last output) of the layers that carry an adapter.
    """

    weight: Tensor | Packed
    bias: Tensor | None
    adapted: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, layers: Sequence[tuple[str, nn.Module]], adapted: Sequence[str], dtype: torch.dtype) -> "Group":
        """Join (name, linear layer) pairs; their weights become views of the joined one, so memory stays.

        dtype: what the base computes in.

        Raises:
            TypeError: a layer is neither plain nor quantised to 4 bits.
        """
        modules: list[Any] = [getattr(layer, "base_layer", layer) for _, layer in layers]
        biases = [module.bias for module in modules]
        if len({bias is None for bias in biases}) > 1:
            raise TypeError("some layers have a bias and some have none")
        known = [bias.data.to(dtype) for bias in biases if bias is not None]
        places, start = [], 0
        bounds = []
        for (name, _), module in zip(layers, modules, strict=True):
            end = start + module.out_features
            bounds.append((start, end))
            if name in adapted:
                places.append((name, start, end))
            start = end
        return cls(_join(modules, bounds, dtype), torch.cat(known) if known else None, tuple(places))

    @property
    def dtype(self) -> torch.dtype:
        """What the group computes in."""
        return self.weight.dtype

    def product(self, x: Tensor) -> Tensor:
        """Return the frozen layers' output (rows, out) for x (rows, in)."""
        weight = self.weight if isinstance(self.weight, Tensor) else self.weight.dense()
        return torch.mm(x, weight.T) if self.bias is None else torch.addmm(self.bias, x, weight.T)

    def product_back(self, dy: Tensor) -> Tensor:
        """Return the gradient (rows, in) of the frozen layers' input for that of their output (rows, out)."""
        return torch.mm(dy, self.weight if isinstance(self.weight, Tensor) else self.weight.dense())


def _join(modules: Sequence[Any], bounds: Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor | Packed:
    weights: list[Tensor] = [module.weight for module in modules]
    if all(type(module).__name__ == "Linear4bit" for module in modules):
        return Packed(weights, dtype)
    if unknown := [type(module).__name__ for module in modules if type(module) is not nn.Linear]:
        raise TypeError(f"{unknown[0]} is not a plain linear layer")
    if len(weights) == 1:
        return weights[0].data
    joined = torch.cat([weight.data for weight in weights])
    for weight, (start, end) in zip(weights, bounds, strict=True):
        weight.data = joined[start:end]
    return joined
