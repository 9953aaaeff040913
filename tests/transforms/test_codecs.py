"""What every transform keeps: names, shapes, dtypes, bounds on its error; and the bytes it says it takes."""

import io
import json
import math
import zlib
from dataclasses import dataclass, replace

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import tensors
from fedit.engines.frames import write_frame
from fedit.engines.messages import result_frame
from fedit.errors import ConfigError, UnknownName
from fedit.strategies.base import Strategy
from fedit.transforms import TRANSFORMS, build_transforms, wire
from fedit.transforms.base import Transform
from fedit.transforms.chain import check, receive, send
from fedit.transforms.quantize import BLOCK, LEVELS
from fedit.transforms.sparse import densify, largest, pack, sparsify, unpack
from fedit.types import ClientFailure, ClientUpdate

CHAINS = [
    ["cast"],
    ["quantize"],
    [{"quantize": {"bits": 4}}],
    ["zstd"],
    ["top_k"],
    [{"top_k": {"fraction": 0.3, "feedback": False, "value_bits": 32}}],
    ["flasc"],
    ["cast", "zstd"],
    [{"quantize": {"bits": 4}}, "zstd"],
    ["top_k", "quantize", "zstd"],
    ["flasc", "cast", "zstd"],
]
LOSSLESS = [["zstd"], [{"top_k": {"fraction": 1.0, "value_bits": 32}}], [{"flasc": {"upload": 1.0}}]]
SHAPES = {"x.q.A": (3, 70), "x.q.B": (5, 3), "y.v.A": (8, 16), "y.v.B": (1, 8)}


def chain(spec):
    return build_transforms([{item: {}} if isinstance(item, str) else item for item in spec])


def delta(seed=0, size=1e-3, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {n: (size * torch.randn(s, generator=generator)).to(dtype) for n, s in shapes.items()}


def update(delta, extra=None, round=1):
    return ClientUpdate("a", round, 3, 3.0, delta, extra or {}, {"loss": 1.0}, 2.0)


def there_and_back(spec, delta, extra=None, seed=0):
    transforms = chain(spec)
    sent, _ = send(transforms, update(delta, extra), {}, seed)
    return receive(transforms, sent)


def about(held):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in held.items()}


def assert_equal(one, two):
    assert about(one) == about(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name


# --- names, shapes, dtypes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_names_shapes_and_dtypes_come_back(spec, dtype):
    given = delta(dtype=dtype)
    extra = {"c": torch.ones(3), "count": torch.tensor(7), "flags": torch.tensor([True, False])}
    back = there_and_back(spec, given, extra)
    assert about(back.delta) == about(given)
    assert about(back.extra) == about(extra)
    assert back.extra["count"] == 7
    assert torch.equal(back.extra["flags"], extra["flags"])
    assert replace(back, delta={}, extra={}) == replace(update({}), delta={}, extra={})


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4),
    st.sampled_from(CHAINS),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_any_shapes_come_back_empty_ones_and_scalars_too(shapes, spec, dtype):
    given = delta(dtype=dtype, shapes={f"m{i}.A": tuple(shape) for i, shape in enumerate(shapes)})
    back = there_and_back(spec, given)
    assert about(back.delta) == about(given)
    assert tensors.is_finite(back.delta)


@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_nothing_learnt_arrives_as_nothing(spec):
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert_equal(there_and_back(spec, zeros).delta, zeros)


