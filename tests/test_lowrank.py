"""Stacks, their decomposition and their compression against dense float64 matrices."""

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import lora, lowrank
from fedit.errors import ConfigError, NoUpdates
from fedit.types import ClientInfo, ServerState

SIZES = st.integers(3, 24)


def pair(seed, out, width, rank, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "m.A": torch.randn(rank, width, generator=generator).to(dtype),
        "m.B": torch.randn(out, rank, generator=generator).to(dtype),
    }


def dense(factors):
    return factors["m.B"].double() @ factors["m.A"].double()


@given(SIZES, SIZES, st.integers(1, 30), st.one_of(st.none(), st.integers(1, 8)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_decomposition_is_that_of_the_dense_product(out, width, inner, rank, seed):
    """C6; the ranks run past the layer's, where the dense route may be the cheaper one."""
    factors = pair(seed, out, width, inner)
    found = lowrank.decompose(factors, rank)["m"]
    expected = torch.linalg.svdvals(dense(factors))
    count = len(found.values)
    assert count == min(out, width, inner) or count == min(out, width)
    torch.testing.assert_close(found.values, expected[:count], rtol=0, atol=1e-5 * float(expected[0]))
    kept = found.left.shape[1]
    assert kept == (count if rank is None else min(rank, count))
    for vectors in (found.left.double(), found.right.double().T):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(kept).double(), rtol=0, atol=1e-5)
    lost = (found.left.double() * found.values[:kept]) @ found.right.double() - dense(factors)
    tail = expected[kept:].norm()  # Eckart-Young
    assert float(lost.norm()) == pytest.approx(float(tail), abs=2e-5 * float(expected.norm()))


@given(SIZES, SIZES, st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_in_float64_it_is_exact_to_float64(out, width, inner, seed):
    factors = pair(seed, out, width, inner)
    found = lowrank.decompose(factors, dtype=torch.float64)["m"]
    rebuilt = (found.left * found.values) @ found.right
    torch.testing.assert_close(rebuilt, dense(factors), rtol=0, atol=1e-11)


def test_only_more_factors_than_the_layer_is_wide_may_become_a_dense_matrix(monkeypatch):
    monkeypatch.setattr(lowrank, "_factored_cost", lambda *sizes: float("inf"))
    calls, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda m, **how: calls.append(m.shape[1:]) or svd(m, **how))
    lowrank.decompose(pair(0, 20, 30, 6))
    lowrank.decompose(pair(0, 20, 30, 25))
    assert calls == [torch.Size([6, 6]), torch.Size([20, 30])]


def test_signs_do_not_depend_on_the_signs_of_the_factors():
    factors = pair(0, 9, 7, 4)
    flipped = {"m.A": -factors["m.A"], "m.B": -factors["m.B"]}
    one, two = lowrank.decompose(factors)["m"], lowrank.decompose(flipped)["m"]
    torch.testing.assert_close(one.left, two.left)
    torch.testing.assert_close(one.right, two.right)
    assert (one.left.gather(0, one.left.abs().argmax(0, keepdim=True)) > 0).all()


def test_modules_of_equal_shapes_are_decomposed_together_and_give_the_same(monkeypatch):
    shapes = {f"l{i}.{name}": size for i in range(5) for name, size in (("q", (6, 8)), ("v", (3, 8)))}
    factors = products.adapter(0, shapes=shapes)
    together = lowrank.decompose(factors)
    monkeypatch.setattr(lowrank, "BATCH_ENTRIES", 1)
    assert [len(names) for names in lowrank._batches(factors)] == [1] * 10
    for name, alone in lowrank.decompose(factors).items():
        torch.testing.assert_close(together[name].left, alone.left, rtol=0, atol=0)
        torch.testing.assert_close(together[name].values, alone.values, rtol=0, atol=0)


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 900), st.sampled_from([0.5, 2.0, 4.0])), min_size=1, max_size=7
    ),
    st.sampled_from([1.0, 2.0, 0.25]),
    st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_a_stack_is_the_weighted_mean_of_scaled_products(clients, scale, seed):
    """Mixed ranks and scales; some cohorts together have more directions than the narrow layers."""
    stack = lowrank.Stack(scale)
    for index, (rank, weight, own) in enumerate(clients):
        stack.add(products.adapter(seed + index, rank), float(weight), own)
    total = sum(weight for _, weight, _ in clients)
    found = products.products(stack.mean(), scale)
    for module in products.SHAPES:
        expected = sum(
            weight / total * products.products(products.adapter(seed + index, rank), own)[module]
            for index, (rank, weight, own) in enumerate(clients)
        )
        torch.testing.assert_close(found[module], expected, rtol=0, atol=1e-5 * float(expected.norm()) + 1e-6)
        assert len(stack.mean()[f"{module}.A"]) <= min(products.SHAPES[module])


