"""Runs that ended too early: which are started again, and which have nothing to gain from it."""

import pytest

from fedit.flower import control, printed
from fedit.flower.init import create
from fedit.flower.jobs import REFUSED, Jobs, Submitted
from fedit.flower.journal import Journal
from fedit.flower.restarts import MOST_IN_VAIN, Restarts

JOB = Submitted("first", {}, "", 0.0, 1, run_id=1)


@pytest.fixture
def look(tmp_path, monkeypatch):
    """What the supervisor does when Flower says that the newest start failed: job, lines said, starts wanted."""
    deployment = create(tmp_path / "d", ["a"], "127.0.0.1", 8470, insecure=True)
    jobs = Jobs(deployment.state / printed.JOBS)
    said, wanted = [], []
    restarts = Restarts(deployment, Journal(deployment.state / "events.jsonl", said.append))
    monkeypatch.setattr(printed, "keep", lambda *_: None)
    monkeypatch.setattr(control, "submit_again", lambda _, job, **how: wanted.append(how) or 2)
    monkeypatch.setattr("fedit.flower.restarts.time.monotonic", lambda: 0.0)

    def see(reason, **changes):
        with jobs.locked():
            jobs.save(Submitted(**{**{field: getattr(JOB, field) for field in JOB.__slots__}, **changes}))
        monkeypatch.setattr(control, "flower_states", lambda _: {1: ("failed", reason)})
        restarts.look()
        return jobs.get("first"), said, wanted

    return see


def test_a_run_that_all_sites_refuse_has_failed_at_once_with_their_reasons(look):
    job, said, wanted = look(f"ServerApp failed: {REFUSED}; refused: a: max_rank: this site allows at most 8.")
    assert (job.state, wanted) == ("failed", [])
    assert "max_rank: this site allows at most 8" in job.reason
    assert "run first failed: ServerApp" in said[-1]


def test_a_run_that_broke_is_started_again_until_it_has_got_nowhere_too_often(look):
    job, said, _ = look("it broke")
    assert job.state == "active"
    assert "it is started again in 2 s" in said[-1]


def test_a_run_that_got_nowhere_too_often_is_given_up(look):
    job, said, _ = look("it broke", in_vain=MOST_IN_VAIN - 1)
    assert job.state == "failed"
    assert f"failed {MOST_IN_VAIN} times in a row before round 1 was whole: it broke" in said[-1]
