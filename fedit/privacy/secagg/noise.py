"""A client's part of the noise that protects a sum: Gaussian, from a generator that nobody can guess.

The sum of n clients' rounded Gaussians has, on the grid, the density of one Gaussian of n times the variance plus
an independent rounding error: by Poisson's summation formula what deviates from that is below exp(-pi^2 s^2), for
a part whose standard deviation is s grid steps, and s is thousands. So the sum is accounted as a Gaussian's.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

from fedit.privacy.secagg.crypto import KEY, add_keystream

_CHUNK = 1 << 16


def gaussian(size: int, std: float, key: bytes | None = None) -> NDArray[np.float64]:
    """Return independent draws, float64 (size,), by Box and Muller over a ChaCha20 keystream.

    key: 32 bytes that give the same draws again, for tests; None: fresh ones.
    """
    pairs = -(-size // 2)
    words = np.zeros(2 * pairs, dtype=np.uint64)
    add_keystream(words, secrets.token_bytes(KEY) if key is None else key)
    found = np.empty(2 * pairs)
    for start in range(0, pairs, _CHUNK):
        block = slice(start, min(start + _CHUNK, pairs))
        # 53 bits each; the first lies in (0, 1], so that its logarithm is finite.
        radius = np.sqrt(-2 * np.log(((words[:pairs][block] >> np.uint64(11)) + 1.0) * 2.0**-53))
        angle = (2 * np.pi * 2.0**-53) * (words[pairs:][block] >> np.uint64(11)).astype(np.float64)
        found[:pairs][block] = radius * np.cos(angle)
        found[pairs:][block] = radius * np.sin(angle)
    return found[:size] * std
