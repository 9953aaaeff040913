"""Seeds by path: every random draw names what it is for, and nothing else moves it."""

import hashlib


def derive(root: int, *path: str | int) -> int:
    """Return a 63-bit seed for ``path`` under ``root``.

    A draw depends only on its own path, so the number of workers, the order of clients
    and the clients that join later cannot change it.

    >>> derive(0, "cohort", 3) == derive(0, "cohort", 3)
    True
    >>> derive(0, "cohort", 3) == derive(0, "cohort", 4)
    False
    """
    text = "\x1f".join([str(root), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
