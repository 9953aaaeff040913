"""What holds for every strategy that treats A and B apart: fixed points, weights, isolation, exact means."""

from dataclasses import replace

import pytest
import torch
from factored import (
    HOW,
    SHAPES,
    aggregate,
    assert_close,
    assert_same,
    federate,
    fresh,
    mean_product,
    product,
    random_updates,
    task,
    tensors,
    update,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_rows

from fedit.errors import SealedUpdates
from fedit.rounds import broadcast_bytes
from fedit.store import ClientStore
from fedit.strategies import build_strategy
from fedit.types import ClientFailure, ClientInfo, ServerState
from fedit.updates import Updates
from fedit.worker import Worker

STRATEGIES = {
    "fed_sb": ("fed_sb", {}),
    "fed_sb, first update": ("fed_sb", {"bases": "first_update"}),
    "fedrot_lora": ("fedrot_lora", {}),
    "fedrot_lora, soft": ("fedrot_lora", {"strength": 0.3}),
    "fedsa_lora": ("fedsa_lora", {}),
    "ffa_lora": ("ffa_lora", {}),
    "ffa_lora, orthonormal": ("ffa_lora", {"orthonormal": True}),
    "hetlora": ("hetlora", {"min_rank": 1}),
    "hetlora, by data": ("hetlora", {"norm_weights": False, "gamma": 1.0}),
    "hetlora, svd": ("hetlora", {"order": "svd", "norm_cap": 2.0}),
    "lora_fair": ("lora_fair", {}),
    "ravan": ("ravan", {"heads": 2}),
    "rolora": ("rolora", {}),
    "rolora, phases of two": ("rolora", {"period": 2}),
}
EXACT = [name for name in STRATEGIES if name.startswith(("fed_sb", "ffa", "ravan", "rolora"))]
"""The mean of the products is the product of the mean."""
SEES_SINGLE_UPDATES = ("hetlora", "lora_fair")
DATA = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}


def make(name):
    strategy, options = STRATEGIES[name]
    return build_strategy(strategy, options)


def started(strategy):
    """Return a server in the middle of a run, whose next round is 3, and its round."""
    server = strategy.init(tensors(0))
    for round in (1, 2):
        updates, _ = random_updates(strategy, server, (2, 3), round, seed=round)
        server = aggregate(strategy, server, updates, round=round)
    return server, 3


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request):
    return make(request.param)


def effective(strategy, server):
    return product(strategy.factors(server.adapter), server.scale)


# --- the server's half ---


def test_the_first_model_is_the_given_one(strategy):
    assert_close(effective(strategy, strategy.init(tensors(3))), product(tensors(3)), 1e-5)
    assert all(not value.any() for value in effective(strategy, strategy.init(fresh(3))).values())


def test_nothing_learnt_changes_nothing(strategy):
    for server, round in (started(strategy), (strategy.init(fresh(0)), 1)):
        updates, _ = random_updates(strategy, server, (3, 5), round, size=0.0)
        assert_close(
            effective(strategy, aggregate(strategy, server, updates, round=round)),
            effective(strategy, server),
            2e-5,
        )


def test_one_client_arrives(strategy):
    server, round = started(strategy)
    updates, (trained,) = random_updates(strategy, server, (7,), round)
    after = aggregate(strategy, server, updates, round=round)
    assert_close(effective(strategy, after), product(strategy.factors(trained)), 2e-5)


def test_agreement_is_kept(strategy):
    server, round = started(strategy)
    (one,), (trained,) = random_updates(strategy, server, (7,), round)
    many = [replace(one, client_id=name, weight=weight) for name, weight in (("a", 3.0), ("b", 5.0), ("c", 90.0))]
    after = aggregate(strategy, server, many, round=round)
    assert_close(effective(strategy, after), product(strategy.factors(trained)), 2e-5)


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 0, 3, 2]])
def test_order_of_clients_does_not_matter(strategy, order):
    server, round = started(strategy)
    updates, _ = random_updates(strategy, server, (2, 3, 4, 5), round)
    one = aggregate(strategy, server, updates, round=round)
    two = aggregate(strategy, server, [updates[i] for i in order], round=round)
    assert_close(effective(strategy, one), effective(strategy, two), 2e-5)


def test_only_ratios_of_weights_matter(strategy):
    server, round = started(strategy)
    updates, _ = random_updates(strategy, server, (2, 3, 4), round)
    many = [replace(u, weight=1000 * u.weight, num_examples=1000 * u.num_examples) for u in updates]
    one, two = (aggregate(strategy, server, cohort, round=round) for cohort in (updates, many))
    assert_close(effective(strategy, one), effective(strategy, two))


