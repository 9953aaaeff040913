"""Whole federations against centralised training written in plain PyTorch, in float64."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from oracle import load, read, train
from tiny import make_rows, random_adapter

from fedit import cohort
from fedit.engines.inprocess import InProcess
from fedit.rounds import run_rounds
from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.strategies.fedit import FedIT
from fedit.training import batches
from fedit.types import LocalTraining
from fedit.worker import Worker

SEED = 0
SGD = LocalTraining(learning_rate=0.5, num_rounds=1, steps=1, batch_size=100, optimizer="sgd", max_grad_norm=0.0)


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("gpt2")


@pytest.fixture
def start(model):
    return random_adapter(model, 1)


def plain(rows):
    return [(row.ids.tolist(), row.supervised.tolist()) for row in rows]


def federate(model, start, data, how, *, rounds=None, weighting="examples", per_round=1.0, store=None):
    engine = InProcess(Worker(model, data, FedIT(), seed=SEED, weighting=weighting, store=store or ClientStore()))
    return list(
        run_rounds(
            replace(FedIT().init(start), scale=model.scale),
            engine,
            FedIT(),
            rounds=rounds or how.num_rounds,
            cohort=lambda clients, round: cohort.uniform(clients, per_round, seed=SEED, round=round),
            training=lambda round: how,
            seed=SEED,
        )
    )


def assert_close(one, two, tolerance):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name].double(), two[name].double(), rtol=0, atol=tolerance)


# --- one full step everywhere is one full step in one place ---


def test_a_full_batch_step_weighted_by_tokens_is_the_centralised_step(model, model_folder, start):
    data = {"a": make_rows([19, 7]), "b": make_rows([30, 12, 25], 1), "c": make_rows([9], 2)}
    ((state, record),) = federate(model, start, data, SGD, weighting="tokens")
    oracle = load(model_folder("gpt2"), start, alpha=8)
    everything = [row for name in "abc" for row in plain(data[name])]
    (loss,) = train(oracle, [everything], lambda p: torch.optim.SGD(p, lr=0.5))
    assert_close(state.adapter, read(oracle), 1e-12)
    assert record.loss == pytest.approx(loss, rel=1e-12)


def test_weighted_by_examples_it_is_too_when_rows_are_equally_long(model, model_folder, start):
    data = {"a": make_rows([20] * 2), "b": make_rows([20] * 5, 1)}
    ((state, _),) = federate(model, start, data, SGD, weighting="examples")
    oracle = load(model_folder("gpt2"), start, alpha=8)
    train(oracle, [plain(data["a"]) + plain(data["b"])], lambda p: torch.optim.SGD(p, lr=0.5))
    assert_close(state.adapter, read(oracle), 1e-12)


@pytest.mark.parametrize("weighting", ["examples", "tokens", "uniform"])
def test_the_global_adapter_is_the_weighted_mean_of_what_clients_trained(model, model_folder, start, weighting):
    data = {"a": make_rows([19, 7, 11]), "b": make_rows([30, 12], 1), "c": make_rows([9], 2)}
    how = replace(SGD, optimizer="adamw", learning_rate=0.01, steps=2)
    ((state, _),) = federate(model, start, data, how, weighting=weighting)
    trained, weights = [], []
    for rows in data.values():
        oracle = load(model_folder("gpt2"), start, alpha=8)
        train(oracle, [plain(rows)] * 2, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0))
        trained.append(read(oracle))
        tokens = 2 * sum(int(row.supervised.sum()) for row in rows)
        weights.append({"examples": len(rows), "tokens": tokens, "uniform": 1}[weighting])
    mean = {
        name: sum(w * adapter[name] for w, adapter in zip(weights, trained, strict=True)) / sum(weights)
        for name in start
    }
    assert_close(state.adapter, mean, 1e-10)


# --- one client is no federation ---


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp64", 1e-12), ("fp32", 2e-5)])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_federation_of_one_is_uninterrupted_training(adapted, model_folder, dtype, tolerance, schedule):
    """Four rounds of five steps with warm-up and decay, the optimizer kept: twenty steps of AdamW."""
    model = adapted("gpt2", dtype=dtype)
    start = random_adapter(model, 1)
    rows = make_rows([19, 7, 30, 12, 25, 9, 14])
    how = LocalTraining(
        learning_rate=0.01,
        num_rounds=4,
        steps=5,
        batch_size=3,
        schedule=schedule,
        warmup_ratio=0.2,
        min_lr_ratio=0.1,
        weight_decay=0.05,
        max_grad_norm=0.5,
        keep_optimizer=True,
    )
    results = federate(model, start, {"only": rows}, how)
    rates = []
    for step in range(20):
        share = (step - 4) / 16
        decay = 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share
        rates.append(0.01 * (step + 1) / 5 if step < 4 else 0.01 * (0.1 + 0.9 * decay))
    order = itertools.islice(batches(len(rows), 3, derive(SEED, "data", "only"), 0), 20)
    precise = torch.float64 if dtype == "fp64" else torch.float32
    oracle = load(model_folder("gpt2"), start, alpha=8, dtype=precise)
    losses = train(
        oracle,
        [[plain(rows)[i] for i in chosen] for chosen in order],
        lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.05),
        rates,
        max_norm=0.5,
    )
    assert_close(results[-1][0].adapter, read(oracle), tolerance)
    assert losses[-1] < losses[0]


def test_without_keeping_the_optimizer_it_is_not(model, start):
    rows = {"only": make_rows([19, 7, 30, 12])}
    how = LocalTraining(learning_rate=0.01, num_rounds=3, steps=2, batch_size=2)
    kept = federate(model, start, rows, replace(how, keep_optimizer=True))[-1][0].adapter
    reset = federate(model, start, rows, how)[-1][0].adapter
    assert max(float((kept[name] - reset[name]).abs().max()) for name in kept) > 1e-4


# --- symmetries ---


def test_identical_clients_are_one_client(model, start):
    """Equal rows in equal order move the server as one of them would."""
    rows = make_rows([19, 7, 30])
    how = LocalTraining(learning_rate=0.01, num_rounds=2, steps=2, batch_size=3)
    one = federate(model, start, {"a": rows}, how)[-1][0].adapter
    many = federate(model, start, {name: rows for name in "abcd"}, how)
    assert_close(many[-1][0].adapter, one, 1e-9)
    assert all(record.diagnostics["aggregation_bias"] < 1e-4 for _, record in many)
    assert all(record.diagnostics["pairwise_cosine"] > 0.999 for _, record in many)


def test_the_global_seed_does_not_matter(model, start, keep_global_state):
    data = {"a": make_rows([19, 7]), "b": make_rows([30, 12], 1)}
    how = LocalTraining(learning_rate=0.01, num_rounds=2, steps=2, batch_size=1)
    one = federate(model, start, data, how)[-1][0].adapter
    with torch.random.fork_rng():
        torch.manual_seed(99)
        two = federate(model, start, data, how)[-1][0].adapter
    assert_close(one, two, 0)


def test_a_poisoned_client_is_reported_and_the_federation_goes_on(model, start, monkeypatch):
    data = {"a": make_rows([19, 7]), "bad": make_rows([30, 12], 1), "c": make_rows([9, 8], 2)}
    how = LocalTraining(learning_rate=0.01, num_rounds=2, steps=1, batch_size=2)
    without = federate(model, start, {name: data[name] for name in "ac"}, how)[-1][0].adapter
    train = Worker.train_together

    def poison(self, tasks, *args):
        updates = train(self, tasks, *args)
        for task, update in zip(tasks, updates, strict=True):
            if task.client_id == "bad":
                next(iter(update.delta.values()))[0, 0] = float("inf")
        return updates

    monkeypatch.setattr(Worker, "train_together", poison)
    results = federate(model, start, data, how)
    assert [[f.client_id for f in record.failures] for _, record in results] == [["bad"], ["bad"]]
    assert_close(results[-1][0].adapter, without, 0)


def test_a_federation_learns(model, start):
    data = {name: make_rows([12] * 3, k) for k, name in enumerate("abc")}
    how = LocalTraining(learning_rate=0.02, num_rounds=6, steps=3, batch_size=3)
    losses = [record.loss for _, record in federate(model, start, data, how)]
    assert losses[-1] < 0.7 * losses[0]


def test_going_on_from_any_round_gives_the_same_bits(model, start, tmp_path):
    data = {name: make_rows([12, 9, 17], k) for k, name in enumerate("abc")}
    how = LocalTraining(learning_rate=0.02, num_rounds=4, steps=2, batch_size=2, keep_optimizer=True)
    whole = federate(model, start, data, how, per_round=2, store=ClientStore(tmp_path / "whole"))
    for stop in (1, 2, 3):
        folder = ClientStore(tmp_path / f"stop{stop}")
        first = federate(model, start, data, how, rounds=stop, per_round=2, store=folder)
        engine = InProcess(Worker(model, data, FedIT(), seed=SEED, store=ClientStore(folder.folder)))
        rest = list(
            run_rounds(
                first[-1][0],
                engine,
                FedIT(),
                rounds=4,
                cohort=lambda clients, round: cohort.uniform(clients, 2, seed=SEED, round=round),
                training=lambda round: how,
                seed=SEED,
            )
        )
        assert_close(rest[-1][0].adapter, whole[-1][0].adapter, 0)
        assert [r.cohort for _, r in rest] == [r.cohort for _, r in whole[stop:]]
