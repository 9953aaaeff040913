"""FedRot-LoRA: rotations keep every client's model and bring its factors together."""

import pytest
import torch
from factored import SHAPES, aggregate, assert_close, assert_same, fresh, product, tensors, update
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies.fedrot_lora import FedRotLoRA
from fedit.types import LocalTraining, ServerState

TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)


def rotation(seed, rank=4):
    q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed)))
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


def turned(adapter, seed):
    """Return the same model in another basis of the rank."""
    r = rotation(seed)
    return {name: r.T @ t if name.endswith(".A") else t @ r for name, t in adapter.items()}


def nearby(start, seed, size=0.05):
    noise = tensors(seed, size)
    return {name: tensor + noise[name] for name, tensor in start.items()}


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([1.0, 0.7, 0.5, 0.01]))
@settings(deadline=None, max_examples=25)
def test_every_clients_product_is_kept(seed, round, strength):
    start, trained = tensors(seed), tensors(seed + 1)
    aligned = FedRotLoRA(strength).align(start, trained, round)
    found, expected = product(aligned), product(trained)
    for module in found:
        assert (found[module] - expected[module]).norm() <= 7e-7 * expected[module].norm()
    assert {n: (t.shape, t.dtype) for n, t in aligned.items()} == {n: (t.shape, t.dtype) for n, t in start.items()}


@pytest.mark.parametrize("round", [1, 2])
def test_factors_that_were_only_turned_come_back(round):
    start = tensors(0)
    assert_close(FedRotLoRA().align(start, turned(start, 5), round), start, 2e-6)


@pytest.mark.parametrize(("round", "factor"), [(1, "A"), (2, "B"), (3, "A")])
def test_odd_rounds_bring_a_as_near_as_any_rotation_can_and_even_rounds_b(round, factor):
    start = tensors(0)
    aligned = FedRotLoRA().align(start, tensors(1), round)
    for module in ("x.q", "y.v"):
        name = f"{module}.{factor}"
        best = (aligned[name] - start[name]).norm()
        others = [turned(aligned, seed)[name] for seed in range(20)]
        assert all((other - start[name]).norm() > best for other in others)


def test_turned_clients_no_longer_cancel():
    start = tensors(0)
    clients = [turned(nearby(start, k), 10 + k) for k in range(4)]

    def error(strategy):
        sent = [strategy.align(start, own, 1) for own in clients]
        deltas = [update(str(k), {n: own[n] - start[n] for n in own}) for k, own in enumerate(sent)]
        after = product(aggregate(strategy, ServerState(0, start), deltas).adapter)
        wanted = [product(own) for own in clients]
        mean = {m: sum(own[m] for own in wanted) / len(wanted) for m in after}
        return float(sum((after[m] - mean[m]).norm() for m in after) / sum(mean[m].norm() for m in after))

    assert error(FedRotLoRA()) < 0.05
    assert error(FedRotLoRA()) < error(FedRotLoRA(0.3)) < error(FedRotLoRA(1e-6))
    assert error(FedRotLoRA(1e-6)) > 0.3


def test_a_soft_rotation_lies_between_none_and_the_best():
    start, trained = tensors(0), turned(nearby(tensors(0), 1), 2)
    distances = []
    for strength in (1e-9, 0.25, 0.75, 1.0):
        aligned = FedRotLoRA(strength).align(start, trained, 1)
        distances.append(float((aligned["x.q.A"] - start["x.q.A"]).norm()))
    assert distances == sorted(distances, reverse=True)
    assert_close(FedRotLoRA(1e-9).align(start, trained, 1), trained, 1e-6)


def test_while_b_is_zero_nothing_turns():
    start, trained = fresh(0), tensors(1)
    for round in (1, 2):
        assert_same(FedRotLoRA().align(start, trained, round), trained)


def test_reflections_are_no_rotations():
    """The nearest orthogonal matrix here is a reflection; the nearest rotation is another one."""
    start = tensors(0)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    mirrored = {n: flip @ t if n.endswith(".A") else t @ flip for n, t in start.items()}
    aligned = FedRotLoRA().align(start, mirrored, 1)
    for module in ("x.q", "y.v"):
        turn = torch.linalg.lstsq(mirrored[f"{module}.A"].T, aligned[f"{module}.A"].T).solution
        assert torch.linalg.det(turn) == pytest.approx(1, abs=1e-4)
    assert set(aligned) == set(SHAPES)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_that_cannot_work_is_refused(strength):
    with pytest.raises(ConfigError, match="strength"):
        FedRotLoRA(strength).check(TRAINING)


def test_kept_moments_are_refused():
    with pytest.raises(ConfigError, match="client_optimizer to reset"):
        FedRotLoRA().check(LocalTraining(learning_rate=0.1, num_rounds=1, steps=1, keep_optimizer=True))
