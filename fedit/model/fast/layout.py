"""Rows of tokens laid out for one pass: no padding outside attention, shared prompt prefixes computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from fedit.data.tokens import TokenRow

SHORTEST_PREFIX = 8
"""A shorter prefix that rows share is not worth the extra keys that attention has to gather."""

SIMILAR = 0.85
"""Rows whose lengths differ by no more than this share are padded to one length inside attention."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Rows of similar lengths that attention treats as one batch.

    start:  first slot of the group; its slots are ``count * length`` in a row.
    prefix: (first slot, length) of the tokens that all its rows have before them; None: nothing.
    """

    start: int
    count: int
    length: int
    prefix: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """One pass over the rows of one client, or of several stacked ones.

    ids, positions: int64 (computed,), the tokens that are computed; a shared prefix is there once.
    spans:          (start, end) of each client's computed tokens.
    groups:         a prefix stands before the rows that follow it; none where attention takes rows of any lengths.
    lengths:        of the rows one after the other, where attention takes rows of any lengths; else empty.
    slots:          int64 (slots,), the token in every slot of attention; None: slots are tokens.
    slot_of_token:  int64 (computed,), the way back; None: slots are tokens.
    padding:        int64, slots that no token owns.
    at:             int64 (targets,), the computed token whose next one is to be predicted.
    target_spans:   (start, end) of each client's targets.
    targets:        int64 (targets,), those next tokens.
    row_of_target:  int64 (targets,), which of the given rows (clients one after the other) a target belongs to.
    tokens:         real tokens of the rows, shared prefixes counted for every row.
    examples, target_examples: how many computed tokens and targets each example has, where they are told apart;
                    counts: how many of them each client has.
    """

    ids: Tensor
    positions: Tensor
    spans: tuple[tuple[int, int], ...]
    groups: tuple[AttentionGroup, ...]
    lengths: tuple[int, ...]
    slots: Tensor | None
    slot_of_token: Tensor | None
    padding: Tensor
    at: Tensor
    target_spans: tuple[tuple[int, int], ...]
    targets: Tensor
    row_of_target: Tensor
    tokens: int
    examples: tuple[int, ...] = ()
    target_examples: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Layout":
        """Return the layout on ``device``."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            slots=None if self.slots is None else self.slots.to(device),
            slot_of_token=None if self.slot_of_token is None else self.slot_of_token.to(device),
            padding=self.padding.to(device),
            at=self.at.to(device),
            targets=self.targets.to(device),
            row_of_target=self.row_of_target.to(device),
        )


def shared_prefixes(rows: Sequence[TokenRow]) -> list[tuple[int, list[int]]]:
    """Return (length, rows) of leading tokens that several rows share, and none is trained on or predicts from.

    A row is in one set at most; rows of a template's variants make a set each. The token before a row's first
    target stays with the row: what follows differs.
    """
    found: list[tuple[int, list[int]]] = []
    most = [_first_target(row) - 1 for row in rows]
    left = [index for index in range(len(rows)) if most[index] >= SHORTEST_PREFIX]
    for size in (4 * SHORTEST_PREFIX, 2 * SHORTEST_PREFIX, SHORTEST_PREFIX):
        sets: dict[bytes, list[int]] = {}
        for index in left:
            if most[index] >= size:
                sets.setdefault(np.ascontiguousarray(rows[index].ids[:size]).tobytes(), []).append(index)
        chosen = [members for members in sets.values() if len(members) > 1]
        found += [
            (_common([rows[i] for i in members], min(most[i] for i in members)), members) for members in chosen
        ]
        taken = {index for members in chosen for index in members}
        left = [index for index in left if index not in taken]
    return found


def _common(rows: Sequence[TokenRow], most: int) -> int:
    """Return how many leading tokens all rows share, at most ``most``."""
    heads = np.stack([row.ids[:most] for row in rows])
    differs = np.flatnonzero((heads != heads[0]).any(axis=0))
    return int(differs[0]) if len(differs) else most


def _first_target(row: TokenRow) -> int:
    """Return the index of the first token that is a target; the row's length if there is none."""
    found = np.flatnonzero(row.supervised[1:])
    return int(found[0]) + 1 if len(found) else len(row.ids)


def lay_out_examples(
    clients: Sequence[Sequence[Sequence[TokenRow]]], *, share_prefixes: bool = True, any_length: bool = False
) -> Layout:
    """Return one pass in which examples are told apart: clients have examples, which have rows.

    A prefix is shared by rows of one example only, so that every computed token is of one example.
    """
    apart = lay_out(
        [rows for examples in clients for rows in examples], share_prefixes=share_prefixes, any_length=any_length
    )
    ends = list(accumulate(len(examples) for examples in clients))
    places = list(zip([0, *ends[:-1]], ends, strict=True))
    return replace(
        apart,
        spans=tuple((apart.spans[a][0], apart.spans[b - 1][1]) for a, b in places),
        target_spans=tuple((apart.target_spans[a][0], apart.target_spans[b - 1][1]) for a, b in places),
        examples=tuple(end - start for start, end in apart.spans),
        target_examples=tuple(end - start for start, end in apart.target_spans),
        counts=tuple(len(examples) for examples in clients),
    )