@pytest.mark.parametrize("spec", LOSSLESS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_loses_nothing_gives_the_same_bits(spec, dtype):
    given = delta(dtype=dtype)
    given["y.v.B"][0, 0] = -0.0
    given["y.v.B"][0, 1] = 1e-42  # below the smallest normal float32
    assert_equal(there_and_back(spec, given).delta, given)


@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_what_is_sent_of_a_flat_set_is_what_is_sent_of_a_plain_one(spec):
    one, _ = send(chain(spec), update(delta()), {}, 1)
    two, _ = send(chain(spec), update(tensors.flatten(delta())), {}, 1)
    assert_equal(one.delta, two.delta)


# --- errors of the quantiser ---


@pytest.mark.parametrize("bits", LEVELS)
@given(st.integers(0, 10**6), st.sampled_from([1e-44, 1e-30, 1e-4, 1.0, 1e30, 3e38]))
@settings(max_examples=30, deadline=None)
def test_no_entry_is_off_by_more_than_a_step(bits, seed, size):
    generator = torch.Generator().manual_seed(seed)
    given = {"a": size * (2 * torch.rand(3, 77, generator=generator) - 1)}
    back = there_and_back([{"quantize": {"bits": bits}}], given, seed=seed).delta["a"]
    for x, y in zip(given["a"].flatten().split(BLOCK), back.flatten().split(BLOCK), strict=True):
        peak = x.abs().max().double()
        off = (y.double() - x.double()).abs().max()
        # Beside the step, y itself is rounded to a float32, whose smallest distance is 2**-149.
        assert off <= peak / LEVELS[bits] * (1 + 1e-5) + 2.0**-149


@pytest.mark.parametrize("bits", LEVELS)
def test_the_largest_float_survives(bits):
    most = torch.finfo(torch.float32).max
    given = {"a": torch.tensor([most, -most, 0.0])}
    assert_equal(there_and_back([{"quantize": {"bits": bits}}], given).delta, given)


@pytest.mark.parametrize("bits", LEVELS)
def test_the_mean_over_draws_is_the_value(bits):
    """A z-test an entry: of 10,000 blocks alike no entry's mean is 5 standard errors away (1 in 30,000 seeds)."""
    block, draws = torch.linspace(-1, 1, BLOCK), 10_000
    given = {"a": block.repeat(draws, 1)}
    off = there_and_back([{"quantize": {"bits": bits}}], given).delta["a"].double() - block.double()
    errors = off.pow(2).mean(dim=0).sqrt() / math.sqrt(draws)
    assert (off.mean(dim=0).abs() <= 5 * errors + 1e-7).all()
    assert (errors > 1e-5).sum() > BLOCK / 2  # most entries lie between two steps, so something was tested


def test_draws_differ_by_seed_and_name_and_do_not_depend_on_other_tensors():
    transforms = chain(["quantize"])
    values = torch.randn(640, generator=torch.Generator().manual_seed(0))

    def back(delta, seed):
        return receive(transforms, send(transforms, update(delta), {}, seed)[0]).delta

    assert torch.equal(back({"a": values}, 1)["a"], back({"a": values, "b": values}, 1)["a"])
    assert not torch.equal(back({"a": values}, 1)["a"], back({"a": values}, 2)["a"])
    both = back({"a": values, "b": values}, 1)
    assert not torch.equal(both["a"], both["b"])


@pytest.mark.usefixtures("keep_global_state")
@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_no_global_generator_is_touched_and_the_input_is_left_alone(spec):
    given = delta()
    there_and_back(spec, given)
    assert_equal(given, delta())


def test_bfloat16_is_rounded_to_nearest():
    given = delta()
    back = there_and_back(["cast"], given).delta
    for name, tensor in given.items():
        assert torch.equal(back[name], tensor.bfloat16().float())


# --- what is not finite ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 7, 63, 64, 209])
@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_what_is_not_finite_cannot_hide(spec, bad, place):
    given = delta()
    given["x.q.A"].view(-1)[place] = bad
    back = there_and_back(spec, given)
    assert not tensors.is_finite(back.delta)


@pytest.mark.parametrize("spec", [["quantize"], [{"quantize": {"bits": 4}}]], ids=str)
def test_a_zero_beside_infinity_is_not_sent_as_zero(spec):
    given = {"a": torch.zeros(BLOCK)}
    given["a"][3] = float("inf")
    assert not there_and_back(spec, given).delta["a"].isfinite().any()


# --- sparse sets ---


@given(st.integers(1, 5000), st.floats(0.0005, 1), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_places_come_back_and_take_the_shorter_form(size, fraction, seed):
    dense = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    places = largest(dense, fraction)
    packed = pack(places, size)
    assert torch.equal(unpack(packed, size), places)
    gaps = torch.diff(places, prepend=torch.tensor([-1])) - 1
    varint = int(sum(1 if gap < 128 else 2 for gap in gaps.tolist()))
    assert packed.numel() == 1 + min(varint, -(-size // 8))


def test_gaps_of_every_length_come_back():
    places = torch.tensor([0, 1, 128, 129 + 2**7, 2**14 + 5000, 2**21 + 2**15, 2**28 + 2**22])
    assert torch.equal(unpack(pack(places, 2**31), 2**31), places)


@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_the_largest_entries_of_all_tensors_are_sent_and_no_others(seed, fraction):
    given = delta(seed)
    back = densify(sparsify(given, fraction))
    x, y = (torch.cat([held[name].flatten() for name in sorted(held)]) for held in (given, back))
    count = max(1, int(fraction * len(x)))
    kept = y != 0
    assert int(kept.sum()) == count
    assert torch.equal(y[kept], x[kept])
    assert x[kept].abs().min() >= x[~kept].abs().max() if count < len(x) else True


# --- bytes ---


@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_counted_bytes_are_those_of_the_frame(spec):
    """A frame is 16 bytes, a JSON header, and a safetensors payload: 8 bytes, its own header, the data."""
    sent, _ = send(chain(spec), update(delta(), {"c": torch.ones(130)}), {}, 0)
    stream = io.BytesIO()
    write_frame(stream, *result_frame(sent))
    content = stream.getvalue()
    text, payload = int.from_bytes(content[4:8], "big"), int.from_bytes(content[8:16], "big")
    start = 16 + text
    head = int.from_bytes(content[start : start + 8], "little")
    assert json.loads(content[start + 8 : start + 8 + head])
    assert payload - 8 - head == tensors.num_bytes(sent.delta) + tensors.num_bytes(sent.extra)


MODULES = [f"model.layers.{layer}.{module}" for layer in range(8) for module in "qkvo"]
LARGE = {**{f"{name}.A": (8, 64) for name in MODULES}, **{f"{name}.B": (64, 8) for name in MODULES}}


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (["cast"], 16),
        (["quantize"], 8.5),
        ([{"quantize": {"bits": 4}}], 4.5),
        ([{"top_k": {"fraction": 0.05}}], 0.05 * 16 + 0.05 * 8),
        ([{"top_k": {"fraction": 0.25, "value_bits": 32}}], 0.25 * 32 + 1),
        (["flasc"], 0.25 * 32 + 1),
    ],
    ids=str,
)
def test_bits_of_an_entry_are_as_stated(spec, bits):
    given = delta(shapes=LARGE)
    sent, _ = send(chain(spec), update(given), {}, 0)
    entries = sum(tensor.numel() for tensor in given.values())
    described = wire.describe(given).numel()
    assert described < 10 * len(given)
    assert (tensors.num_bytes(sent.delta) - described) * 8 / entries == pytest.approx(bits, rel=0.05)


def test_planes_make_floats_smaller():
    given = delta(shapes={"a": (100, 1000)})
    sent, _ = send(chain(["zstd"]), update(given), {}, 0)
    plain = len(zstandard.ZstdCompressor().compress(wire.to_bytes(given["a"])))
    assert tensors.num_bytes(sent.delta) < 0.95 * plain


# --- damage ---


@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_every_flipped_bit_is_a_failure_of_the_client(spec):
    transforms = chain(spec)
    sent, _ = send(transforms, update(delta()), {}, 0)
    for name, tensor in sent.delta.items():
        for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
            damaged = wire.raw(tensor).clone()
            damaged[place * tensor.element_size()] ^= 4
            broken = {**sent.delta, name: damaged.view(tensor.dtype).view(tensor.shape)}
            got = receive(transforms, replace(sent, delta=broken))
            assert isinstance(got, ClientFailure)
            assert (got.client_id, got.round) == ("a", 1)
            assert "damaged on the way" in got.reason


@given(st.data(), st.sampled_from(CHAINS))
@settings(max_examples=150, deadline=None)
def test_a_forged_payload_with_a_right_checksum_is_no_crash(data, spec):
    transforms = chain(spec)
    sent, _ = send(transforms, update(delta()), {}, 0)
    content = wire.opened(sent.delta)
    name = data.draw(st.sampled_from(sorted(content)))
    if data.draw(st.booleans()):
        content = {own: tensor for own, tensor in content.items() if own != name}
    else:
        forged = torch.frombuffer(bytearray(data.draw(st.binary(min_size=1, max_size=40))), dtype=torch.uint8)
        content[name] = forged if content[name].dtype == torch.uint8 else forged.float()
    got = receive(transforms, replace(sent, delta=wire.sealed(content)))
    assert isinstance(got, ClientFailure | ClientUpdate)


def test_a_claim_of_more_than_there_can_be_is_refused():
    enormous = wire.from_bytes(zlib.compress(json.dumps([["a", "float32", [1 << 40]]]).encode()))
    transforms = chain(["quantize"])
    sent, _ = send(transforms, update(delta()), {}, 0)
    content = {**wire.opened(sent.delta), "#quantize.shapes": enormous}
    got = receive(transforms, replace(sent, delta=wire.sealed(content)))
    assert isinstance(got, ClientFailure)


def test_an_update_without_checksum_is_refused():
    got = receive(chain(["quantize"]), update(delta()))
    assert isinstance(got, ClientFailure)


# --- the table and its options ---


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_one_level_below_its_base_and_immutable(name):
    (transform,) = chain([name])
    assert type(transform).__bases__ == (Transform,)
    assert type(transform).__dataclass_params__.frozen
    check([transform], Strategy())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([{"quantise": {}}], "did you mean 'quantize'"),
        ([{"quantize": {"bit": 8}}], "did you mean 'bits'"),
        ([{"quantize": {"bits": "8"}}], "expected int"),
        ([{"zstd": {}}, {"quantize": {}}], "'quantize' cannot follow 'zstd'"),
        ([{"quantize": {}}, {"quantize": {}}], "'quantize' cannot follow 'quantize'"),
        ([{"cast": {}}, {"top_k": {}}], "'top_k' cannot follow 'cast'"),
    ],
)
def test_names_options_and_orders_that_cannot_work_are_refused(spec, words):
    with pytest.raises((ConfigError, UnknownName), match=words):
        build_transforms(spec)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantize", {"bits": 5}),
        ("top_k", {"fraction": 0.0}),
        ("top_k", {"fraction": 1.5}),
        ("top_k", {"decay": 2.0}),
        ("top_k", {"value_bits": 8}),
        ("flasc", {"download": 0.0}),
        ("flasc", {"upload": 2.0}),
        ("zstd", {"level": 0}),
    ],
)
def test_values_that_cannot_work_are_refused(name, options):
    with pytest.raises(ConfigError, match=f"option '{next(iter(options))}' of transform '{name}'"):
        check(build_transforms([{name: options}]), Strategy())


