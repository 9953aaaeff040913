"""Rows of tokens become one forward pass: packed without padding, or padded where packing cannot serve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedit.data.tokens import TokenRow


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass.

    ids, positions: int64 (rows, length). Packed rows share one line; their positions restart at 0.
    mask:           int64 (rows, length), 1 for real tokens; None when packed.
    at:             int64 (targets,), index into the flattened ids whose next token is to be predicted.
    targets:        int64 (targets,), those next tokens.
    row_of_target:  int64 (targets,), which of the given rows a target belongs to.
    tokens:         real tokens, padding not counted.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    at: Tensor
    targets: Tensor
    row_of_target: Tensor
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(
            self.ids.to(device),
            self.positions.to(device),
            mask,
            self.at.to(device),
            self.targets.to(device),
            self.row_of_target.to(device),
            self.tokens,
        )


def collate(rows: Sequence[TokenRow], *, packed: bool) -> Batch:
    """Return one forward pass over ``rows``."""
    lengths = [len(row.ids) for row in rows]
    width = sum(lengths) if packed else max(lengths)
    height = 1 if packed else len(rows)
    ids = np.zeros((height, width), dtype=np.int64)
    positions = np.zeros((height, width), dtype=np.int64)
    mask = np.zeros((height, width), dtype=np.int64)
    at, targets, owners = [], [], []
    offset = 0
    for index, row in enumerate(rows):
        line, start = (0, offset) if packed else (index, 0)
        end = start + len(row.ids)
        ids[line, start:end] = row.ids
        positions[line, start:end] = np.arange(len(row.ids))
        mask[line, start:end] = 1
        # The token at i is predicted from i - 1, so the first token of a row is never a target.
        chosen = np.flatnonzero(row.supervised[1:])
        at.append(line * width + start + chosen)
        targets.append(row.ids[1:][chosen].astype(np.int64))
        owners.append(np.full(len(chosen), index, dtype=np.int64))
        offset += len(row.ids)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        None if packed else torch.from_numpy(mask),
        torch.from_numpy(np.concatenate(at)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(owners)),
        sum(lengths),
    )


def micro_batches(
    lengths: Sequence[int], *, most_tokens: int, most_rows: int | None, packed: bool
) -> list[list[int]]:
    """Cut rows of the given lengths into forward passes of similar lengths; deterministic.

    Packed rows go, the longest first, into the fullest pass that has room (best fit decreasing);
    padded ones next to rows of almost their length.

    most_tokens: upper bound of a pass, padding counted; a longer row goes alone.
    most_rows:   upper bound of examples in a pass; None: no bound.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    passes: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        open_ = range(len(passes)) if packed else range(max(len(passes) - 1, 0), len(passes))
        # A padded row takes as much as the first of its pass.
        cost = [length if packed else lengths[passes[p][0]] for p in open_]
        fits = [
            (room[p], p, taken)
            for p, taken in zip(open_, cost, strict=True)
            if taken <= room[p] and (most_rows is None or len(passes[p]) < most_rows)
        ]
        if fits:
            _, best, taken = min(fits)
            passes[best].append(index)
            room[best] -= taken
        else:
            passes.append([index])
            room.append(most_tokens - length)
    return passes
