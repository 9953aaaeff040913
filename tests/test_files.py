"""Files are whole or absent, whatever breaks while they are written."""

import errno
import json
import os
from pathlib import Path

import pytest

from fedit import files
from fedit.errors import RunFolderError


def crash(*args, **options):
    raise OSError(errno.EIO, "Input/output error")


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "a.json"
    files.write_json(path, {"b": 1, "a": "é"})
    files.write_json(path, {"b": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 2}
    assert list(path.parent.iterdir()) == [path]


def test_json_is_sorted_and_refuses_what_json_cannot_say(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text().index('"a"') < (tmp_path / "a.json").read_text().index('"b"')
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "state"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(RunFolderError, match=str(path)):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"state: No space left on device; free some space"):
        files.write_bytes(tmp_path / "state", b"new")


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        files.write_text(tmp_path / "file" / "inside", "x")
    with pytest.raises(RunFolderError, match="cannot write"), files.new_folder(tmp_path / "file" / "inside"):
        pass


def test_a_name_that_is_too_long_is_a_user_error(tmp_path):
    with pytest.raises(RunFolderError, match="cannot write"):
        files.write_text(tmp_path / ("n" * 300), "x")
    with pytest.raises(RunFolderError, match="cannot write"), files.new_folder(tmp_path / ("n" * 300)):
        pass


def fill(path, content):
    with files.new_folder(path) as temporary:
        (temporary / "a").write_text(content)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text(content)


def read(path):
    return (path / "a").read_text(), (path / "sub" / "b").read_text()


def test_a_folder_appears_at_once_and_is_replaced_at_once(tmp_path):
    fill(tmp_path / "round", "one")
    assert read(tmp_path / "round") == ("one", "one")
    fill(tmp_path / "round", "two")
    assert read(tmp_path / "round") == ("two", "two")
    assert list(tmp_path.iterdir()) == [tmp_path / "round"]


def test_a_folder_whose_filling_fails_leaves_the_old_one(tmp_path):
    fill(tmp_path / "round", "old")

    def fail():
        with files.new_folder(tmp_path / "round") as temporary:
            (temporary / "a").write_text("half")
            raise KeyError("the caller's own mistake")

    with pytest.raises(KeyError):
        fail()
    assert read(tmp_path / "round") == ("old", "old")
    assert list(tmp_path.iterdir()) == [tmp_path / "round"]


def test_a_full_disk_inside_a_folder_names_the_folder(tmp_path):
    with pytest.raises(RunFolderError, match=f"{tmp_path / 'round'}: No space left"):
        with files.new_folder(tmp_path / "round"):
            full()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_crash_while_a_folder_is_replaced_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, failing):
    fill(tmp_path / "round", "old")
    rename, calls = os.rename, []

    def sometimes(source, target):
        calls.append(source)
        if len(calls) == failing:
            crash()
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(RunFolderError):
        fill(tmp_path / "round", "new")
    monkeypatch.undo()
    files.remove_leftovers(tmp_path)
    assert read(tmp_path / "round") in (("old", "old"), ("new", "new"))


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    keep = tmp_path / "round-0001"
    keep.mkdir()
    (tmp_path / ".hidden").write_text("")
    (tmp_path / ".round-0002.1a2b.tmp").mkdir()
    (tmp_path / ".round-0002.1a2b.tmp" / "half").write_text("")
    (tmp_path / ".run.json.1a2b.tmp").write_text("")
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "round-0001"]


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "mine"))
    assert files.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("FEDIT_CACHE")
    monkeypatch.setattr(files.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == Path(tmp_path) / "fedit"
