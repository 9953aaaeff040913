"""Gradients of single examples, clipped and added up: what differentially private training needs of a pass.

For an adapted layer with input x, output gradient g and scale s, an example whose tokens are t has
dB = s g_tᵀ (x_t Aᵀ) and dA = s (g_t B)ᵀ x_t (rank * (in + out) numbers), so nothing of the base's size is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedit.errors import ModelError

_SLACK = 1 - 1e-6
"""Keeps what rounding adds to a clipped gradient from taking its norm above the bound."""


class Examples:
    """Where each example's rows lie in a pass, one after the other without gaps.

    bounds: (first row, end) of every example; counts: how many of them each client has, in their order.
    """

    def __init__(self, bounds: Sequence[tuple[int, int]], counts: Sequence[int], device: torch.device) -> None:
        self._counts = list(counts)
        self._lengths = [end - start for start, end in bounds]
        self.rows = sum(self._lengths)
        if device.type == "cpu":
            return
        # Places of a batch (examples, longest) that hold no row read a row of zeros behind the last one.
        longest = max(self._lengths)
        steps = torch.arange(longest)
        starts, lengths = (torch.tensor(v).unsqueeze(1) for v in ([a for a, _ in bounds], self._lengths))
        self._places = torch.where(steps < lengths, starts + steps, self.rows).to(device)

    @classmethod
    def of_rows(cls, lengths: Sequence[int], sizes: Sequence[int], device: torch.device) -> "Examples":
        """Return the examples of one client from the lengths of their rows; sizes: rows of each example."""
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length)
        first = [0]
        for size in sizes:
            first.append(first[-1] + size)
        return cls([(ends[a], ends[b]) for a, b in pairwise(first)], [len(sizes)], device)

    def outer(self, one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        """Return per client oneᵀ other of each of its examples, (examples, n, m).

        one, other: (rows, n) and (rows, m), in the order of the pass.
        """
        if one.is_cuda:
            found = torch.bmm(self._batch(one).transpose(1, 2), self._batch(other))
        else:
            # Slices, not padded batches: their copies would cost a CPU as much as the products.
            found = one.new_empty(len(self._lengths), one.shape[1], other.shape[1])
            parts = zip(found, one.split(self._lengths), other.split(self._lengths), strict=True)
            for out, left, right in parts:
                torch.mm(left.T, right, out=out)
        return found.split(self._counts)

    def _batch(self, x: Tensor) -> Tensor:
        """Return rows (rows, width) as (examples, longest, width), zero where an example has none."""
        with_zeros = torch.cat([x, x.new_zeros(1, x.shape[1])])
        return with_zeros.index_select(0, self._places.flatten()).view(*self._places.shape, x.shape[1])


class ExampleGradients:
    """The gradients of one client's examples in one pass, in the adapter's precision.

    of: canonical name -> (examples, *shape), once the backward pass has run.
    """

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def put(self, name: str, gradients: Tensor) -> None:
        """Add the examples' gradients of a factor, (examples, *shape)."""
        self.of[name] = self.of[name] + gradients if name in self.of else gradients

    def norms(self) -> Tensor:
        """Return every example's Euclidean norm over all factors together, float64 (examples,)."""
        squares = [torch.linalg.vector_norm(found, dim=(1, 2)).double().square() for found in self.of.values()]
        return torch.stack(squares).sum(0).sqrt()

    def add_clipped(self, parameters: Mapping[str, nn.Parameter], norm: float) -> None:
        """Add to each ``grad`` the sum over examples of min(1, norm / own norm) times the own gradient.

        An example whose gradient is not finite counts as zero: nobody moves the sum by more than ``norm``.
        """
        if not self.of:
            return
        norms = self.norms()
        finite = norms.isfinite()
        weights = torch.where(norms > norm, norm * _SLACK / norms, 1.0).masked_fill_(~finite, 0.0)
        broken = (~finite).nonzero().squeeze(1)
        for name, found in self.of.items():
            if len(broken):
                found.index_fill_(0, broken, 0.0)
            grad = parameters[name].grad
            assert grad is not None
            grad.add_(_weighted(weights.to(found.dtype), found))


def _weighted(weights: Tensor, found: Tensor) -> Tensor:
    """Return the sum of (examples, n, m) by their weights."""
    if found.stride(1) < found.stride(2):  # gradients of B lie transposed in memory
        return _weighted(weights, found.transpose(1, 2)).T
    return (weights @ found.reshape(len(found), -1)).view(found.shape[1:])


class Recorder:
    """Makes the factors of a PEFT model tell examples apart while a pass is being recorded."""

    def __init__(self, modules: Mapping[str, Any], adapter: str) -> None:
        """Watch ``modules``: canonical name -> PEFT's LoRA layer, which has factors under the name ``adapter``."""
        self._now: tuple[Examples, ExampleGradients] | None = None
        for name, module in modules.items():
            for factor, linear in (("A", module.lora_A[adapter]), ("B", module.lora_B[adapter])):
                linear.forward = self._forward(f"{name}.{factor}", linear)

    @contextmanager
    def into(self, found: ExampleGradients, examples: Examples) -> Iterator[None]:
        """Record the pass that is computed, forward and backward, inside the block."""
        self._now = examples, found
        try:
            yield
        finally:
            self._now = None

    def _forward(self, name: str, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        plain = linear.forward

        def forward(x: Tensor) -> Tensor:
            if self._now is None or not linear.weight.requires_grad:
                return plain(x)
            examples, into = self._now
            if x.shape[:-1].numel() != examples.rows:
                raise ModelError(
                    f"layer '{name[:-2]}' does not see every token once, so examples cannot be told apart in it; "
                    "leave it out of lora_target_modules, or set privacy to none."
                )
            found: Tensor = _ExampleLinear.apply(x, linear.weight, examples, into, name)  # type: ignore[no-untyped-call]
            return found

        return forward


class _ExampleLinear(torch.autograd.Function):
    """x Wᵀ whose backward pass leaves the weight's gradient, one an example, with the recorder."""

    @staticmethod
    def forward(ctx, x, weight, examples, into, name):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.save_for_backward(x, weight)
        ctx.examples, ctx.into, ctx.name = examples, into, name
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x, weight = ctx.saved_tensors
        (found,) = ctx.examples.outer(upstream.reshape(-1, upstream.shape[-1]), x.reshape(-1, x.shape[-1]))
        ctx.into.put(ctx.name, found)
        dx = upstream @ weight if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None
