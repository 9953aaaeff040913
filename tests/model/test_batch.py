"""From rows to forward passes: nothing lost, nothing shifted, nothing larger than allowed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_rows

from fedit.data.tokens import TokenRow
from fedit.model.batch import collate, micro_batches

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def expected_targets(rows):
    return [
        (index, int(row.ids[i - 1]), int(row.ids[i]))
        for index, row in enumerate(rows)
        for i in range(1, len(row.ids))
        if row.supervised[i]
    ]


@given(lengths, st.booleans(), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=50)
def test_every_target_is_predicted_from_the_token_before_it_in_its_row(sizes, packed, seed, prompt):
    rows = make_rows(sizes, seed, prompt)
    batch = collate(rows, packed=packed)
    flat = batch.ids.flatten()
    found = zip(batch.row_of_target.tolist(), flat[batch.at].tolist(), batch.targets.tolist(), strict=True)
    assert list(found) == expected_targets(rows)
    assert batch.tokens == sum(sizes)


def test_a_rows_first_token_is_never_a_target():
    row = TokenRow(np.array([5, 6, 7], dtype=np.int32), np.array([True, True, False]))
    batch = collate([row, row], packed=True)
    assert batch.targets.tolist() == [6, 6]
    assert batch.at.tolist() == [0, 3]


def test_packed_positions_start_again_in_every_row():
    batch = collate(make_rows([3, 2, 1]), packed=True)
    assert batch.ids.shape == (1, 6)
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.mask is None


def test_padding_is_masked():
    rows = make_rows([3, 1])
    batch = collate(rows, packed=False)
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.ids[1, 0] == rows[1].ids[0]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


@given(lengths, st.integers(1, 60), st.one_of(st.none(), st.integers(1, 5)), st.booleans())
@settings(max_examples=80)
def test_passes_cover_every_row_once_within_their_bounds(sizes, most_tokens, most_rows, packed):
    rows = make_rows(sizes)
    passes = micro_batches(sizes, most_tokens=most_tokens, most_rows=most_rows, packed=packed)
    assert sorted(i for members in passes for i in members) == list(range(len(rows)))
    for members in passes:
        own = [sizes[i] for i in members]
        cost = sum(own) if packed else max(own) * len(own)
        assert len(members) == 1 or cost <= most_tokens
        assert most_rows is None or len(members) <= most_rows
    assert passes == micro_batches(sizes, most_tokens=most_tokens, most_rows=most_rows, packed=packed)


def test_passes_are_filled():
    passes = micro_batches([10] * 12, most_tokens=40, most_rows=None, packed=True)
    assert [len(members) for members in passes] == [4, 4, 4]


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_stays_whole_on_its_device(packed):
    batch = collate(make_rows([3, 2]), packed=packed)
    moved = batch.to(batch.ids.device)
    assert (moved.mask is None) == packed
    assert moved.targets.tolist() == batch.targets.tolist()
