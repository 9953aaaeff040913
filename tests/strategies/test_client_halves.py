"""The clients' halves on real tiny models: alone or stacked, on either path, interrupted or not."""

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import checkpoint, cohort
from fedit.engines.inprocess import InProcess
from fedit.rounds import run_rounds
from fedit.schedule import learning_rate
from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.strategies.fedavg import FedAvg
from fedit.strategies.feddyn import FedDyn
from fedit.strategies.fednova import FedNova
from fedit.strategies.fedprox import FedProx
from fedit.strategies.scaffold import Scaffold
from fedit.types import Broadcast, ClientTask, LocalTraining
from fedit.worker import Worker

CLIENTS = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
SGD = LocalTraining(learning_rate=0.05, num_rounds=4, steps=3, batch_size=2, optimizer="sgd", schedule="cosine")
ADAMW = LocalTraining(learning_rate=0.01, num_rounds=4, steps=3, batch_size=2, keep_optimizer=True)
CASES = {
    "fedprox": (FedProx(mu=0.5), ADAMW),
    "decoupled": (FedProx(mu=5.0, decoupled=True), ADAMW),
    "scaffold": (Scaffold(), SGD),
    "fednova": (FedNova(), ADAMW),
    "feddyn": (FedDyn(alpha=0.5), SGD),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def fast(adapted):
    model = adapted("llama")
    assert model.fast is not None
    return model


@pytest.fixture(scope="module")
def general(adapted):
    return adapted("llama", fast_path=False)


def federate(model, strategy, how, rounds=4, *, store=None, width=1, per_round=1.0, start=None):
    """Return the server's state after each round."""
    engine = InProcess(Worker(model, CLIENTS, strategy, seed=0, store=store or ClientStore()), width=width)
    return [
        state
        for state, _ in run_rounds(
            start or strategy.init(random_adapter(model, 1)),
            engine,
            strategy,
            rounds=rounds,
            cohort=lambda clients, round: cohort.uniform(clients, per_round, seed=0, round=round),
            training=lambda round: how,
            seed=0,
        )
    ]


def assert_close(one, two, tolerance):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def same(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_fedprox_without_a_penalty_is_fedavg_bit_for_bit(fast, general):
    for model in (fast, general):
        plain = federate(model, FedAvg(), ADAMW, rounds=1)[-1]
        for strategy in (FedProx(mu=0.0), FedProx(mu=0.0, decoupled=True)):
            assert same(federate(model, strategy, ADAMW, rounds=1)[-1].adapter, plain.adapter)


@pytest.mark.parametrize("width", [1, 3])
def test_a_large_penalty_pins_clients(fast, width):
    start = random_adapter(fast, 1)
    free = federate(fast, FedProx(mu=0.0), ADAMW, 1, width=width)[-1].adapter
    pinned = federate(fast, FedProx(mu=1e9, decoupled=True), ADAMW, 1, width=width)[-1].adapter
    assert max(float((pinned[name] - start[name]).abs().max()) for name in start) < 1e-8
    assert max(float((free[name] - start[name]).abs().max()) for name in start) > 1e-3


def test_every_correction_acts(fast, case):
    """What is compared below is not federated averaging by accident."""
    strategy, how = case
    if strategy == FedNova():
        return
    plain, found = (federate(fast, rule, how, 2)[-1].adapter for rule in (FedAvg(), strategy))
    assert max(float((plain[name] - found[name]).abs().max()) for name in plain) > 1e-4


def test_stacked_clients_and_both_paths_agree(fast, general, case):
    strategy, how = case
    alone = federate(fast, strategy, how, 2)[-1]
    stacked, other = federate(fast, strategy, how, 2, width=3)[-1], federate(general, strategy, how, 2)[-1]
    # transformers takes norms and attention in float32
    for found, tolerance in ((stacked, 1e-9), (other, 1e-6)):
        assert_close(found.adapter, alone.adapter, tolerance)
        assert_close(found.memory, alone.memory, 10 * tolerance)


@pytest.mark.parametrize("width", [1, 3])
def test_memories_survive_an_interruption(fast, case, width, tmp_path):
    """In cohorts of two of three, so that one client's memory waits out a round."""
    strategy, how = case
    options = {"width": width, "per_round": 2}
    whole = federate(fast, strategy, how, 3, **options)[-1]
    first = federate(fast, strategy, how, 2, store=ClientStore(tmp_path / "clients"), **options)[-1]
    checkpoint.save(tmp_path / "server", first)
    again, start = ClientStore(tmp_path / "clients"), checkpoint.load(tmp_path / "server", 2)
    later = federate(fast, strategy, how, 3, store=again, start=start, **options)[-1]
    assert same(later.adapter, whole.adapter)
    assert same(later.memory, whole.memory)


def rounds_of(model, strategy, how, order):
    """Let clients train three rounds from the same broadcasts; return what each sent and what it remembers."""
    store, adapter = ClientStore(), random_adapter(model, 1)
    there = Worker(model, CLIENTS, strategy, seed=0, store=store)
    control = {name: 0.01 * tensor for name, tensor in random_adapter(model, 2).items()}
    extra = control if isinstance(strategy, Scaffold) else {}
    sent = {}
    for round in (1, 2, 3):
        for client in order:
            task = ClientTask(
                round, client, Broadcast(adapter, extra=extra), how, derive(0, "train", round, client)
            )
            sent[round, client] = there.train(task)
    return sent, {client: store.read(client, 4).memory for client in order}


def test_nothing_leaks_from_one_client_to_another(fast, case):
    strategy, how = case
    one, kept = rounds_of(fast, strategy, how, "abc")
    two, kept_too = rounds_of(fast, strategy, how, "cba")
    alone, kept_alone = rounds_of(fast, strategy, how, "b")
    for key, update in one.items():
        assert same(update.delta, two[key].delta)
        assert same(update.extra, two[key].extra)
    for round in (1, 2, 3):
        assert same(one[round, "b"].delta, alone[round, "b"].delta)
    assert all(same(kept[client], kept_too[client]) for client in "abc")
    assert same(kept["b"], kept_alone["b"])
    if isinstance(strategy, Scaffold | FedDyn):
        assert not same(kept["a"], kept["b"])


def test_scaffolds_control_variates_are_the_mean_gradients_of_the_first_round(fast):
    """From c = c_k = 0 the client takes plain steps, and c_k is how far it went over the sum of its rates."""
    strategy, store = Scaffold(), ClientStore()
    start = random_adapter(fast, 1)
    there = Worker(fast, CLIENTS, strategy, seed=0, store=store)
    update = there.train(ClientTask(1, "a", Broadcast(start), SGD, 5))
    plain = Worker(fast, CLIENTS, FedAvg(), seed=0).train(ClientTask(1, "a", Broadcast(start), SGD, 5))
    assert same(update.delta, plain.delta)
    kept = store.read("a", 2).memory
    total = sum(learning_rate(SGD, 1, step, SGD.steps) for step in range(SGD.steps))
    assert_close(kept, {name: -delta / total for name, delta in plain.delta.items()}, 1e-12)
    assert same(update.extra, kept)