@dataclass(frozen=True)
class MovesItsBasis(Strategy):
    """The next adapter is made anew from products."""

    keeps_basis = False


@pytest.mark.parametrize(
    ("refused", "allowed"),
    [
        ({"top_k": {}}, {"top_k": {"feedback": False}}),
        ({"flasc": {}}, {"flasc": {"download": 1.0}}),
    ],
)
def test_a_strategy_that_moves_its_basis_cannot_have_what_comes_later(refused, allowed):
    with pytest.raises(ConfigError, match="MovesItsBasis"):
        check(build_transforms([refused]), MovesItsBasis())
    check(build_transforms([allowed]), MovesItsBasis())
    check(build_transforms([{"quantize": {}}, {"zstd": {}}]), MovesItsBasis())


def test_a_users_own_transform_runs_and_one_without_a_stage_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom fedit.transforms.base import Stage, Transform\n"
        "@dataclass(frozen=True)\nclass Mine(Transform):\n    '''Nothing.'''\n    stage = Stage.BITS\n"
        "@dataclass(frozen=True)\nclass Lost(Transform):\n    '''Nothing.'''\n",
        encoding="utf-8",
    )
    (mine,) = build_transforms([{f"{path}:Mine": {}}])
    sent, _ = send([mine], update(delta()), {}, 0)
    assert_equal(receive([mine], sent).delta, delta())
    with pytest.raises(ConfigError, match="stage"):
        build_transforms([{f"{path}:Lost": {}}])
