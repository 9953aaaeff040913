"""Arithmetic on named tensors, against sums written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import lora, tensors
from fedit.tensors import Flat, flatten


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


SHAPES = {"y.B": (5, 3), "x.A": (3, 7), "x.B": (4, 3), "y.A": (3, 6), "z": (), "empty": (0, 4)}


def several(seed, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def assert_same_bits(one, two):
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert (tensor.shape, tensor.dtype) == (two[name].shape, two[name].dtype)
        assert torch.equal(tensor, two[name])


def test_a_flat_set_is_its_tensors_in_order_of_names_over_one_buffer():
    plain = several(0)
    flat = flatten(plain)
    assert_same_bits(plain, flat)
    assert list(flat) == sorted(plain)
    assert flat.buffer.tolist() == [x for name in sorted(plain) for x in plain[name].flatten().tolist()]
    flat["x.A"][1, 2] = 42.0
    assert 42.0 in flat.buffer
    assert 42.0 not in plain["x.A"]
    assert flatten(flat) is flat
    assert isinstance(flat, dict)


def test_equal_names_and_shapes_share_a_layout_whatever_their_order():
    one, two = several(0), dict(reversed(several(1).items()))
    assert flatten(one).layout is flatten(two).layout is tensors.layout_of(one)
    assert flatten(one).matches(flatten(two))
    assert not flatten(one).matches(two)
    assert not flatten(one).matches(flatten(several(0, torch.float64)))
    assert not flatten(one).matches(flatten({**one, "more": torch.zeros(1)}))


def test_tensors_that_are_not_contiguous_are_flattened_by_their_values():
    turned = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(8.0)[::2]}
    assert flatten(turned).buffer.tolist() == [0, 3, 1, 4, 2, 5, 0, 2, 4, 6]


def test_a_set_of_several_dtypes_is_not_flattened():
    mixed = {**named([1.0]), "c": torch.zeros(1, dtype=torch.float64)}
    assert not tensors.can_flatten(mixed)
    with pytest.raises(ValueError, match="one dtype"):
        flatten(mixed)
    assert flatten({}).buffer.shape == (0,)


def test_the_entries_of_a_flat_set_cannot_be_exchanged():
    flat = flatten(named([1.0], [2.0]))
    changes = [
        lambda: flat.__setitem__("a", torch.zeros(1)),
        lambda: flat.update(a=torch.zeros(1)),
        lambda: flat.pop("a"),
        lambda: flat.__delitem__("a"),
        lambda: flat.setdefault("q", torch.zeros(1)),
        flat.clear,
        flat.popitem,
    ]
    for change in changes:
        with pytest.raises(TypeError, match="views of its buffer"):
            change()
    with pytest.raises(TypeError, match="views of its buffer"):
        flat |= named([3.0])
    ordinary = {**flat, "a": torch.zeros(1)}
    assert type(ordinary) is type(flat | named([3.0])) is dict
    assert flat["a"].item() == 1.0


def test_a_buffer_of_another_size_is_refused():
    with pytest.raises(ValueError, match="21 entries"):
        Flat(tensors.layout_of({"x": torch.zeros(3, 7)}), torch.zeros(20))


def test_a_buffer_may_be_part_of_a_larger_one():
    values = flatten(several(0))
    rows = torch.stack([torch.zeros(values.layout.size), values.buffer])
    assert_same_bits(Flat(values.layout, rows[1]), values)


def test_a_clone_is_its_own():
    flat = flatten(named([1.0]))
    copy = flat.clone()
    copy["a"][0] = 5.0
    assert (flat["a"].item(), copy.buffer.item()) == (1.0, 5.0)
    assert copy.matches(flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [4, 131_072])
def test_flat_or_not_the_bits_are_the_same(dtype, chunk, monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", chunk)
    one, two = several(0, dtype), several(1, dtype)
    flat_one, flat_two = flatten(one), flatten(two)
    for scale in (1.0, 0.3):
        assert_same_bits(tensors.add(one, two, scale), tensors.add(flat_one, flat_two, scale))
        assert_same_bits(tensors.add(one, two, scale), tensors.add(flat_one, two, scale))
    assert_same_bits(tensors.sub(one, two), tensors.sub(flat_one, flat_two))
    assert_same_bits(tensors.sub(one, two), tensors.sub(one, flat_two))
    pairs = [(one, 3), (two, 11)]
    means = tensors.mean(pairs), tensors.mean([(flatten(t), w) for t, w in pairs])
    assert_same_bits(*means)
    assert isinstance(means[1], Flat)
    assert isinstance(tensors.add(flat_one, flat_two), Flat)
    assert tensors.dot(one, two) == pytest.approx(tensors.dot(flat_one, flat_two), rel=1e-12)
    assert tensors.norm(one) == pytest.approx(tensors.norm(flat_one), rel=1e-12)
    assert tensors.num_bytes(one) == tensors.num_bytes(flat_one)


def test_adding_a_part_to_a_flat_set():
    flat = flatten(named([1.0], [2.0]))
    assert [t.item() for t in tensors.add(flat, flatten({"b": torch.tensor([5.0])})).values()] == [1.0, 7.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_of_a_flat_set_is_found(bad):
    assert tensors.is_finite(flatten(named([1.0, 2.0])))
    assert not tensors.is_finite(flatten(named([1.0, 2.0], [bad])))
    assert not tensors.is_finite(flatten(named([float("inf"), -float("inf")])))


def test_finite_entries_whose_sum_is_not_are_finite():
    large = named([3e38, 3e38], [1.0])
    assert tensors.is_finite(large)
    assert tensors.is_finite(flatten(large))


def test_flat_sets_of_other_names_are_averaged_name_by_name():
    pairs = [(named([1.0], [8.0]), 1), ({"a": torch.tensor([5.0])}, 3), (named([3.0], [2.0]), 2)]
    for flat in ((0,), (0, 1), (1, 2), (0, 1, 2)):
        mean = tensors.mean([(flatten(t) if i in flat else t, w) for i, (t, w) in enumerate(pairs)])
        assert mean["a"].item() == pytest.approx((1 + 15 + 6) / 6)
        assert mean["b"].item() == pytest.approx(4.0)


@pytest.mark.parametrize("form", [dict, flatten])
def test_adding_to_a_mean_tells_the_square_of_the_norm(form):
    running = tensors.RunningMean()
    values = several(3)
    assert running.add(form(values), 5.0) == pytest.approx(tensors.norm(values) ** 2, rel=1e-12)
    assert running.value() is running.value()
    running.add(form(several(4)), 5.0)
    torch.testing.assert_close(running.value()["x.A"], (values["x.A"] + several(4)["x.A"]) / 2)


@given(st.integers(1, 2**29 - 1), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_mean_of_one_flat_float32_set_is_that_set_bit_for_bit(weight, seed):
    values = flatten(several(seed))
    assert_same_bits(tensors.mean([(values, weight)]), values)
