"""Shamir's secret sharing: any ``threshold`` shares give the secret, fewer tell nothing of it (CACM 22, 1979)."""

import secrets
from collections.abc import Mapping

from fedit.errors import ProtocolError

PRIME = 2**521 - 1
"""The field: a Mersenne prime, so that a secret of 64 bytes is one element."""
LONGEST_SECRET = 64
ELEMENT = 66
"""Bytes of a share."""
MOST_SHARES = 1 << 14


def share(secret: bytes, holders: int, threshold: int) -> list[bytes]:
    """Return one share a holder: values at 1, 2, ... of a random polynomial whose value at 0 is the secret."""
    if not (1 <= threshold <= holders <= MOST_SHARES and len(secret) <= LONGEST_SECRET):
        raise ValueError(f"cannot share {len(secret)} bytes among {holders} so that {threshold} suffice")
    rising = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    found = []
    for point in range(1, holders + 1):
        value = 0
        for coefficient in reversed(rising):
            value = (value * point + coefficient) % PRIME
        found.append(value.to_bytes(ELEMENT, "big"))
    return found


def restore(shares: Mapping[int, bytes], length: int) -> bytes:
    """Return the secret of ``length`` bytes whose shares, by their points, these are; all of them are used.

    Too few shares give bytes, or an error, that have nothing to do with the secret.

    Raises:
        ProtocolError: the shares belong to no secret of that length.
    """
    values = {point: int.from_bytes(held, "big") for point, held in shares.items()}
    if any(len(held) != ELEMENT for held in shares.values()) or any(value >= PRIME for value in values.values()):
        raise ProtocolError("a share is not of the form that shares have")
    secret = 0
    for point, value in values.items():
        above = below = 1
        for other in values:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >= 1 << (8 * length):
        raise ProtocolError("shares do not fit together")
    return secret.to_bytes(length, "big")
