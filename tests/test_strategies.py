"""Laws that every strategy of the table keeps, and the numbers of FedIT against a float64 oracle."""

import dataclasses
import importlib
import inspect
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies import STRATEGIES, build_strategy
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.types import ClientFailure, ClientInfo, ClientUpdate, LocalTraining, ServerState
from fedit.updates import Updates

OPTIONS: dict[str, dict[str, object]] = {}
"""Options under which a strategy keeps the laws, where its defaults break one, with the reason."""

SHAPES = {"x.q.A": (3, 7), "x.q.B": (5, 3), "y.v.A": (3, 9), "y.v.B": (4, 3)}
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)


def tensors(seed, size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (size * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for n, s in SHAPES.items()
    }


def zeros():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def update(client, delta, weight=1.0):
    return ClientUpdate(client, 1, int(weight), float(weight), delta)


def products(server):
    return {m: server.adapter[f"{m}.B"] @ server.adapter[f"{m}.A"] for m in ("x.q", "y.v")}


def step(strategy, server, updates):
    return strategy.aggregate(server, Updates(updates, server.adapter))


def assert_close(one, two, tolerance=1e-6):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request):
    return build_strategy(request.param, OPTIONS.get(request.param, {}))


@pytest.fixture
def server(strategy):
    return strategy.init(tensors(0))


def test_the_first_state_is_before_round_one(strategy):
    state = strategy.init(tensors(0))
    assert state.round == 0
    assert_close(state.adapter, tensors(0), 0)


def test_every_client_is_sent_the_whole_adapter(strategy, server):
    sent = strategy.broadcast(server, ClientInfo("a", 1)).adapter
    assert_close(sent, server.adapter, 0)


def test_nothing_learnt_changes_nothing(strategy, server):
    after = step(strategy, server, [update("a", zeros(), 3), update("b", zeros(), 5)])
    assert_close(products(after), products(server), 1e-5)


def test_agreement_is_kept(strategy, server):
    delta = tensors(1)
    after = step(strategy, server, [update(c, delta, w) for c, w in (("a", 3), ("b", 5), ("c", 90))])
    alone = step(strategy, server, [update("a", delta, 1)])
    assert_close(after.adapter, alone.adapter, 0)
    assert_close(alone.adapter, {n: t + delta[n] for n, t in server.adapter.items()}, 0)


@given(st.permutations(range(5)))
@settings(max_examples=10)
def test_order_of_clients_does_not_matter(order):
    for name in STRATEGIES:
        strategy = build_strategy(name, OPTIONS.get(name, {}))
        server = strategy.init(tensors(0))
        clients = [update(str(i), tensors(i + 1), 10 + i) for i in range(5)]
        one, two = step(strategy, server, clients), step(strategy, server, [clients[i] for i in order])
        assert_close(one.adapter, two.adapter)


def test_the_same_order_gives_the_same_bits(strategy, server):
    clients = [update(str(i), tensors(i + 1), 10 + i) for i in range(5)]
    assert_close(step(strategy, server, clients).adapter, step(strategy, server, clients).adapter, 0)


def test_only_ratios_of_weights_matter(strategy, server):
    clients = [update(str(i), tensors(i + 1), 10 + i) for i in range(4)]
    many = [replace(c, weight=1000 * c.weight, num_examples=1000 * c.num_examples) for c in clients]
    assert_close(step(strategy, server, clients).adapter, step(strategy, server, many).adapter)


def test_a_client_without_weight_and_one_that_failed_do_not_matter(strategy, server):
    clients = [update("a", tensors(1), 2), update("b", tensors(2), 3)]
    noise = [update("c", tensors(9), 0), ClientFailure("d", 1, "gone")]
    assert_close(step(strategy, server, clients).adapter, step(strategy, server, [*noise, *clients]).adapter, 0)


def test_a_poisoned_client_is_left_out(strategy, server):
    clients = [update("a", tensors(1), 2), update("b", tensors(2), 3)]
    poison = tensors(3)
    poison["x.q.A"][0, 0] = float("nan")
    updates = Updates([update("bad", poison, 9), *clients], server.adapter)
    after = strategy.aggregate(server, updates)
    assert [failure.client_id for failure in updates.failures] == ["bad"]
    assert_close(after.adapter, step(strategy, server, clients).adapter, 0)


