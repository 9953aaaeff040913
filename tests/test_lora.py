"""Products of factors against dense float64 matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import lora

SHAPES = {"x.q": (5, 7), "x.k": (11, 3), "y.up": (4, 9)}  # (out, in)


def factors(seed, ranks, shapes=SHAPES, size=1.0, dtype=torch.float32):
    """Return factors whose rank is ``ranks``, one number or one a module."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for index, (module, (out, width)) in enumerate(shapes.items()):
        rank = ranks if isinstance(ranks, int) else ranks[index % len(ranks)]
        made[f"{module}.A"] = (size * torch.randn(rank, width, generator=generator)).to(dtype)
        made[f"{module}.B"] = (size * torch.randn(out, rank, generator=generator)).to(dtype)
    return made


def dense(adapter, scale=1.0):
    """Return all products in one float64 vector."""
    return torch.cat(
        [
            (scale * adapter[f"{m}.B"].double() @ adapter[f"{m}.A"].double()).flatten()
            for m in lora.modules(adapter)
        ]
    )


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6), st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None)
def test_the_gram_matrix_is_that_of_the_dense_products(ranks, seed):
    clients = [factors(seed + k, own) for k, own in enumerate(ranks)]
    scales = [0.5 + k for k in range(len(clients))]
    flat = torch.stack([dense(c, s) for c, s in zip(clients, scales, strict=True)])
    found = lora.gram(clients, scales)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, flat @ flat.T, rtol=1e-10, atol=1e-10 * float(flat.square().sum()))
    distances = (flat[:, None] - flat[None, :]).square().sum(-1)
    torch.testing.assert_close(
        lora.squared_distances(found), distances, rtol=1e-9, atol=1e-9 * float(flat.square().sum())
    )


@pytest.mark.parametrize(("count", "shape"), [(2, (300, 200)), (40, (6, 5))])
def test_both_ways_to_the_gram_matrix_agree_with_dense_products(count, shape):
    """Few clients of a large layer go by their factors, many of a small one by their products."""
    clients = [factors(k, 4, {"m": shape}) for k in range(count)]
    flat = torch.stack([dense(c) for c in clients])
    torch.testing.assert_close(lora.gram(clients), flat @ flat.T, rtol=1e-10, atol=1e-8)


def test_nobody_has_an_empty_gram_matrix():
    assert lora.gram([], []).shape == (0, 0)


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.1, 8.0), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_change_is_the_difference_of_the_products(before, after, scale, seed):
    start, trained = factors(seed, before), factors(seed + 1, after)
    moved = lora.change(start, trained, scale)
    expected = scale * (dense(trained) - dense(start))
    torch.testing.assert_close(dense(moved), expected, rtol=0, atol=1e-5 * float(expected.norm()))
    assert moved["x.q.A"].shape == (before + after, 7)
    assert moved["x.q.B"].shape == (5, before + after)


def test_a_small_change_of_large_factors_keeps_its_digits():
    start = factors(0, 4, size=100.0)
    step = factors(1, 4, size=1e-3)
    trained = {name: tensor + step[name] for name, tensor in start.items()}
    expected = dense(trained) - dense(start)
    found = dense(lora.change(start, trained))
    assert float((found - expected).norm() / expected.norm()) < 1e-6
