"""Arithmetic on named tensors, against sums written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import lora, tensors


def named(*values, dtype=torch.float32):
    return {name: torch.tensor(value, dtype=dtype) for name, value in zip("ab", values, strict=False)}


def test_sums_and_differences_by_hand():
    one, two = named([1.0, 2.0], [[3.0]]), named([10.0, 20.0], [[30.0]])
    assert tensors.add(one, two)["a"].tolist() == [11.0, 22.0]
    assert tensors.add(one, two, 0.5)["b"].tolist() == [[18.0]]
    assert tensors.sub(two, one)["b"].tolist() == [[27.0]]
    assert tensors.dot(one, two) == 10 + 40 + 90
    assert tensors.norm(named([3.0], [4.0])) == 5
    assert tensors.num_bytes(one) == 12


def test_adding_keeps_names_that_only_the_first_has():
    assert tensors.add(named([1.0], [2.0]), {"a": torch.tensor([1.0])})["b"].tolist() == [2.0]


def test_nothing_is_edited_in_place():
    one, two = named([1.0]), named([2.0])
    tensors.add(one, two)
    tensors.sub(one, two)
    tensors.mean([(one, 1.0), (two, 2.0)])
    assert (one["a"].item(), two["a"].item()) == (1.0, 2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_is_found(bad):
    assert tensors.is_finite(named([1.0, 2.0]))
    assert not tensors.is_finite(named([1.0, 2.0], [bad]))


def test_a_norm_of_small_float32_entries_does_not_vanish():
    assert tensors.norm({"a": torch.full((1000,), 1e-25)}) == pytest.approx(1e-25 * 1000**0.5, rel=1e-6)


def test_the_mean_by_hand():
    mean = tensors.mean([(named([1.0], [0.0]), 1), (named([5.0], [8.0]), 3)])
    assert (mean["a"].item(), mean["b"].item()) == (4.0, 6.0)


def test_a_name_counts_the_weight_of_those_who_sent_it():
    mean = tensors.mean([(named([1.0], [8.0]), 1), ({"a": torch.tensor([5.0])}, 3)])
    assert (mean["a"].item(), mean["b"].item()) == (4.0, 8.0)


@given(st.integers(1, 2**29 - 1), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_mean_of_one_float32_set_is_that_set_bit_for_bit(weight, seed):
    generator = torch.Generator().manual_seed(seed)
    values = {"a": torch.randn(50, generator=generator) * 10 ** torch.randint(-20, 20, (50,), generator=generator)}
    assert torch.equal(tensors.mean([(values, weight)])["a"], values["a"])


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=6), st.integers(1, 1000), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_mean_depends_on_ratios_of_weights_and_hardly_on_order(weights, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [({"a": torch.randn(20, generator=generator)}, weight) for weight in weights]
    mean = tensors.mean(pairs)["a"]
    oracle = sum(w * t["a"].double() for t, w in pairs) / sum(weights)
    torch.testing.assert_close(mean.double(), oracle, rtol=0, atol=1e-6)
    torch.testing.assert_close(tensors.mean(pairs[::-1])["a"], mean, rtol=0, atol=1e-6)
    scaled = tensors.mean([(t, factor * w) for t, w in pairs])["a"]
    torch.testing.assert_close(scaled, mean, rtol=0, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_norm_of_a_product_needs_no_product(out, width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    a = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    assert lora.product_norm(b, a) == pytest.approx(float((b @ a).norm()), rel=1e-12)


def test_modules_are_named_once_and_sorted():
    assert lora.modules({"x.2.q.A": torch.zeros(1), "x.1.q.B": torch.zeros(1), "x.2.q.B": torch.zeros(1)}) == [
        "x.1.q",
        "x.2.q",
    ]
