"""Ways to deal rows to clients: each a function from labels to rows per client.

``labels`` is what a scheme needs to know of every row: its category, its cluster or its owner; a
scheme that needs nothing reads only how many there are. Keyword-only parameters are the options
a user may set. Every scheme gives each row to exactly one client and no client nothing, except
`natural`, which may leave out whole owners.
"""

from collections.abc import Sequence

import numpy as np

from fedit.errors import DataError

_TRIES = 1000
"""Draws of a rejection loop before it gives up."""

Clients = dict[str, list[int]]
"""Client id -> row indices, ascending; ids in sorted order."""


def iid(labels: Sequence[str], num_clients: int, rng: np.random.Generator) -> Clients:
    """Shuffle all rows and deal them in equal parts."""
    return _named(np.array_split(rng.permutation(len(labels)), num_clients))


def shepherd_shards(
    labels: Sequence[str], num_clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> Clients:
    """Sort rows by category, cut them into equal contiguous shards and deal these out shuffled.

    FedIT's default (Zhang et al., 2023, arXiv:2305.05644, code "Shepherd"): 2 shards per client.
    """
    shards = num_clients * shards_per_client
    if shards > len(labels):
        raise DataError(
            f"{num_clients} clients x {shards_per_client} shards need {shards} rows and there are "
            f"{len(labels)}; lower the number of clients to {len(labels) // shards_per_client} or fewer."
        )
    # Stable, so that rows of one category keep their order and the result does not depend on a library.
    order = np.argsort(np.asarray(labels), kind="stable")
    cut = np.array_split(order, shards)
    dealt = rng.permutation(shards).reshape(num_clients, shards_per_client)
    return _named([np.concatenate([cut[shard] for shard in mine]) for mine in dealt])


def shepherd_dirichlet(
    labels: Sequence[str],
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_examples: int = 40,
) -> Clients:
    """Split every category by Dir(alpha); FedIT's unequal sizes: alpha 0.5, at least 40 rows each."""
    return dirichlet(labels, num_clients, rng, alpha=alpha, min_examples=min_examples)


def dirichlet(
    labels: Sequence[str],
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_examples: int = 10,
) -> Clients:
    """Split every category by Dir(alpha); small alpha: few categories per client.

    Li et al., 2022, arXiv:2102.02079 (NIID-Bench, "noniid-labeldir").
    """
    _check_feasible(len(labels), num_clients, min_examples)
    members = [_rows_with(labels, name) for name in sorted(set(labels))]
    best = 0
    for _ in range(_TRIES):
        cuts, sizes = _draw_cuts([len(rows) for rows in members], num_clients, rng, alpha)
        if sizes.min() >= min_examples:
            shares = [np.split(rng.permutation(m), c) for m, c in zip(members, cuts, strict=True)]
            return _named([np.concatenate(mine) for mine in zip(*shares, strict=True)])
        best = max(best, int(sizes.min()))
    raise _gave_up(alpha, num_clients, min_examples, best)


def label_count(
    labels: Sequence[str], num_clients: int, rng: np.random.Generator, *, labels_per_client: int = 2
) -> Clients:
    """Give every client the same number of categories; clients of a category share its rows equally.

    Categories go to as equal numbers of clients as possible; where there are just enough of
    them, no two clients share one.
    """
    names = sorted(set(labels))
    slots = num_clients * labels_per_client
    if labels_per_client > len(names):
        raise DataError(
            f"labels_per_client is {labels_per_client} and the data has {len(names)} categories "
            f"({', '.join(names)}); lower it to {len(names)} or fewer."
        )
    if slots < len(names):
        raise DataError(
            f"{num_clients} clients x {labels_per_client} categories leave out {len(names) - slots} of "
            f"{len(names)} categories; set labels_per_client to {-(-len(names) // num_clients)} or use "
            f"{-(-len(names) // labels_per_client)} clients."
        )
    uses = np.zeros(len(names), dtype=int)
    holders: list[list[int]] = [[] for _ in names]
    for client in range(num_clients):
        for category in np.lexsort((rng.random(len(names)), uses))[:labels_per_client]:
            holders[category].append(client)
            uses[category] += 1
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for name, clients in zip(names, holders, strict=True):
        rows = rng.permutation(_rows_with(labels, name))
        if len(rows) < len(clients):
            raise DataError(
                f"category '{name}' has {len(rows)} rows for {len(clients)} clients; lower the number of "
                f"clients ({num_clients}) or labels_per_client ({labels_per_client})."
            )
        for client, share in zip(clients, np.array_split(rows, len(clients)), strict=True):
            parts[client].append(share)
    return _named([np.concatenate(mine) for mine in parts])


def quantity(
    labels: Sequence[str],
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_examples: int = 10,
) -> Clients:
    """Shuffle all rows and deal them in parts whose sizes follow Dir(alpha): IID content, unequal sizes."""
    _check_feasible(len(labels), num_clients, min_examples)
    best = 0
    for _ in range(_TRIES):
        cuts = _cuts(rng.dirichlet(np.full(num_clients, alpha)), len(labels))
        smallest = int(np.diff(cuts, prepend=0, append=len(labels)).min())
        if smallest >= min_examples:
            return _named(np.split(rng.permutation(len(labels)), cuts))
        best = max(best, smallest)
    raise _gave_up(alpha, num_clients, min_examples, best)


def natural(labels: Sequence[str], num_clients: int | None, rng: np.random.Generator) -> Clients:
    """Make every owner a client; fewer clients than owners are a random choice of owners."""
    rows: Clients = {owner: [] for owner in sorted(set(labels))}
    for index, owner in enumerate(labels):
        rows[owner].append(index)
    if num_clients is None or num_clients == len(rows):
        return rows
    if num_clients > len(rows):
        raise DataError(
            f"{num_clients} clients are asked for and the rows have {len(rows)} owners; "
            f"lower the number of clients to {len(rows)} or leave it out."
        )
    owners = list(rows)
    chosen = np.sort(rng.choice(len(owners), size=num_clients, replace=False))
    return {owners[position]: rows[owners[position]] for position in chosen}


def _draw_cuts(
    category_sizes: Sequence[int], num_clients: int, rng: np.random.Generator, alpha: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return where each category is cut, (clients - 1,) each, and the rows of each client, (clients,)."""
    fair = sum(category_sizes) / num_clients
    sizes = np.zeros(num_clients, dtype=int)
    cuts = []
    for rows in category_sizes:
        full = sizes >= fair
        proportions = np.where(full, 0.0, rng.dirichlet(np.full(num_clients, alpha)))
        if proportions.sum() == 0:  # a tiny alpha can put everything on clients that are full
            proportions = np.ones(num_clients) if full.all() else (~full).astype(float)
        cuts.append(_cuts(proportions / proportions.sum(), rows))
        sizes += np.diff(cuts[-1], prepend=0, append=rows)
    return cuts, sizes


def _cuts(proportions: np.ndarray, rows: int) -> np.ndarray:
    """Return the inner borders, (clients - 1,) int, of ``rows`` rows split in these proportions."""
    return (np.cumsum(proportions)[:-1] * rows).astype(int).clip(max=rows)


def _check_feasible(rows: int, num_clients: int, min_examples: int) -> None:
    if num_clients * min_examples > rows:
        raise DataError(
            f"{num_clients} clients of at least {min_examples} rows need {num_clients * min_examples} rows "
            f"and there are {rows}; lower the number of clients to {rows // min_examples} or min_examples to "
            f"{rows // num_clients}."
        )


def _gave_up(alpha: float, num_clients: int, min_examples: int, best: int) -> DataError:
    return DataError(
        f"in {_TRIES} draws of Dir({alpha:g}) over {num_clients} clients the smallest client never had "
        f"more than {best} rows and min_examples is {min_examples}; raise alpha, lower the number of clients"
        + (f" or lower min_examples to {best}." if best else ".")
    )


def _rows_with(labels: Sequence[str], name: str) -> np.ndarray:
    return np.flatnonzero(np.asarray(labels) == name)


def _named(shares: Sequence[np.ndarray]) -> Clients:
    """Name clients "client-0", "client-1", …, padded with zeros so that names sort as numbers do."""
    width = len(str(len(shares) - 1))
    return {f"client-{number:0{width}d}": sorted(int(row) for row in rows) for number, rows in enumerate(shares)}
