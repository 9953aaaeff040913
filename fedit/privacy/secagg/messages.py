"""What clients and server say to each other in a session, as JSON can say it; what comes from outside is checked.

A session has four stages. Each has a question of the server to every client and an answer:
keys -> shares -> masked -> unmask.
"""

import base64
import binascii
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Self, TypeVar, cast

from fedit.errors import ProtocolError
from fedit.privacy.secagg.crypto import KEY, NONCE, TAG
from fedit.privacy.secagg.encoding import MOST_BITS
from fedit.privacy.secagg.shamir import ELEMENT

Json = dict[str, object]
T = TypeVar("T")

STAGES = ("keys", "shares", "masked", "unmask")
MOST_CLIENTS = 1 << 13
"""Clients of a session: figures have a grid fine enough up to here."""
LONGEST_ID = 512
SESSION = 16
"""Bytes of a session's id."""
LETTER = 2 * ELEMENT
"""Bytes of a letter: a share of the sender's private key of masks, then one of its seed."""
SEALED = NONCE + LETTER + TAG
MOST_WEIGHT = 1 << 31
FIGURES = ("weight", "loss", "tokens", "supervised_tokens", "unclipped")
"""Numbers that may be added up beside an update."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message; every field is checked when it is read."""

    def as_json(self) -> Json:
        """Return the fields, bytes in base64."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def read(cls, said: object) -> Self:
        """Return the message that somebody sent.

        Raises:
            ProtocolError: it is none, has other fields, or a value that cannot be.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(said, Mapping) or set(said) != names:
            raise ProtocolError(f"a message '{cls.__name__}' has the fields {', '.join(sorted(names))}")
        return cls(**{name: _READERS[name](said[name]) for name in names})


@dataclass(frozen=True, slots=True)
class AskKeys(Message):
    """Opens a session. session: its id, 16 random bytes."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Keys(Message):
    """A client's public keys for this session.

    mask_key: from which it has a common mask with each neighbour; share_key: under which it is sent shares.
    commitment: to the seed of its own mask.
    """

    mask_key: bytes
    share_key: bytes
    commitment: bytes


@dataclass(frozen=True, slots=True)
class AskShares(Message):
    """peers: the neighbours of a client, id -> [mask_key, share_key]."""

    session: bytes
    peers: dict[str, tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Shares(Message):
    """sealed: neighbour -> a letter that only it can read."""

    sealed: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class AskMasked(Message):
    """What a client is told before it trains.

    sealed:   neighbour -> its letter; who is missing has dropped out, and there is no mask with it.
    clients:  so many can enter the sum.
    limit, bits, heaviest: see `FixedPoint`.
    clip:     Euclidean norm that the update is clipped to; None: it is not.
    noise:    standard deviation of the client's part of the noise; 0: none.
    figures:  names of the numbers that are added up beside the update.
    """

    session: bytes
    sealed: dict[str, bytes]
    clients: int
    limit: float
    bits: int
    heaviest: int
    clip: float | None
    noise: float
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Masked(Message):
    """Goes with a masked vector. extras: names and shapes of what follows the delta in it."""

    extras: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class AskUnmask(Message):
    """Of a client and its neighbours: those whose vector came, and those who dropped out after sharing.

    cohort: SHA-256 over all whose vectors came, neighbours or not; see `named`.
    """

    session: bytes
    cohort: bytes
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unmask(Message):
    """seeds: survivor -> a share of its seed; mask_keys: drop-out -> a share of its private key of masks."""

    seeds: dict[str, bytes]
    mask_keys: dict[str, bytes]


def named(clients: Iterable[str]) -> bytes:
    """Return a digest of a set of clients."""
    return hashlib.sha256(json.dumps(sorted(clients)).encode()).digest()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _bytes(size: int) -> Callable[[object], bytes]:
    def read(value: object) -> bytes:
        try:
            found = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        except (binascii.Error, ValueError):
            found = b""
        if len(found) != size:
            raise ProtocolError(f"expected {size} bytes in base64")
        return found

    return read


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ProtocolError(f"expected a whole number from {least} to {most}")
        return value

    return read


def _number(value: object) -> float:
    # An integer of JSON may have more digits than a float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ProtocolError("expected a finite number from 0")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID:
        raise ProtocolError(f"expected a text of 1 to {LONGEST_ID} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError("a text holds half a character") from error
    return value


def _list(of: Callable[[object], T], most: int) -> Callable[[object], tuple[T, ...]]:
    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise ProtocolError(f"expected a list of at most {most}")
        return tuple(map(of, value))

    return read


def _distinct(value: object) -> tuple[str, ...]:
    found = _list(_text, MOST_CLIENTS)(value)
    if len(set(found)) < len(found):
        raise ProtocolError("somebody is named twice")
    return found


def _by_client(of: Callable[[object], T]) -> Callable[[object], dict[str, T]]:
    def read(value: object) -> dict[str, T]:
        if not isinstance(value, Mapping) or len(value) > MOST_CLIENTS:
            raise ProtocolError(f"expected at most {MOST_CLIENTS} values by client")
        return {_text(name): of(one) for name, one in value.items()}

    return read


def _pair(value: object) -> tuple[bytes, bytes]:
    found = _list(_bytes(KEY), 2)(value)
    if len(found) != 2:
        raise ProtocolError("expected two keys")
    return found[0], found[1]


def _extra(value: object) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, list) or len(value) != 2:
        raise ProtocolError("expected a name and a shape")
    return _text(value[0]), _list(_whole(0, 1 << 31), 8)(value[1])


def _figures(value: object) -> tuple[str, ...]:
    found = _distinct(value)
    if not set(found) <= set(FIGURES):
        raise ProtocolError(f"expected figures among {', '.join(FIGURES)}")
    return found


def _maybe(of: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else of(value)


_READERS = cast(
    "dict[str, Callable[[object], object]]",
    {
        "session": _bytes(SESSION),
        "mask_key": _bytes(KEY),
        "share_key": _bytes(KEY),
        "commitment": _bytes(KEY),
        "peers": _by_client(_pair),
        "sealed": _by_client(_bytes(SEALED)),
        "clients": _whole(2, MOST_CLIENTS),
        "limit": _number,
        "bits": _whole(1, MOST_BITS),
        "heaviest": _whole(1, MOST_WEIGHT),
        "clip": _maybe(_number),
        "noise": _number,
        "figures": _figures,
        "extras": _list(_extra, 1 << 16),
        "cohort": _bytes(32),
        "survivors": _distinct,
        "dropped": _distinct,
        "seeds": _by_client(_bytes(ELEMENT)),
        "mask_keys": _by_client(_bytes(ELEMENT)),
    },
)
