"""What a site's worker and the processes beside it tell each other: a JSON header and bytes, over a socket.

No tensor is touched here and PyTorch is not imported: the process that Flower starts for every message only
passes on.
"""

import json
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from fedit.errors import FeditError
from fedit.reading import parse_json

Header = dict[str, object]
Envelope = tuple[Header, Mapping[str, bytes]]
"""A header and named pieces of bytes, each a set of tensors as `fedit.tensorfiles` writes them."""

MARK = b"fedS"
_START = struct.Struct(">4sI")
LONGEST_HEADER = 1 << 26
LONGEST_PIECE = 1 << 36
MOST_PIECES = 1 << 17
_PIECES = "pieces"
_ROOM = 1 << 16
"""Bytes that are set aside before any came."""


class WireError(FeditError):
    """What came is no envelope, or ended within one."""


def send(connection: socket.socket, header: Mapping[str, object], pieces: Mapping[str, bytes]) -> None:
    """Write an envelope: mark and length of the header (big-endian), JSON with the pieces' sizes, pieces."""
    sizes = [[name, len(piece)] for name, piece in pieces.items()]
    text = json.dumps({**header, _PIECES: sizes}).encode()
    connection.sendall(_START.pack(MARK, len(text)) + text)
    for piece in pieces.values():
        connection.sendall(piece)


def receive(connection: socket.socket) -> Envelope:
    """Return the next envelope.

    Raises:
        WireError: what comes is none, is too long, or ends early.
    """
    mark, length = _START.unpack(_exactly(connection, _START.size))
    if mark != MARK or length > LONGEST_HEADER:
        raise WireError("what came over the socket is no message of fedit's")
    try:
        header = parse_json(_exactly(connection, length))
        sizes = [(str(name), size) for name, size in header.pop(_PIECES)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"a message's header cannot be read: {error}") from error
    if not all(type(size) is int and 0 <= size <= LONGEST_PIECE for _, size in sizes):
        raise WireError("a message announces more bytes than there can be")
    if len(sizes) > MOST_PIECES or len(dict(sizes)) < len(sizes):
        raise WireError(f"a message announces {len(sizes)} pieces, more than there can be, or one of them twice")
    return header, {name: _exactly(connection, size) for name, size in sizes}


def ask(path: Path, header: Mapping[str, object], pieces: Mapping[str, bytes], timeout: float | None) -> Envelope:
    """Send one envelope to the worker that listens at ``path`` and return its answer.

    timeout: seconds without any byte; None: as long as it takes.

    Raises:
        OSError: nobody listens, or the worker died.
        WireError: the answer cannot be read.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        send(connection, header, pieces)
        return receive(connection)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes; memory grows with what came and not with what was announced."""
    parts = bytearray(min(size, _ROOM))
    at = 0
    while at < size:
        if at == len(parts):
            parts.extend(bytes(min(size - at, len(parts))))
        with memoryview(parts) as view:
            count = connection.recv_into(view[at:])
        if count == 0:
            raise WireError("the other side ended within a message")
        at += count
    return bytes(parts)
