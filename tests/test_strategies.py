"""Laws that every strategy of the table keeps, said of effective weights (scale B A + ledger); FedIT's numbers."""

import dataclasses
import importlib
import inspect
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import checkpoint
from fedit.errors import ConfigError
from fedit.facts import facts
from fedit.rehearsal import effective
from fedit.strategies import STRATEGIES, build_strategy
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.types import (
    ClientFailure,
    ClientInfo,
    ClientTask,
    ClientUpdate,
    LocalResult,
    LocalTraining,
    ServerState,
    with_ledger,
)
from fedit.updates import Updates

OPTIONS: dict[str, dict[str, object]] = {
    "fedasync": {"mixing": 1.0},  # with less, it moves anew with every update, and agreement moves it further
}
"""Options under which a strategy keeps the laws, where its defaults break one, with the reason."""

SHAPES = {"x.q.A": (3, 7), "x.q.B": (5, 3), "y.v.A": (3, 9), "y.v.B": (4, 3)}
SCALE = 2.0
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1, optimizer="sgd", max_grad_norm=0.0)
CLIENTS = 8
"""Enough for every rule that must outvote one."""


def tensors(seed, size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (size * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for n, s in SHAPES.items()
    }


def zeros():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def update(client, delta, weight=1.0):
    return ClientUpdate(client, 1, int(weight), float(weight), delta)


def weights(strategy, server):
    """Return what the server's model adds to the base, dense float64."""
    return effective(strategy.model(server), server.scale)


def first(strategy, seed=0):
    return replace(strategy.init(tensors(seed)), scale=SCALE)


def sent(strategy, server, client="a"):
    """Return what a newcomer starts from: what it is sent, and the initial adapter for what it is not."""
    broadcast = strategy.broadcast(server, ClientInfo(client, 1))
    return {**strategy.init(tensors(0)).adapter, **broadcast.adapter}


def move(strategy, server, client, delta, weight=1.0):
    """Return the update of a client whose trained tensors moved by ``delta`` or, other ones, by noise like it."""
    start = sent(strategy, server, client)
    number = server.round + 1
    moved = {n: delta[n] if n in delta else torch.full_like(t, 0.01) for n, t in start.items()}
    moved = {n: d if strategy.trains(n, number) else torch.zeros_like(d) for n, d in moved.items()}
    task = ClientTask(number, client, strategy.broadcast(server, ClientInfo(client, 1)), TRAINING, 0)
    metrics = {"loss": 1.0, "steps": 1.0, "tokens": 10.0, "supervised_tokens": 5.0, "rows": 1.0}
    extra, _ = strategy.finish(task, LocalResult(moved, 1, metrics, (0.1,)), {})
    shared = {n: d for n, d in moved.items() if strategy.uploads(n, number)}
    return ClientUpdate(client, number, int(weight), float(weight), shared, extra, metrics, scale=server.scale)


def step(strategy, server, updates):
    return strategy.aggregate(server, cohort(strategy, server, updates))


def cohort(strategy, server, updates):
    ids = [update.client_id for update in updates]
    starts = {client: sent(strategy, server, client) for client in ids}
    number = server.round + 1
    return Updates(updates, server.adapter, starts=starts, uploads=lambda name: strategy.uploads(name, number))


def assert_close(one, two, tolerance=1e-6):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def assert_same_model(strategy, one, two, tolerance=1e-5):
    """Compare models; tolerance: of an entry, relative to the largest one."""
    first, second = weights(strategy, one), weights(strategy, two)
    largest = max(float(matrix.abs().max()) for matrix in first.values())
    assert_close(first, second, tolerance * max(largest, 1.0))


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request):
    return build_strategy(request.param, OPTIONS.get(request.param, {}))


@pytest.fixture
def server(strategy):
    return first(strategy)


def names(strategy):
    """Return ids of a cohort: those that always take part, then others."""
    return [*sorted(strategy.always()), *(f"c{i}" for i in range(CLIENTS))][:CLIENTS]


