"""The error of a round's aggregate against dense float64 matrices."""

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedit import cohort, diagnostics, tensors
from fedit.diagnostics import AggregationBias, AggregationError
from fedit.rounds import run_rounds
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy
from fedit.types import ClientInfo, ClientUpdate, LocalTraining, ServerState

SHAPES = {"m.0.q": (20, 31), "m.1.q": (20, 31), "n": (17, 8)}


def measure(before, models, after, seed=0):
    """Return the report; all models are (factors, ledger, scale), the clients' with their weight."""
    error = AggregationError(*before, seed)
    for factors, ledger, scale, weight in models:
        error.observe(factors, ledger, scale, weight)
    return error.report(*after)


def dense(factors, ledger, scale):
    held = products.products(ledger)
    return {m: p + held.get(m, 0.0) for m, p in products.products(factors, scale).items()}


def dense_error(before, models, after):
    total = sum(weight for *_, weight in models)
    mean = {
        module: sum(weight / total * dense(*model)[module] for *model, weight in models)
        for module in dense(*before)
    }
    lost = sum(float((dense(*after)[m] - mean[m]).square().sum()) for m in mean)
    moved = sum(float((mean[m] - dense(*before)[m]).square().sum()) for m in mean)
    return (lost / moved) ** 0.5


def case(seed, count, shapes=products.SHAPES, size=1.0):
    """Return a server, clients of mixed ranks and scales, and another server after them; all with ledgers."""
    ledger = products.adapter(seed, 2, shapes=shapes)
    before = (products.adapter(seed + 1, 4, size, shapes), ledger, 2.0)
    models = [
        (products.adapter(seed + 2 + k, 1 + k % 4, size, shapes), ledger, [0.5, 2.0, 4.0][k % 3], 1.0 + 7 * k % 5)
        for k in range(count)
    ]
    after = (products.adapter(seed + 99, 5, 0.5 * size, shapes), products.adapter(seed + 98, 3, 1.0, shapes), 1.0)
    return before, models, after


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_error_is_the_dense_formula_with_mixed_ranks_scales_and_ledgers(count, seed):
    before, models, after = case(seed, count)
    found = measure(before, models, after)
    assert set(found) == {"aggregation_error"}
    assert found["aggregation_error"] == pytest.approx(dense_error(before, models, after), rel=1e-6)


def test_ledgers_that_only_some_modules_have_count():
    before, models, after = case(0, 3)
    few = {name: tensor for name, tensor in after[1].items() if name.startswith("x.q")}
    models = [(factors, {} if k else few, s, w) for k, (factors, _, s, w) in enumerate(models)]
    after = (after[0], few, 1.0)
    assert measure(before, models, after)["aggregation_error"] == pytest.approx(dense_error(before, models, after))


def test_large_layers_are_sketched_within_a_few_of_its_own_errors(monkeypatch):
    monkeypatch.setattr(diagnostics, "EXACT_COST", 0)
    off = []
    for seed in range(12):
        before, models, after = case(1000 * seed, 8, SHAPES)
        found = measure(before, models, after, seed)
        assert 0 < found["aggregation_error_se"] < 0.3 * found["aggregation_error"]
        off.append(
            (found["aggregation_error"] - dense_error(before, models, after)) / found["aggregation_error_se"]
        )
    assert max(map(abs, off)) < 4
    assert abs(sum(off) / len(off)) < 1.2


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("sizes", [(3, 5), (1, 10, 400, 7)])
def test_of_fedit_it_is_the_aggregation_bias(monkeypatch, exact, sizes):
    if not exact:
        monkeypatch.setattr(diagnostics, "EXACT_COST", 0)
    server = ServerState(0, tensors.flatten(products.adapter(0, 4)), scale=2.0)
    clients = [ClientUpdate(f"c{i}", 1, n, float(n), products.adapter(i + 1, 4, 0.3)) for i, n in enumerate(sizes)]
    mean = tensors.mean([(c.delta, c.weight) for c in clients])
    bias = AggregationBias(server.adapter, 0)
    error = AggregationError(server.adapter, {}, 2.0, 0)
    for client in clients:
        bias.observe(client)
        error.observe(tensors.add(server.adapter, client.delta), {}, 2.0, client.weight)
    one = error.report(tensors.add(server.adapter, mean), {}, 2.0)
    two = bias.report(mean)
    assert one["aggregation_error"] == pytest.approx(two["aggregation_bias"], rel=1e-3 if exact else 0.5)


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_held_does_not_grow_with_the_cohort(monkeypatch, exact):
    if not exact:
        monkeypatch.setattr(diagnostics, "EXACT_COST", 0)
    error = AggregationError(products.adapter(0), {}, 1.0, 0)
    seen = []
    for client in range(10):
        model = tensors.flatten(products.adapter(client))
        seen.append(weakref.ref(model.buffer))
        error.observe(model, {}, 1.0, 1.0)
        del model
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)


def test_nobody_and_a_mean_that_did_not_move_have_no_error():
    before, _, after = case(0, 1)
    assert measure(before, [], after) == {}
    assert measure(before, [(*before, 3.0)], after) == {}


class Walks:
    """Clients whose tensors move by seeded noise."""

    def __init__(self, strategy, count=4):
        self._strategy, self._count = strategy, count

    def clients(self):
        return [ClientInfo(f"c{k}", 10 + k) for k in range(self._count)]

    def run(self, tasks):
        for task in tasks:
            generator = torch.Generator().manual_seed(task.seed % 2**31)
            delta = {
                name: 0.3 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in task.broadcast.adapter.items()
                if self._strategy.uploads(name, task.round)
            }
            yield ClientUpdate(task.client_id, task.round, 1, 1.0, delta, scale=task.broadcast.scale)


