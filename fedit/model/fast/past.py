"""Keys and values of the tokens before: what attention of one new token a row looks at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedit.model.fast.attention import Heads, Rotation, turn

GROWTH = 128
"""Positions that are made room for at once; making room copies what is there."""


class Past:
    """Per layer, keys and values (rows, key heads, room, dim), of which each row has ``lengths`` positions."""

    def __init__(
        self, rows: int, heads: Sequence[Heads], room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make room for ``rows`` rows of ``room`` positions, none of which is there yet; heads: of each layer."""
        self.keys = [torch.zeros(rows, own.keys, room, own.dim, dtype=dtype, device=device) for own in heads]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._longest = 0
        self._hidden: dict[int | None, Tensor] = {}

    def fill(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put what a layer found at the first positions of ``rows``, (rows, key heads, positions, dim)."""
        positions = min(keys.shape[2], self.keys[layer].shape[2])
        self.keys[layer][rows, :, :positions] = keys[:, :, :positions]
        self.values[layer][rows, :, :positions] = values[:, :, :positions]

    def begin(self, lengths: Sequence[int]) -> None:
        """Say how many positions of each row have been filled."""
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self._longest = max(lengths)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but ``rows``."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.lengths = self.lengths[rows]
        self._longest = int(self.lengths.max())

    def advance(self) -> Tensor:
        """Make room for a new position in every row and return these positions (rows,)."""
        positions = self.lengths
        self.lengths = positions + 1
        self._longest += 1
        if self._longest > self.keys[0].shape[2]:
            self.keys = [torch.nn.functional.pad(keys, (0, 0, 0, GROWTH)) for keys in self.keys]
            self.values = [torch.nn.functional.pad(values, (0, 0, 0, GROWTH)) for values in self.values]
        self._hidden = {}
        return positions

    def attend(self, layer: int, qkv: Tensor, heads: Heads, rotation: Rotation | None) -> Tensor:
        """Return attention's output (rows, queries * dim) for the new tokens' qkv (rows, width) and keep these."""
        count, share = len(qkv), heads.queries // heads.keys
        q, k, v = (
            part.unsqueeze(1)
            for part in qkv.unflatten(1, (-1, heads.dim)).split([heads.queries, heads.keys, heads.keys], 1)
        )
        turned_q, turned_k = torch.empty_like(q), torch.empty_like(k)
        turn(rotation, q, turned_q, 0, heads.scale)
        turn(rotation, k, turned_k, 0, 1.0)
        keys, values = self.keys[layer], self.values[layer]
        rows, last = torch.arange(count, device=qkv.device), self.lengths - 1
        keys[rows, :, last] = turned_k[:, 0]
        values[rows, :, last] = v[:, 0]
        seen = self._longest
        # The queries that share a key head are like several queries of one row.
        merged = count * heads.keys
        queries = turned_q.view(merged, share, heads.dim)
        keys = keys.view(merged, -1, heads.dim)[:, :seen]
        values = values.view(merged, -1, heads.dim)[:, :seen]
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if heads.softcap is not None:
            scores.div_(heads.softcap).tanh_().mul_(heads.softcap)
        scores.view(count, heads.keys * share, seen).masked_fill_(self._hidden_from(heads.window), float("-inf"))
        return torch.bmm(torch.softmax(scores, -1), values).view(count, heads.queries * heads.dim)

    def _hidden_from(self, window: int | None) -> Tensor:
        """Return which positions the new tokens do not see: bool (rows, 1, positions)."""
        if window not in self._hidden:
            positions = torch.arange(self._longest, device=self.lengths.device).unsqueeze(0)
            hidden = positions >= self.lengths.unsqueeze(1)
            if window is not None:
                hidden |= positions < self.lengths.unsqueeze(1) - window
            self._hidden[window] = hidden.unsqueeze(1)
        return self._hidden[window]
