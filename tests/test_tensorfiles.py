"""Sets of tensors as files: read by the safetensors library, and never silently wrong."""

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit import tensorfiles
from fedit.tensors import Flat, flatten

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


def values(dtype=torch.float32):
    return {
        "x.A": torch.arange(6).reshape(2, 3).to(dtype),
        "x.B": torch.ones(4, 2).to(dtype).T,
        "s": torch.tensor(3).to(dtype),
    }


def assert_same(one, two):
    assert set(one) == set(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert torch.equal(one[name], two[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [dict, flatten])
def test_what_is_written_comes_back_and_the_library_reads_it(dtype, form):
    content = tensorfiles.encode({"adapter": form(values(dtype)), "memory": {}}, {"round": "3"})
    parts, metadata = tensorfiles.decode(content, ("adapter", "memory"))
    assert metadata == {"round": "3"}
    assert_same(parts["adapter"], values(dtype))
    assert isinstance(parts["adapter"], Flat)
    assert parts["memory"] == {}
    theirs = safetensors.torch.load(content)
    assert_same({name.removeprefix("adapter/"): tensor for name, tensor in theirs.items()}, values(dtype))


def test_dtypes_may_differ_and_sets_may_be_empty():
    mixed = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.ones(2, dtype=torch.float64),
        "e": torch.zeros(0, 4),
    }
    parts, _ = tensorfiles.decode(tensorfiles.encode({"p": mixed, "q": {}}, {}), ("p", "q"))
    assert_same(parts["p"], mixed)


CONTENT = tensorfiles.encode({"adapter": flatten(values())}, {"round": "3"})


@given(st.integers(0, 8 * len(CONTENT) - 1))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_goes_unnoticed(bit):
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        parts, metadata = tensorfiles.decode(bytes(damaged), ("adapter",))
    except ValueError:
        return
    # A bit of the header's blanks, or one that JSON reads alike, changes nothing that is read.
    assert metadata == {"round": "3"}
    assert_same(parts["adapter"], values())


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, CONTENT[:-1], CONTENT[:20], CONTENT + b"x"])
def test_what_is_no_such_file_is_an_error(content):
    with pytest.raises(ValueError, match=r"digest|not a tensor file"):
        tensorfiles.decode(content, ("adapter",))


def test_a_file_without_a_digest_and_an_unknown_part_are_errors():
    with pytest.raises(ValueError, match="not a tensor file"):
        tensorfiles.decode(safetensors.torch.save({"adapter/x": torch.zeros(1)}), ("adapter",))
    with pytest.raises(ValueError, match="not a tensor file"):
        tensorfiles.decode(CONTENT, ("memory",))
