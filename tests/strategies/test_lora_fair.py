"""LoRA-FAIR: the corrected B against an independent least-squares solution."""

import pytest
import torch
from factored import MODULES, aggregate, assert_close, product, random_updates, tensors, update
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError, NoUpdates
from fedit.strategies.fedit import FedIT
from fedit.strategies.lora_fair import LoRAFair
from fedit.types import LocalTraining, ServerState

TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)


def mean_of(trained, weights, name):
    return sum(w * own[name].double() for w, own in zip(weights, trained, strict=True)) / sum(weights)


def products_of(trained, weights, scales=None):
    scales = scales or [1.0] * len(trained)
    found = [product(own, scale) for own, scale in zip(trained, scales, strict=True)]
    return {m: sum(w * own[m] for w, own in zip(weights, found, strict=True)) / sum(weights) for m in MODULES}


@given(
    st.integers(0, 10**6), st.lists(st.integers(1, 20), min_size=2, max_size=5), st.sampled_from([0.01, 0.3, 5.0])
)
@settings(deadline=None, max_examples=20)
def test_it_is_the_penalised_least_squares_solution(seed, weights, regularisation):
    server = ServerState(0, tensors(seed))
    updates, trained = random_updates(LoRAFair(), server, weights, 1, seed=seed)
    after = aggregate(LoRAFair(regularisation), server, updates).adapter
    wanted = products_of(trained, weights)
    for m in MODULES:
        a, b = mean_of(trained, weights, f"{m}.A"), mean_of(trained, weights, f"{m}.B")
        # Stacked rows: A' dB' = (wanted - B A)' and sqrt(l) dB' = 0.
        left = torch.cat([a.T, regularisation**0.5 * torch.eye(4, dtype=torch.float64)])
        right = torch.cat([(wanted[m] - b @ a).T, torch.zeros(4, len(b), dtype=torch.float64)])
        correction = torch.linalg.lstsq(left, right).solution.T
        torch.testing.assert_close(after[f"{m}.A"].double(), a, rtol=0, atol=1e-6)
        torch.testing.assert_close(after[f"{m}.B"].double(), b + correction, rtol=1e-5, atol=1e-5)


def test_without_a_penalty_nothing_in_the_row_space_is_left_over():
    weights = (3, 5, 1)
    server = ServerState(0, tensors(0))
    updates, trained = random_updates(LoRAFair(), server, weights, 1)
    after = aggregate(LoRAFair(0.0), server, updates).adapter
    wanted, found = products_of(trained, weights), product(after)
    for m in MODULES:
        left_over = (wanted[m] - found[m]) @ after[f"{m}.A"].double().T
        assert left_over.norm() < 1e-5 * wanted[m].norm()


def test_it_is_nearer_to_the_mean_of_the_products_than_averaging():
    weights = (3, 5, 1)
    server = ServerState(0, tensors(0))
    updates, trained = random_updates(LoRAFair(), server, weights, 1)
    wanted = products_of(trained, weights)

    def error(strategy):
        found = product(aggregate(strategy, server, updates).adapter)
        return sum(float((found[m] - wanted[m]).norm() ** 2) for m in MODULES)

    assert error(LoRAFair(0.0)) < error(LoRAFair()) < error(LoRAFair(1.0)) < error(FedIT())


def test_a_large_penalty_is_plain_averaging():
    server = ServerState(0, tensors(0))
    updates, _ = random_updates(LoRAFair(), server, (3, 5, 1), 1)
    one, two = (aggregate(s, server, updates).adapter for s in (LoRAFair(1e9), FedIT()))
    assert_close(one, two, 1e-6)


def test_with_one_a_for_everybody_it_is_exact():
    server = ServerState(0, tensors(0))
    updates, trained = [], []
    for k, weight in enumerate((3, 5)):
        delta = {n: t * n.endswith(".B") for n, t in tensors(k + 1).items()}
        updates.append(update(str(k), delta, weight))
        trained.append({n: t + delta[n] for n, t in server.adapter.items()})
    after = aggregate(LoRAFair(), server, updates).adapter
    assert_close(product(after), products_of(trained, (3, 5)), 1e-5)


def test_clients_of_other_scales_count_by_what_they_add():
    """Two clients of equal effect, one at scale 2 with half the B, are two equal clients."""
    server = ServerState(0, tensors(0), scale=1.0)
    (one, two), (_, trained) = random_updates(LoRAFair(), server, (3, 5), 1)
    half = {n: t / 2 if n.endswith(".B") else t for n, t in trained.items()}
    other = update("1", {n: half[n] - server.adapter[n] for n in half}, 5, scale=2.0)
    assert_close(
        aggregate(LoRAFair(), server, [one, other]).adapter, aggregate(LoRAFair(), server, [one, two]).adapter
    )


def test_a_mean_a_of_lower_rank_does_not_break_it():
    start = {n: torch.zeros_like(t) for n, t in tensors(0).items()}
    updates, _ = random_updates(LoRAFair(), ServerState(0, start), (1,), 1)
    opposite = update("1", {n: -t if n.endswith(".A") else t for n, t in updates[0].delta.items()}, 1)
    for regularisation in (0.0, 0.01):
        after = aggregate(LoRAFair(regularisation), ServerState(0, start), [updates[0], opposite]).adapter
        assert all(tensor.isfinite().all() for tensor in after.values())
        assert not after["x.q.A"].any()


def test_nobody_delivered():
    with pytest.raises(NoUpdates):
        aggregate(LoRAFair(), ServerState(0, tensors(0)), [])


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_negative_penalty_is_refused(value):
    with pytest.raises(ConfigError, match="regularisation"):
        LoRAFair(value).check(TRAINING)