class _Builder:
    """Collects the tokens and slots of a pass."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.groups: list[AttentionGroup] = []
        self.slots: list[np.ndarray] = []
        self.size = 0
        self.num_slots = 0

    def tokens(self, ids: np.ndarray, first_position: int) -> int:
        """Add tokens; return the index of the first."""
        start = self.size
        self.ids.append(ids)
        self.positions.append(np.arange(first_position, first_position + len(ids)))
        self.size += len(ids)
        return start

    def group(self, rows: Sequence[tuple[int, int]], prefix: tuple[int, int] | None) -> int:
        """Add (first token, length) rows, the longest first, as one group; return its first slot."""
        start, length = self.num_slots, rows[0][1]
        for first, own in rows:
            slots = np.full(length, -1, dtype=np.int64)
            slots[:own] = np.arange(first, first + own)
            self.slots.append(slots)
        self.groups.append(AttentionGroup(start, len(rows), length, prefix))
        self.num_slots += len(rows) * length
        return start


def lay_out(
    clients: Sequence[Sequence[TokenRow]], *, share_prefixes: bool = True, any_length: bool = False
) -> Layout:
    """Return one pass over the rows of every client; a prefix is shared by rows of one client only.

    any_length: for attention that takes rows of any lengths; nothing is shared then.
    """
    builder = _Builder()
    spans, target_spans = [], []
    at, targets, owners = [], [], []
    loose: list[tuple[int, int]] = []
    offset = num_targets = 0
    for rows in clients:
        first_token, first_target = builder.size, num_targets
        begins = [0] * len(rows)  # where a row's token 0 is, or would be if it stood before its own first token
        alone = set(range(len(rows)))
        for length, members in shared_prefixes(rows) if share_prefixes and not any_length else ():
            token = builder.tokens(rows[members[0]].ids[:length], 0)
            prefix = (builder.group([(token, length)], None), length)
            placed = [(builder.tokens(rows[i].ids[length:], length), len(rows[i].ids) - length) for i in members]
            for index, (token, _) in zip(members, placed, strict=True):
                begins[index] = token - length
            _add_groups(builder, placed, prefix)
            alone -= set(members)
        for index in sorted(alone):
            begins[index] = builder.tokens(rows[index].ids, 0)
            # Attention knows no adapters: rows of several clients may share a group.
            loose.append((begins[index], len(rows[index].ids)))
        for index, row in enumerate(rows):
            chosen = np.flatnonzero(row.supervised[1:])
            at.append(begins[index] + chosen)
            targets.append(row.ids[1:][chosen])
            owners.append(np.full(len(chosen), offset + index))
            num_targets += len(chosen)
        offset += len(rows)
        spans.append((first_token, builder.size))
        target_spans.append((first_target, num_targets))
    if any_length:
        builder.slots = [np.arange(builder.size)]
    else:
        _add_groups(builder, loose, None)
    slots = np.concatenate(builder.slots)
    padding = np.flatnonzero(slots < 0)
    back = np.empty(builder.size, dtype=np.int64)
    back[slots[slots >= 0]] = np.flatnonzero(slots >= 0)
    direct = len(padding) == 0 and bool((slots == np.arange(len(slots))).all())
    slots[padding] = 0
    return Layout(
        ids=_tensor(builder.ids),
        positions=_tensor(builder.positions),
        spans=tuple(spans),
        groups=tuple(builder.groups),
        lengths=tuple(len(row.ids) for rows in clients for row in rows) if any_length else (),
        slots=None if direct else torch.from_numpy(slots),
        slot_of_token=None if direct else torch.from_numpy(back),
        padding=torch.from_numpy(padding),
        at=_tensor(at),
        target_spans=tuple(target_spans),
        targets=_tensor(targets),
        row_of_target=_tensor(owners),
        tokens=sum(len(row.ids) for rows in clients for row in rows),
    )


def _add_groups(builder: _Builder, rows: list[tuple[int, int]], prefix: tuple[int, int] | None) -> None:
    """Cut rows into groups of similar lengths, longest first."""
    group: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda row: (-row[1], row[0])):
        if group and row[1] < SIMILAR * group[0][1]:
            builder.group(group, prefix)
            group = []
        group.append(row)
    if group:
        builder.group(group, prefix)


def _tensor(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
