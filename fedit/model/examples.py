"""Gradients of single examples, clipped and added up: what differentially private training needs of a pass.

For an adapted layer with input x, output gradient g and scale s, an example whose tokens are t has
dB = s g_tᵀ (x_t Aᵀ) and dA = s (g_t B)ᵀ x_t (rank * (in + out) numbers), so nothing of the base's size is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedit.errors import ModelError

_SLACK = 1 - 1e-6
"""Keeps what rounding adds to a clipped gradient from taking its norm above the bound."""


class Examples:
    """Where each example's rows lie in a pass, one after the other without gaps.

    lengths: rows of every example; counts: how many examples each client has, in their order.
    padded:  multiply all at once, as batches filled up with zeros; None: except on a CPU, which such copies would
             cost as much as the products.
    """

    def __init__(
        self, lengths: Sequence[int], counts: Sequence[int], device: torch.device, *, padded: bool | None = None
    ) -> None:
        self._lengths, self._counts = list(lengths), list(counts)
        self.rows = sum(lengths)
        self._places: Tensor | None = None
        if device.type != "cpu" if padded is None else padded:
            ends = torch.tensor(self._lengths).cumsum(0).unsqueeze(1)
            places = (ends - torch.tensor(self._lengths).unsqueeze(1)) + torch.arange(max(lengths))
            # A place that holds no row reads a row of zeros behind the last one.
            self._places = places.where(places < ends, self.rows).to(device)

    def outer(self, one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        """Return per client oneᵀ other of each of its examples, (examples, n, m).

        one, other: (rows, n) and (rows, m), in the order of the pass.
        """
        if self._places is not None:
            found = torch.bmm(_batch(one, self._places).transpose(1, 2), _batch(other, self._places))
        else:
            found = one.new_empty(len(self._lengths), one.shape[1], other.shape[1])
            parts = zip(found, one.split(self._lengths), other.split(self._lengths), strict=True)
            for out, left, right in parts:
                torch.mm(left.T, right, out=out)
        return tuple(found.split(self._counts))


def _batch(x: Tensor, places: Tensor) -> Tensor:
    """Return rows (rows, width) as (examples, longest, width), zero where an example has none."""
    with_zeros = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return with_zeros.index_select(0, places.flatten()).view(*places.shape, x.shape[1])


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
