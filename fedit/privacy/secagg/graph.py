"""Who masks with whom: a random regular graph, and how many neighbours are enough (ePrint 2020/704, section 3)."""

import hashlib
import math
from collections.abc import Sequence
from functools import cache

COLLUDING = 0.1
"""Share of the clients that may tell the server all they know, for which automatic neighbours are counted."""
DROPPING = 0.2
"""Share of the clients that may drop out in one round, likewise."""
SECRECY_BITS = 40
"""Chance, 2 to minus so many, that the graph leaves somebody unprotected where so many collude and drop out."""
SUCCESS_BITS = 20
"""Likewise that a round fails in which no more than that drop out."""


def neighbours_of(clients: Sequence[str], degree: int, seed: int) -> dict[str, frozenset[str]]:
    """Return every client's neighbours: those within ``degree / 2`` places on a ring in random order.

    degree: even, or one less than the clients, so that all have as many; nobody is its own neighbour.
    """
    count = len(clients)
    if degree >= count - 1:
        return {client: frozenset(clients) - {client} for client in clients}
    if degree % 2:
        raise ValueError(f"a ring gives everybody an even number of neighbours, not {degree}")
    ring = sorted(clients, key=lambda client: hashlib.sha256(f"{seed}/{client}".encode()).digest())
    steps = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    return {own: frozenset(ring[(place + step) % count] for step in steps) for place, own in enumerate(ring)}


@cache
def enough_neighbours(count: int, threshold: float) -> int:
    """Return the fewest neighbours, even or all, with which ``count`` clients are safe from what is assumed above.

    Asked for are: no client has so many colluding holders of its shares that they restore its secrets; those who
    are left when colluding clients and drop-outs are taken away stay connected; enough holders of everybody's
    shares survive. Chances are bounded by the sum over all clients.
    """
    colluding, dropping = math.ceil(COLLUDING * count), math.ceil(DROPPING * count)
    for degree in range(2, count - 1, 2):
        needed = least_shares(degree + 1, threshold)
        told = count * _tail(count, colluding, degree, needed)
        cut = count * (COLLUDING + DROPPING) ** (degree / 2)
        failed = count * _tail(count, dropping, degree + 1, degree + 2 - needed)
        if told <= 2.0**-SECRECY_BITS and cut <= 2.0**-SECRECY_BITS and failed <= 2.0**-SUCCESS_BITS:
            return degree
    return count - 1


def least_shares(holders: int, threshold: float) -> int:
    """Return how many holders of a secret must give their shares: more than ``threshold`` of them, at least 2."""
    return max(2, math.floor(threshold * holders) + 1)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Return the chance that at least ``least`` of ``drawn`` out of a population are among the marked ones."""
    ways = sum(
        math.comb(marked, k) * math.comb(population - marked, drawn - k)
        for k in range(least, min(drawn, marked) + 1)
    )
    return ways / math.comb(population, drawn)
