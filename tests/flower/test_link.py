"""The connection over Flower's Grid: an answer is given once and kept, and a stuck one holds back no other."""

import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from fedit.flower import link as module
from fedit.flower.link import GridLink, Parcel, Trouble
from fedit.flower.records import pack
from fedit.flower.spool import spooled


class Grid:
    """Stands in for Flower's: ``ready`` holds what is not fetched yet, ``gates`` what pulling waits for."""

    def __init__(self):
        self.ready, self.gates, self.failures = {}, {}, 0

    def pull_messages(self, ids):
        (one,) = ids
        if one in self.gates:
            self.gates[one].wait(10)
        return [self.ready.pop(one)] if one in self.ready else []

    def push_messages(self, messages):
        if self.failures:
            self.failures -= 1
            raise OSError("no route")
        return ["m1"]


def answer(**header):
    return SimpleNamespace(has_error=lambda: False, content=pack(header, {"piece": b"abc"}))


def error(code):
    return SimpleNamespace(has_error=lambda: True, error=SimpleNamespace(code=code, reason="why"))


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.2)
    return Grid()


def test_an_answer_comes_once_with_its_header_and_pieces(grid):
    link = GridLink(grid)
    grid.ready["a"] = answer(results=[1])
    ((header, pieces),) = dict(link.answers(["a", "b"])).values()
    assert (header, dict(pieces)) == ({"results": [1]}, {"piece": b"abc"})
    assert dict(link.answers(["a", "b"])) == {}
    link.close()


def test_a_stuck_answer_holds_back_no_other(grid, monkeypatch):
    link = GridLink(grid)
    grid.gates["a"] = threading.Event()
    grid.ready["b"] = answer()
    monkeypatch.setattr(module, "TURN", 0.05)
    assert list(dict(link.answers(["a", "b"]))) == ["b"]
    grid.gates["a"].set()
    link.close()


def test_answers_are_fetched_one_after_the_other(grid, monkeypatch):
    fetching = []
    real = grid.pull_messages

    def pull(ids):
        fetching.append(len(fetching) + 1)
        try:
            assert len(fetching) == 1
            return real(ids)
        finally:
            fetching.pop()

    grid.pull_messages = pull
    grid.ready = {name: answer(name=name) for name in "abcdef"}
    link = GridLink(grid)
    found = dict(link.answers(list("abcdef")))
    assert {name: header["name"] for name, (header, _) in found.items()} == {name: name for name in "abcdef"}
    link.close()


def test_answers_wait_on_the_disk_or_in_memory_where_it_is_full(tmp_path, caplog):
    waiting = spooled({"a": b"abc", "b": b""}, tmp_path)
    assert dict(waiting) == {"a": b"abc", "b": b""}
    assert list(tmp_path.iterdir()) == []  # the file has no name
    with open("/dev/full", "wb") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedit.flower.spool.tempfile.TemporaryFile", lambda dir: full)
        assert dict(spooled({"a": b"x" * 100_000}, tmp_path)) == {"a": b"x" * 100_000}
    assert "No space left on device" in caplog.text


def test_an_answer_that_comes_while_others_are_asked_for_is_kept(grid):
    """Flower gives an answer once: were a late site's lost here, that site would stay busy for ever."""
    link = GridLink(grid)
    grid.gates["late"] = threading.Event()
    grid.ready["late"] = answer(round=1)
    assert dict(link.answers(["late"])) == {}
    grid.gates["late"].set()
    assert dict(link.answers(["other"])) == {}
    assert list(dict(link.answers(["late"]))) == ["late"]
    link.close()


@pytest.mark.parametrize(("code", "lost"), [(2, False), (3, True), (4, True), (5, True), (8, True), (7, False)])
def test_errors_of_the_way_are_told_from_those_of_the_site(grid, code, lost):
    link = GridLink(grid)
    grid.ready["a"] = error(code)
    assert dict(link.answers(["a"])) == {"a": Trouble(f"why (code {code})", lost)}
    link.close()


def test_a_message_of_somebody_else_is_trouble(grid):
    from flwr.app import ConfigRecord, RecordDict

    link = GridLink(grid)
    grid.ready["a"] = SimpleNamespace(
        has_error=lambda: False, content=RecordDict({"other": ConfigRecord({"x": 1})})
    )
    (trouble,) = dict(link.answers(["a"])).values()
    assert (trouble.lost, "none of fedit's" in trouble.reason) == (False, True)
    link.close()


@pytest.mark.parametrize(("failures", "sent"), [(0, True), (2, True), (3, False)])
def test_handing_over_is_tried_again(grid, monkeypatch, failures, sent):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "Message", lambda *args, **options: object())
    grid.failures = failures
    link = GridLink(grid)
    (found,) = link.send([Parcel(1, "train", {}, {}, 10.0)])
    assert (found == "m1") == sent
    if not sent:
        assert found.lost
        assert "no route" in found.reason
    link.close()
