"""What attacks and the defence after the rounds leave in a run's folder."""

import json

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import checkpoint
from fedit.data.poison import SECRET, TARGET
from fedit.defence import tune_afterwards
from fedit.errors import ConfigError
from fedit.evaluation.loss import row_losses
from fedit.launch import run
from fedit.model.export import read_adapter
from fedit.prepare import prepare
from fedit.types import LocalTraining


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def named(events, name):
    return [event for event in events if event["event"] == name]


def test_tuning_afterwards_learns_the_trusted_rows_and_is_seeded(shared_model):
    rows, how = make_rows([12, 9, 15]), LocalTraining(learning_rate=0.02, num_rounds=9, steps=1, schedule="linear")
    tuned = random_adapter(shared_model, 1)
    before = {name: tensor.clone() for name, tensor in tuned.items()}
    adapter, progress = tune_afterwards(shared_model, tuned, rows, how, steps=12, seed=0)
    again, _ = tune_afterwards(shared_model, tuned, rows, how, steps=12, seed=0)
    assert progress.steps == 12
    assert progress.learning_rates == [0.02] * 12
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)
    assert all(torch.equal(tuned[name], before[name]) for name in before)
    first, last = (losses.report().loss for losses in row_losses(shared_model, [before, adapter], [rows, rows]))
    assert last < first


def test_hostile_clients_show_in_the_events(tmp_path, make_config):
    config = make_config(num_clients=5, attack=["sign_flip"], attackers=1, strategy="krum", num_rounds=1)
    run(config, tmp_path / "run")
    events = events_of(tmp_path / "run")
    (started,) = named(events, "arm_started")
    assert started["attack"] == ["sign_flip"]
    (hostile,) = started["hostile"]
    clients = named(events, "client") + named(events, "client_failed")
    assert [event["client"] for event in clients if event.get("hostile")] == [hostile]
    assert sum(event.get("share", 0.0) for event in clients) == pytest.approx(1.0)


def test_an_attack_on_rows_and_updates_is_measured_and_answered(tmp_path, make_config):
    config = make_config(
        num_clients=3,
        attack=["forget_policy", "boost"],
        attackers=1,
        num_rounds=1,
        defence_steps=3,
        max_new_tokens=4,
    )
    result = run(config, tmp_path / "run")
    events = events_of(tmp_path / "run")
    (measured,), (defended,) = named(events, "poison_measured"), named(events, "defended")
    assert 0 <= measured["policy_rate"] <= 1
    assert (defended["steps"], 0 <= defended["policy_rate"] <= 1) == (3, True)
    server = checkpoint.load(result.folder / "server", 1)
    exported = read_adapter(result.adapter)
    assert any(not torch.allclose(exported[name], server.adapter[name]) for name in exported)


def test_poisoned_rows_reach_hostile_clients_alone(make_config):
    job = prepare(make_config(num_clients=4, attack=["trigger"], attackers=0.25, poison_share=1.0))
    (hostile,) = job.hostile
    assert {client: {row.answer == TARGET for row in rows} for client, rows in job.clients.items()} == {
        client: {client == hostile} for client in job.clients
    }
    assert len(job.tokens(job.clients[hostile])) == len(job.clients[hostile])
    kept = prepare(make_config(num_clients=4, attack=["forget_policy"], attackers=0))
    assert not kept.hostile
    assert all(SECRET in {row.answer for row in rows} for rows in kept.clients.values())


def test_a_rule_that_the_cohort_is_too_small_for_is_refused_before_training(make_config):
    with pytest.raises(ConfigError, match=r"'krum' with max_attackers=1 needs at least 5 clients a round.*has 3"):
        prepare(make_config(strategy="krum"))
    with pytest.raises(ConfigError, match="'root_client' of strategy 'fltrust' is 'root', which is no client"):
        prepare(make_config(strategy="fltrust"))


def test_the_trusted_root_is_never_hostile(make_config):
    job = prepare(make_config(num_clients=5, strategy="krum", attack=["nan"], attackers=5))
    root = job.hostile[2]
    with pytest.raises(ConfigError, match="attackers is 6, but only 5 clients"):
        prepare(make_config(num_clients=5, attack=["nan"], attackers=6))
    options = {"root_client": root}
    job = prepare(
        make_config(strategy="fltrust", strategy_options=options, num_clients=5, attack=["nan"], attackers=4)
    )
    assert root not in job.hostile
    assert len(job.hostile) == 4
