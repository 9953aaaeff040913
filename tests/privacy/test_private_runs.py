"""Clients and whole runs with privacy=example: what leaves, what composes, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import checkpoint
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.launch import run
from fedit.prepare import prepare
from fedit.privacy import example
from fedit.privacy.accounting import Epsilon
from fedit.privacy.keystream import Keystream
from fedit.seeds import derive
from fedit.strategies.fed_sb import FedSB
from fedit.strategies.fedit import FedIT
from fedit.types import Broadcast, ClientTask, LocalTraining
from fedit.worker import Worker

HOW = LocalTraining(learning_rate=0.05, num_rounds=4, steps=3, batch_size=2, example_clip=0.5, example_noise=0.5)
ROWS = {name: make_rows([10, 15, 8, 20], seed) for seed, name in enumerate("abc")}


def private(**options):
    return {"privacy": "example", "privacy_options": {"noise_multiplier": 1.0, **options}}


def task(client, adapter, how=HOW):
    return ClientTask(1, client, Broadcast(adapter), how, derive(0, "train", 1, client))


def keyed():
    """Return what gives every client of a worker a keystream of its own, the same each time."""
    numbers = iter(range(100))
    return lambda: Keystream(bytes([next(numbers)]) * 32)


def test_clients_of_a_worker_are_private_together_and_tell_their_steps_alone(shared_model):
    adapter = random_adapter(shared_model, 1)
    tasks = [task(client, adapter) for client in ROWS]
    together = Worker(shared_model, ROWS, FedIT(), seed=0, keystream=keyed()).train_together(tasks)
    there = Worker(shared_model, ROWS, FedIT(), seed=0, keystream=keyed())
    for update, own in zip(together, map(there.train, tasks), strict=True):
        assert dict(update.metrics) == {"steps": 3.0}
        for name, tensor in update.delta.items():
            torch.testing.assert_close(tensor, own.delta[name], rtol=1e-9, atol=1e-12)
    fresh = Worker(shared_model, ROWS, FedIT(), seed=0)
    one, two = (fresh.train(tasks[0]).delta for _ in range(2))
    assert all(not torch.equal(one[name], two[name]) for name in one), "what was drawn is never drawn again"


def test_noise_on_factors_is_drawn_for_one_client_at_a_time(shared_model, monkeypatch):
    """A stack would map the factors' gradients back before their noise is on them."""
    monkeypatch.setattr("fedit.worker.StackedTrainer", None)
    strategy = FedSB()
    begin = strategy.init(shared_model.initial(0)).adapter
    updates = Worker(shared_model, ROWS, strategy, seed=0).train_together([task(c, begin) for c in ROWS])
    assert [dict(update.metrics) for update in updates] == [{"steps": 3.0}] * 3


@pytest.fixture
def no_accountant(monkeypatch):
    """Leave the figures out, which take a second each."""
    pytest.importorskip("dp_accounting")
    monkeypatch.setattr("fedit.privacy.spending.epsilon_of", lambda charges, delta: Epsilon(1.0, 1.0))


@pytest.mark.usefixtures("no_accountant")
@pytest.mark.parametrize("strategy", ["fedit", "ffa_lora", "fedsvd"])
def test_a_run_tells_nothing_of_its_batches(make_config, tmp_path, strategy):
    run(make_config(strategy=strategy, defence_steps=1, validation=1, **private(clip_norm=0.1)), tmp_path / "run")
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    (first, *_), rounds = ([e for e in events if e["event"] == name] for name in ("client", "round"))
    told = {"event", "arm", "time", "round", "client", "examples", "weight", "steps", "update_norm", "share"}
    assert set(first) <= told
    assert [(r["train_loss"], r["aggregated"]) for r in rounds] == [(None, True)] * 2
    assert rounds[0]["tokens"] == rounds[1]["tokens"] > 0, "what a round is expected to take, not what it took"
    promised = next(e["privacy"] for e in events if e["event"] == "arm_started")
    assert (promised["level"], promised["noise_multiplier"], promised["clip_norm"]) == ("example", 1.0, 0.1)
    assert promised["delta"] == pytest.approx(0.1 / max(e["examples"] for e in events if e["event"] == "client"))
    text = (tmp_path / "run" / "summary.md").read_text(encoding="utf-8")
    assert "Spent on the examples of the client whom it cost most: epsilon 1 at delta" in text
    (defended,) = (e for e in events if e["event"] == "defended")
    assert defended["tokens"] > 0, "the server's own rows need no privacy"
    if strategy == "ffa_lora":
        before, after = (checkpoint.load(tmp_path / "run" / "server", r).adapter for r in (0, 2))
        assert all(torch.equal(after[n], before[n]) == n.endswith(".A") for n in before)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tuning": "ia3"}, "tuning is ia3"),
        ({"local_tokens": 100}, "set local_steps in place of local_tokens"),
        ({"weighting": "tokens"}, "set weighting to examples or uniform"),
        ({"selection": "oort"}, "selection=oort"),
        ({"devices_per_client": 2}, "set devices_per_client to 1"),
        ({"compare": ["local"]}, "leave compare empty"),
        ({"personal_evaluation": True}, "leave personal_evaluation off"),
    ],
)
def test_what_would_tell_of_examples_is_refused(changes, named):
    config = RunConfig(**private(), **changes)
    with pytest.raises(ConfigError, match=f"privacy=example .*{named}"):
        example.refuse(config)
    example.refuse(RunConfig(**changes))


def test_without_an_accountant_there_is_no_privacy(monkeypatch):
    monkeypatch.setattr("fedit.privacy.example.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs dp-accounting.*pip install 'fedit\[privacy\]'"):
        example.refuse(RunConfig(**private()))


@pytest.mark.usefixtures("no_accountant")
def test_preferences_are_trained_privately(make_config, tmp_path):
    """A pair is one example; its reference is of the frozen base."""
    rows = [{"prompt": f"say {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = make_config(dataset=str(path), objective="dpo", num_rounds=1, **private(clip_norm=0.1))
    run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    clients = [e for e in map(json.loads, lines) if e["event"] == "client"]
    assert len(clients) == 3
    assert not any("reward_margin" in client or "loss" in client for client in clients)


def test_settings_become_steps(make_config, no_accountant):
    job = prepare(make_config(**private(clip_norm=0.25)))
    training = job.training()
    assert (training.example_clip, training.example_noise) == (0.25, 1.0)
    assert prepare(make_config()).training() == replace(training, example_clip=None, example_noise=0.0)
    with pytest.raises(ConfigError, match="most_rounds"):
        example.ExampleLevel(noise_multiplier=1.0, most_rounds=0)
    assert example.ExampleLevel(noise_multiplier=0.0, clip_norm=math.inf).most_rounds is None
