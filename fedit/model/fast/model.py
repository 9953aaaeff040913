"""The whole pass: embedding, layers, head; one autograd function whose backward pass is written by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.model.examples import ExampleGradients, Examples
from fedit.model.fast.architecture import Architecture
from fedit.model.fast.attention import Masks, Rotation
from fedit.model.fast.head import Scores
from fedit.model.fast.layer import (
    Context,
    SavedAttention,
    SavedMlp,
    attend,
    attend_backward,
    feed,
    feed_backward,
)
from fedit.model.fast.layout import Layout, lay_out, lay_out_examples, shared_prefixes
from fedit.model.fast.linear import Dropout, Gradients, Spans
from fedit.model.fast.past import Past
from fedit.model.fast.staging import Staged, stage
from fedit.model.fast.varlen import Bounds, Kernel
from fedit.types import LEDGER


@dataclass(slots=True)
class SavedLayer:
    """What a layer's backward pass needs."""

    attention: SavedAttention
    mlp: SavedMlp


class FastModel:
    """Runs layouts over the frozen base with the adapters of one client or of several stacked ones."""

    def __init__(
        self, architecture: Architecture, *, recompute: bool = False, kernel: Kernel | None = None
    ) -> None:
        """Run ``architecture``; kernel: attention over rows of any lengths, None: it runs in blocks."""
        self.architecture = architecture
        self.kernel = kernel
        self.device = architecture.head.weight.device
        self.dtype = architecture.head.weight.dtype
        self.precise = torch.promote_types(self.dtype, torch.float32)
        self.recompute = recompute

    def lay_out(self, clients: Sequence[Sequence[TokenRow]], *, share_prefixes: bool = True) -> Layout:
        """Return one pass over the rows of every client, on the model's device."""
        any_length = self.kernel is not None
        return lay_out(clients, share_prefixes=share_prefixes, any_length=any_length).to(self.device)

    def lay_out_examples(self, clients: Sequence[Sequence[Sequence[TokenRow]]]) -> Layout:
        """Return one pass over the rows of every client's examples that tells them apart."""
        return lay_out_examples(clients, any_length=self.kernel is not None).to(self.device)

    def own_lengths(self, rows: Sequence[TokenRow]) -> tuple[list[int], int]:
        """Return how many tokens of each row a pass computes for it alone, and how many for several together."""
        lengths = [len(row.ids) for row in rows]
        shared = 0
        for length, members in shared_prefixes(rows) if self.kernel is None else ():
            shared += length
            for index in members:
                lengths[index] -= length
        return lengths, shared

    def stage(self, adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]) -> Staged:
        """Return the factors of ``adapters``, one per client of a layout, as a pass multiplies them."""
        return stage([spec.groups() for spec in self.architecture.layers], adapters, scales)

    def log_probabilities(
        self,
        layout: Layout,
        adapters: Sequence[Mapping[str, Tensor]],
        scales: Sequence[float],
        dropout: Dropout | None,
        examples: Sequence[ExampleGradients] = (),
    ) -> Tensor:
        """Return the log-probability of every target (targets,), differentiable in the adapters.

        A backward pass adds to the ``grad`` of factors that have one, and leaves the others' to autograd.

        adapters: per client of the layout "m.A" (rank, in) and "m.B" (out, rank); scales: per client.
        examples: per client of a layout that tells examples apart, what takes their gradients, which then go
                  nowhere else.
        """
        inputs = [adapter[name] for adapter in adapters for name in adapter if not name.startswith(LEDGER)]
        result: Tensor = _Run.apply(self, layout, adapters, scales, dropout, examples, *inputs)  # type: ignore[no-untyped-call]
        return result

    def score(
        self, layout: Layout, adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Return (log-probability, whether it is the likeliest token) of every target; nothing is kept."""
        with torch.no_grad():
            scores = Pass(self, layout, self.stage(adapters, scales), None, keep=False).forward(gradient=False)
        assert scores.likeliest is not None
        return scores.log_probability, scores.likeliest

    def moments(
        self, layout: Layout, adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ln p of every target, and mean and deviation of ln p under p there; nothing is kept."""
        with torch.no_grad():
            hidden = Pass(self, layout, self.stage(adapters, scales), None, keep=False).hidden()
            return self.architecture.head.moments(hidden, layout.targets)

    def layer_outputs(
        self,
        layout: Layout,
        adapters: Sequence[Mapping[str, Tensor]],
        scales: Sequence[float],
        inputs: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return what each layer makes of an input (tokens, width) of its own; the last one only at targets."""
        current = Pass(self, layout, self.stage(adapters, scales), None, keep=False)
        return [current.layer(index, x, None)[0] for index, x in enumerate(inputs)]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx, model, layout, adapters, scales, dropout, examples, *inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN205
        current = Pass(model, layout, model.stage(adapters, scales), dropout, keep=True)
        scores = current.forward(gradient=True)
        ctx.current = current
        ctx.gradient = scores.gradient
        ctx.inputs, ctx.examples = inputs, examples
        ctx.names = [
            (client, name)
            for client, adapter in enumerate(adapters)
            for name in adapter
            if not name.startswith(LEDGER)
        ]
        return scores.log_probability

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        found = ctx.current.backward(ctx.gradient.mul_(upstream.unsqueeze(1)))
        ctx.current = ctx.gradient = None
        if ctx.examples:
            for own, into in zip(found, ctx.examples, strict=True):
                for name, gradient in own.items():
                    into.put(name, gradient)
            return (None,) * (6 + len(ctx.names))
        gradients = [found[client].get(name) for client, name in ctx.names]
        # Autograd would add them one by one, which takes longer than a small step where clients are stacked.
        there = [
            index
            for index, (parameter, gradient) in enumerate(zip(ctx.inputs, gradients, strict=True))
            if parameter.is_leaf and parameter.grad is not None and gradient is not None
        ]
        if there:
            torch._foreach_add_([ctx.inputs[i].grad for i in there], [gradients[i] for i in there])
        for index in there:
            gradients[index] = None
        return (None,) * 6 + tuple(gradients)


class Pass:
    """One forward pass and, if it was kept, its backward pass; ``past``: what came before its tokens."""

    def __init__(
        self,
        model: FastModel,
        layout: Layout,
        factors: Staged,
        dropout: Dropout | None,
        *,
        keep: bool,
        past: Past | None = None,
    ) -> None:
        self.model = model
        self.keep = keep
        self.layers = model.architecture.layers
        self.factors = factors
        self.layout = layout
        slots = layout.positions if layout.slots is None else layout.positions[layout.slots]
        rotations = {name: self._rotation(name, slots) for name in model.architecture.rotations()}
        masks = Masks(model.dtype, layout.ids.device)
        examples = target_examples = None
        if layout.counts:
            examples = Examples(layout.examples, layout.counts, slots.device)
            target_examples = Examples(layout.target_examples, layout.counts, slots.device)
        self.context = Context(
            layout,
            Spans(layout.spans, slots.device, examples),
            rotations,
            masks,
            model.dtype,
            dropout,
            model.kernel,
            Bounds.of(layout.lengths, slots.device) if layout.lengths else None,
            past,
        )
        self.target_spans = Spans(layout.target_spans, slots.device, target_examples)
        self.saved: list[SavedLayer] = []

    def forward(self, *, gradient: bool) -> Scores:
        """Return the scores of all targets."""
        return self.model.architecture.head.score(self.hidden(), self.layout.targets, gradient=gradient)

    def hidden(self, on_layer: Callable[[int, SavedLayer], None] = lambda index, saved: None) -> Tensor:
        """Return the head's input (targets, width); ``on_layer`` sees what each layer would save."""
        x = self.model.architecture.embed(self.layout.ids).to(self.model.precise)
        for index in range(len(self.layers)):
            x, saved = self.layer(index, x, None)
            on_layer(index, saved)
            if self.keep:
                self.saved.append(_forget(saved) if self.model.recompute else saved)
        normed, rate = self.model.architecture.norm.forward(x, self.model.dtype)
        self.last = (x, rate) if self.keep else None
        return normed

    def backward(self, d_normed: Tensor) -> Gradients:
        """Return each client's gradients by name, for that of the head's input (targets, width)."""
        assert self.last is not None
        gradients: Gradients = [{} for _ in self.layout.spans]
        dx = self.model.architecture.norm.backward(d_normed, *self.last)
        lowest = self._lowest()
        for index in reversed(range(len(self.layers))):
            saved = self.saved.pop()
            if self.model.recompute:
                _, saved = self.layer(index, saved.attention.x, saved)
            below = self._layer_backward(index, dx, saved, gradients, lowest)
            if below is None:
                break
            dx = below
        return gradients

    def layer(self, index: int, x: Tensor, redo: SavedLayer | None) -> tuple[Tensor, SavedLayer]:
        """Return a layer's output and what its backward pass needs."""
        spec, factors, context = self.layers[index], self.factors[index], self.context
        after, attention = attend(spec, factors, x, context, redo.attention if redo else None)
        spans = context.spans
        if index == len(self.layers) - 1:
            # After the last attention tokens no longer meet: go on with those that predict a target.
            after, spans = after[self.layout.at], self.target_spans
        after, mlp = feed(spec, factors, after, context, spans, redo.mlp if redo else None)
        return after, SavedLayer(attention, mlp)

    def _layer_backward(
        self, index: int, dx: Tensor, saved: SavedLayer, gradients: Gradients, lowest: tuple[int, int]
    ) -> Tensor | None:
        spec, factors, context = self.layers[index], self.factors[index], self.context
        last = index == len(self.layers) - 1
        spans = self.target_spans if last else context.spans
        below = feed_backward(spec, factors, dx, saved.mlp, context, spans, gradients, lowest=lowest == (index, 1))
        if below is None:
            return None
        if last:
            below = torch.zeros_like(saved.attention.x).index_copy_(0, self.layout.at, below)
        return attend_backward(
            spec, factors, below, saved.attention, context, gradients, lowest=lowest == (index, 0)
        )

    def _lowest(self) -> tuple[int, int]:
        """Return (layer, 0 for attention or 1 for MLP) below which nothing is trained."""
        for index, groups in enumerate(self.factors):
            for half, own in enumerate((groups[:2], groups[2:])):
                if any(factors is not None and factors.trained for factors in own):
                    return index, half
        raise ValueError("no factor is trained")

    def _rotation(self, name: str, positions: Tensor) -> Rotation:
        example = torch.empty(0, dtype=self.model.dtype, device=positions.device)
        rotary = self.model.architecture.rotary
        arguments = (positions.unsqueeze(0),) if name == "default" else (positions.unsqueeze(0), name)
        cos, sin = rotary(example, *arguments)
        return Rotation(cos[0], sin[0])


def _forget(saved: SavedLayer) -> SavedLayer:
    """Return what a second forward pass over a layer needs: its input and its dropout masks."""
    for part in (saved.attention.qkv, saved.attention.o, saved.mlp.joined, saved.mlp.down):
        part.u = None
    nothing = torch.empty(0)
    attention, mlp = saved.attention, saved.mlp
    return SavedLayer(
        SavedAttention(attention.x, nothing, attention.qkv, None, [], None, attention.o, None),
        SavedMlp(nothing, nothing, nothing, mlp.joined, mlp.down, None),
    )
