"""What clients keep between rounds: theirs alone, and a round that is done again starts from before it."""

import errno
import os

import pytest
import torch

from fedit.errors import RunFolderError
from fedit.store import ClientStore
from fedit.types import ClientState


def state(seen, value=1.0):
    tensors = {"m.A": torch.full((2,), value)}
    return ClientState(
        seen, private=tensors, memory={"c": torch.tensor([value])}, optimizer={"m.A.step": torch.tensor(value)}
    )


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return ClientStore(tmp_path if request.param == "disk" else None)


def test_a_new_client_starts_fresh(store):
    assert store.read("a", 1) == ClientState()


def test_a_state_comes_back_whole(store):
    store.write("a", 1, state(5, 0.1))
    found = store.read("a", 2)
    assert found.batches_seen == 5
    for part in ("private", "memory", "optimizer"):
        one, two = getattr(found, part), getattr(state(5, 0.1), part)
        assert set(one) == set(two)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_clients_do_not_see_each_other(store):
    store.write("a", 1, state(5))
    assert store.read("b", 2) == ClientState()


def test_a_client_that_paused_finds_its_last_state(store):
    store.write("a", 1, state(5))
    assert store.read("a", 40).batches_seen == 5


def test_a_round_done_again_starts_from_the_state_before_it(tmp_path):
    store = ClientStore(tmp_path)
    for round in (1, 3, 4):
        store.write("a", round, state(round))
    assert store.read("a", 4).batches_seen == 3
    store.write("a", 4, state(4))
    assert store.read("a", 5).batches_seen == 4


def test_only_the_newest_states_stay_on_disk(tmp_path):
    store = ClientStore(tmp_path)
    for round in range(1, 8):
        store.write("a", round, state(round))
    assert sorted(p.name for p in tmp_path.rglob("*.safetensors")) == [
        "round-0005.safetensors",
        "round-0006.safetensors",
        "round-0007.safetensors",
    ]


def test_a_state_that_was_deleted_is_not_mistaken_for_a_new_client(tmp_path):
    store = ClientStore(tmp_path)
    for round in (2, 4, 6):
        store.write("a", round, state(round))
    assert store.read("a", 2) == ClientState()
    store.write("a", 8, state(8))
    assert store.read("a", 5).batches_seen == 4
    with pytest.raises(RunFolderError, match=r"round 3 again: its state after round 2 was deleted"):
        store.read("a", 3)


def test_a_flipped_bit_is_noticed(tmp_path):
    store = ClientStore(tmp_path)
    store.write("a", 1, state(5))
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match="digest"):
        store.read("a", 2)


NAMES = ["../../outside", "a/b", "..", ".", "", "a b", "A:B", "c-x", "é" * 20, "con", "name with\nline", "a%2Fb"]


def test_any_name_is_a_client_of_its_own_inside_the_folder(tmp_path):
    folder = tmp_path / "deep" / "clients"
    store = ClientStore(folder)
    for index, name in enumerate(NAMES):
        store.write(name, 1, state(index))
    for index, name in enumerate(NAMES):
        assert store.read(name, 2).batches_seen == index
    assert [p for p in tmp_path.rglob("*.safetensors") if folder not in p.parents] == []


@pytest.mark.parametrize("name", ["x" * 400, "詩" * 60], ids=["long", "long in Chinese"])
def test_a_long_name_is_a_client_too(tmp_path, name):
    store = ClientStore(tmp_path)
    store.write(name, 1, state(7))
    store.write(name[:-1], 1, state(8))
    assert store.read(name, 2).batches_seen == 7


def test_a_damaged_state_is_named(tmp_path):
    store = ClientStore(tmp_path)
    store.write("a", 1, state(5))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(RunFolderError, match=r"round-0001.safetensors cannot be read"):
        store.read("a", 2)


def test_a_full_disk_is_a_user_error_and_leaves_the_old_state(tmp_path, monkeypatch):
    store = ClientStore(tmp_path)
    store.write("a", 1, state(5))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        store.write("a", 2, state(6))
    monkeypatch.undo()
    assert store.read("a", 3).batches_seen == 5
