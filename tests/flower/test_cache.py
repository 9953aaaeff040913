"""Answers that are kept: whole or absent, the newest few, and never another task's."""

import errno
import logging
import os
import threading

import pytest
import torch

from fedit import files
from fedit.errors import FeditError
from fedit.flower.cache import CacheError, ResultCache

HEADER = {"results": [{"client_id": "a", "metrics": {"loss": 1.5}}], "none": None}


class Killed(BaseException):
    """Ends a process where it stands: nothing after it is done."""


def tensors(value=1.0):
    return {
        "0/delta/q.B": torch.full((2, 3), value),
        "0/delta/q.A": torch.full((4,), value, dtype=torch.bfloat16),
        "1/extra/codes": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "1/extra/empty": torch.zeros(0, 2),
        "1/extra/count": torch.tensor(7),
    }


def same(one, two):
    assert list(one) == list(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert torch.equal(one[name], two[name])


def answers(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_answer_outlives_the_process_that_gave_it(tmp_path):
    ResultCache(tmp_path / "deep" / "results").put("ab12", HEADER, tensors())
    cache = ResultCache(tmp_path / "deep" / "results")
    header, found = cache.get("ab12")
    assert header == HEADER
    same(found, tensors())
    assert cache.get("cd34") is None


def test_an_answer_without_tensors_is_one(tmp_path):
    ResultCache(tmp_path).put("ab", {"results": []}, {})
    assert ResultCache(tmp_path).get("ab") == ({"results": []}, {})


def test_a_later_answer_of_a_task_takes_the_place_of_the_earlier(tmp_path):
    cache = ResultCache(tmp_path)
    for value in (1.0, 2.0):
        cache.put("ab", {"value": value}, tensors(value))
    assert len(answers(tmp_path)) == 1
    for one in (cache, ResultCache(tmp_path)):
        header, found = one.get("ab")
        assert header == {"value": 2.0}
        same(found, tensors(2.0))


def test_the_newest_stay_and_older_ones_go_also_from_the_disk(tmp_path):
    cache = ResultCache(tmp_path, keep=3)
    for number in range(5):
        cache.put(f"task{number}", {"n": number}, {})
    cache.put("task2", {"n": 22}, {})  # the newest again
    cache.put("task5", {"n": 5}, {})
    for one in (cache, ResultCache(tmp_path, keep=3)):
        assert [one.get(f"task{number}") and one.get(f"task{number}")[0]["n"] for number in range(6)] == [
            None,
            None,
            22,
            None,
            4,
            5,
        ]
    assert len(answers(tmp_path)) == 3
    assert ResultCache(tmp_path, keep=1).get("task4") is None
    assert len(answers(tmp_path)) == 1


def test_ids_that_are_no_file_names_stay_in_the_folder(tmp_path):
    cache = ResultCache(tmp_path / "results")
    for name in ("../x", "..", "", "a/b", "A", "a", "é" * 300, ".", "x.answer"):
        cache.put(name, {"name": name}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    reopened = ResultCache(tmp_path / "results")
    assert reopened.get("../x") is None  # nine were put, eight stay
    for name in ("..", "", "a/b", "A", "a", "é" * 300, ".", "x.answer"):
        assert reopened.get(name) == ({"name": name}, {})


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_in_the_middle_of_a_write_leaves_the_others_and_no_half_answer(tmp_path, monkeypatch, call, again):
    cache = ResultCache(tmp_path)
    cache.put("before", {"n": 1}, tensors())
    if again:
        cache.put("killed", {"n": 2}, tensors())

    def killed(*args):
        raise Killed

    monkeypatch.setattr(os, call, killed)
    with pytest.raises(Killed):
        cache.put("killed", {"n": 3}, tensors())
    monkeypatch.undo()
    assert any(name.endswith(".tmp") for name in answers(tmp_path))
    after = ResultCache(tmp_path)
    assert not any(name.endswith(".tmp") for name in answers(tmp_path))
    assert after.get("before")[0] == {"n": 1}
    found = after.get("killed")
    assert found[0] == {"n": 2} if again else found is None
    after.put("killed", {"n": 4}, {})
    assert ResultCache(tmp_path).get("killed") == ({"n": 4}, {})


def test_a_kill_before_the_old_file_is_gone_leaves_the_new_answer_alone(tmp_path, monkeypatch):
    cache = ResultCache(tmp_path)
    cache.put("ab", {"n": 1}, {})

    def killed(*args, **options):
        raise Killed

    monkeypatch.setattr(type(tmp_path), "unlink", killed)
    with pytest.raises(Killed):
        cache.put("ab", {"n": 2}, {})
    monkeypatch.undo()
    assert len(answers(tmp_path)) == 2
    assert ResultCache(tmp_path).get("ab") == ({"n": 2}, {})
    assert len(answers(tmp_path)) == 1


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def flipped_in_the_header(content):
    return content.replace(b"loss", b"lass")


@pytest.mark.parametrize(
    "damage", [cut, flipped, flipped_in_the_header, lambda content: b"", lambda content: b"x"]
)
def test_a_damaged_answer_is_dropped_and_said(tmp_path, caplog, damage):
    ResultCache(tmp_path).put("ab", HEADER, tensors())
    ResultCache(tmp_path).put("cd", HEADER, tensors())
    path = next(tmp_path.glob("*.ab.answer"))
    path.write_bytes(damage(path.read_bytes()))
    cache = ResultCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.get("ab") is None
    assert f"the answer kept in {path} is dropped" in caplog.text
    assert not path.exists()
    assert cache.get("cd")[0] == HEADER
    caplog.clear()
    assert cache.get("ab") is None
    assert not caplog.text


def test_the_answer_of_another_task_is_never_given(tmp_path, caplog):
    ResultCache(tmp_path).put("ab", HEADER, {})
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / path.name.replace("ab", "cd"))
    cache = ResultCache(tmp_path)
    assert cache.get("ab") is None
    assert cache.get("cd") is None
    assert "another task" in caplog.text


def test_a_file_that_has_gone_is_no_answer(tmp_path, caplog):
    cache = ResultCache(tmp_path)
    cache.put("ab", HEADER, {})
    next(tmp_path.iterdir()).unlink()
    assert cache.get("ab") is None
    assert "dropped" in caplog.text


def test_on_a_full_disk_the_answer_is_still_given_and_the_reason_said(tmp_path, monkeypatch):
    cache = ResultCache(tmp_path, keep=2)
    cache.put("early", {"n": 0}, {})
    cache.put("ab", {"n": 1}, tensors(1.0))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match=r"task ab cannot be kept in .*: No space left on device; free some") as e:
        cache.put("ab", {"n": 2}, tensors(2.0))
    assert isinstance(e.value, FeditError)
    header, found = cache.get("ab")
    assert header == {"n": 2}
    same(found, tensors(2.0))
    monkeypatch.undo()
    assert cache.get("early") == ({"n": 0}, {})
    assert ResultCache(tmp_path, keep=2).get("ab") is None  # not the older answer of that task
    # What is in memory goes when newer ones have come.
    cache.put("cd", {"n": 3}, {})
    assert cache.get("ab")[0] == {"n": 2}
    cache.put("ef", {"n": 4}, {})
    assert cache.get("ab") is None
    assert len(answers(tmp_path)) == 2


def test_what_json_cannot_say_changes_nothing(tmp_path):
    cache = ResultCache(tmp_path)
    cache.put("ab", {"n": 1}, {})
    with pytest.raises(TypeError):
        cache.put("ab", {"n": object()}, {})
    assert cache.get("ab") == ({"n": 1}, {})


def test_other_files_in_the_folder_stay(tmp_path):
    files.write_text(tmp_path / "README", "x")
    files.write_text(tmp_path / "x.answer", "x")
    cache = ResultCache(tmp_path, keep=1)
    cache.put("a", {}, {})
    cache.put("b", {}, {})
    assert {"README", "x.answer"} < set(answers(tmp_path))


def test_several_threads_may_use_it(tmp_path):
    cache = ResultCache(tmp_path, keep=20)
    failures = []

    def work(own):
        try:
            for number in range(5):
                cache.put(f"{own}-{number}", {"n": number}, tensors())
                if cache.get(f"{own}-{number}")[0] != {"n": number}:
                    failures.append((own, number))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(answers(tmp_path)) == 20


def test_fewer_than_one_answer_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        ResultCache(tmp_path, keep=0)
