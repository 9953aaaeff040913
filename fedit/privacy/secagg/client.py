"""A client's half of a session: keys, shares, a masked vector, and the shares of others; pure, without any I/O.

Every stage is answered once. What a client reveals about another is a share of its seed or one of its key, never
both; so the server can take away a survivor's own mask or a drop-out's common ones, and nobody's both.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fedit.errors import ProtocolError
from fedit.privacy.secagg import shamir
from fedit.privacy.secagg.crypto import KEY, KeyPair, Words, add_keystream, agree, commitment, derive, seal, unseal
from fedit.privacy.secagg.graph import least_shares
from fedit.privacy.secagg.messages import (
    AskKeys,
    AskMasked,
    AskShares,
    AskUnmask,
    Keys,
    Shares,
    Unmask,
)
from fedit.privacy.secagg.shamir import ELEMENT


@dataclass(frozen=True, slots=True)
class Session:
    """What a client keeps of a session between its stages. Secrets are forgotten as soon as they have served.

    stage:     the last one that was answered.
    mask_key, share_key: its private keys; seed: of its own mask.
    peers:     neighbour -> its public keys [mask_key, share_key].
    held:      itself and every neighbour that it has a common mask with -> the letter with their shares.
    """

    client_id: str
    session: bytes
    round: int
    stage: str
    mask_key: bytes = b""
    share_key: bytes = b""
    seed: bytes = b""
    peers: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)
    held: Mapping[str, bytes] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return the fields, bytes in hexadecimal."""
        return {
            **{name: getattr(self, name).hex() for name in _SECRETS},
            "client_id": self.client_id,
            "round": self.round,
            "stage": self.stage,
            "peers": {peer: [key.hex() for key in keys] for peer, keys in self.peers.items()},
            "held": {holder: letter.hex() for holder, letter in self.held.items()},
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Return what `as_json` wrote; KeyError, TypeError or ValueError where it did not."""
        return cls(
            client_id=str(said["client_id"]),
            round=int(said["round"]),
            stage=str(said["stage"]),
            peers={p: (bytes.fromhex(a), bytes.fromhex(b)) for p, (a, b) in said["peers"].items()},
            held={holder: bytes.fromhex(letter) for holder, letter in said["held"].items()},
            **{name: bytes.fromhex(said[name]) for name in _SECRETS},
        )


_SECRETS = ("session", "mask_key", "share_key", "seed")


def begin(client_id: str, round: int, asked: AskKeys) -> tuple[Session, Keys]:
    """Make fresh keys; whatever an earlier session left is forgotten with it."""
    mask_key, share_key, seed = KeyPair.new(), KeyPair.new(), secrets.token_bytes(KEY)
    session = Session(client_id, asked.session, round, "keys", mask_key.private, share_key.private, seed)
    return session, Keys(mask_key.public, share_key.public, commitment(seed))


def hand_out(session: Session, asked: AskShares, threshold: float) -> tuple[Session, Shares]:
    """Share the secrets among itself and its neighbours, sealed for each.

    threshold: see `least_shares`.

    Raises:
        ProtocolError: this is not the time, or there are too few neighbours.
    """
    _expect(session, asked.session, "keys")
    own = session.client_id
    if own in asked.peers:
        raise ProtocolError("a client is no neighbour of its own")
    keys = [key for pair in asked.peers.values() for key in pair]
    if len(set(keys)) < len(keys):
        raise ProtocolError("two neighbours have the same key")
    holders = sorted([own, *asked.peers])
    needed = least_shares(len(holders), threshold)
    if len(holders) < needed:
        raise ProtocolError(f"{len(holders)} clients are too few to hide one of them")
    of_key = shamir.share(session.mask_key, len(holders), needed)
    of_seed = shamir.share(session.seed, len(holders), needed)
    letters = {holder: of_key[place] + of_seed[place] for place, holder in enumerate(holders)}
    sealed = {
        peer: seal(_letter_key(session, peer, public), letters[peer], _about(session, own, peer))
        for peer, (_, public) in asked.peers.items()
    }
    after = replace(session, stage="shares", peers=dict(asked.peers), held={own: letters[own]})
    return after, Shares(sealed)


def accept(session: Session, asked: AskMasked, threshold: float) -> Session:
    """Take the letters of the neighbours that will be in the sum; do it before training.

    Raises:
        ProtocolError: this is not the time, a letter is not what it should be, or too few are left.
    """
    _expect(session, asked.session, "shares")
    if unknown := set(asked.sealed) - set(session.peers):
        raise ProtocolError(f"{_first(unknown)} is no neighbour")
    needed = least_shares(len(session.peers) + 1, threshold)
    if len(asked.sealed) + 1 < needed:
        raise ProtocolError(f"{len(asked.sealed) + 1} clients are left; at least {needed} are needed")
    own = session.client_id
    held = dict(session.held)
    for peer, letter in asked.sealed.items():
        key = _letter_key(session, peer, session.peers[peer][1])
        held[peer] = unseal(key, letter, _about(session, peer, own))
    return replace(session, stage="accepted", share_key=b"", held=held)


def mask(session: Session, vector: Words) -> Session:
    """Add the own mask and those with neighbours to a vector, in place; the keys of the masks are then forgotten.

    Raises:
        ProtocolError: this is not the time: the same masks would hide a second vector.
    """
    if session.stage != "accepted":
        raise ProtocolError("a vector is masked once in a session")
    own = session.client_id
    add_keystream(vector, own_mask(session.seed, session.session))
    for peer in session.held:
        if peer != own:
            key = common_mask(session.mask_key, session.peers[peer][0], session.session, own, peer)
            add_keystream(vector, key, negative=peer < own)
    return replace(session, stage="masked", mask_key=b"", seed=b"")


def reveal(session: Session, asked: AskUnmask, threshold: float) -> tuple[Session, Unmask]:
    """Reveal a share of every survivor's seed and of every drop-out's key; afterwards nothing is kept.

    Raises:
        ProtocolError: this is not the time, or the server does not say of everybody one of the two, or it has
            too few survivors, or does not count this client among them.
    """
    _expect(session, asked.session, "masked")
    survivors, dropped = set(asked.survivors), set(asked.dropped)
    if both := survivors & dropped:
        raise ProtocolError(f"{_first(both)} is said to have survived and to have dropped out")
    if survivors | dropped != set(session.held) or session.client_id not in survivors:
        raise ProtocolError("those who survived and who dropped out are not those whose shares are here")
    needed = least_shares(len(session.peers) + 1, threshold)
    if len(survivors) < needed:
        raise ProtocolError(f"{len(survivors)} clients survived; at least {needed} are needed")
    answer = Unmask(
        {client: session.held[client][ELEMENT:] for client in sorted(survivors)},
        {client: session.held[client][:ELEMENT] for client in sorted(dropped)},
    )
    return replace(session, stage="unmask", peers={}, held={}), answer


def own_mask(seed: bytes, session: bytes) -> bytes:
    """Return the key of the mask that a client has for itself."""
    return derive(seed, "own mask", session.hex())


def common_mask(private: bytes, public: bytes, session: bytes, one: str, other: str) -> bytes:
    """Return the key of the mask that two clients have in common."""
    return agree(private, public, "common mask", session.hex(), *sorted((one, other)))


def _letter_key(session: Session, peer: str, public: bytes) -> bytes:
    pair = sorted((session.client_id, peer))
    return agree(session.share_key, public, "letter", session.session.hex(), *pair)


def _about(session: Session, sender: str, receiver: str) -> bytes:
    """Return what a letter is bound to: its session, its sender, its receiver."""
    return b"".join([session.session, *(len(one).to_bytes(2, "big") + one for one in _encoded(sender, receiver))])


def _encoded(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def _expect(session: Session, asked: bytes, stage: str) -> None:
    if asked != session.session:
        raise ProtocolError("the question belongs to another session")
    if session.stage != stage:
        raise ProtocolError(f"this stage follows '{stage}', and this client is at '{session.stage}'")


def _first(names: Collection[str]) -> str:
    return min(names)
