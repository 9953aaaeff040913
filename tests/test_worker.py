"""The client half of a round: what leaves, what stays, and that clients cannot touch each other."""

import hashlib
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit.model.adapted import AdaptedModel
from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining
from fedit.worker import WEIGHTINGS, Worker

CLIENTS = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
HOW = LocalTraining(learning_rate=0.05, num_rounds=4, steps=2, batch_size=2, keep_optimizer=True)


@dataclass(frozen=True)
class TrainsOnlyB(Strategy):
    """A is frozen for ever (FFA-LoRA)."""

    def trains(self, name, round):
        return name.endswith(".B")


@dataclass(frozen=True)
class SharesOnlyA(Strategy):
    """B stays with its client (FedSA-LoRA)."""

    def shares(self, name):
        return name.endswith(".A")


@dataclass(frozen=True)
class Alternates(Strategy):
    """B in odd rounds, A in even ones (RoLoRA)."""

    def trains(self, name, round):
        return name.endswith(".B" if round % 2 else ".A")


@dataclass(frozen=True)
class Remembers(Strategy):
    """Counts its own rounds and sends the count."""

    def finish(self, task, result, memory):
        count = memory.get("count", torch.zeros(1)) + 1
        return {"count": count}, {"count": count}


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("gpt2")


@pytest.fixture
def adapter(model):
    return random_adapter(model, 1)


def task(client, adapter, round=1, how=HOW, **extra):
    return ClientTask(round, client, Broadcast(adapter, extra=extra), how, derive(0, "train", round, client))


def worker(model, strategy=None, store=None, **options):
    return Worker(model, CLIENTS, strategy or FedIT(), seed=0, store=store or ClientStore(), **options)


def assert_same(one, two):
    assert set(one) == set(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def digest(tensors):
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].numpy().tobytes())
    return total.hexdigest()


# --- what leaves ---


def test_the_delta_is_trained_minus_received(model, adapter):
    update = worker(model).train(task("a", adapter))
    trained = model.read()
    assert_same(update.delta, {name: trained[name] - adapter[name] for name in adapter})
    assert all(tensor.any() for tensor in update.delta.values())
    assert (update.client_id, update.round, update.num_examples) == ("a", 1, 3)
    assert update.metrics["steps"] == 2
    assert update.metrics["loss"] > 0


def test_weights_are_examples_supervised_tokens_or_one(model, adapter):
    sent = {name: worker(model, weighting=name).train(task("b", adapter)) for name in WEIGHTINGS}
    supervised = sent["tokens"].metrics["supervised_tokens"]
    assert (sent["examples"].weight, sent["tokens"].weight, sent["uniform"].weight) == (4, supervised, 1)
    whole = replace(HOW, steps=None, epochs=1)
    update = worker(model, weighting="tokens").train(task("b", adapter, how=whole))
    assert update.weight == sum(int(row.supervised.sum()) for row in CLIENTS["b"])


def test_clients_are_sorted_and_counted(model):
    assert [(c.client_id, c.num_examples) for c in worker(model).clients()] == [("a", 3), ("b", 4), ("c", 5)]


def test_a_broadcast_is_not_edited(model, adapter):
    before = digest(adapter)
    worker(model).train(task("a", adapter))
    assert digest(adapter) == before


def test_a_task_done_again_gives_the_same_bits(model, adapter, tmp_path):
    there = worker(model, store=ClientStore(tmp_path))
    one, two = there.train(task("a", adapter)), there.train(task("a", adapter))
    assert_same(one.delta, two.delta)
    assert one.metrics == two.metrics


# --- clients do not touch each other ---

STRATEGIES = [FedIT(), TrainsOnlyB(), SharesOnlyA(), Alternates(), Remembers()]


def federate(model, adapter, strategy, order, store):
    """Run three rounds in which everyone gets the same adapter; return what each sent and kept."""
    there = worker(model, strategy, store)
    sent = {}
    for round in (1, 2, 3):
        for client in order:
            sent[round, client] = there.train(task(client, adapter, round))
    return sent, {client: store.read(client, 4) for client in order}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_client_does_not_depend_on_who_came_before_it(model, adapter, strategy):
    one, kept = federate(model, adapter, strategy, "abc", ClientStore())
    two, kept_too = federate(model, adapter, strategy, "cba", ClientStore())
    alone, kept_alone = federate(model, adapter, strategy, "b", ClientStore())
    for key in one:
        assert_same(one[key].delta, two[key].delta)
        assert_same(one[key].extra, two[key].extra)
    for round in (1, 2, 3):
        assert_same(one[round, "b"].delta, alone[round, "b"].delta)
    for client in "abc":
        for part in ("private", "memory", "optimizer"):
            assert_same(getattr(kept[client], part), getattr(kept_too[client], part))
    assert kept["b"].batches_seen == kept_alone["b"].batches_seen == 6


def test_a_client_that_failed_leaves_no_trace_on_the_next(model, adapter):
    clean = worker(model).train(task("b", adapter))
    there = worker(model)
    broken = {name: tensor * float("nan") for name, tensor in adapter.items()}
    assert isinstance(there.train(task("a", broken)), ClientFailure)
    assert_same(there.train(task("b", adapter)).delta, clean.delta)


def test_a_client_that_trains_only_b_moves_only_b(model, adapter):
    there = worker(model, TrainsOnlyB())
    for round in (1, 2):
        update = there.train(task("a", adapter, round))
        for name, tensor in update.delta.items():
            assert bool(tensor.any()) == name.endswith(".B")


