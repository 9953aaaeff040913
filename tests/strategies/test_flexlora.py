"""FlexLoRA against the best dense approximation of the mean of the clients' models."""

from dataclasses import replace

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies.flexlora import FlexLoRA
from fedit.types import ClientInfo, LocalTraining

COHORTS = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 4), st.sampled_from([0.5, 2.0, 4.0])), min_size=1, max_size=6
)


@given(COHORTS, st.sampled_from([0.25, 1.0, 2.0]), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_next_model_is_the_nearest_of_its_rank_to_the_mean(cohort, scale, seed):
    """Left and right scales at odds (an A without the root of S, a B over s) would all show here."""
    sizes, ranks, scales = zip(*cohort, strict=True)
    server = products.start(FlexLoRA(), seed, 4, scale)
    played = products.play(FlexLoRA(), server, products.clients(*sizes, ranks=ranks, scales=scales), seed=seed)
    energy = kept = 0.0
    for module, product in played.mean.items():
        u, s, vt = torch.linalg.svd(product, full_matrices=False)
        nearest = (u[:, :4] * s[:4]) @ vt[:4]
        gap = float((played.after[module] - nearest).norm())
        # Near-equal singular values leave the nearest one open, never its distance.
        lost = float((played.after[module] - product).norm())
        assert gap < 1e-4 * float(s[0]) or lost == pytest.approx(float(s[4:].norm()), rel=1e-4)
        energy, kept = energy + float(s.square().sum()), kept + float(s[:4].square().sum())
    metrics = FlexLoRA().metrics(played.server)
    assert metrics["energy_kept"] == pytest.approx(kept / energy, abs=1e-5)
    assert 1 <= metrics["effective_rank"] <= 12


def test_both_factors_together_have_the_singular_values_once():
    """The regression of B = U sqrt(S) / s beside an A without sqrt(S)."""
    server = products.start(FlexLoRA(), rank=12, scale=2.0)
    played = products.play(FlexLoRA(), server, products.clients(5))
    assert products.distance(played.mean, played.after) < 3e-6
    for name, tensor in played.server.adapter.items():
        if name.endswith("A") and len(tensor) <= tensor.shape[1]:
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(len(tensor)), rtol=0, atol=1e-5)


def test_enough_rank_for_all_clients_reproduces_their_mean():
    """C1: three clients of rank 4 at a server of rank 12."""
    server = products.start(FlexLoRA(), rank=12)
    played = products.play(FlexLoRA(), server, products.clients(3, 50, 7, ranks=(4, 4, 4)))
    assert products.distance(played.mean, played.after) < 1e-5
    assert FlexLoRA().metrics(played.server)["energy_kept"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("rank", "scale"), [(4, 4.0), (4, 1.0), (8, 2.0)])
def test_alpha_and_rank_are_bookkeeping(rank, scale):
    """C9: the model of a round does not depend on the scale or the spare rank that it is written with."""
    clients = products.clients(3, 5, ranks=(4, 4), scales=(2.0, 2.0))
    server = products.start(FlexLoRA(), 0, 4, 2.0)
    reference = products.play(FlexLoRA(), server, clients)
    written = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, rank - 4))
        if name.endswith("A")
        else torch.nn.functional.pad(tensor, (0, rank - 4)) * (2.0 / scale)
        for name, tensor in server.adapter.items()
    }
    other = products.play(FlexLoRA(), replace(server, adapter=written, scale=scale), clients)
    assert products.distance(reference.mean, other.mean) < 1e-6
    leading = products.products(
        {n: t[:4] if n.endswith("A") else t[:, :4] for n, t in other.server.adapter.items()}, scale
    )
    assert products.distance(reference.after, leading) < 1e-5


def test_payloads_are_nested():
    server = products.play(FlexLoRA(), products.start(FlexLoRA()), products.clients(3, 5)).server
    large = FlexLoRA().broadcast(server, ClientInfo("a", 1, rank=3)).adapter
    small = FlexLoRA().broadcast(server, ClientInfo("b", 1, rank=2)).adapter
    for name, tensor in small.items():
        assert torch.equal(tensor, large[name][:2] if name.endswith("A") else large[name][:, :2])