def test_a_client_without_weight_or_with_nan_and_one_that_failed_do_not_matter(strategy):
    server, round = started(strategy)
    updates, _ = random_updates(strategy, server, (2, 3, 4, 5), round)
    poisoned = replace(updates[3], delta={n: t * float("nan") for n, t in updates[3].delta.items()})
    noise = [replace(updates[2], weight=0.0), ClientFailure("d", round, "gone"), poisoned]
    alone = aggregate(strategy, server, updates[:2], round=round)
    assert_same(aggregate(strategy, server, [*noise, *updates[:2]], round=round).adapter, alone.adapter)


def test_the_servers_state_is_not_edited(strategy):
    server, round = started(strategy)
    before = {name: tensor.clone() for name, tensor in {**server.adapter, **server.memory}.items()}
    updates, _ = random_updates(strategy, server, (2, 3), round)
    aggregate(strategy, server, updates, round=round)
    assert_same({**server.adapter, **server.memory}, before)


def test_names_shapes_and_types_stay(strategy):
    server, _ = started(strategy)
    first = strategy.init(tensors(0))
    for adapter in (server.adapter, first.adapter):
        assert {n: (t.shape, t.dtype) for n, t in adapter.items()} == {
            n: (t.shape, torch.float32) for n, t in first.adapter.items()
        }
    assert {n: tuple(t.shape) for n, t in strategy.factors(server.adapter).items()} == SHAPES


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_only_those_that_need_single_updates_see_them(name):
    strategy = make(name)
    server, round = started(strategy)
    updates, _ = random_updates(strategy, server, (2, 3), round)
    if name.startswith(SEES_SINGLE_UPDATES):
        with pytest.raises(SealedUpdates):
            aggregate(strategy, server, updates, round=round, sealed=True)
    else:
        one = aggregate(strategy, server, updates, round=round, sealed=True)
        assert_same(one.adapter, aggregate(strategy, server, updates, round=round).adapter)


@pytest.mark.parametrize("name", EXACT)
@given(seed=st.integers(0, 10**6), weights=st.lists(st.integers(1, 50), min_size=1, max_size=5))
@settings(deadline=None, max_examples=8)
def test_the_mean_of_the_products_is_the_product_of_the_mean(name, seed, weights):
    strategy = make(name)
    server = strategy.init(tensors(seed))
    for round in range(1, 5):
        updates, trained = random_updates(strategy, server, weights, round, seed=seed + round)
        server = aggregate(strategy, server, updates, round=round)
        if round > 1 or name != "fed_sb, first update":
            found, expected = effective(strategy, server), mean_product(strategy, trained, weights)
            for module in found:
                difference = (found[module] - expected[module]).norm()
                assert difference <= 1e-6 * max(1.0, float(expected[module].norm()))


# --- the clients' half ---


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama", dtype="fp32")


def run_cohort(model, strategy, order, store, tmp=None):
    """Train rounds 1 to 3 from one server, clients in ``order``; return what each sent and kept."""
    there = Worker(model, DATA, strategy, seed=0, store=store)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    sent, kept = {}, {}
    for round in (1, 2, 3):
        results = {client: there.train(task(strategy, server, client, round)) for client in order}
        assert not any(isinstance(result, ClientFailure) for result in results.values())
        cohort = [results[client] for client in sorted(order)]
        starts = {c: {**server.adapter, **task(strategy, server, c, round).broadcast.adapter} for c in order}
        server = aggregate(strategy, server, cohort, round=round, starts=starts)
        for client in order:
            sent[client, round] = {**results[client].delta, **results[client].extra}
            state = store.read(client, round + 1)
            kept[client, round] = {**state.private, **state.memory}
    return server, sent, kept


def test_a_client_does_not_depend_on_who_came_before_it(model, strategy):
    """In FedLLM-Factory's RoLoRA and FedSA the next client starts from the last one's other factor."""
    one, two = (run_cohort(model, strategy, order, ClientStore()) for order in ("abc", "cab"))
    assert_same(one[0].adapter, two[0].adapter)
    for before, after in zip(one[1:], two[1:], strict=True):
        assert set(before) == set(after)
        for key in before:
            assert_same(before[key], after[key])


def test_what_is_not_trained_stays_bit_for_bit(model, strategy):
    there = Worker(model, DATA, strategy, seed=0)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    for round in (1, 2, 3, 4):
        sent = task(strategy, server, "a", round)
        result = there.train(sent)
        assert set(result.delta) == {n for n in server.adapter if strategy.uploads(n, round)}
        assert all(strategy.trains(name, round) for name in result.delta)
        assert all(tensor.any() for name, tensor in result.delta.items() if not name.endswith(".A") or round > 1)
        held = {**server.adapter, **sent.broadcast.adapter}  # what first_update freezes comes with the broadcast
        after = aggregate(strategy, server, [result], round=round, starts={"a": held})
        if getattr(strategy, "bases", "") != "first_update" or round > 1:
            still = {n: t for n, t in held.items() if not strategy.uploads(n, round)}
            assert_same(still, {name: after.adapter[name] for name in still})
        server = after


