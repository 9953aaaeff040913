"""The server's half of a session: relays keys and letters, adds up masked vectors, takes the masks off their sum.

Pure, without any I/O: it is asked for the questions of a stage, told the answers, and asked for the next stage. An
answer that breaks the rules is refused with `ProtocolError` and its sender has dropped out. Where too few are left
the next stage's questions are refused with `NoUpdates`; the secrets of nobody have been revealed by then.
"""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedit.errors import NoUpdates, ProtocolError
from fedit.privacy.secagg import shamir
from fedit.privacy.secagg.client import common_mask, own_mask
from fedit.privacy.secagg.crypto import KEY, KeyPair, Words, add_keystream, commitment
from fedit.privacy.secagg.graph import enough_neighbours, least_shares, neighbours_of
from fedit.privacy.secagg.messages import (
    MOST_CLIENTS,
    SESSION,
    AskKeys,
    AskMasked,
    AskShares,
    AskUnmask,
    Keys,
    Masked,
    Shares,
    Unmask,
    named,
)

Extras = tuple[tuple[str, tuple[int, ...]], ...]
"""Names, sorted, and shapes of what a strategy's clients send beside their change."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all clients are told of their vectors, see `AskMasked`.

    size: entries of an update, without what follows it; extras: that.
    """

    size: int
    extras: Extras
    limit: float
    bits: int
    heaviest: int
    clip: float | None
    noise: float
    figures: tuple[str, ...]


