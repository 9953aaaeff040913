"""Checks a fast path against the model's own code: each part from the very input that the model's part saw.

Rounding grows from layer to layer, in bfloat16 until the last numbers tell little. Within one layer a mistake is
far larger than rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedit.data.tokens import TokenRow
from fedit.model.fast.model import FastModel

EXACT, COARSE = 1e-4, 5e-2
"""Largest mean error of a token, relative to what the part adds to it: in float32 and float64, in 16 bits."""


@dataclass(slots=True)
class _Trace:
    """What every layer of a model got and gave, (tokens, width), row after row; logits (tokens, vocabulary)."""

    inputs: list[list[Tensor]]
    outputs: list[list[Tensor]]
    logits: list[Tensor] = field(default_factory=list)


def first_difference(
    model: PreTrainedModel,
    fast: FastModel,
    rows: Sequence[TokenRow],
    adapter: Mapping[str, Tensor],
    scale: float,
) -> str | None:
    """Return the first part whose numbers differ from the model's own on ``rows``; None where all agree."""
    layout = fast.lay_out([rows], share_prefixes=False)
    with torch.no_grad():
        trace = _trace(model, rows)
        inputs = [torch.cat(parts).to(fast.precise) for parts in trace.inputs]
        outputs = [torch.cat(parts).to(fast.precise) for parts in trace.outputs]
        embedded = fast.architecture.embed(layout.ids).to(fast.precise)
        if not _agree(embedded, inputs[0], inputs[0], fast.dtype):
            return "the embedding"
        found = fast.layer_outputs(layout, [adapter], [scale], inputs)
        for index, (before, expected, own) in enumerate(zip(inputs, outputs, found, strict=True)):
            at = layout.at if index == len(inputs) - 1 else slice(None)
            if not _agree(own, expected[at], expected[at] - before[at], fast.dtype):
                return f"layer {index}"
        normed, _ = fast.architecture.norm.forward(outputs[-1][layout.at], fast.dtype)
        scores = fast.architecture.head.score(normed, layout.targets, gradient=False)
        logits = torch.cat(trace.logits)[layout.at].to(fast.precise)
        expected = logits.log_softmax(-1).gather(1, layout.targets.unsqueeze(1))
        if not _agree(scores.log_probability.unsqueeze(1), expected, expected, fast.dtype):
            return "the head"
    return None


def _trace(model: PreTrainedModel, rows: Sequence[TokenRow]) -> _Trace:
    layers = list(model.model.layers)
    trace = _Trace([[] for _ in layers], [[] for _ in layers])
    with _listening(layers, trace):
        for row in rows:
            ids = torch.from_numpy(row.ids).to(model.device, torch.int64).unsqueeze(0)
            trace.logits.append(model(input_ids=ids, use_cache=False).logits[0])
    return trace


@contextmanager
def _listening(layers: Sequence[nn.Module], trace: _Trace) -> Iterator[None]:
    def listener(index: int) -> Callable[..., None]:
        def listen(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor]
        ) -> None:
            trace.inputs[index].append((args[0] if args else kwargs["hidden_states"])[0])
            trace.outputs[index].append((output if isinstance(output, Tensor) else output[0])[0])

        return listen

    handles = [layer.register_forward_hook(listener(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _agree(found: Tensor, expected: Tensor, added: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``found`` is what was expected; ``added``: what of it the part itself has made."""
    tolerance = EXACT if dtype in (torch.float32, torch.float64) else COARSE
    error = (found - expected).norm(dim=-1)
    # A sum is rounded to the model's dtype: where little is added to much, that is all one sees.
    rounding = torch.finfo(dtype).eps * expected.norm(dim=-1)
    ratio = error / (added.norm(dim=-1) + rounding / tolerance).clamp(min=torch.finfo(torch.float32).tiny)
    return bool(ratio.mean() <= tolerance)