def run(strategy, rounds=3):
    server = replace(strategy.init(products.adapter(0)), scale=2.0)
    return [
        record.diagnostics
        for _, record in run_rounds(
            server,
            Walks(strategy),
            strategy,
            rounds=rounds,
            cohort=lambda clients, round: cohort.uniform(clients, 3, seed=0, round=round),
            training=lambda round: LocalTraining(learning_rate=0.1, num_rounds=rounds, steps=1),
            seed=0,
        )
    ]


@pytest.mark.parametrize("name", ["fedex_lora", "flora", "fedsvd"])
def test_exact_algorithms_have_none_in_any_round(name):
    assert all(found["aggregation_error"] < 1e-5 for found in run(build_strategy(name, {})))


def test_a_round_s_record_has_both_where_they_differ():
    for found in run(build_strategy("fedit", {})):
        assert found["aggregation_error"] == pytest.approx(found["aggregation_bias"], rel=1e-4)
        assert found["aggregation_error"] > 0.05
    for found in run(build_strategy("fedex_lora", {})):
        assert found["aggregation_bias"] > 0.05


def test_what_flexlora_cuts_off_is_its_error():
    for found in run(build_strategy("flexlora", {})):
        assert 0.01 < found["aggregation_error"] < 1
        assert 0.3 < found["energy_kept"] < 1


@dataclass(frozen=True)
class Doubled(Strategy):
    """Trains a matrix that stands for twice the factor B."""

    def factors(self, adapter: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: 2 * t if name.endswith("B") else t for name, t in adapter.items()}

    def trains(self, name: str, round: int) -> bool:
        return name.endswith("B")


@dataclass(frozen=True)
class KeepsB(Strategy):
    """Clients keep B."""

    def shares(self, name: str) -> bool:
        return name.endswith("A")


@dataclass(frozen=True)
class FrozenA(Strategy):
    """A neither trains nor travels."""

    def trains(self, name: str, round: int) -> bool:
        return name.endswith("B")

    def shares(self, name: str) -> bool:
        return name.endswith("B")


def test_what_is_trained_counts_as_the_factors_it_stands_for():
    assert all(found["aggregation_error"] < 1e-5 for found in run(Doubled()))


def test_models_that_nobody_has_as_a_whole_are_not_compared():
    assert all("aggregation_error" not in found for found in run(KeepsB()))
    assert all(found["aggregation_error"] < 1e-5 for found in run(FrozenA()))


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=10, deadline=None)
def test_what_the_bias_adds_up_gives_the_same_error_where_all_clients_are_alike(seed, large):
    """The cheap way and the general one, on a server whose adapter and ledger both move; sketches differ."""
    shapes = {f"m.{i}.q": (300, 200) for i in range(20)} if large else products.SHAPES
    start, after = products.adapter(seed, 4, shapes=shapes), products.adapter(seed + 1, 4, shapes=shapes)
    after = {name: start[name] + 0.1 * tensor for name, tensor in after.items()}
    ledgers = products.adapter(seed + 2, 2, shapes=shapes), products.adapter(seed + 3, 3, 0.3, shapes)
    bias, error = AggregationBias(start, 5), AggregationError(start, ledgers[0], 2.0, 5)
    assert bias.exact is error.exact is (not large)
    deltas = [tensors.flatten(products.adapter(seed + 10 + k, 4, 0.05, shapes)) for k in range(4)]
    for k, delta in enumerate(deltas):
        bias.observe(ClientUpdate(f"c{k}", 1, 1 + k, 1.0 + k, delta))
        error.observe(tensors.add(start, delta), ledgers[0], 2.0, 1.0 + k)
    mean = tensors.mean((delta, 1.0 + k) for k, delta in enumerate(deltas))
    cheap = bias.error(mean, after, ledgers, 2.0)["aggregation_error"]
    general = error.report(after, ledgers[1], 2.0)["aggregation_error"]
    assert cheap == pytest.approx(general, rel=0.1 if large else 1e-4)


def test_federated_averaging_costs_a_client_no_second_look(monkeypatch):
    def never(*args, **options):
        raise AssertionError("a second sketch")

    monkeypatch.setattr(AggregationError, "observe", never)
    from fedit.rehearsal import fresh

    adapter = fresh({"m.q": (8, 6)}, 2, 0)
    server = replace(build_strategy("fedit", {}).init(adapter), scale=2.0)

    class Engine:
        def clients(self):
            return [ClientInfo("a", 3), ClientInfo("b", 5)]

        def run(self, tasks):
            for k, task in enumerate(tasks):
                delta = {n: torch.full_like(t, 0.1 + k) for n, t in task.broadcast.adapter.items()}
                yield ClientUpdate(task.client_id, 1, 3 + 2 * k, 3.0 + 2 * k, delta, scale=2.0)

    ((_, record),) = run_rounds(
        server,
        Engine(),
        build_strategy("fedit", {}),
        rounds=1,
        cohort=lambda clients, round: [c.client_id for c in clients],
        training=lambda round: LocalTraining(learning_rate=0.1, num_rounds=1, steps=1),
        seed=0,
    )
    assert record.diagnostics["aggregation_error"] == pytest.approx(record.diagnostics["aggregation_bias"])