class Session:
    """One sum.

    threshold:  see `least_shares`; neighbours: of every client; None: as many as are enough.
    least:      survivors without whom there is no sum.
    """

    def __init__(
        self, clients: Sequence[str], *, threshold: float, neighbours: int | None = None, least: int = 2
    ) -> None:
        if len(clients) > MOST_CLIENTS:
            raise NoUpdates(f"{len(clients)} clients are too many for one secure sum; the most is {MOST_CLIENTS}")
        self._id = secrets.token_bytes(SESSION)
        self._clients = sorted(clients)
        self._threshold = threshold
        self._neighbours = neighbours
        self._least = max(least, 2)
        self._keys: dict[str, Keys] = {}
        self._graph: Mapping[str, frozenset[str]] = {}
        self._shares: dict[str, Shares] = {}
        self._terms: Terms | None = None
        self._total: Words | None = None
        self._survivors: set[str] = set()
        self._revealed: dict[str, Unmask] = {}

    @property
    def survivors(self) -> list[str]:
        """Ids of those whose vectors are in the sum, sorted."""
        return sorted(self._survivors)

    # --- keys ---

    def ask_keys(self) -> dict[str, AskKeys]:
        """Return the first questions."""
        self._enough(self._clients)
        return {client: AskKeys(self._id) for client in self._clients}

    def keys(self, client: str, said: object) -> None:
        """Take a client's public keys."""
        found = Keys.read(said)
        _once(client, self._keys, self._clients)
        used = {key for own in self._keys.values() for key in (own.mask_key, own.share_key)}
        if found.mask_key == found.share_key or used & {found.mask_key, found.share_key}:
            raise ProtocolError("its keys are those of somebody else, or one for both purposes")
        self._keys[client] = found

    # --- shares ---

    def ask_shares(self) -> dict[str, AskShares]:
        """Draw the graph of those who sent keys and return what each is asked."""
        self._enough(self._keys)
        count = len(self._keys)
        degree = self._neighbours if self._neighbours is not None else enough_neighbours(count, self._threshold)
        degree = degree if degree >= count - 1 else max(2, degree - degree % 2)
        self._graph = neighbours_of(list(self._keys), degree, secrets.randbits(64))
        return {
            client: AskShares(
                self._id,
                {peer: (self._keys[peer].mask_key, self._keys[peer].share_key) for peer in sorted(peers)},
            )
            for client, peers in self._graph.items()
        }

    def shares(self, client: str, said: object) -> None:
        """Take a client's sealed letters."""
        found = Shares.read(said)
        _once(client, self._shares, self._graph)
        if set(found.sealed) != self._graph[client]:
            raise ProtocolError("its letters are not for its neighbours, one each")
        self._shares[client] = found

    # --- masked vectors ---

    def ask_masked(self, terms: Terms) -> dict[str, AskMasked]:
        """Hand the letters over and return what each client is asked before it trains."""
        self._terms = terms
        self._enough(self._shares)
        self._enough_holders(self._shares, self._shares)
        return {
            client: AskMasked(
                self._id,
                {
                    peer: self._shares[peer].sealed[client]
                    for peer in sorted(self._graph[client] & set(self._shares))
                },
                max(len(self._clients), 2),
                terms.limit,
                terms.bits,
                terms.heaviest,
                terms.clip,
                terms.noise,
                terms.figures,
            )
            for client in self._shares
        }

    def masked(self, client: str, said: object, vector: Words) -> None:
        """Add a client's masked vector, uint64 (entries,), to the sum."""
        found = Masked.read(said)
        _once(client, self._survivors, self._shares)
        if self._terms is None:
            raise ProtocolError("nobody asked for it yet")
        if found.extras != self._terms.extras:
            raise ProtocolError("what it sends beside its change has other names or shapes than its strategy's")
        extras = sum(math.prod(shape) for _, shape in found.extras)
        expected = self._terms.size + extras + len(self._terms.figures)
        if vector.dtype != np.uint64 or vector.shape != (expected,):
            raise ProtocolError(f"its vector is {vector.dtype} {vector.shape}; expected uint64 ({expected},)")
        if self._total is None:
            self._total = vector.copy()
        else:
            np.add(self._total, vector, out=self._total)
        self._survivors.add(client)

    # --- unmasking ---

    def ask_unmask(self) -> dict[str, AskUnmask]:
        """Return what the survivors are asked; here it is decided whether there will be a sum."""
        self._enough(self._survivors)
        self._enough_holders([c for c in self._shares if self._involved(c)], self._survivors)
        asked = {}
        for client in self.survivors:
            members = {client} | (self._graph[client] & set(self._shares))
            asked[client] = AskUnmask(
                self._id,
                named(self._survivors),
                tuple(sorted(members & self._survivors)),
                tuple(sorted(members - self._survivors)),
            )
        return asked

    def unmask(self, client: str, said: object) -> None:
        """Take the shares that a survivor reveals."""
        found = Unmask.read(said)
        _once(client, self._revealed, self._survivors)
        members = {client} | (self._graph[client] & set(self._shares))
        if set(found.seeds) != members & self._survivors or set(found.mask_keys) != members - self._survivors:
            raise ProtocolError("it revealed other shares than it was asked for")
        self._revealed[client] = found

    def total(self) -> Words:
        """Return the sum of the survivors' vectors, uint64 (entries,).

        Raises:
            NoUpdates: too few survivors revealed their shares, or somebody's do not fit what it had announced.
        """
        if self._total is None:
            raise NoUpdates("nobody delivered a masked vector")
        self._enough_holders([c for c in self._shares if self._involved(c)], self._revealed)
        total = self._total
        for client in self.survivors:
            seed = self._restored(
                client, {c: r.seeds[client] for c, r in self._revealed.items() if client in r.seeds}
            )
            if commitment(seed) != self._keys[client].commitment:
                raise NoUpdates(
                    f"the mask of client '{client}' cannot be taken off: its shares are of another seed"
                )
            add_keystream(total, own_mask(seed, self._id), negative=True)
        for client in sorted(set(self._shares) - self._survivors):
            if self._involved(client):
                self._take_off(total, client)
        self._total = None
        return total

    def _take_off(self, total: Words, client: str) -> None:
        """Take the masks off that survivors have in common with a drop-out."""
        held = {c: r.mask_keys[client] for c, r in self._revealed.items() if client in r.mask_keys}
        private = self._restored(client, held)
        if KeyPair.of(private).public != self._keys[client].mask_key:
            raise NoUpdates(f"the masks with client '{client}' cannot be taken off: its shares are of another key")
        for peer in sorted(self._graph[client] & self._survivors):
            key = common_mask(private, self._keys[peer].mask_key, self._id, client, peer)
            add_keystream(total, key, negative=peer < client)

    def _restored(self, client: str, shares: Mapping[str, bytes]) -> bytes:
        """Return a secret of a client from the shares of as many holders as it needs."""
        holders = self._holders(client)
        needed = least_shares(len(holders), self._threshold)
        points = {holders.index(holder) + 1: shares[holder] for holder in sorted(shares)[:needed]}
        try:
            return shamir.restore(points, KEY)
        except ProtocolError as error:
            raise NoUpdates(f"a secret of client '{client}' cannot be restored: {error}") from error

    # --- whether enough are left ---

    def _holders(self, client: str) -> list[str]:
        return sorted([client, *self._graph[client]])

    def _involved(self, client: str) -> bool:
        """Return whether a client that shared has masks in the sum: its own, or one in common with a survivor."""
        return client in self._survivors or bool(self._graph[client] & self._survivors)

    def _enough(self, there: Collection[str]) -> None:
        if len(there) < self._least:
            raise NoUpdates(
                f"secure aggregation: {len(there)} of {len(self._clients)} clients are left and {self._least} are "
                "needed; nothing was revealed"
            )

    def _enough_holders(self, clients: Collection[str], there: Collection[str]) -> None:
        """Make sure that enough of those who hold shares of ``clients`` are still there."""
        present = set(there)
        for client in clients:
            holders = self._holders(client)
            left, needed = len(present.intersection(holders)), least_shares(len(holders), self._threshold)
            if left < needed:
                raise NoUpdates(
                    f"secure aggregation: {left} of the {len(holders)} that hold shares of client '{client}' are "
                    f"left and {needed} are needed; the sum stays masked"
                )


def _once(client: str, there: Collection[str], expected: Collection[str]) -> None:
    if client not in expected:
        raise ProtocolError("it was not asked")
    if client in there:
        raise ProtocolError("it has answered already")
