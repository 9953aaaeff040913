"""FedSVD against the dense mean of the clients' models."""

from dataclasses import replace

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies.fedsvd import FedSVD
from fedit.types import LocalTraining


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=5),
    st.integers(1, 4),
    st.sampled_from([0.25, 2.0]),
    st.integers(0, 999),
)
@settings(max_examples=20, deadline=None)
def test_the_next_model_is_the_mean_of_the_clients_models(sizes, rank, scale, seed):
    """C5, in a cohort that shows its mean alone."""
    server = products.start(FedSVD(), seed, rank, scale)
    played = products.play(FedSVD(), server, products.clients(*sizes), seed=seed, sealed=True)
    assert products.distance(played.mean, played.after) < 3e-6
    for name, tensor in played.server.adapter.items():
        if name.endswith("A"):
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(rank), rtol=0, atol=1e-5)


def test_columns_of_b_are_orthogonal_and_fall():
    played = products.play(FedSVD(), products.start(FedSVD()), products.clients(3, 5))
    for module in products.SHAPES:
        b = played.server.adapter[f"{module}.B"].double()
        inner = b.T @ b
        torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0, atol=1e-4 * float(inner.max()))
        assert (inner.diagonal().diff() <= 0).all()


def test_clients_train_and_send_b_alone():
    assert [FedSVD().uploads(name, 1) for name in ("x.A", "x.B")] == [False, True]
    assert all(map(FedSVD().shares, ("x.A", "x.B")))


def test_a_product_of_zero_keeps_its_a():
    server = products.start(FedSVD())
    still = {n: torch.zeros_like(t) if n == "x.q.B" else t for n, t in server.adapter.items()}
    played = products.play(FedSVD(), replace(server, adapter=still), products.clients(3, 5), size=0.0)
    assert torch.equal(played.server.adapter["x.q.A"], server.adapter["x.q.A"])
    assert not torch.equal(played.server.adapter["x.k.A"], server.adapter["x.k.A"])


@pytest.mark.parametrize("period", [1, 2, 3])
def test_a_is_renewed_every_period(period):
    server = replace(products.start(FedSVD()), round=0)
    renewed = []
    for number in range(1, 7):
        after = replace(products.play(FedSVD(period), server, products.clients(3, 5)).server, round=number)
        if not torch.equal(after.adapter["x.q.A"], server.adapter["x.q.A"]):
            renewed.append(number)
        server = after
    assert renewed == [number for number in range(1, 7) if number % period == 0]


def test_rows_that_are_orthonormal_do_not_amplify_noise():
    """|N A| is |N|: why the noise of differential privacy in B alone reaches the weight as it is."""
    a = products.play(FedSVD(), products.start(FedSVD()), products.clients(3)).server.adapter["x.q.A"]
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    assert float((noise @ a).norm()) == pytest.approx(float(noise.norm()), rel=1e-5)


def test_a_period_of_less_than_a_round_is_refused():
    with pytest.raises(ConfigError, match="period"):
        FedSVD(period=0).check(LocalTraining(learning_rate=0.1, num_rounds=1))
