"""HetLoRA: ranks are cut and filled, norms weigh, clients prune themselves."""

from dataclasses import replace

import pytest
import torch
from factored import MODULES, aggregate, assert_close, assert_same, federate, product, tensors, update
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import make_rows

from fedit.errors import ConfigError
from fedit.store import ClientStore
from fedit.strategies.fedit import FedIT
from fedit.strategies.hetlora import HetLoRA
from fedit.types import Broadcast, ClientInfo, ClientTask, LocalResult, LocalTraining, ServerState
from fedit.worker import Worker

TRAINING = LocalTraining(learning_rate=0.1, num_rounds=4, steps=2, batch_size=2)
DATA = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
RANKS = {"a": 1, "b": 2, "c": 4}


def cut(adapter, rank):
    return {n: t[:rank] if n.endswith(".A") else t[:, :rank] for n, t in adapter.items()}


def cohort(server, ranks, strategy, scales=None, size=0.3):
    """Return updates of clients of several ranks, what they start from, and what they end with."""
    updates, starts, trained = [], {}, []
    for k, rank in enumerate(ranks):
        scale = scales[k] if scales else None
        sent = strategy.broadcast(server, ClientInfo(str(k), 1, rank, scale))
        start = sent.adapter
        delta = {n: t for n, t in cut(tensors(k + 1, size), len(start["x.q.A"])).items()}
        starts[str(k)] = start
        updates.append(update(str(k), delta, 1 + k, sent.scale))
        trained.append(({n: start[n] + delta[n] for n in start}, sent.scale))
    return updates, starts, trained


# --- down ---


@given(st.integers(1, 4), st.integers(1, 4))
def test_small_clients_are_sent_a_prefix_of_what_larger_ones_are(low, high):
    low, high = sorted((low, high))
    server = ServerState(3, tensors(0), scale=2.0)
    small, large = (HetLoRA().broadcast(server, ClientInfo("a", 1, rank)) for rank in (low, high))
    assert_same(small.adapter, cut(large.adapter, low))
    assert (small.scale, large.scale) == (2.0, 2.0)


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_a_client_of_another_scale_is_sent_the_same_model(scale):
    server = ServerState(3, tensors(0), scale=2.0)
    sent = HetLoRA().broadcast(server, ClientInfo("a", 1, 4, scale))
    assert sent.scale == scale
    assert_close(product(sent.adapter, sent.scale), product(server.adapter, 2.0), 1e-5)


def test_a_client_of_the_servers_kind_is_sent_its_adapter_as_it_is():
    server = ServerState(3, tensors(0), scale=2.0)
    for client in (ClientInfo("a", 1), ClientInfo("a", 1, 4, 2.0), ClientInfo("a", 1, 9)):
        assert HetLoRA().broadcast(server, client).adapter is server.adapter


# --- up ---


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
@settings(deadline=None, max_examples=20)
def test_the_server_has_the_weighted_mean_of_zero_padded_factors(ranks, by_norm):
    strategy = HetLoRA(norm_weights=by_norm)
    scales = [(0.5, 1.0, 3.0)[k % 3] for k in range(len(ranks))]
    server = ServerState(0, tensors(0), scale=1.0)
    updates, starts, trained = cohort(server, ranks, strategy, scales)
    after = aggregate(strategy, server, updates, starts=starts).adapter
    norms = [sum(float((p**2).sum()) for p in product(own, scale).values()) ** 0.5 for own, scale in trained]
    weights = norms if by_norm else [1.0 + k for k in range(len(ranks))]
    for name in server.adapter:
        expected = torch.zeros(server.adapter[name].shape, dtype=torch.float64)
        for (own, scale), weight in zip(trained, weights, strict=True):
            tensor = own[name].double() * (scale if name.endswith(".B") else 1)
            expected[: tensor.shape[0], : tensor.shape[1]] += weight / sum(weights) * tensor
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_equal_ranks_and_equal_norms_are_plain_averaging():
    server = ServerState(0, tensors(0))
    trained = tensors(1)
    clients = [{n: t * (sign if n.endswith(".B") else 1) for n, t in trained.items()} for sign in (1, -1)]
    updates = [update(str(k), {n: own[n] - server.adapter[n] for n in own}, 4) for k, own in enumerate(clients)]
    one, two = (aggregate(strategy, server, updates).adapter for strategy in (HetLoRA(), FedIT()))
    assert_close(one, two, 1e-6)


def test_alpha_and_rank_that_mean_the_same_give_the_same():
    """(alpha, rank) = (16, 8) and (32, 16) with zeros behind are one client: its scale is 2 in both."""
    server = ServerState(0, tensors(0), scale=2.0)
    low, starts, _ = cohort(server, [2], HetLoRA())
    start = starts["0"]
    trained = {n: start[n] + low[0].delta[n] for n in start}
    filled = {n: torch.zeros_like(t) for n, t in server.adapter.items()}
    for name, tensor in trained.items():
        filled[name][: tensor.shape[0], : tensor.shape[1]] = tensor
    high = update("0", {n: filled[n] - server.adapter[n] for n in filled}, 1, 2.0)
    one = aggregate(HetLoRA(), server, low, starts=starts)
    two = aggregate(HetLoRA(), server, [high])
    assert_close(one.adapter, two.adapter, 1e-6)


