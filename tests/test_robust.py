"""Robust rules against brute force and closed forms, in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import robust


def points(seed, count, size):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squares(x):
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def scores_by_hand(x, attackers):
    """Krum in plain loops."""
    found = []
    for i in range(len(x)):
        apart = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(len(x)) if j != i)
        found.append(sum(apart[: max(len(x) - attackers - 2, 1)]))
    return found


@given(st.integers(0, 10**6), st.integers(5, 9), st.integers(0, 2), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_krum_scores_are_sums_of_squared_distances_to_the_nearest_others(seed, count, attackers, size):
    x = points(seed, count, size)
    torch.testing.assert_close(
        robust.krum_scores(squares(x), attackers).tolist(), scores_by_hand(x, attackers), rtol=1e-9, atol=1e-12
    )


def test_krum_squares_distances_and_does_not_add_up_those_of_tensors():
    """FederatedScope adds up unsquared distances of the tensors one by one, which prefers another client."""
    draws = [points(seed, 5, 2) for seed in range(200)]
    candidates = [x for x in draws if robust.krum_order(squares(x), 1)[0] != _per_tensor_unsquared(x, 1)]
    assert candidates, "some of 200 draws tell the two rules apart"
    for x in candidates:
        scores = scores_by_hand(x, 1)
        assert robust.krum_order(squares(x), 1)[0] == scores.index(min(scores))


def _per_tensor_unsquared(x, attackers):
    apart = (x[:, None] - x[None]).abs().sum(-1)  # every coordinate is a tensor of its own
    apart.fill_diagonal_(float("inf"))
    return int(apart.sort(dim=1).values[:, : len(x) - attackers - 2].sum(1).argmin())


def test_an_exact_copy_is_a_neighbour_and_not_oneself():
    """Flower drops the first of the sorted distances, and has no rule for who that is where copies tie at 0."""
    x = torch.tensor([[0.0], [0.0], [0.0], [3.0], [5.0]], dtype=torch.float64)
    # Two nearest others: a copy twice at distance 0 for the copies.
    assert robust.krum_scores(squares(x), 1).tolist() == [0.0, 0.0, 0.0, 13.0, 29.0]


def test_bulyan_scores_anew_after_each_choice():
    """One pass chooses others than the paper's loop: the neighbours of a chosen point lose a neighbour."""
    different = 0
    for seed in range(60):
        x = points(seed, 11, 2)
        chosen = robust.bulyan_selection(squares(x), 2)
        left, expected = list(range(11)), []
        while len(expected) < 7:
            scores = scores_by_hand(x[left], 2)
            expected.append(left.pop(scores.index(min(scores))))
        assert chosen == expected
        fast = robust.bulyan_selection(squares(x), 2, fast=True)
        scores = scores_by_hand(x, 2)
        assert fast == sorted(range(11), key=scores.__getitem__)[:7]
        different += set(fast) != set(chosen)
    assert different


def test_the_geometric_median_keeps_its_base_weights():
    """Nine points at 1 and three at 100: the median is 1; blades overwrites them and ends at the mean."""
    x = torch.tensor([[1.0]] * 9 + [[100.0]] * 3, dtype=torch.float64)
    base = torch.ones(12, dtype=torch.float64)
    z = 25.75
    for steps in range(1, 9):
        near, far = 9 / (z - 1), 3 / (100 - z)
        z = (near * 1 + far * 100) / (near + far)
        weights = robust.geometric_median(squares(x), base, smoothing=1e-6, iterations=steps)
        assert float(weights @ x[:, 0]) == pytest.approx(z, rel=1e-9)
    assert 1 < z < 1.012
    weights = robust.geometric_median(squares(x), base, smoothing=1e-6, iterations=50)
    assert float(weights @ x[:, 0]) == pytest.approx(1.0, abs=1e-3)


@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_geometric_median_has_the_least_sum_of_distances(seed, count, size):
    x, base = points(seed, count, size), points(seed + 1, count, 1)[:, 0].abs() + 0.1
    weights = robust.geometric_median(squares(x), base, smoothing=1e-9, iterations=2000)

    def cost(z):
        return float(base @ (x - z).norm(dim=1))

    best = weights @ x
    assert float(weights.sum()) == pytest.approx(1.0)
    for seed in range(10):
        assert cost(best) <= cost(best + 0.01 * points(seed, 1, size)[0]) + 1e-5


def test_the_geometric_median_of_one_place_weighs_as_it_was_told():
    x = torch.ones(3, 2, dtype=torch.float64)
    base = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    weights = robust.geometric_median(squares(x), base, smoothing=1e-6, iterations=5)
    assert weights.tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_clipping_takes_a_zero_update_and_refuses_nan():
    """Flower divides by a zero norm, and min(1, NaN) lets NaN through."""
    norms = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    assert robust.clipping(norms, 2.0).tolist() == [1.0, 1.0, 0.5]
    assert robust.clipping(norms, 0.0).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="not finite"):
        robust.clipping(torch.tensor([1.0, float("nan")]), 2.0)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_coordinate_rules_against_numpy(seed, count, size):
    x = points(seed, count, size)
    torch.testing.assert_close(robust.median(x), torch.from_numpy(np.median(x.numpy(), axis=0)))
    trim = (count - 1) // 2
    ordered = np.sort(x.numpy(), axis=0)
    torch.testing.assert_close(
        robust.trimmed_mean(x, trim), torch.from_numpy(ordered[trim : count - trim].mean(axis=0))
    )


@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_mean_near_the_median_takes_the_nearest_values(seed, count, keep):
    x = points(seed, count, 2)
    found = robust.mean_near_median(x, keep)
    for column in range(2):
        values = x[:, column].tolist()
        middle = float(np.median(values))
        best = min(itertools.combinations(values, keep), key=lambda some: sum(abs(v - middle) for v in some))
        assert float(found[column]) == pytest.approx(sum(best) / keep)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    x = points(0, 5, 23)
    monkeypatch.setattr(robust, "CHUNK", 4)
    torch.testing.assert_close(robust.by_coordinate(list(x), robust.median), robust.median(x), rtol=0, atol=0)