def test_private_factors_come_back_to_their_client_and_only_there(model, adapter):
    store = ClientStore()
    there = worker(model, SharesOnlyA(), store)
    first = there.train(task("a", adapter))
    assert set(first.delta) == {name for name in adapter if name.endswith(".A")}
    after_first = model.read()
    private = {name: after_first[name] for name in adapter if name.endswith(".B")}
    assert_same(store.read("a", 2).private, private)

    starts = {}
    train = there._trainer.train

    def spy(job, adapter, *args, **options):
        starts[len(job.rows)] = adapter
        return train(job, adapter, *args, **options)

    there._trainer.train = spy
    there.train(task("b", adapter, 2))
    assert_same(starts[4], adapter)  # a newcomer starts from what it is sent
    untouched = digest(store.read("a", 2).private)
    there.train(task("c", adapter, 3))
    assert digest(store.read("a", 4).private) == untouched  # it did not take part
    there.train(task("a", adapter, 4))
    assert_same(starts[3], {**adapter, **private})  # shared A from the server, its own B


def test_private_factors_never_leave(model, adapter):
    there = worker(model, SharesOnlyA())
    for round in (1, 2):
        update = there.train(task("a", adapter, round))
        assert all(name.endswith(".A") for name in {**update.delta, **update.extra})


def test_what_a_strategy_remembers_is_given_back(model, adapter):
    there = worker(model, Remembers())
    counts = [float(there.train(task("a", adapter, round)).extra["count"]) for round in (1, 2, 3)]
    assert counts == [1, 2, 3]
    assert float(there.train(task("b", adapter, 4)).extra["count"]) == 1


def test_clients_on_disk_are_the_clients_in_memory(model, adapter, tmp_path):
    for strategy in (FedIT(), SharesOnlyA()):
        one, _ = federate(model, adapter, strategy, "ab", ClientStore())
        two, _ = federate(model, adapter, strategy, "ab", ClientStore(tmp_path / type(strategy).__name__))
        for key in one:
            assert_same(one[key].delta, two[key].delta)


# --- every row gets its turn ---


def rows_seen(model, adapter, rounds, how, monkeypatch, store=None, client="c"):
    seen = []
    there = worker(model, store=store)
    number = {id(row.ids): index for index, row in enumerate(CLIENTS[client])}
    collate = model.collate

    def spy(rows):
        seen.extend(number[id(row.ids)] for row in rows)
        return collate(rows)

    monkeypatch.setattr(model, "collate", spy)
    for round in rounds:
        there.train(task(client, adapter, round, how))
    return seen


def test_rounds_of_few_steps_see_new_rows_until_the_epoch_is_through(model, adapter, monkeypatch):
    """The other way round, a client of many rows would learn the same few in every round."""
    one_step = replace(HOW, steps=1, batch_size=1)
    seen = rows_seen(model, adapter, range(1, 11), one_step, monkeypatch)
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]


def test_rounds_that_a_client_misses_do_not_cost_it_rows(model, adapter, monkeypatch):
    one_step = replace(HOW, steps=1, batch_size=1)
    seen = rows_seen(model, adapter, (2, 3, 7, 9, 20), one_step, monkeypatch)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_a_restarted_worker_goes_on_in_its_rows(model, adapter, monkeypatch, tmp_path):
    one_step = replace(HOW, steps=1, batch_size=2)
    whole = rows_seen(model, adapter, (1, 2, 3), one_step, monkeypatch)
    monkeypatch.undo()
    halves = []
    for rounds in ((1, 2), (3,)):
        halves += rows_seen(model, adapter, rounds, one_step, monkeypatch, ClientStore(tmp_path))
        monkeypatch.undo()
    assert halves == whole
    assert sorted(whole) == [0, 1, 2, 3, 4]


def test_metrics_count_distinct_rows(model, adapter):
    update = worker(model).train(task("c", adapter, how=replace(HOW, steps=4, batch_size=2)))
    assert update.metrics["rows"] == 5


# --- failures ---


def test_an_example_too_large_for_memory_is_a_failure_of_its_client_alone(model, adapter, monkeypatch):
    def full(model, batch):
        if batch.tokens > 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch)

    real = AdaptedModel.log_probabilities
    monkeypatch.setattr(AdaptedModel, "log_probabilities", full)
    there = worker(model)
    whole = replace(HOW, steps=None, epochs=1)
    failed, fine = (there.train(task(client, adapter, how=whole)) for client in "ca")
    assert isinstance(failed, ClientFailure)
    assert (failed.client_id, failed.round) == ("c", 1)
    assert "out of memory on a single example" in failed.reason
    assert isinstance(fine, ClientUpdate)


def test_a_failed_round_keeps_the_clients_state(model, adapter):
    store = ClientStore()
    there = worker(model, SharesOnlyA(), store)
    there.train(task("a", adapter, 1))
    before = store.read("a", 2)
    broken = {name: tensor * float("nan") for name, tensor in adapter.items()}
    assert isinstance(there.train(task("a", broken, 2)), ClientFailure)
    assert digest(store.read("a", 3).private) == digest(before.private)
    assert store.read("a", 3).batches_seen == before.batches_seen


def test_a_client_that_learns_to_infinity_is_a_failure(model, adapter):
    wild = replace(HOW, learning_rate=1e300, optimizer="sgd", max_grad_norm=0.0, steps=1)
    failed = worker(model).train(task("a", {n: t * 1e5 for n, t in adapter.items()}, how=wild))
    assert isinstance(failed, ClientFailure)
    assert "finite" in failed.reason or "became" in failed.reason
