"""FFA-LoRA, RoLoRA and FedSA-LoRA: which factor moves when, and what stays with whom."""

from dataclasses import replace

import pytest
import torch
from factored import assert_close, assert_same, federate, fresh, product, task, tensors
from tiny import make_rows

from fedit.errors import ConfigError
from fedit.store import ClientStore
from fedit.strategies.fedsa_lora import FedSALoRA
from fedit.strategies.ffa_lora import FFALoRA
from fedit.strategies.rolora import RoLoRA
from fedit.types import ClientInfo, LocalTraining
from fedit.worker import Worker

DATA = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama", dtype="fp32")


def of(adapter, factor):
    return {name: tensor for name, tensor in adapter.items() if name.endswith(factor)}


# --- FFA-LoRA ---


@pytest.mark.parametrize("orthonormal", [False, True])
def test_a_stays_as_drawn_for_ever(model, orthonormal):
    strategy = FFALoRA(orthonormal)
    first = strategy.init(model.initial(0)).adapter
    for state, _ in federate(model, strategy, DATA):
        assert_same(of(state.adapter, ".A"), of(first, ".A"))
        assert all(tensor.any() for tensor in of(state.adapter, ".B").values())


def test_an_orthonormal_a_spans_what_was_drawn():
    drawn = tensors(0)
    made = FFALoRA(orthonormal=True).init(drawn).adapter
    for name, a in of(made, ".A").items():
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close((drawn[name] @ a.T) @ a, drawn[name], rtol=0, atol=2e-6)
    assert_close(product(made), product(drawn), 1e-5)


def test_an_a_with_more_rows_than_columns_cannot_be_orthonormal():
    wide = {"m.A": torch.randn(8, 6), "m.B": torch.zeros(9, 8)}
    with pytest.raises(ConfigError, match="lora_r to 6 or less"):
        FFALoRA(orthonormal=True).init(wide)


# --- RoLoRA ---


@pytest.mark.parametrize(("period", "phases"), [(1, "BABABA"), (2, "BBAABB"), (3, "BBBAAA")])
def test_phases_take_turns_and_b_begins(period, phases):
    """FedLLM-Factory begins with A, which has no gradient while B is zero: its first round is lost."""
    for round, factor in enumerate(phases, 1):
        assert [f for f in "AB" if RoLoRA(period).trains(f"m.{f}", round)] == [factor]


def test_the_first_round_learns_something(model):
    ((state, record),) = federate(model, RoLoRA(), DATA, rounds=1)
    assert all(tensor.any() for tensor in of(state.adapter, ".B").values())
    assert all(client["update_norm"] > 0 for client in record.clients)
    assert_same(of(state.adapter, ".A"), of(model.initial(0), ".A"))


def test_the_factor_that_waits_is_constant_in_its_round(model):
    states = [state for state, _ in federate(model, RoLoRA(), DATA)]
    for before, after, still in zip(states, states[1:], (".B", ".A", ".B"), strict=False):
        assert_same(of(after.adapter, still), of(before.adapter, still))


def test_whoever_missed_rounds_is_sent_both_factors(model):
    """A client that comes for the first time in round 4 trains what the server holds."""
    strategy = RoLoRA()
    states = federate(model, strategy, DATA, rounds=3, per_round=lambda round: "ab")
    server = states[-1][0]
    assert_same(strategy.broadcast(server, ClientInfo("c", 1)).adapter, server.adapter)
    early = states[0][0]
    assert set(strategy.broadcast(early, ClientInfo("c", 1)).adapter) == set(of(early.adapter, ".B"))


@pytest.mark.parametrize("period", [0, -2])
def test_a_phase_has_a_round_at_least(period):
    with pytest.raises(ConfigError, match="period"):
        RoLoRA(period).check(LocalTraining(learning_rate=0.1, num_rounds=2, steps=1))


# --- FedSA-LoRA ---


def test_every_b_stays_with_its_client(model):
    """FedLLM-Factory never stores B: a client there goes on from the B of whoever trained before it."""
    store = ClientStore()
    there = Worker(model, DATA, FedSALoRA(), seed=0, store=store)
    server = replace(FedSALoRA().init(model.initial(0)), scale=model.scale)
    kept = {}
    for client in "ab":
        there.train(task(FedSALoRA(), server, client, 1))
        kept[client] = store.read(client, 2).private
        assert set(kept[client]) == set(of(server.adapter, ".B"))
    assert all((kept["a"][name] - kept["b"][name]).abs().max() > 1e-4 for name in kept["a"])

    starts = {}
    job = there._job
    there._job = lambda client, phase: starts.update({client.task.client_id: client.start}) or job(client, phase)
    for client in "cba":
        there.train(task(FedSALoRA(), server, client, 2))
    for client in "ab":
        assert_same(of(starts[client], ".B"), kept[client])
    assert not any(tensor.any() for tensor in of(starts["c"], ".B").values())  # new


def test_only_a_travels_and_its_mean_is_exact(model):
    strategy = FedSALoRA()
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    there = Worker(model, DATA, strategy, seed=0)
    first = [there.train(task(strategy, server, client, 1)) for client in "abc"]
    assert all(set(update.delta) == set(of(server.adapter, ".A")) and not update.extra for update in first)
    ((state, _),) = federate(model, strategy, DATA, rounds=1)
    for name, a in of(state.adapter, ".A").items():
        mean = sum(u.weight * u.delta[name].double() for u in first) / sum(u.weight for u in first)
        torch.testing.assert_close(a.double(), server.adapter[name].double() + mean, rtol=0, atol=1e-7)
    assert_same(of(state.adapter, ".B"), of(fresh_like(state.adapter), ".B"))


def fresh_like(adapter):
    return {name: torch.zeros_like(tensor) for name, tensor in adapter.items()}


def test_clients_that_change_places_change_results(model):
    swapped = {"a": DATA["b"], "b": DATA["a"]}
    kept = []
    for data in ({"a": DATA["a"], "b": DATA["b"]}, swapped):
        store = ClientStore()
        federate(model, FedSALoRA(), data, rounds=2, store=store)
        kept.append({client: store.read(client, 3).private for client in "ab"})
    for name in kept[0]["a"]:
        assert (kept[0]["a"][name] - kept[1]["a"][name]).abs().max() > 1e-4


def test_those_who_sit_out_keep_their_b(model):
    store = ClientStore()
    federate(model, FedSALoRA(), DATA, rounds=1, store=store)
    before = store.read("c", 2).private
    federate(model, FedSALoRA(), DATA, rounds=3, store=store, per_round=lambda round: "ab")
    assert_same(store.read("c", 4).private, before)


def test_a_new_server_holds_the_given_adapter():
    for strategy in (FFALoRA(), RoLoRA(), FedSALoRA()):
        assert_same(strategy.init(fresh(0)).adapter, fresh(0))
