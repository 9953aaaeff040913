"""FedEx-LoRA against the dense mean of the clients' models."""

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError, NoUpdates
from fedit.strategies import build_strategy
from fedit.strategies.fedex_lora import FedExLoRA
from fedit.types import ClientUpdate, LocalTraining
from fedit.updates import Updates


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.25, 1.0, 2.0]),
    st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
def test_the_next_model_is_the_mean_of_the_clients_models(sizes, rank, scale, seed):
    """C2, with unequal weights; a scale other than 1 shows a residual that is added without it."""
    strategy = FedExLoRA()
    server = products.start(strategy, seed, rank, scale, ledger=products.adapter(seed + 1, 2))
    played = products.play(strategy, server, products.clients(*sizes), seed=seed)
    assert products.distance(played.mean, played.after) < 3e-6


def test_the_adapter_is_the_mean_of_the_factors():
    server = products.start(FedExLoRA())
    played = products.play(FedExLoRA(), server, products.clients(3, 5))
    plain = products.play(build_strategy("fedit", {}), server, products.clients(3, 5))
    for name, tensor in plain.server.adapter.items():
        torch.testing.assert_close(played.server.adapter[name], tensor)


def test_the_residual_matters_and_has_the_scale_of_the_products():
    """The regression of residuals added without s = alpha / r."""
    played = products.play(FedExLoRA(), products.start(FedExLoRA(), scale=4.0), products.clients(3, 5), size=1.0)
    without = products.products(played.server.adapter, 4.0)
    assert products.distance(played.mean, without) > 0.05
    unscaled = {m: p + products.products(played.server.ledger)[m] / 4.0 for m, p in without.items()}
    assert products.distance(played.mean, unscaled) > 0.03


@pytest.mark.parametrize("sizes", [(7,), (1, 899)])
def test_clients_that_agree_leave_no_residual(sizes):
    server = products.start(FedExLoRA())
    one = products.play(FedExLoRA(), server, products.clients(7))
    assert one.server.ledger == {}
    delta = {name: tensor - server.adapter[name] for name, tensor in one.server.adapter.items()}
    same = [ClientUpdate(f"c{i}", 4, n, float(n), delta, scale=2.0) for i, n in enumerate(sizes)]
    assert FedExLoRA().aggregate(server, Updates(same, server.adapter)).ledger == {}


@given(st.integers(2, 4), st.integers(1, 2), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_residual_s_rank_is_that_of_all_clients_but_one(count, rank, seed):
    """C8."""
    server = products.start(FedExLoRA(), seed, rank)
    played = products.play(FedExLoRA(), server, products.clients(*range(1, count + 1)), seed=seed)
    for module, (out, width) in products.SHAPES.items():
        assert len(played.server.ledger[f"{module}.A"]) == min((count - 1) * rank, out, width)


def test_a_cut_residual_is_the_nearest_of_its_rank():
    server = products.start(FedExLoRA())
    whole = products.play(FedExLoRA(), server, products.clients(3, 5, 9))
    cut = products.play(FedExLoRA(residual_rank=2), server, products.clients(3, 5, 9))
    for module, product in products.products(whole.server.ledger).items():
        u, s, vt = torch.linalg.svd(product, full_matrices=False)
        nearest = (u[:, :2] * s[:2]) @ vt[:2]
        torch.testing.assert_close(products.products(cut.server.ledger)[module], nearest, rtol=0, atol=1e-5)


def test_residuals_add_up_over_rounds():
    server = products.start(FedExLoRA())
    for seed in range(4):
        played = products.play(FedExLoRA(), server, products.clients(3, 5, 2), seed=seed)
        server = played.server
        assert products.distance(played.mean, played.after) < 3e-6
    assert all(len(server.ledger[f"{m}.A"]) <= min(size) for m, size in products.SHAPES.items())


def test_an_adapter_of_another_rank_is_refused():
    server = products.start(FedExLoRA())
    small = {name: tensor for name, tensor in products.adapter(1, 2).items()}
    cohort = Updates([ClientUpdate("a", 4, 1, 1.0, small)], server.adapter, starts={"a": small})
    with pytest.raises(ConfigError, match=r"client 'a'.*another rank.*flexlora"):
        FedExLoRA().aggregate(server, cohort)


def test_nobody_is_no_round():
    server = products.start(FedExLoRA())
    with pytest.raises(NoUpdates):
        FedExLoRA().aggregate(server, Updates([], server.adapter))


@pytest.mark.parametrize("options", [{"residual_rank": -1}, {"tolerance": 1.0}, {"tolerance": -0.1}])
def test_values_that_cannot_work_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        FedExLoRA(**options).check(LocalTraining(learning_rate=0.1, num_rounds=1))
