"""Answers token by token: prompts of several adapters in one batch over the base, keys and values kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.model.fast.layout import Layout, lay_out
from fedit.model.fast.model import FastModel, Pass, SavedLayer
from fedit.model.fast.past import GROWTH, Past
from fedit.model.fast.staging import Staged

SPARSE = 0.75
"""Rows that have ended leave the batch when no more than this share goes on: leaving copies keys and values."""

Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""(scores float32 (rows, vocabulary), which of the given prompts the rows are) -> next tokens int64 (rows,)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to go on from; ``adapter`` is the index of the one that does."""

    ids: Sequence[int]
    adapter: int = 0


def likeliest(scores: Tensor, prompts: Sequence[int]) -> Tensor:
    """Choose the tokens with the highest scores: greedy search."""
    return scores.argmax(-1)


@torch.no_grad()
def decode(
    model: FastModel,
    adapters: Sequence[Mapping[str, Tensor]],
    scales: Sequence[float],
    prompts: Sequence[Prompt],
    *,
    stops: Sequence[int],
    max_new_tokens: int,
    tokens_per_pass: int,
    choose: Choose = likeliest,
    on_token: Callable[[int, int], bool] = lambda prompt, token: True,
) -> list[list[int]]:
    """Return the answer to every prompt, token ids without the stop. All prompts run as one batch.

    scales:          of the adapters.
    stops:           tokens that end an answer.
    tokens_per_pass: prompts are read in passes of about so many tokens.
    on_token:        hears (prompt, token) of all but stops, and ends that prompt's answer by returning False.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    if not prompts or max_new_tokens < 1:
        return answers
    if not all(len(prompt.ids) for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    batch = _Batch(model, adapters, scales, prompts)
    x = batch.read(tokens_per_pass)
    while True:
        tokens = choose(model.architecture.head.logits(x), batch.prompts)
        going = []
        for place, (prompt, token) in enumerate(zip(batch.prompts, tokens.tolist(), strict=True)):
            if prompt in batch.ended:
                continue
            if token not in stops:
                answers[prompt].append(token)
                if on_token(prompt, token) and len(answers[prompt]) < max_new_tokens:
                    going.append(place)
                    continue
            batch.ended.add(prompt)
        if not going:
            return answers
        if len(going) <= SPARSE * len(batch.prompts):
            tokens = tokens[batch.keep(going)]
        x = batch.step(tokens)


class _Batch:
    """Rows that are continued together; those of one adapter lie side by side."""

    def __init__(
        self,
        model: FastModel,
        adapters: Sequence[Mapping[str, Tensor]],
        scales: Sequence[float],
        prompts: Sequence[Prompt],
    ) -> None:
        self._model, self._adapters, self._scales = model, adapters, scales
        self._given = prompts
        self.prompts = sorted(range(len(prompts)), key=lambda i: (prompts[i].adapter, i))
        self.ended: set[int] = set()
        self._counts: list[int] = []
        self._staged: Staged = []
        heads = [spec.heads for spec in model.architecture.layers]
        room = max(len(prompt.ids) for prompt in prompts) + GROWTH
        self._past = Past(len(prompts), heads, room, model.dtype, model.device)

    def read(self, tokens_per_pass: int) -> Tensor:
        """Read all prompts; return the head's input (rows, width) after them."""
        lengths = [len(self._given[prompt].ids) for prompt in self.prompts]
        starts, room = [0], tokens_per_pass
        for place, length in enumerate(lengths):
            if place > starts[-1] and length > room:
                starts.append(place)
                room = tokens_per_pass
            room -= length
        found = [self._read_some(range(*bounds)) for bounds in pairwise([*starts, len(lengths)])]
        self._past.begin(lengths)
        self._arrange()
        return torch.cat(found)

    def _read_some(self, places: range) -> Tensor:
        prompts = [self._given[self.prompts[place]] for place in places]
        clients = [[_row(prompt.ids) for prompt in own] for own in _of_adapters(prompts)]
        layout = lay_out(clients).to(self._model.device)
        lines = _rows_of_groups(layout)

        def keep(layer: int, saved: SavedLayer) -> None:
            heads = self._model.architecture.layers[layer].heads
            assert isinstance(saved.attention.groups, list)
            for rows, group in zip(lines, saved.attention.groups, strict=True):
                if rows is not None:
                    shape = (len(rows), heads.keys, -1, heads.dim)
                    self._past.fill(layer, rows + places.start, group.k.view(shape), group.v.view(shape))

        return Pass(self._model, layout, self._stage(prompts), None, keep=False).hidden(keep)

    def keep(self, places: Sequence[int]) -> Tensor:
        """Let all rows but those at ``places`` leave; return these as a tensor."""
        chosen = torch.tensor(places, device=self._model.device)
        self.prompts = [self.prompts[place] for place in places]
        self._past.keep(chosen)
        self._arrange()
        return chosen

    def step(self, tokens: Tensor) -> Tensor:
        """Go on by one token (rows,) a row; return the head's input (rows, width) after them."""
        layout = _step_layout(tokens, self._past.advance(), self._counts)
        return Pass(self._model, layout, self._staged, None, keep=False, past=self._past).hidden()

    def _arrange(self) -> None:
        """Get ready what the steps share until rows leave: the rows of each adapter, and the adapters' factors."""
        prompts = [self._given[prompt] for prompt in self.prompts]
        counts = [len(own) for own in _of_adapters(prompts)]
        if not self._staged or len(counts) != len(self._counts):
            self._staged = self._stage(prompts)
        self._counts = counts

    def _stage(self, prompts: Sequence[Prompt]) -> Staged:
        used = sorted({prompt.adapter for prompt in prompts})
        return self._model.stage([self._adapters[i] for i in used], [self._scales[i] for i in used])


def _of_adapters(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Cut prompts, sorted by adapter, into those of each."""
    return [[p for p in prompts if p.adapter == own] for own in sorted({p.adapter for p in prompts})]


def _row(ids: Sequence[int]) -> TokenRow:
    """Return a prompt as a row whose one target is a token after it, which says nothing and is written over."""
    supervised = np.zeros(len(ids) + 1, dtype=bool)
    supervised[-1] = True
    return TokenRow(np.asarray([*ids, 0], dtype=np.int32), supervised)


def _rows_of_groups(layout: Layout) -> list[Tensor | None]:
    """Return which rows the lines of every group are; None for a group that is a prefix of others."""
    prefixes = {group.prefix[0] for group in layout.groups if group.prefix is not None}
    found: list[Tensor | None] = []
    for group in layout.groups:
        if group.start in prefixes:
            found.append(None)
            continue
        slots = group.start + group.length * torch.arange(group.count, device=layout.at.device)
        first = slots if layout.slots is None else layout.slots[slots]
        # A row's own tokens lie in a row and end with its target's: rows lie in the order of these.
        order = layout.at.argsort()
        found.append(order[torch.searchsorted(layout.at[order], first)])
    return found


def _step_layout(tokens: Tensor, positions: Tensor, counts: Sequence[int]) -> Layout:
    """Return one pass over a new token of every row; counts: rows of each adapter."""
    everything = torch.arange(len(tokens), device=tokens.device)
    ends = np.cumsum(counts).tolist()
    spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return Layout(
        ids=tokens,
        positions=positions,
        spans=spans,
        groups=(),
        lengths=(),
        slots=None,
        slot_of_token=None,
        padding=everything[:0],
        at=everything,
        target_spans=spans,
        targets=tokens,
        row_of_target=everything,
        tokens=len(tokens),
    )
