"""The log of a run: every line a whole event, whatever names hold and whenever the process dies."""

import errno
import json
import os

import pytest

from fedit.errors import RunFolderError
from fedit.events import EventLog


@pytest.fixture
def log(tmp_path):
    return EventLog(tmp_path, arm="federated")


def test_every_line_is_an_object_with_event_and_round(log, tmp_path):
    log.write("round", 1, loss=0.5, cohort=["a", "b"], nested={"x": 1})
    log.write("round", 2, loss=0.25)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    for line, round in zip(lines, (1, 2), strict=True):
        event = json.loads(line)
        assert (event["event"], event["round"], event["arm"]) == ("round", round, "federated")
        assert event["time"] > 1_600_000_000
        assert list(event) == sorted(event)
    assert [e["loss"] for e in log.read()] == [0.5, 0.25]


def test_a_number_that_json_lacks_becomes_null_everywhere(log, tmp_path):
    log.write("round", 1, a=float("nan"), b=[float("inf"), 1.0], c={"d": -float("inf")}, e=(float("nan"),))
    text = (tmp_path / "events.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (event,) = log.read()
    assert (event["a"], event["b"], event["c"], event["e"]) == (None, [None, 1.0], {"d": None}, [None])


@pytest.mark.parametrize("name", ["é", "a\nb", "a\u2028b", "a\u0085b", "a\x0bb", "a\x1cb", "日本", "\U0001f600"])
def test_any_name_survives_the_log(log, name):
    log.write("client", 1, client=name)
    log.write("round", 1, per_category={name: 1.0})
    first, second = log.read()
    assert first["client"] == name
    assert second["per_category"] == {name: 1.0}
    log.rewind(1)
    assert len(log.read()) == 2


def test_a_listener_hears_what_is_written_and_what_is_only_told(tmp_path):
    heard = []
    log = EventLog(tmp_path, heard.append, arm="x")
    log.tell("step", 1, client="a")
    log.write("round", 1)
    assert [e["event"] for e in heard] == ["step", "round"]
    assert all(e["arm"] == "x" for e in heard)
    assert [e["event"] for e in log.read()] == ["round"]


def test_a_line_that_was_being_written_when_the_process_died_is_no_event(log, tmp_path):
    log.write("round", 1)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "round", "rou')
    assert [e["round"] for e in log.read()] == [1]


def test_an_event_after_a_torn_line_is_kept(log, tmp_path):
    log.write("round", 1)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "round", "rou')
    log.rewind(1)
    log.write("round", 2)
    assert [e["round"] for e in log.read()] == [1, 2]


def test_rewinding_forgets_later_rounds_only(log):
    for round in range(4):
        log.write("round", round, loss=round / 3)
    log.rewind(2)
    assert [(e["round"], e["loss"]) for e in log.read()] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
    log.rewind(-1)
    assert log.read() == []


def test_there_may_be_no_log_yet(log):
    assert log.read() == []


def test_a_full_disk_is_a_user_error(log, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"events.jsonl: No space left on device; free some space"):
        log.write("round", 1)


def test_events_together_are_one_write_and_told_after_it(tmp_path, monkeypatch):
    heard, writes = [], []
    log = EventLog(tmp_path, lambda event: heard.append((event["event"], len(writes))))
    monkeypatch.setattr(os, "fsync", writes.append)
    with log.together():
        for client in "abc":
            log.write("client", 1, client=client)
        log.write("round", 1)
        assert log.read() == []
    assert len(writes) == 1
    assert heard == [("client", 1)] * 3 + [("round", 1)]
    assert [e["event"] for e in log.read()] == ["client"] * 3 + ["round"]


def test_of_events_together_none_is_written_when_something_fails(log):
    def half():
        with log.together():
            log.write("client", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    log.write("round", 1)
    assert [e["event"] for e in log.read()] == ["round"]


def test_the_history_leaves_out_single_clients_and_follows_the_log(log, tmp_path):
    assert log.history() == []
    for round in range(3):
        log.write("client", round, client='"event": "client"')
        log.write("client_failed", round, client="b")
        log.write("round", round)
    assert log.history() == [e for e in log.read() if e["event"] != "client"]
    assert log.history() == log.history()
    EventLog(tmp_path, arm="federated").write("evaluation", 2, loss=1.0)  # another hand
    assert log.history()[-1]["event"] == "evaluation"
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "round", "rou')
    assert len(log.history()) == 7
    log.rewind(1)
    assert [e["round"] for e in log.history()] == [0, 0, 1, 1]


def test_the_history_reads_a_line_once(log, monkeypatch):
    parsed = []
    plain = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or plain(line))
    for round in range(10):
        log.write("client", round)
        log.write("round", round)
        assert len(log.history()) == round + 1
    assert len([line for line in parsed if line]) == 10