def test_a_cap_limits_what_one_client_can_claim():
    server = ServerState(0, {n: torch.zeros_like(t) for n, t in tensors(0).items()})
    honest = [update(str(k), tensors(k), 1) for k in range(4)]
    loud = update("loud", {n: 1e3 * t for n, t in tensors(9).items()}, 1)
    shares = {}
    for cap in (0.0, 1.0, 2.0):
        after = aggregate(HetLoRA(norm_cap=cap), server, [*honest, loud]).adapter
        direction = tensors(9)["x.q.A"]
        shares[cap] = float((after["x.q.A"] * direction).sum() / (1e3 * direction**2).sum())
    assert shares[0.0] > 0.99
    assert shares[1.0] < 0.3
    assert shares[1.0] < shares[2.0] < 0.5


def test_svd_order_keeps_the_product_and_cuts_what_matters_least():
    server = ServerState(0, tensors(0))
    updates, starts, _ = cohort(server, [4, 4, 2], HetLoRA())
    plain, ordered = (aggregate(HetLoRA(order=o), server, updates, starts=starts) for o in ("trained", "svd"))
    assert_close(product(plain.adapter), product(ordered.adapter), 1e-5)
    whole = product(plain.adapter)
    for rank in (1, 2, 3):
        sent = HetLoRA(order="svd").broadcast(ordered, ClientInfo("a", 1, rank)).adapter
        for m in MODULES:
            tail = torch.linalg.svdvals(whole[m])[rank:].norm()
            assert float((product(sent)[m] - whole[m]).norm()) == pytest.approx(float(tail), rel=1e-4, abs=1e-5)
        assert_close(
            {m: sent[f"{m}.A"] @ sent[f"{m}.A"].T for m in MODULES}, dict.fromkeys(MODULES, torch.eye(rank))
        )


def test_svd_order_leaves_no_direction_dead():
    """Only small clients came: the directions they lack are zero, but rows of A keep B's gradient alive."""
    server = ServerState(0, tensors(0))
    updates, starts, _ = cohort(server, [1, 2], HetLoRA())
    after = aggregate(HetLoRA(order="svd"), server, updates, starts=starts).adapter
    assert all(after[f"{m}.A"].norm(dim=1).min() > 0.99 for m in MODULES)


# --- pruning ---


def penalty(adapter, kept):
    return sum(adapter[f"{m}.A"][kept:].norm() * adapter[f"{m}.B"][:, kept:].norm() for m in MODULES)


def task(start, round=2):
    return ClientTask(round, "a", Broadcast(start), TRAINING, 0)


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.99]))
@settings(deadline=None, max_examples=15)
def test_the_penaltys_gradient_is_autograds(seed, gamma):
    strategy = HetLoRA(gamma=gamma, regularisation=0.7, min_rank=1)
    leaves = {n: t.requires_grad_() for n, t in tensors(seed).items()}
    kept = int(gamma * 4)
    (0.7 * penalty(leaves, kept)).backward()
    grads = tensors(seed + 1)
    before = {n: t.clone() for n, t in grads.items()}
    strategy.correct_gradients(task(leaves), leaves, grads, {})
    assert_close({n: grads[n] - before[n] for n in grads}, {n: t.grad for n, t in leaves.items()}, 1e-5)
    assert not any(grad.requires_grad for grad in grads.values())


def test_at_zero_the_penalty_has_no_gradient():
    start = {n: t * n.endswith(".A") for n, t in tensors(0).items()}
    grads = {n: torch.zeros_like(t) for n, t in start.items()}
    HetLoRA(min_rank=1).correct_gradients(task(start), start, grads, {})
    assert all(tensor.isfinite().all() for tensor in grads.values())
    assert not any(grads[n].any() for n in grads if n.endswith(".A"))


# In float32 a factor nearer to 1 than this is 1.
@given(
    st.integers(1, 5),
    st.floats(0.05, 1.0),
    st.floats(0.3, 1.5).filter(lambda factor: factor == 1 or abs(factor - 1) > 1e-6),
    st.integers(1, 4),
)
@example(1, 0.5, 1.0, 1)
@example(1, 0.5, 1 - 2e-6, 1)
@settings(deadline=None, max_examples=40)
def test_pruning_needs_a_tail_that_shrank_and_never_raises_the_rank_or_passes_the_least(
    seed, gamma, factor, min_rank
):
    strategy = HetLoRA(gamma=gamma, min_rank=min_rank)
    start = tensors(seed)
    trained = {n: factor * t for n, t in start.items()}
    after = strategy.align(start, trained, 2)
    kept = min(4, max(min_rank, int(gamma * 4)))
    result = LocalResult({n: after[n] - start[n] for n in start}, 1, {})
    extra, _ = strategy.finish(task(start), result, {})
    if kept < 4 and factor < 1:
        assert float(extra["rank"]) == kept
        assert_same(cut(after, kept), cut(trained, kept))
        assert not any(t.any() for n, t in after.items() for t in [t[kept:] if n.endswith(".A") else t[:, kept:]])
    elif factor > 1.0 or kept == 4:
        assert extra == {}
        assert_same(after, trained)


