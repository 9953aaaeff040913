"""Sets of tensors as one safetensors file with a digest, so that a damaged one is noticed."""

import hashlib
import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedit import tensors
from fedit.reading import parse_json
from fedit.tensors import Flat
from fedit.types import Tensors

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DIGEST = "sha256"
LONGEST_HEADER = 100_000_000
"""Bytes; the library's own limit."""
MOST_TENSORS = 1 << 18
"""In one file: adapters of all layers of the largest models have some ten thousand."""


def encode(parts: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """Return the tensors, named "part/name", and ``metadata`` as the bytes of a safetensors file.

    Written here and not by the library, which takes every tensor on its own: a flat set is one copy.
    The SHA-256 of everything else is kept beside the metadata.
    """
    header: dict[str, object] = {}
    pieces: list[Tensor] = []
    at = 0
    for part, held in parts.items():
        for name, tensor in held.items():
            end = at + tensor.numel() * tensor.element_size()
            header[f"{part}/{name}"] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            at = end
        pieces += [held.buffer] if isinstance(held, Flat) else held.values()
    data = [_bytes_of(piece) for piece in pieces if piece.numel()]
    digest = hashlib.sha256(_canonical(header, metadata))
    for block in data:
        digest.update(block)
    text = json.dumps({"__metadata__": {**metadata, _DIGEST: digest.hexdigest()}, **header}).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def decode(content: bytes, parts: tuple[str, ...]) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Return what `encode` was given: the tensors of ``parts``, flat where they can be, and the metadata.

    Raises:
        ValueError: a part is unknown, or a bit differs from what was written.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header has {length} bytes")
        header = parse_json(content[8 : 8 + length])
        metadata = dict(header.pop("__metadata__"))
        written = metadata.pop(_DIGEST)
        digest = hashlib.sha256(_canonical(header, metadata))
        digest.update(memoryview(content)[8 + length :])
        if digest.hexdigest() != written:
            raise _Damaged("its content does not have the digest written in it: it was damaged or changed")
        if len(header) > MOST_TENSORS:
            raise ValueError(f"it holds {len(header)} tensors")
        found: dict[str, Tensors] = {part: {} for part in parts}
        loaded = safetensors.torch.load(content)
        for name in header:  # in the order they were written in, which the library does not keep
            part, _, key = name.partition("/")
            found[part][key] = loaded[name]
    except _Damaged:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"it is not a tensor file of fedit's ({type(error).__name__}: {error})") from error
    flat = {part: tensors.flatten(held) if tensors.can_flatten(held) else held for part, held in found.items()}
    return flat, metadata


class _Damaged(ValueError):
    """The content differs from what was written."""


def _canonical(header: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    return json.dumps([dict(header), dict(metadata)], sort_keys=True).encode()


def _bytes_of(tensor: Tensor) -> bytes | memoryview:
    # As bytes first: NumPy has no bfloat16.
    plain = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
    return plain.numpy().data
