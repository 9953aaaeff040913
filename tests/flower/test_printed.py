"""What a run printed: followed over its starts, and not for longer than the run goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedit.errors import ConfigError
from fedit.flower import printed
from fedit.flower.connection import LinkError
from fedit.flower.init import create
from fedit.flower.jobs import Jobs, Submitted
from fedit.flower.layout import Deployment

JOB = Submitted("first", {}, "", 0.0, 1, run_id=1)


@dataclass
class Part:
    log_output: str


class Link:
    """Streams by run id: a text is sent, an event waited for, an exception raised."""

    def __init__(self, streams: dict[int, list[object]]) -> None:
        self._streams = streams

    def StreamLogs(self, request) -> Iterator[Part]:
        for part in self._streams[request.run_id]:
            if isinstance(part, threading.Event):
                part.wait()
            elif isinstance(part, Exception):
                raise part
            elif callable(part):
                part()
            else:
                yield Part(str(part))


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return create(tmp_path / "d", ["a"], "127.0.0.1", 8470, insecure=True)


@pytest.fixture
def jobs(deployment: Deployment) -> Jobs:
    jobs = Jobs(deployment.state / printed.JOBS)
    with jobs.locked():
        jobs.save(JOB)
    return jobs


@pytest.fixture
def stream(monkeypatch):
    def set_to(**streams: list[object]) -> None:
        @contextmanager
        def connected(deployment: Deployment) -> Iterator[Link]:
            yield Link({int(name[1:]): parts for name, parts in streams.items()})

        monkeypatch.setattr(printed, "connected", connected)
        monkeypatch.setattr(printed, "_LOOK", 0.02)
        monkeypatch.setattr(printed, "_FIRST", 0.2)

    return set_to


def test_a_stream_that_does_not_end_is_left_when_the_run_has_ended(deployment, jobs, stream):
    never = threading.Event()
    stream(r1=["one\n", lambda: jobs.change("first", state="finished"), never])
    try:
        assert list(printed.follow(deployment, "first")) == ["one\n"]
    finally:
        never.set()


def test_a_run_that_is_started_again_is_followed_on(deployment, jobs, stream):
    def again() -> None:
        with jobs.locked():
            jobs.save(replace(JOB, run_id=2, starts=2))

    stream(r1=["one\n", again], r2=["two\n", lambda: jobs.change("first", state="finished")])
    assert list(printed.follow(deployment, "first")) == ["one\n", "--- start 2\n", "two\n"]


def test_a_start_that_is_forgotten_is_left_for_the_next(deployment, jobs, stream):
    def again() -> None:
        with jobs.locked():
            jobs.save(replace(JOB, run_id=2, starts=2))

    stream(r1=[again, OSError("gone")], r2=["two\n", lambda: jobs.change("first", state="failed")])
    assert list(printed.follow(deployment, "first")) == ["--- start 2\n", "two\n"]


def test_a_server_that_is_gone_is_said_to_be(deployment, jobs, stream):
    stream(r1=["one\n", OSError("gone")])
    with pytest.raises(LinkError, match="fedit deploy server"):
        list(printed.follow(deployment, "first"))


def test_a_run_that_has_ended_or_is_unknown_is_not_followed(deployment, jobs, stream):
    stream()
    jobs.change("first", state="stopped")
    assert list(printed.follow(deployment, "first")) == []
    with pytest.raises(ConfigError, match="no run 'second'"):
        list(printed.follow(deployment, "second"))


def test_what_is_there_now_is_read_without_waiting_for_the_end(deployment, jobs, stream):
    never = threading.Event()
    stream(r1=["one\n", "two\n", never])
    try:
        assert printed.printed(deployment, 1) == "one\ntwo\n"
    finally:
        never.set()


def test_every_start_of_a_run_is_kept(deployment, jobs, stream):
    stream(r1=["one\n"], r2=["two\n"], r3=[OSError("gone")])
    for start in (1, 2, 3):
        printed.keep(deployment, replace(JOB, run_id=start, starts=start))
    assert printed.kept(deployment, "first").read_text() == "--- start 1\none\n--- start 2\ntwo\n"
