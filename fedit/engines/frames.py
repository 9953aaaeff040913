"""Frames: what a process and its workers say to each other over pipes. JSON and safetensors, nothing pickled."""

import json
import struct
from collections.abc import Mapping
from typing import BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from fedit.errors import FeditError
from fedit.reading import parse_json
from fedit.types import Tensors

Header = dict[str, object]

MARK = b"fed1"
_LENGTHS = struct.Struct(">4sIQ")
_LONGEST_HEADER = 1 << 26
_LONGEST_PAYLOAD = 1 << 40
_ORDER = "tensors"


class FrameError(FeditError):
    """Bytes that are no frame."""


def write_frame(stream: BinaryIO, header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write one frame: mark, lengths of both parts (big-endian), JSON header, safetensors payload.

    The header keeps the tensors' order, on which sums over all of them depend.
    """
    text = json.dumps({**header, _ORDER: list(tensors)}).encode()
    payload = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}) if tensors else b""
    stream.write(_LENGTHS.pack(MARK, len(text), len(payload)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[Header, Tensors] | None:
    """Return the next frame's header and tensors; None where the stream ends before one begins.

    Raises:
        FrameError: what comes is no frame, or ends within one.
    """
    start = _read(stream, _LENGTHS.size)
    if not start:
        return None
    if len(start) < _LENGTHS.size:
        raise FrameError("the stream ends within a frame")
    mark, header_size, payload_size = _LENGTHS.unpack(start)
    if mark != MARK or header_size > _LONGEST_HEADER or payload_size > _LONGEST_PAYLOAD:
        raise FrameError(f"expected a frame, found {start!r}")
    text, payload = _read(stream, header_size), _read(stream, payload_size)
    if len(text) < header_size or len(payload) < payload_size:
        raise FrameError("the stream ends within a frame")
    try:
        header = parse_json(text)
        order = header.pop(_ORDER)
        tensors = safetensors.torch.load(payload) if payload_size else {}
        return header, {name: tensors[name] for name in order}
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise FrameError(f"a frame cannot be read: {error}") from error


def _read(stream: BinaryIO, size: int) -> bytes:
    """Return ``size`` bytes, fewer only at the end of the stream."""
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(min(size, 1 << 24))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
