"""FedMomentum against the dense mean of the clients' models."""

import products
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies.fedmomentum import FedMomentum
from fedit.types import LocalTraining

COHORTS = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 4), st.sampled_from([0.5, 2.0, 4.0])), min_size=1, max_size=6
)


@given(COHORTS, st.sampled_from([0.25, 1.0, 2.0]), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_with_all_energy_the_next_model_is_the_mean_of_the_clients_models(cohort, scale, seed):
    sizes, ranks, scales = zip(*cohort, strict=True)
    strategy = FedMomentum(energy=1.0)
    server = products.start(strategy, seed, 4, scale, ledger=products.adapter(seed + 1, 2))
    played = products.play(strategy, server, products.clients(*sizes, ranks=ranks, scales=scales), seed=seed)
    assert products.distance(played.mean, played.after) < 5e-6


@pytest.mark.parametrize("energy", [0.9, 0.99, 0.9999])
def test_the_wanted_share_of_the_energy_survives_and_no_direction_more(energy):
    strategy = FedMomentum(energy=energy)
    played = products.play(strategy, products.start(strategy, rank=2), products.clients(3, 5, 9, 2))
    for module, product in played.mean.items():
        s = torch.linalg.svdvals(product)
        share = s.square().cumsum(0) / s.square().sum()
        needed = max(2, int((share < energy).sum()) + 1)
        assert len(played.server.ledger.get(f"{module}.A", [])) == needed - 2
        lost = float((played.after[module] - product).norm())
        assert lost == pytest.approx(float(s[needed:].norm()), abs=1e-5 * float(s[0]))


def test_the_adapter_has_the_leading_directions_in_equal_parts():
    played = products.play(FedMomentum(), products.start(FedMomentum()), products.clients(3, 5, 9))
    for module, product in played.mean.items():
        values = torch.linalg.svdvals(product)[:4] / 2.0
        for norms in (
            played.server.adapter[f"{module}.A"].norm(dim=1),
            played.server.adapter[f"{module}.B"].norm(dim=0),
        ):
            torch.testing.assert_close(norms.double().square(), values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_no_direction_is_dead_after_a_round(size):
    """C10: balanced factors of a direction without energy are zero on both sides, and stay it."""
    server = products.start(FedMomentum(), rank=8)
    for name, tensor in server.adapter.items():
        if name.endswith("B"):
            tensor[:, 3:] *= size
    played = products.play(FedMomentum(), server, products.clients(3, 5), size=0.0)
    assert all((norms > 0.3).all() for norms in products.gradients(played.server.adapter).values())
    assert products.distance(played.mean, played.after) < 1e-5


def test_one_client_leaves_nothing_over():
    strategy = FedMomentum(energy=1.0)
    played = products.play(strategy, products.start(strategy), products.clients(5))
    assert played.server.ledger == {}


@pytest.mark.parametrize("options", [{"energy": 0.0}, {"energy": 1.1}, {"tolerance": 1.0}])
def test_values_that_cannot_work_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        FedMomentum(**options).check(LocalTraining(learning_rate=0.1, num_rounds=1))
