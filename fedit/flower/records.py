"""Envelopes in Flower's messages, and back."""

import json
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedit.flower.wire import Envelope, WireError
from fedit.reading import parse_json

_HEADER, _PIECES = "header", "pieces"


def pack(header: Mapping[str, object], pieces: Mapping[str, bytes]) -> RecordDict:
    """Return a message's content: the header as JSON text, every piece as one array of bytes.

    Flower carries arrays in chunks, and equal arrays once; it knows neither bfloat16 nor nested settings.
    """
    arrays = {name: Array(np.frombuffer(piece, dtype=np.uint8)) for name, piece in pieces.items()}
    return RecordDict(
        {_HEADER: ConfigRecord({"json": json.dumps(header)}), _PIECES: ArrayRecord(arrays, keep_input=False)}
    )


def unpack(content: RecordDict) -> Envelope:
    """Return the envelope in a message's content.

    Raises:
        WireError: there is none.
    """
    try:
        header = parse_json(str(content.config_records[_HEADER]["json"]))
        arrays = content.array_records[_PIECES]
        pieces = {str(name): _bytes_of(array) for name, array in arrays.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"a message is none of fedit's: {type(error).__name__}: {error}") from error
    if not isinstance(header, dict):
        raise WireError("a message's header is no table")
    return header, pieces


def _bytes_of(array: Array) -> bytes:
    """Return the bytes that an array of bytes holds, past the header that NumPy writes, without a copy more."""
    file = BytesIO(array.data)
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise WireError(f"a message holds an array of version {version}; expected 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or len(shape) != 1:
        raise WireError(f"a message holds {dtype} of shape {shape}; expected bytes")
    content = array.data[file.tell() :]
    if len(content) != shape[0]:
        raise WireError(f"a message announces {shape[0]} bytes and holds {len(content)}")
    return content
