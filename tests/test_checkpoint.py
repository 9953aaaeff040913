"""The server's state on disk: whole or absent, and never silently wrong."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedit import checkpoint
from fedit.errors import RunFolderError
from fedit.types import ServerState


def state(round, value=1.0, dtype=torch.float32):
    adapter = {"m.q.A": torch.full((2, 3), value, dtype=dtype), "m.q.B": torch.full((4, 2), -value, dtype=dtype)}
    return ServerState(round, adapter, memory={"v/m.q.A": torch.full((2, 3), value)})


def assert_same(one, two):
    assert one.round == two.round
    for part in ("adapter", "memory"):
        first, second = getattr(one, part), getattr(two, part)
        assert set(first) == set(second)
        for name in first:
            assert first[name].dtype == second[name].dtype
            assert torch.equal(first[name], second[name])


@given(
    st.integers(0, 12345), st.floats(width=32, allow_nan=False), st.sampled_from([torch.float32, torch.float64])
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_state_comes_back_bit_for_bit(tmp_path, round, value, dtype):
    checkpoint.save(tmp_path, state(round, value, dtype))
    assert_same(checkpoint.load(tmp_path, round), state(round, value, dtype))


def test_rounds_are_found_in_order(tmp_path):
    for round in (10, 2, 0, 10000):
        checkpoint.save(tmp_path, state(round))
    assert checkpoint.rounds(tmp_path) == [0, 2, 10, 10000]
    assert checkpoint.rounds(tmp_path / "nowhere") == []


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_crash_while_saving_leaves_no_round(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, state(1))

    def crash(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(RunFolderError, match="round-0002"):
        checkpoint.save(tmp_path, state(2))
    monkeypatch.undo()
    assert checkpoint.rounds(tmp_path) == [1]
    assert_same(checkpoint.load(tmp_path, 1), state(1))
    assert [p.name for p in tmp_path.iterdir()] == ["round-0001"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    checkpoint.save(tmp_path, state(1))
    half = tmp_path / ".round-0002.12ab.tmp"
    half.mkdir()
    (half / "state.json").write_text("{")
    assert checkpoint.rounds(tmp_path) == [1]
    assert not half.exists()


def test_a_full_disk_names_the_round(tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunFolderError, match=r"round-0001: No space left on device; free some space"):
        checkpoint.save(tmp_path, state(1))


def cut(folder):
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip(folder):
    file = folder / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def other_part(folder):
    import safetensors.torch

    (folder / "state.safetensors").write_bytes(safetensors.torch.save({"elsewhere/x": torch.zeros(1)}))


DAMAGES = {
    "truncated": cut,
    "one bit": flip,
    "empty": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "gone": lambda folder: (folder / "state.safetensors").unlink(),
    "unknown part": other_part,
    "no json": lambda folder: (folder / "state.json").write_text("{"),
    "binary json": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "json list": lambda folder: (folder / "state.json").write_text("[]"),
    "json without round": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named(tmp_path, damage):
    checkpoint.save(tmp_path, state(3))
    DAMAGES[damage](tmp_path / "round-0003")
    with pytest.raises(RunFolderError, match="round-0003"):
        checkpoint.load(tmp_path, 3)


def test_a_renamed_state_is_not_mistaken_for_another_round(tmp_path):
    checkpoint.save(tmp_path, state(3))
    (tmp_path / "round-0003").rename(tmp_path / "round-0004")
    with pytest.raises(RunFolderError, match="says it is of round 3"):
        checkpoint.load(tmp_path, 4)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(0, None, [0, 1, 2, 3, 4]), (1, None, [4]), (2, 1, [1, 3, 4]), (2, 4, [3, 4]), (9, None, [0, 1, 2, 3, 4])],
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path, keep, best, left):
    for round in range(5):
        checkpoint.save(tmp_path, state(round))
    checkpoint.prune(tmp_path, keep, best)
    assert checkpoint.rounds(tmp_path) == left


def test_nothing_is_pickled(tmp_path):
    checkpoint.save(tmp_path, state(1))
    files = sorted(p.name for p in (tmp_path / "round-0001").iterdir())
    assert files == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / "round-0001" / "state.json").read_text())["round"] == 1


def test_a_flipped_bit_is_told_apart_from_a_missing_file(tmp_path):
    checkpoint.save(tmp_path, state(3))
    flip(tmp_path / "round-0003")
    with pytest.raises(RunFolderError, match="digest"):
        checkpoint.load(tmp_path, 3)


def test_a_state_whose_metadata_is_of_another_round_is_refused(tmp_path):
    checkpoint.save(tmp_path, state(3))
    checkpoint.save(tmp_path, state(4))
    (tmp_path / "round-0003" / "state.safetensors").replace(tmp_path / "round-0004" / "state.safetensors")
    with pytest.raises(RunFolderError, match="says it is of round"):
        checkpoint.load(tmp_path, 4)


def test_the_newest_intact_state_is_found_with_one_warning(tmp_path, caplog):
    for round in range(5):
        checkpoint.save(tmp_path, state(round, float(round)))
    assert_same(checkpoint.newest(tmp_path), state(4, 4.0))
    assert caplog.records == []
    for round in (3, 4):
        flip(tmp_path / f"round-{round:04d}")
    assert_same(checkpoint.newest(tmp_path), state(2, 2.0))
    (warning,) = caplog.messages
    assert "round-0004" in warning
    assert "going on from round 2" in warning
    assert checkpoint.rounds(tmp_path) == [0, 1, 2]
    assert (tmp_path / "damaged-round-0004").is_dir()


def test_without_any_intact_state_there_is_nothing_to_go_on_from(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, state(0))
    flip(tmp_path / "round-0000")
    with pytest.raises(RunFolderError, match="no older state is intact"):
        checkpoint.newest(tmp_path)
    assert checkpoint.rounds(tmp_path) == [0]