def test_tensors_left_out_of_a_broadcast_are_those_the_client_has(model, strategy):
    """What the worker fills in must be what the server holds, or the model trained is another."""
    there = Worker(model, DATA, strategy, seed=0)
    starts = []
    job = there._job
    there._job = lambda client, phase: starts.append(client.start) or job(client, phase)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    for round in (1, 2, 3):
        own = task(strategy, server, "a", round)
        result = there.train(own)
        held = {**server.adapter, **own.broadcast.adapter}
        shared = {n: t for n, t in held.items() if strategy.shares(n)}
        assert_same({name: starts[-1][name] for name in shared}, shared)
        server = aggregate(strategy, server, [result], round=round, starts={"a": held})


@pytest.mark.parametrize("worst", ["nan", "inf"])
def test_a_client_that_learns_to_infinity_is_a_failure(model, strategy, worst):
    """Aligning or splitting such tensors would end the run, not the client."""
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    moved = {n: t if n.endswith(".A") else t + 0.1 for n, t in server.adapter.items()}
    there = Worker(model, DATA, strategy, seed=0)
    train = there._trainer.train

    def broken(*args):
        progress, state, trained = train(*args)
        return progress, state, {name: tensor + float(worst) for name, tensor in trained.items()}

    there._trainer.train = broken
    failed = there.train(task(strategy, replace(server, adapter=moved), "a", 1))
    assert isinstance(failed, ClientFailure)
    assert "not finite" in failed.reason


def test_a_federation_learns(model, strategy):
    data = {name: make_rows([12] * 3, k) for k, name in enumerate("abc")}
    how = replace(HOW, learning_rate=0.05, num_rounds=6, steps=4, batch_size=3)
    results = federate(model, strategy, data, rounds=6, how=how)
    losses = [record.loss for _, record in results]
    assert losses[-1] < 0.93 * losses[0]
    assert all(record.aggregated and not record.failures for _, record in results)


def test_stacked_clients_learn_what_they_would_alone(model, strategy):
    alone = federate(model, strategy, DATA, rounds=3)[-1][0].adapter
    together = federate(model, strategy, DATA, rounds=3, width=3)[-1][0].adapter
    found, expected = (strategy.factors(adapter) for adapter in (together, alone))
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_going_on_from_a_round_gives_the_same_bits(model, strategy, tmp_path):
    def cohorts(round):
        return ("ab", "bc", "ac", "ab")[round - 1]

    whole = federate(model, strategy, DATA, store=ClientStore(tmp_path / "whole"), per_round=cohorts)
    store = tmp_path / "halves"
    first = federate(model, strategy, DATA, rounds=2, store=ClientStore(store), per_round=cohorts)
    rest = federate(model, strategy, DATA, store=ClientStore(store), per_round=cohorts, server=first[-1][0])
    assert_same(rest[-1][0].adapter, whole[-1][0].adapter)
    assert_same(rest[-1][0].memory, whole[-1][0].memory)


BYTES = {"ffa_lora": ("B", "B"), "fedsa_lora": ("A", "A"), "fed_sb": ("R", "R"), "ravan": ("H", "H")}


@pytest.mark.parametrize("name", sorted(BYTES))
def test_only_what_is_needed_is_sent(model, name):
    strategy = make(name)
    ((state, record),) = federate(model, strategy, DATA, rounds=1)
    down, up = (
        len(DATA) * sum(4 * t.numel() for n, t in state.adapter.items() if n.rpartition(".")[2] in kinds)
        for kinds in BYTES[name]
    )
    assert (record.bytes_down, record.bytes_up) == (down, up)
    sent = strategy.broadcast(state, ClientInfo("a", 1))
    assert broadcast_bytes(sent) == down / len(DATA)


@pytest.mark.parametrize(
    "name", ["ffa_lora", "rolora", "fedsa_lora", "fedrot_lora", "lora_fair", "fed_sb", "ravan"]
)
def test_ledger_and_scale_are_passed_on(name):
    strategy = make(name)
    ledger = {"x.q.A": torch.ones(1, 7), "x.q.B": torch.ones(5, 1)}
    state = replace(strategy.init(tensors(0)), ledger=ledger, scale=0.5, round=1)
    sent = strategy.broadcast(state, ClientInfo("a", 1))
    assert sent.ledger is ledger
    assert sent.scale == 0.5
    updates, _ = random_updates(strategy, state, (1, 2), 2)
    after = aggregate(strategy, state, [replace(u, scale=0.5) for u in updates], round=2)
    assert (after.ledger, after.scale) == (ledger, 0.5)


def test_updates_of_the_wrong_factor_are_refused():
    strategy = make("ffa_lora")
    server = ServerState(0, tensors(0))
    cohort = Updates([update("a", tensors(1))], server.adapter, uploads=lambda n: strategy.uploads(n, 1))
    assert list(cohort) == []
    assert "not asked for: x.q.A" in cohort.failures[0].reason