def many(strategy, server, size=0.1):
    return [move(strategy, server, c, tensors(i + 1, size), 10 + i) for i, c in enumerate(names(strategy))]


def test_the_first_state_is_before_round_one_and_changes_nothing(strategy):
    state = strategy.init({n: t if n.endswith(".A") else torch.zeros_like(t) for n, t in tensors(0).items()})
    assert state.round == 0
    assert all(not matrix.any() for matrix in weights(strategy, state).values())


def test_the_first_state_follows_from_the_adapter(strategy):
    assert_close(strategy.init(tensors(0)).adapter, strategy.init(tensors(0)).adapter, 0)


def test_nothing_learnt_changes_nothing(strategy, server):
    updates = [move(strategy, server, c, zeros(), 3 + i) for i, c in enumerate(names(strategy))]
    updates = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in updates]
    assert_same_model(strategy, step(strategy, server, updates), server)


def test_agreement_is_kept(strategy, server):
    """However many clients say the same, and whatever they weigh, it is what one of them would have made."""
    delta = tensors(1, 0.1)
    all_say = [move(strategy, server, c, delta, 3 + 5 * i) for i, c in enumerate(names(strategy))]
    other_weights = [replace(u, weight=1.0, num_examples=1) for u in all_say]
    assert_same_model(strategy, step(strategy, server, all_say), step(strategy, server, other_weights))


@pytest.mark.parametrize("order", [[7, 2, 0, 5, 1, 3, 6, 4], [1, 0, 3, 2, 5, 4, 7, 6]])
def test_order_of_clients_does_not_matter(strategy, server, order):
    clients = many(strategy, server)
    one, two = step(strategy, server, clients), step(strategy, server, [clients[i] for i in order])
    assert_same_model(strategy, one, two)


def test_the_same_order_gives_the_same_bits(strategy, server):
    clients = many(strategy, server)
    one, two = step(strategy, server, clients), step(strategy, server, clients)
    assert_close(one.adapter, two.adapter, 0)
    assert_close(one.ledger, two.ledger, 0)
    assert_close(one.memory, two.memory, 0)


def test_only_ratios_of_weights_matter(strategy, server):
    clients = many(strategy, server)
    scaled = [replace(c, weight=1000 * c.weight, num_examples=1000 * c.num_examples) for c in clients]
    assert_same_model(strategy, step(strategy, server, clients), step(strategy, server, scaled))


def test_a_client_without_weight_and_one_that_failed_do_not_matter(strategy, server):
    clients = many(strategy, server)
    noise = [move(strategy, server, "x", tensors(99), 0), ClientFailure("y", 1, "gone")]
    updates = cohort(strategy, server, clients + noise[:1])
    updates._results = [*noise, *clients]
    assert_same_model(strategy, step(strategy, server, clients), strategy.aggregate(server, updates), 0)


def test_a_poisoned_client_is_left_out(strategy, server):
    clients = many(strategy, server)
    bad = move(strategy, server, "bad", tensors(3), 9)
    name = sorted(bad.delta)[0]
    bad.delta[name][0, 0] = float("nan")
    updates = cohort(strategy, server, [bad, *clients])
    after = strategy.aggregate(server, updates)
    assert [failure.client_id for failure in updates.failures] == ["bad"]
    assert_same_model(strategy, after, step(strategy, server, clients), 0)


def test_server_state_is_not_edited_in_place(strategy, server):
    parts = ("adapter", "ledger", "memory")
    after = step(strategy, server, many(strategy, server))
    before = {part: {n: t.clone() for n, t in getattr(after, part).items()} for part in parts}
    step(strategy, replace(after, round=1), many(strategy, replace(after, round=1)))
    for part in parts:
        assert_close(getattr(after, part), before[part], 0)


def test_all_tensors_stay_finite_over_rounds_and_sizes(strategy, server):
    for number, size in enumerate((1e3, 1e-30, 0.0)):
        server = replace(step(strategy, server, many(strategy, server, size)), round=number + 1)
    for part in (server.adapter, server.ledger, server.memory):
        assert all(t.isfinite().all() for t in part.values())
    assert all(t.dtype == torch.float32 for t in (*server.adapter.values(), *server.ledger.values()))


