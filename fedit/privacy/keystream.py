"""Draws that nobody can guess or repeat: Gaussian noise and coins from a ChaCha20 keystream of a fresh key."""

import math
import secrets
from collections.abc import Sequence

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

KEY = 32
"""Bytes of a key."""
_NONCE = bytes(16)  # a key has one keystream: its counter starts at zero
_MOST = 1 << 36
"""Bytes of one keystream; its counter of 64-byte blocks has 32 bits."""
_CHUNK = 1 << 17
"""Numbers that are made at a time: a megabyte stays in a processor's cache."""
_BITS = 53
"""Random bits of a number: as many as float64 holds."""
_SUMMED = 4
"""Draws that one number is the sum of: the last bits of a single one can tell what it was added to, and to undo
the sum of several takes more work than anybody can do (arXiv:2107.10138, section 5)."""


class Keystream:
    """One keystream; what was drawn is never drawn again. Give ``key`` in tests only.

    key: 32 bytes that give the same draws again; None: fresh ones of the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._start(secrets.token_bytes(KEY) if key is None else key)

    def seed(self) -> int:
        """Return a seed, 53 bits, for a generator whose draws the keystream's reader may not know either."""
        return int(self._numbers(1))

    def coins(self, count: int, rate: float) -> list[int]:
        """Return which of ``count`` coins show heads, each with probability ``rate`` on its own."""
        return (self._numbers(count) < rate * 2.0**_BITS).nonzero().squeeze(1).tolist()

    def normal(self, count: int) -> Tensor:
        """Return independent draws of mean 0 and standard deviation 1, float64 (count,) on the CPU."""
        drawn = torch.zeros(count, dtype=torch.float64)
        self.add_normal([drawn], 1.0)
        return drawn

    def add_normal(self, tensors: Sequence[Tensor], std: float) -> None:
        """Add independent Gaussian noise to contiguous tensors in place."""
        for tensor in filter(torch.numel, tensors):
            for piece in tensor.view(-1).split(_CHUNK if tensor.device.type == "cpu" else 64 * _CHUNK):
                piece.add_(self._normal(len(piece), piece.device), alpha=std)

    def _normal(self, count: int, device: torch.device) -> Tensor:
        """Return standard normal numbers, float64 (count,)."""
        found = self._drawn(count, device)
        for _ in range(_SUMMED - 1):
            found.add_(self._drawn(count, device))
        return found.mul_(_SUMMED**-0.5)

    def _drawn(self, count: int, device: torch.device) -> Tensor:
        """Return standard normal numbers by Box and Muller, float64 (count,)."""
        half = -(-count // 2)
        # Not every accelerator has float64, which the tails need.
        numbers = self._numbers(2 * half).to("cpu" if device.type == "mps" else device).double()
        # The radius is of (0, 1], so that its logarithm is finite.
        radius = (numbers[:half] + 1).mul_(2.0**-_BITS).log_().mul_(-2).sqrt_()
        angle = numbers[half:].mul_(2 * math.pi * 2.0**-_BITS)
        found = torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
        return found.float().to(device) if device.type == "mps" else found

    def _numbers(self, count: int) -> Tensor:
        """Return whole numbers of 53 random bits, int64 (count,)."""
        size = 8 * count
        if size > self._left:
            self._start(self._cipher.update(bytes(KEY)))
        self._left -= size
        words = torch.frombuffer(bytearray(self._cipher.update(bytes(size))), dtype=torch.int64)
        return words.bitwise_right_shift_(64 - _BITS).bitwise_and_((1 << _BITS) - 1)

    def _start(self, key: bytes) -> None:
        self._cipher: CipherContext = Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()
        self._left = _MOST - KEY
