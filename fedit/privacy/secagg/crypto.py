"""Keys, keystreams and sealed letters: X25519, HKDF-SHA256, ChaCha20 and ChaCha20-Poly1305 of `cryptography`."""

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedit.errors import ProtocolError

Words = NDArray[np.uint64]
"""Whole numbers modulo 2^64; arithmetic wraps around by itself."""

KEY = 32
"""Bytes of every key, public or private, and of every seed."""
NONCE = 12
TAG = 16
_CHUNK = 1 << 17
"""Words of a keystream that are made at a time: a megabyte stays in the processor's cache."""
_DOMAIN = b"fedit secure aggregation 1"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair, 32 bytes each."""

    private: bytes
    public: bytes

    @classmethod
    def new(cls) -> "KeyPair":
        """Return a fresh one."""
        return cls.of(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, private: bytes) -> "KeyPair":
        """Return the pair of a private key."""
        return cls(private, X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def agree(private: bytes, public: bytes, *purpose: str) -> bytes:
    """Return the key that the owners of two key pairs, and nobody else, have for a purpose.

    Raises:
        ProtocolError: ``public`` is a point that gives all its partners the same secret.
    """
    try:
        common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError("a public key is not one that an honest client makes") from error
    return derive(common, *purpose)


def derive(secret: bytes, *purpose: str) -> bytes:
    """Return a key of 32 bytes for a purpose, by HKDF-SHA256; every part of the purpose is told apart."""
    parts = [part.encode() for part in purpose]
    info = _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(algorithm=SHA256(), length=KEY, salt=None, info=info).derive(secret)


def commitment(seed: bytes) -> bytes:
    """Return what binds a client to its seed and tells nothing of its 32 random bytes."""
    return hashlib.sha256(_DOMAIN + b" seed" + seed).digest()


def add_keystream(vector: Words, key: bytes, *, negative: bool = False) -> None:
    """Add the ChaCha20 keystream of ``key``, as little-endian words, to ``vector`` in place; or take it away.

    The whole key of 256 bits counts. A key serves one vector only, so that the nonce is zero.
    """
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    most = 8 * min(_CHUNK, len(vector))
    zeros, room = memoryview(bytes(most)), bytearray(most)
    combine = np.subtract if negative else np.add
    for start in range(0, len(vector), _CHUNK):
        piece = vector[start : start + _CHUNK]
        stream.update_into(zeros[: 8 * len(piece)], room)
        combine(piece, np.frombuffer(room, "<u8", count=len(piece)), out=piece)


def seal(key: bytes, letter: bytes, about: bytes) -> bytes:
    """Return an encrypted letter that cannot be changed; ``about`` is bound to it and not sent."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, letter, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return the letter that was sealed.

    Raises:
        ProtocolError: it was made with another key, about something else, or changed on the way.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE], sealed[NONCE:], about)
    except (InvalidTag, ValueError) as error:
        raise ProtocolError("a sealed share was changed on its way, or is not for this client") from error
