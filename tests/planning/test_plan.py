"""Plans of tiny jobs: exact where nothing has to be measured, honest where it has."""

from dataclasses import replace

import pytest

from fedit import arms
from fedit.compute import Here
from fedit.events import EventLog
from fedit.federation import totals, train
from fedit.planning import plan as planning
from fedit.planning.amounts import Range, amounts_of
from fedit.planning.durations import busiest
from fedit.planning.measuring import measure
from fedit.planning.plan import plan
from fedit.planning.played import Task
from fedit.prepare import prepare

EXACT = {
    "mixed ranks and a ledger": {"strategy": "flora", "client_ranks": [1, 2, 4]},
    "factors in turn": {"strategy": "rolora", "num_rounds": 3},
    "layers that stay": {"strategy": "fedper"},
    "control variates": {"strategy": "scaffold", "optimizer": "sgd"},
    "two phases, epochs": {"strategy": "ditto", "local_steps": None, "local_epochs": 2},
    "fewer bits": {"transforms": [{"quantize": {"bits": 4}}]},
    "all weights": {"tuning": "full"},
    "private clients": {
        "privacy": "client",
        "privacy_options": {"noise_multiplier": 2.0, "clip_norm": 1.0, "delta": 1e-3},
        "selection": "poisson",
        "weighting": "uniform",
    },
    "private examples": {"privacy": "example", "privacy_options": {"noise_multiplier": 2.0}},
}


SLOW = ("two phases, epochs", "private clients", "private examples")


@pytest.mark.parametrize(
    "changes",
    [pytest.param(c, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, c in EXACT.items()],
)
def test_amounts_are_those_of_the_run(make_config, tmp_path, changes):
    job = prepare(make_config(num_clients=4, clients_per_round=3, **changes))
    found = amounts_of(job)
    log = EventLog(tmp_path / "arm")
    (tmp_path / "arm").mkdir()
    train(job, Here(job), arms.federated(job), tmp_path / "arm", log)
    events = log.read()
    spent = totals(events)
    (begun,) = [event for event in events if event["event"] == "arm_started"]
    rounds = [event for event in events if event["event"] == "round"]
    assert found.bytes_up == Range.exactly(spent["bytes_up"])
    assert found.bytes_down.expected == found.bytes_down.high == spent["bytes_down"]
    assert found.trainable == begun["trainable_parameters"]
    if job.config.privacy == "none":
        assert found.epsilon is None
    else:
        assert found.epsilon.expected == pytest.approx(rounds[-1]["epsilon"], rel=1e-6)
    if job.config.privacy != "client":
        assert found.steps == Range.exactly(sum(event["steps"] for event in events if event["event"] == "client"))
    size = sum(path.stat().st_size for path in (tmp_path / "arm").rglob("*") if path.is_file())
    assert found.disk.low <= size + 1_000_000 <= found.disk.high


def test_bytes_that_depend_on_what_is_learnt_are_a_range(make_config):
    found = amounts_of(prepare(make_config(transforms=["zstd"])))
    assert found.bytes_up.low < found.bytes_up.expected < found.bytes_up.high
    assert amounts_of(prepare(make_config(strategy="flora"))).bytes_down.low < found.bytes_down.expected * 4


def test_a_plan_measures_and_leaves_nothing(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    found = plan(make_config(exact_match=True, compare=["local", "centralised"], num_rounds=5)).as_dict()
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert {"rounds", "evaluations", "answers", "baselines", "reporting"} <= set(found["seconds_of"])
    for name in ("seconds", "peak_memory_bytes", "bytes_up", "bytes_down", "trainable_parameters"):
        assert 0 < found[name]["low"] <= found[name]["expected"] <= found[name]["high"]
    assert found["epsilon"] is None
    assert found["measured"]
    assert found["memory"]["fits"]


def test_more_rounds_take_longer_and_a_share_of_clients_less(make_config):
    job = prepare(make_config(num_rounds=4))
    found = measure(job, answers=False, say=lambda text: None)
    assert found.token > 0
    assert found.workers == 1

    def seconds(**changes):
        other = replace(job, config=job.config.model_copy(update=changes))
        parts = planning.durations(other, amounts_of(other), found, starting=0.0, preparing=0.0)
        return parts["rounds"].expected

    assert seconds(num_rounds=8) == pytest.approx(2 * seconds(), rel=0.1)
    assert seconds(clients_per_round=1) < seconds()


def test_stacks_of_clients_go_to_whoever_is_free():
    tasks = [Task(str(tokens), 1, tokens, 0, 0, 0) for tokens in (100, 30, 30, 40)]
    assert busiest(tasks, 1, 2) == 100
    assert busiest(tasks, 1, 1) == 200
    assert busiest(tasks, 2, 2) == 130


def test_memory_that_does_not_suffice_is_not_tried_and_advised_on(make_config, monkeypatch):
    monkeypatch.setattr(planning.memory, "available", lambda: -planning.memory.resident() + 1)
    found = plan(make_config(num_workers=None))
    assert found.measured is None
    assert found.memory.fits is False
    assert found.total_seconds is None
    advice = " ".join(found.advice)
    assert "memory will not suffice" in advice
    for setting in ("micro_batch_size=1", "gradient_checkpointing=true", "load_in_4bit=true"):
        assert setting in advice
