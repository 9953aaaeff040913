"""Which clients take part in a round."""

import heapq
from collections.abc import Sequence

from fedit import seeds
from fedit.errors import ConfigError
from fedit.types import ClientInfo


def cohort_size(per_round: int | float, num_clients: int) -> int:
    """Return the clients of a round: a whole number as it is, a fraction rounded to the nearest, at least one.

    Rounded, not cut: 0.29 of 100 clients is 29 although 0.29 * 100 is 28.999….

    Raises:
        ConfigError: more clients than there are.
    """
    if isinstance(per_round, int):
        if per_round > num_clients:
            raise ConfigError(f"clients_per_round is {per_round}, but there are {num_clients} clients.")
        return per_round
    return max(1, min(num_clients, round(per_round * num_clients)))


def draw_unseen(ids: Sequence[str], count: int, seed: int) -> frozenset[str]:
    """Return ``count`` clients that no cohort has.

    Raises:
        ConfigError: nobody would be left.
    """
    if count >= len(ids):
        raise ConfigError(
            f"unseen_clients is {count}, but there are {len(ids)} clients; lower it to leave some to train."
        )
    draws = zip(seeds.derive_each(seed, "unseen", ends=ids), ids, strict=True)
    return frozenset(client_id for _, client_id in heapq.nsmallest(count, draws))


def uniform(clients: Sequence[ClientInfo], per_round: int | float, *, seed: int, round: int) -> list[str]:
    """Return the ids of a uniform cohort without replacement, sorted.

    Every client has its own draw from (seed, round, id) and the smallest take part: the same
    cohort on any machine and with any number of workers.
    """
    ids, size = [client.client_id for client in clients], cohort_size(per_round, len(clients))
    draws = zip(seeds.derive_each(seed, "cohort", round, ends=ids), ids, strict=True)
    return sorted(client_id for _, client_id in heapq.nsmallest(size, draws))
