"""Gaussian noise that nobody can foresee: from the operating system's cryptographic generator."""

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Entropy = Callable[[int], bytes]
"""Number of bytes -> so many random bytes; ``os.urandom`` outside of tests."""

PIECE = 65_536
SUMMED = 4
"""Draws that one number is the sum of.

The last bits of a single floating-point draw can tell what it was added to (Mironov, 2012); undoing the sum of
several takes more work than anybody can do (arXiv:2107.10138, section 5).
"""


def gaussian(count: int, entropy: Entropy = os.urandom) -> Tensor:
    """Return ``count`` independent draws of mean 0 and standard deviation 1, float64."""
    drawn = np.empty(count)
    for start in range(0, count, PIECE):
        piece = drawn[start : start + PIECE]
        piece[:] = sum(_normal(len(piece), entropy) for _ in range(SUMMED))
        piece /= SUMMED**0.5
    return torch.from_numpy(drawn)


def secret(entropy: Entropy = os.urandom) -> int:
    """Return a number of 256 bits that seeds what must stay hidden, such as who takes part in a round."""
    return int.from_bytes(entropy(32), "big")


def _normal(count: int, entropy: Entropy) -> np.ndarray:
    """Return normal draws by the transform of Box and Muller."""
    half = -(-count // 2)
    bits = np.frombuffer(entropy(16 * half), dtype=np.uint64) >> np.uint64(11)
    first, second = (bits.astype(np.float64) + 0.5).reshape(2, half) / 2**53
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
