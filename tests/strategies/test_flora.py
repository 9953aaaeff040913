"""FLoRA against the dense mean of the clients' models."""

from dataclasses import replace

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies.flora import FLoRA
from fedit.types import LocalTraining

COHORTS = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 4), st.sampled_from([0.5, 2.0, 4.0])), min_size=1, max_size=6
)


@given(COHORTS, st.sampled_from([0.25, 1.0, 2.0]), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_next_model_is_the_mean_of_the_clients_models(cohort, scale, seed):
    """C3, at mixed ranks and scales and with a ledger; s = alpha / r is in it, and each weight once."""
    sizes, ranks, scales = zip(*cohort, strict=True)
    server = products.start(FLoRA(), seed, 4, scale, ledger=products.adapter(seed + 1, 2))
    played = products.play(FLoRA(), server, products.clients(*sizes, ranks=ranks, scales=scales), seed=seed)
    assert products.distance(played.mean, played.after) < 3e-6
    assert all(not tensor.any() for name, tensor in played.server.adapter.items() if name.endswith("B"))


def test_weights_on_both_factors_would_show():
    """p on A and on B alike gives p^2: two equal clients would come to half of their mean."""
    server = products.start(FLoRA(), scale=1.0)
    played = products.play(FLoRA(), server, products.clients(5, 5))
    squared = {m: (played.trained[0][m] + played.trained[1][m]) / 4 for m in products.SHAPES}
    assert products.distance(played.mean, squared) > 0.4
    assert products.distance(played.mean, played.after) < 3e-6


def test_every_round_draws_another_adapter_and_draws_it_again_after_a_resume():
    server = products.start(FLoRA())
    one = products.play(FLoRA(), server, products.clients(3, 5)).server
    again = products.play(FLoRA(), server, products.clients(3, 5)).server
    for name, tensor in one.adapter.items():
        assert torch.equal(tensor, again.adapter[name])
        if name.endswith("A"):
            bound = 1 / tensor.shape[1] ** 0.5
            assert 0.8 * bound < float(tensor.abs().max()) <= bound
    two = products.play(FLoRA(), replace(one, round=4), products.clients(3, 5)).server
    other = products.play(FLoRA(), products.start(FLoRA(), seed=9), products.clients(3, 5)).server
    for name, tensor in one.adapter.items():
        if name.endswith("A"):
            assert not torch.equal(tensor, two.adapter[name])
            assert not torch.equal(tensor, other.adapter[name])
            assert not torch.equal(tensor[:2], tensor[2:4])


def test_the_ledger_s_rank_stays_within_the_layers():
    server = products.start(FLoRA())
    for seed in range(6):
        server = products.play(FLoRA(), server, products.clients(3, 5, 1), seed=seed).server
    assert all(len(server.ledger[f"{m}.A"]) == min(size) for m, size in products.SHAPES.items())


def test_a_tolerance_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="tolerance"):
        FLoRA(tolerance=2.0).check(LocalTraining(learning_rate=0.1, num_rounds=1))