def test_server_state_is_not_edited_in_place(strategy):
    server = strategy.init(tensors(0))
    before = {name: tensor.clone() for name, tensor in server.adapter.items()}
    memory = {name: tensor.clone() for name, tensor in server.memory.items()}
    step(strategy, server, [update("a", tensors(1))])
    assert_close(server.adapter, before, 0)
    assert_close(server.memory, memory, 0)


def test_all_tensors_stay_finite_and_keep_their_shapes(strategy, server):
    after = step(strategy, server, [update("a", tensors(1, 1e3)), update("b", tensors(2, 1e-30))])
    assert {n: tuple(t.shape) for n, t in after.adapter.items()} == SHAPES
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in after.adapter.values())


def test_hyperparameters_are_immutable(strategy):
    for field in dataclasses.fields(strategy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, 1)
    assert type(strategy).__dataclass_params__.frozen


def test_one_level_of_inheritance(strategy):
    assert type(strategy).__bases__ == (Strategy,)


def test_the_paper_is_named(strategy):
    module = importlib.import_module(type(strategy).__module__)
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", inspect.getdoc(module))
    assert inspect.getdoc(type(strategy))


def test_defaults_pass_their_own_check(strategy):
    strategy.check(TRAINING)


def test_everything_trains_or_is_shared_by_name_alone(strategy):
    for name in SHAPES:
        assert isinstance(strategy.trains(name, 1), bool)
        assert isinstance(strategy.shares(name), bool)


# --- FedIT ---


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6), st.integers(0, 10**6))
@settings(max_examples=25)
def test_fedit_is_the_weighted_mean_of_factors(weights, seed):
    server = ServerState(0, tensors(seed))
    trained = [tensors(seed + 1 + k) for k in range(len(weights))]
    updates = [
        update(str(k), {n: t - server.adapter[n] for n, t in adapter.items()}, w)
        for k, (adapter, w) in enumerate(zip(trained, weights, strict=True))
    ]
    after = step(FedIT(), server, updates).adapter
    share = [w / sum(weights) for w in weights]
    for name in SHAPES:
        oracle = sum(p * adapter[name].double() for p, adapter in zip(share, trained, strict=True))
        torch.testing.assert_close(after[name].double(), oracle, rtol=0, atol=2e-6)


@given(st.integers(1, 2**29 - 1), st.integers(0, 10**6))
@settings(max_examples=25)
def test_one_client_gives_received_plus_delta_bit_for_bit(weight, seed):
    server, delta = ServerState(0, tensors(seed)), tensors(seed + 1, 0.01)
    after = step(FedIT(), server, [update("a", delta, weight)]).adapter
    for name in SHAPES:
        assert torch.equal(after[name], server.adapter[name] + delta[name])


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_one_client_arrives_within_one_unit_in_the_last_place(seed):
    server, trained = ServerState(0, tensors(seed)), tensors(seed, 1.0)
    trained = {n: t + 0.01 * tensors(seed + 1)[n] for n, t in trained.items()}
    after = step(FedIT(), server, [update("a", {n: t - server.adapter[n] for n, t in trained.items()}, 5)]).adapter
    for name in SHAPES:
        largest = torch.maximum(trained[name].abs(), server.adapter[name].abs())
        ulp = torch.nextafter(largest, torch.tensor(float("inf"))) - largest
        assert ((after[name] - trained[name]).abs() <= ulp).all()


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_the_server_rate_is_the_step_towards_the_mean(rate):
    server = ServerState(0, tensors(0))
    clients = [update("a", tensors(1), 1), update("b", tensors(2), 3)]
    after = step(FedIT(server_lr=rate), server, clients).adapter
    for name in SHAPES:
        mean = (tensors(1)[name].double() + 3 * tensors(2)[name].double()) / 4
        torch.testing.assert_close(
            after[name].double(), server.adapter[name].double() + rate * mean, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_server_rate_that_cannot_learn_is_refused(rate):
    with pytest.raises(ConfigError, match=f"server_lr.*{rate}"):
        FedIT(server_lr=rate).check(TRAINING)
