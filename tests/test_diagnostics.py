"""Drift and aggregation bias against dense float64 formulas."""

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import diagnostics, tensors
from fedit.diagnostics import AggregationBias, Drift
from fedit.types import ClientUpdate

SHAPES = {"x.q": (5, 7), "x.k": (11, 3), "y.q": (4, 9)}  # (out, in)
RANK = 3


def adapter(seed, size=1.0, shapes=SHAPES, rank=RANK):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, (out, width) in shapes.items():
        found[f"{module}.A"] = size * torch.randn(rank, width, generator=generator)
        found[f"{module}.B"] = size * torch.randn(out, rank, generator=generator)
    return found


def update(client, delta, weight):
    return ClientUpdate(client, 1, int(weight), weight, delta)


def dense_bias(server, updates, shapes=SHAPES):
    total = sum(u.weight for u in updates)
    lost = moved = 0.0
    for module in shapes:
        a, b = server[f"{module}.A"].double(), server[f"{module}.B"].double()
        deltas = [
            (u.weight / total, u.delta[f"{module}.A"].double(), u.delta[f"{module}.B"].double()) for u in updates
        ]
        products = sum(p * (b + db) @ (a + da) for p, da, db in deltas)
        mean_a, mean_b = sum(p * (a + da) for p, da, _ in deltas), sum(p * (b + db) for p, _, db in deltas)
        lost += float((products - mean_b @ mean_a).square().sum())
        moved += float((products - b @ a).square().sum())
    return math.sqrt(lost / moved)


def mean_of(updates):
    return tensors.mean([(u.delta, u.weight) for u in updates])


def measure(server, updates, seed=0):
    """Return what is reported of the updates, flat or not."""
    found = []
    for form in (dict, tensors.flatten):
        bias = AggregationBias(form(server), seed)
        for one in updates:
            bias.observe(replace(one, delta=form(one.delta)))
        found.append(bias.report(form(mean_of(updates))))
    assert found[0] == found[1]
    return found[0]


def drift_of(updates):
    drift = Drift(adapter(0))
    for one in updates:
        drift.observe(one, tensors.norm(one.delta))
    return drift, drift.report(mean_of(updates))


@pytest.fixture
def sketched(monkeypatch):
    """Sketch even what is small enough to be exact."""
    monkeypatch.setattr(diagnostics, "EXACT_COST", 0)


@given(
    st.lists(st.integers(1, 500), min_size=2, max_size=6), st.integers(0, 10**6), st.sampled_from([0.01, 0.3, 2.0])
)
@settings(max_examples=25, deadline=None)
def test_the_bias_is_the_dense_formula(weights, seed, size):
    server = adapter(seed)
    updates = [update(str(i), adapter(seed + 1 + i, size), w) for i, w in enumerate(weights)]
    assert AggregationBias(server, 0).exact
    assert measure(server, updates)["aggregation_bias"] == pytest.approx(dense_bias(server, updates), rel=1e-4)


def test_the_bias_at_the_start_where_b_is_zero():
    server = {name: tensor * (0 if name.endswith("B") else 1) for name, tensor in adapter(0).items()}
    updates = [update("a", adapter(1, 0.01), 3), update("b", adapter(2, 0.01), 5)]
    assert measure(server, updates)["aggregation_bias"] == pytest.approx(dense_bias(server, updates), rel=1e-4)


def test_one_client_has_no_bias():
    assert measure(adapter(0), [update("a", adapter(1), 7)])["aggregation_bias"] < 1e-6


def test_clients_that_agree_have_no_bias():
    delta = adapter(1)
    found = measure(adapter(0), [update(c, delta, w) for c, w in (("a", 3), ("b", 10), ("c", 1))])
    assert found["aggregation_bias"] < 1e-6


def test_opposite_clients_by_hand():
    """Deltas (A, B) and (-A, -B): the means are zero, the mean product is B A."""
    shapes = {"m": (2, 2)}
    server = {"m.A": torch.zeros(1, 2), "m.B": torch.zeros(2, 1)}
    delta = {"m.A": torch.tensor([[1.0, 0.0]]), "m.B": torch.tensor([[2.0], [0.0]])}
    opposite = {name: -tensor for name, tensor in delta.items()}
    updates = [update("a", delta, 1), update("b", opposite, 1)]
    assert measure(server, updates)["aggregation_bias"] == pytest.approx(1.0)
    assert dense_bias(server, updates, shapes) == pytest.approx(1.0)


def test_large_layers_are_sketched_within_a_few_of_its_own_errors(sketched):
    shapes = {"m": (20, 31), "n": (17, 8)}
    off = []
    for seed in range(12):
        server = adapter(seed, 1.0, shapes, rank=8)
        clients = [update(str(i), adapter(1000 * seed + i, 0.2, shapes, rank=8), 1 + i % 7) for i in range(40)]
        report = measure(server, clients, seed)
        assert 0 < report["aggregation_bias_error"] < 0.2 * report["aggregation_bias"]
        off.append(
            (report["aggregation_bias"] - dense_bias(server, clients, shapes)) / report["aggregation_bias_error"]
        )
    assert max(map(abs, off)) < 4
    assert abs(sum(off) / len(off)) < 1.2  # unbiased: the mean of 12 has a standard error of 0.3


def test_the_sketch_of_a_cohort_of_which_one_delivered_is_zero(sketched):
    assert measure(adapter(0, rank=8), [update("a", adapter(1, rank=8), 3)])["aggregation_bias"] < 1e-6


def test_the_sketch_is_seeded(sketched, keep_global_state):
    server = adapter(0, rank=8)
    clients = [update(str(i), adapter(i + 1, rank=8), 1) for i in range(40)]
    assert measure(server, clients, 1) == measure(server, clients, 1)
    assert measure(server, clients, 1) != measure(server, clients, 2)