def test_weights_count_once_and_not_in_both_factors():
    """Stacking with the weight on A and on B gives p^2; two equal clients of half a share each show it."""
    client = products.adapter(1)
    stack = lowrank.Stack()
    for _ in range(2):
        stack.add(client, 5.0, 1.0)
    assert products.distance(products.products(client), products.products(stack.mean())) < 1e-6


def test_what_a_stack_holds_does_not_grow_beyond_the_layers():
    stack = lowrank.Stack()
    for index in range(30):
        stack.add(products.adapter(index), 1.0, 1.0)
    assert not stack._left
    assert {module: total.shape for module, total in stack._dense.items()} == products.SHAPES


def test_a_stack_of_nobody_has_no_mean():
    with pytest.raises(NoUpdates):
        lowrank.Stack().mean()


@given(st.integers(1, 9), st.sampled_from([lowrank.orthonormal, lowrank.balanced]), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_splits_give_the_best_product_of_their_rank(rank, split, seed):
    factors = products.adapter(seed, 6)
    for module, spectrum in lowrank.decompose(factors).items():
        a, b = split(spectrum, rank)
        assert (len(a), b.shape[1]) == (rank, rank)
        assert a.dtype == b.dtype == torch.float32
        expected = products.products(factors)[module]
        u, s, vt = torch.linalg.svd(expected, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(b.double() @ a.double(), best, rtol=0, atol=1e-5 * float(s[0]))


@pytest.mark.parametrize("split", [lowrank.orthonormal, lowrank.balanced])
@pytest.mark.parametrize("energy", [0.0, 1e-9, 1.0])
def test_no_direction_is_dead_after_a_split(split, energy):
    """C10: what has no energy, or no room in the stack, still gets a gradient; the square root kills it."""
    factors = products.adapter(0, 3)
    for name in factors:
        if name.endswith("B"):
            factors[name][:, 1:] *= energy
    made = {}
    for module, spectrum in lowrank.decompose(factors).items():
        made[f"{module}.A"], made[f"{module}.B"] = split(spectrum, 6)
    assert all((norms > 0.3).all() for norms in products.gradients(made).values())


def test_completed_rows_are_orthonormal_where_there_is_room():
    (spectrum,) = lowrank.decompose(pair(0, 9, 8, 3)).values()
    a, _ = lowrank.orthonormal(spectrum, 7)
    torch.testing.assert_close(a @ a.T, torch.eye(7), rtol=0, atol=1e-5)
    wide, _ = lowrank.orthonormal(spectrum, 12)
    torch.testing.assert_close(wide.norm(dim=1), torch.ones(12), rtol=0, atol=1e-5)


@given(st.integers(1, 3), st.integers(0, 6), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_compression_finds_the_rank_and_keeps_the_product(rank, copies, seed):
    factors = pair(seed, 11, 9, rank)
    copied = {
        "m.A": factors["m.A"].repeat(1 + copies, 1),
        "m.B": factors["m.B"].repeat(1, 1 + copies) / (1 + copies),
    }
    found = lowrank.compress(copied, 1e-6)
    assert len(found["m.A"]) == rank
    assert float((dense(found) - dense(factors)).norm() / dense(factors).norm()) < 2e-6


def test_what_cancels_is_left_out():
    factors = pair(0, 11, 9, 3)
    both = {"m.A": factors["m.A"].repeat(2, 1), "m.B": torch.cat([factors["m.B"], -factors["m.B"]], dim=1)}
    assert lowrank.compress(both, 1e-6) == {}


def test_compression_loses_no_more_than_its_tolerance_and_no_rank_above_its_limit():
    factors = pair(0, 30, 20, 12)
    norm = float(dense(factors).norm())
    loose = lowrank.compress(factors, 0.3)
    assert 0 < len(loose["m.A"]) < 12
    size = lowrank.decompose(factors)["m"].size
    assert 0 < float((dense(loose) - dense(factors)).norm()) <= 0.3 * size
    assert size == pytest.approx(norm, rel=0.5)
    assert len(lowrank.compress(factors, 0.0, rank=5)["m.A"]) == 5


def test_a_ledger_adds_up_over_rounds_and_stays_within_the_layers():
    ledger, expected = {}, torch.zeros(6, 9, dtype=torch.float64)
    for seed in range(5):
        ledger = lowrank.plus(ledger, pair(seed, 6, 9, 3), 0.5, 1e-6)
        expected += 0.5 * dense(pair(seed, 6, 9, 3))
        assert len(ledger["m.A"]) <= 6
    torch.testing.assert_close(dense(ledger), expected, rtol=0, atol=1e-5)


def test_adding_nothing_keeps_a_ledger():
    ledger = pair(0, 6, 9, 3)
    torch.testing.assert_close(dense(lowrank.plus(ledger, {}, 2.0, 1e-6)), dense(ledger), rtol=0, atol=1e-5)


def test_effective_rank_counts_directions_by_their_energy():
    assert lowrank.effective_rank(torch.ones(5)) == pytest.approx(5)
    assert lowrank.effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert lowrank.effective_rank(torch.zeros(3)) == 0
    assert 1 < lowrank.effective_rank(torch.tensor([3.0, 1.0])) < 2


def test_a_client_is_sent_the_leading_directions_at_its_own_scale():
    server = ServerState(1, products.adapter(0), {"x.q.A": torch.ones(1, 12)}, scale=2.0)
    sent = lowrank.for_client(server, ClientInfo("a", 1, rank=2, scale=8.0))
    assert sent.scale == 8.0
    assert sent.ledger is server.ledger
    for module, product in products.products(sent.adapter, 8.0).items():
        b, a = server.adapter[f"{module}.B"][:, :2].double(), server.adapter[f"{module}.A"][:2].double()
        torch.testing.assert_close(product, 2.0 * b @ a, rtol=1e-6, atol=1e-6)


def test_a_client_like_the_server_is_sent_the_server_s_own_tensors():
    server = ServerState(1, products.adapter(0), scale=2.0)
    assert lowrank.for_client(server, ClientInfo("a", 1)).adapter is server.adapter
    assert lowrank.for_client(server, ClientInfo("a", 1, 4, 2.0)).adapter is server.adapter


def test_a_client_of_a_higher_rank_than_the_server_is_refused():
    server = ServerState(1, products.adapter(0))
    with pytest.raises(ConfigError, match="client 'a' has rank 9, the server 4; set lora_r"):
        lowrank.for_client(server, ClientInfo("a", 1, rank=9))


def test_names_of_modules_may_hold_dots():
    factors = {"model.layers.0.q.A": torch.ones(1, 3), "model.layers.0.q.B": torch.ones(2, 1)}
    assert set(lowrank.decompose(factors)) == set(lora.modules(factors)) == {"model.layers.0.q"}