def test_fresh_clients_do_not_prune():
    """Before the first aggregation B is zero: no tail is smaller than that."""
    start = {n: t * n.endswith(".A") for n, t in tensors(0).items()}
    for trained in (start, tensors(1)):
        after = HetLoRA(min_rank=1).align(start, trained, 1)
        assert_same(after, trained)
        result = LocalResult({n: after[n] - start[n] for n in start}, 1, {})
        assert HetLoRA(min_rank=1).finish(task(start, 1), result, {})[0] == {}


def test_a_pruned_client_is_sent_less_from_then_on():
    strategy = HetLoRA(min_rank=1)
    server = ServerState(1, tensors(0), scale=2.0)
    pruned = update("a", {n: -0.1 * t for n, t in server.adapter.items()}, 1, 2.0, rank=torch.tensor(3.0))
    other = update("b", tensors(2), 1, 2.0)
    server = aggregate(strategy, server, [pruned, other], round=2)
    assert len(strategy.broadcast(server, ClientInfo("a", 1)).adapter["x.q.A"]) == 3
    assert len(strategy.broadcast(server, ClientInfo("b", 1)).adapter["x.q.A"]) == 4
    # One that does not prune again keeps what it has.
    again = strategy.broadcast(server, ClientInfo("a", 1)).adapter
    still = update("a", {n: t * 0.1 for n, t in again.items()}, 1, 2.0)
    server = aggregate(strategy, server, [still], starts={"a": again})
    assert len(strategy.broadcast(server, ClientInfo("a", 1)).adapter["x.q.A"]) == 3


# --- a federation ---


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama", dtype="fp32")


def clients(scale=None):
    return [ClientInfo(name, len(DATA[name]), rank, scale) for name, rank in RANKS.items()]


@pytest.mark.parametrize("order", ["trained", "svd"])
@pytest.mark.parametrize("width", [1, 3])
def test_clients_of_several_ranks_learn_together(model, order, width):
    how = replace(TRAINING, learning_rate=0.05, steps=4)
    strategy = HetLoRA(order=order, gamma=1.0)
    results = federate(model, strategy, DATA, how=how, clients=clients(), width=width, rounds=4)
    losses = [record.loss for _, record in results]
    assert losses[-1] < 0.95 * losses[0]
    assert all(record.aggregated and not record.failures for _, record in results)
    state, record = results[-1]
    entries = sum(t.numel() for t in state.adapter.values())
    assert record.bytes_up == record.bytes_down == sum(4 * entries * rank // 4 for rank in RANKS.values())


def test_clients_that_prune_go_on_and_resume_with_the_same_bits(model, tmp_path):
    """A strong penalty on a server that has learnt something makes every client drop directions."""
    strategy = HetLoRA(gamma=0.5, regularisation=50.0, min_rank=1)
    how = replace(TRAINING, learning_rate=0.02, steps=3, max_grad_norm=1.0)
    whole = federate(model, strategy, DATA, how=how, store=ClientStore(tmp_path / "whole"), rounds=4)
    assert set(whole[-1][0].memory) == {"rank/a", "rank/b", "rank/c"}
    assert {int(rank) for rank in whole[-1][0].memory.values()} <= {1, 2}
    assert whole[-1][1].bytes_down < whole[0][1].bytes_down
    assert not any(record.failures for _, record in whole)
    first = federate(model, strategy, DATA, how=how, store=ClientStore(tmp_path / "two"), rounds=2)
    rest = federate(
        model, strategy, DATA, how=how, store=ClientStore(tmp_path / "two"), rounds=4, server=first[-1][0]
    )
    assert_same(rest[-1][0].adapter, whole[-1][0].adapter)
    assert_same(rest[-1][0].memory, whole[-1][0].memory)


def test_a_worker_trains_what_it_is_sent_at_its_own_rank(model):
    strategy = HetLoRA(gamma=1.0)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    sent = strategy.broadcast(server, ClientInfo("a", 3, 2, 5.0))
    result = Worker(model, DATA, strategy, seed=0).train(ClientTask(1, "a", sent, TRAINING, 0))
    assert result.scale == 5.0
    assert {n: t.shape for n, t in result.delta.items()} == {n: t.shape for n, t in sent.adapter.items()}


# --- settings ---


@pytest.mark.parametrize(
    "option",
    [
        {"gamma": 0.0},
        {"gamma": 1.1},
        {"regularisation": -1.0},
        {"min_rank": 0},
        {"norm_cap": -1.0},
        {"order": "no"},
    ],
)
def test_values_that_cannot_work_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        HetLoRA(**option).check(TRAINING)


def test_kept_moments_are_refused_where_ranks_change():
    kept = replace(TRAINING, keep_optimizer=True)
    for strategy in (HetLoRA(), HetLoRA(gamma=1.0, order="svd")):
        with pytest.raises(ConfigError, match="client_optimizer to reset"):
            strategy.check(kept)
    HetLoRA(gamma=1.0).check(kept)