LAYERS = {f"model.layers.{i}.{name}": shape for i in range(12) for name, shape in (("q", (6, 8)), ("v", (3, 8)))}


@pytest.mark.parametrize("odd", [{}, {"model.layers.5.q": (6, 9)}, {"model.layers.3.aside": (2, 2)}])
def test_layers_of_equal_and_of_odd_shapes_add_up(odd):
    shapes = {**LAYERS, **odd}
    server = adapter(0, 1.0, shapes)
    clients = [update(str(i), adapter(i + 1, 0.3, shapes), 1 + i) for i in range(5)]
    assert measure(server, clients)["aggregation_bias"] == pytest.approx(
        dense_bias(server, clients, shapes), rel=1e-4
    )


def test_equal_layers_are_one_group_and_every_module_is_in_one():
    assert [group.count for group in diagnostics._groups(tensors.flatten(adapter(0, 1.0, LAYERS)))] == [12, 12]
    shapes = {**LAYERS, "model.layers.3.aside": (2, 2), "alone": (4, 5)}
    groups = diagnostics._groups(tensors.flatten(adapter(0, 1.0, shapes)))
    assert sum(group.count for group in groups) == len(shapes)


def test_exact_up_to_the_stated_cost(monkeypatch):
    cost = sum(RANK * out * width for out, width in SHAPES.values())
    monkeypatch.setattr(diagnostics, "EXACT_COST", cost)
    assert AggregationBias(adapter(0), 0).exact
    monkeypatch.setattr(diagnostics, "EXACT_COST", cost - 1)
    assert not AggregationBias(adapter(0), 0).exact


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_held_does_not_grow_with_the_cohort(monkeypatch, exact):
    if not exact:
        monkeypatch.setattr(diagnostics, "EXACT_COST", 0)
    bias, drift = AggregationBias(adapter(0), 0), Drift(adapter(0))
    seen = []
    for client in range(20):
        one = update(str(client), tensors.flatten(adapter(client)), 1)
        seen.append(weakref.ref(one.delta.buffer))
        bias.observe(one)
        drift.observe(one, 1.0)
        del one
        gc.collect()
        assert [ref() for ref in seen] == [None] * len(seen)


def test_nobody_and_those_who_keep_a_factor_have_no_bias():
    assert measure(adapter(0), []) == {}
    only_a = {name: tensor for name, tensor in adapter(1).items() if name.endswith("A")}
    assert measure(adapter(0), [update("a", only_a, 1), update("b", only_a, 1)]) == {}
    assert measure(adapter(0), [update("a", adapter(1), 1), update("b", only_a, 1)]) == {}


def test_clients_that_do_not_move_have_no_bias():
    still = {name: torch.zeros_like(tensor) for name, tensor in adapter(0).items()}
    assert measure(adapter(0), [update("a", still, 1), update("b", still, 1)]) == {}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=25)
def test_drift_is_the_dense_formula(weights, seed):
    updates = [update(str(i), adapter(seed + i, 0.1 + i), w) for i, w in enumerate(weights)]
    drift, report = drift_of(updates)
    flat = [torch.cat([t.double().flatten() for t in u.delta.values()]) for u in updates]
    share = [w / sum(weights) for w in weights]
    mean = sum(p * f for p, f in zip(share, flat, strict=True))
    norms = [float(f.norm()) for f in flat]
    assert drift.norms == pytest.approx({str(i): n for i, n in enumerate(norms)}, rel=1e-9)
    assert report["update_norm_mean"] == pytest.approx(sum(norms) / len(norms))
    assert report["update_norm_max"] == pytest.approx(max(norms))
    assert report["mean_update_norm"] == pytest.approx(float(mean.norm()), rel=1e-6)
    diversity = sum(p * n**2 for p, n in zip(share, norms, strict=True)) / float(mean.norm()) ** 2
    assert report["diversity"] == pytest.approx(diversity, rel=1e-5)
    pairs = [float(a @ b / a.norm() / b.norm()) for i, a in enumerate(flat) for b in flat[i + 1 :]]
    if pairs:
        assert report["pairwise_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    else:
        assert "pairwise_cosine" not in report


def test_agreement_and_cancellation():
    delta = adapter(1)
    _, agreeing = drift_of([update(client, delta, 1) for client in "ab"])
    opposite = {name: -0.5 * tensor for name, tensor in delta.items()}
    _, cancelling = drift_of([update("a", delta, 1), update("b", opposite, 1)])
    assert agreeing["pairwise_cosine"] == pytest.approx(1, abs=1e-6)
    assert agreeing["diversity"] == pytest.approx(1, abs=1e-6)
    assert cancelling["pairwise_cosine"] == pytest.approx(-1, abs=1e-6)
    assert cancelling["diversity"] == pytest.approx((1 + 0.25) / 2 / 0.25**2, rel=1e-5)


def test_a_client_that_did_not_move_points_nowhere():
    still = {name: torch.zeros_like(t) for name, t in adapter(1).items()}
    _, report = drift_of([update("a", adapter(1), 1), update("b", still, 1)])
    assert "pairwise_cosine" not in report
    assert report["diversity"] == pytest.approx(2, rel=1e-5)
    assert Drift(adapter(0)).report({}) == {}


def test_updates_that_share_nothing_are_orthogonal():
    parts = [{n: t for n, t in adapter(1).items() if n.endswith(factor)} for factor in "AB"]
    _, report = drift_of([update(str(i), part, 1) for i, part in enumerate(parts)])
    assert report["pairwise_cosine"] == pytest.approx(0, abs=1e-6)