def test_a_state_survives_a_checkpoint(strategy, server, tmp_path):
    after = replace(step(strategy, server, many(strategy, server)), round=1)
    checkpoint.save(tmp_path, after)
    read = checkpoint.load(tmp_path, 1)
    assert read.scale == after.scale
    one = step(strategy, read, many(strategy, read))
    two = step(strategy, after, many(strategy, after))
    assert_close(one.adapter, two.adapter, 0)
    assert_close(one.ledger, two.ledger, 0)


@pytest.mark.parametrize("strategy", [n for n in STRATEGIES if n != "fedsa_lora"], indirect=True)
def test_what_clients_are_sent_stands_for_the_servers_model(strategy, server):
    """Nobody starts from another model than the one that is evaluated, unless it keeps tensors of its own."""
    after = replace(step(strategy, server, many(strategy, server)), round=1)
    broadcast = strategy.broadcast(after, ClientInfo("a", 1))
    start = {**sent(strategy, after)}
    model = with_ledger(strategy.factors(start), broadcast.ledger)
    assert_close(effective(model, broadcast.scale), weights(strategy, after), 1e-5)


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


def test_every_option_is_described(strategy):
    text = inspect.getdoc(type(strategy))
    for field in dataclasses.fields(strategy):
        assert re.search(rf"^{field.name}: ", text, re.MULTILINE), field.name


def test_defaults_pass_their_own_check(strategy):
    strategy.check(TRAINING)


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedmomentum", "fedsvd", "fedrot_lora"])
def test_moments_of_another_basis_are_refused(name):
    with pytest.raises(ConfigError, match="client_optimizer to reset"):
        build_strategy(name, {}).check(replace(TRAINING, keep_optimizer=True))
    build_strategy("fedex_lora", {}).check(replace(TRAINING, keep_optimizer=True))  # its factors stay


def test_everything_trains_or_is_shared_by_name_alone(strategy, server):
    for name in server.adapter:
        assert isinstance(strategy.trains(name, 1), bool)
        assert isinstance(strategy.shares(name), bool)


def test_its_facts_can_be_told(strategy):
    name = next(n for n in STRATEGIES if type(build_strategy(n, {})) is type(strategy))
    found = facts(name)
    assert found.arxiv
    assert found.uploads != "nothing"
    assert found.secure_aggregation or not found.central_dp


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


@pytest.mark.parametrize(
    "strategy", [n for n in STRATEGIES if build_strategy(n, {}).takes_any_tensors], indirect=True
)
def test_a_strategy_that_takes_any_tensors_averages_what_is_no_factor(strategy):
    """What tuning=full or dora trains has other names and shapes; all of it moves, and agreement arrives."""
    start = {"m.magnitude": torch.ones(5), "m.weight": torch.full((4, 3), 0.5)}
    server = strategy.init(dict(start))
    assert all(strategy.uploads(name, 1) for name in start)
    assert not strategy.composes
    delta = {name: torch.full_like(tensor, 0.25) for name, tensor in start.items()}
    task = ClientTask(1, "a", strategy.broadcast(server, ClientInfo("a", 1)), TRAINING, 0)
    extra, _ = strategy.finish(task, LocalResult(delta, 1, {"loss": 1.0}, (0.1,)), {})
    clients = [ClientUpdate(f"c{i}", 1, 3, 3.0, delta, extra) for i in range(CLIENTS)]
    after = strategy.aggregate(server, Updates(clients, server.adapter))
    assert set(after.adapter) == set(start)
    assert all((after.adapter[name] > start[name]).all() for name in start)
    ratio = (after.adapter["m.weight"] - 0.5)[0, 0] / (after.adapter["m.magnitude"] - 1)[0]
    assert ratio == pytest.approx(1, abs=1e-5)  # no tensor is treated unlike another