def test_no_direction_is_dead_after_a_round():
    """C10: the server has more rank than the clients' products together, and one client did not move."""
    server = products.start(FlexLoRA(), rank=8)
    played = products.play(FlexLoRA(), server, products.clients(3, 5, ranks=(2, 1)), size=0.0)
    assert all((norms > 0.3).all() for norms in products.gradients(played.server.adapter).values())


def test_equal_ranks_weigh_the_same_either_way():
    server, clients = products.start(FlexLoRA()), products.clients(3, 5, 11)
    plain = products.play(FlexLoRA(), server, clients).server
    aware = products.play(FlexLoRA(weights="rank_aware"), server, clients).server
    assert all(torch.equal(tensor, aware.adapter[name]) for name, tensor in plain.adapter.items())


def test_a_single_client_of_a_high_rank_keeps_its_tail_undiluted():
    server = products.start(FlexLoRA(), rank=4, shapes={"m": (20, 20)})
    clients = products.clients(1, 9, 9, ranks=(4, 1, 1))
    played = products.play(FlexLoRA(weights="rank_aware"), server, clients, size=0.0)
    # Nobody moved: what all have stays as it is, and so does what one has, where plain weights keep 1/19 of it.
    assert products.distance(played.before, played.after) < 1e-5
    plain = products.play(FlexLoRA(), server, clients, size=0.0)
    assert products.distance(plain.before, plain.after) > 0.3


@given(COHORTS, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_rank_aware_weights_are_those_of_the_clients_that_reach_a_direction(cohort, seed):
    sizes, ranks, scales = zip(*cohort, strict=True)
    strategy = FlexLoRA(weights="rank_aware")
    server = products.start(strategy, seed, 12, 2.0)
    clients = products.clients(*sizes, ranks=ranks, scales=scales)
    played = products.play(strategy, server, clients, seed=seed)
    again = [strategy.broadcast(server, client) for client in clients]
    for module in products.SHAPES:
        expected = torch.zeros_like(played.mean[module])
        for index, sent in enumerate(again):
            generator = torch.Generator().manual_seed(1000 * seed + index)
            ended = {
                n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in sorted(sent.adapter.items())
            }
            b, a = ended[f"{module}.B"].double(), ended[f"{module}.A"].double()
            for direction in range(ranks[index]):
                reach = sum(n for n, r in zip(sizes, ranks, strict=True) if r > direction)
                expected += sent.scale * sizes[index] / reach * torch.outer(b[:, direction], a[direction])
        u, s, vt = torch.linalg.svd(expected, full_matrices=False)
        best = (u[:, :12] * s[:12]) @ vt[:12]
        torch.testing.assert_close(played.after[module], best, rtol=0, atol=1e-4 * float(s[0]) + 1e-5)


def test_the_scale_of_a_client_is_what_its_products_are_multiplied_by():
    """FlexLoRA's code keeps alpha at every rank: a client of half the rank multiplies by twice as much."""
    server = products.start(FlexLoRA(), rank=4, scale=4.0)
    clients = products.clients(1, 1, ranks=(4, 2), scales=(4.0, 8.0))
    played = products.play(FlexLoRA(), server, clients, size=0.0)
    halves = {
        module: 4.0 * (b @ a + b[:, :2] @ a[:2]) / 2
        for module in products.SHAPES
        for b, a in [(server.adapter[f"{module}.B"].double(), server.adapter[f"{module}.A"].double())]
    }
    assert products.distance(halves, played.after) < 1e-5


def test_unknown_weights_are_refused():
    with pytest.raises(ConfigError, match=r"weights.*did you mean 'rank_aware'"):
        FlexLoRA(weights="rank_awar").check(LocalTraining(learning_rate=0.1, num_rounds=1))
