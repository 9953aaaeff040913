"""Secure aggregation: what clients and a server say to each other, read alone and in whole sessions."""

import json
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from fedit.errors import NoUpdates, ProtocolError
from fedit.privacy.secagg import client as ours
from fedit.privacy.secagg import messages
from fedit.privacy.secagg.client import Session as Client
from fedit.privacy.secagg.messages import AskKeys, AskMasked, AskShares, AskUnmask, Masked, Message, Unmask
from fedit.privacy.secagg.server import Session, Terms
from fuzz.target import Target, promise, table_of

CLIENTS = ("a", "b", "c")
THRESHOLD = 0.5
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__subclasses__()}
_TERMS = Terms(3, (), 1.0, 32, 1, None, 0.0, ())
_KEY, _OTHER = "A" * 43 + "=", "B" * 42 + "A="


@cache
def _messages() -> list[bytes]:
    sealed = messages._plain(bytes(messages.SEALED))
    share = messages._plain(bytes(messages.ELEMENT))
    session = messages._plain(bytes(messages.SESSION))
    said: dict[str, object] = {
        "AskKeys": {"session": session},
        "Keys": {"mask_key": _KEY, "share_key": _OTHER, "commitment": _KEY},
        "AskShares": {"session": session, "peers": {"b": [_KEY, _OTHER]}},
        "Shares": {"sealed": {"b": sealed}},
        "AskMasked": {
            "session": session, "sealed": {"b": sealed}, "clients": 3, "limit": 1.0, "bits": 32, "heaviest": 1,
            "clip": None, "noise": 0.5, "figures": ["loss", "weight"],
        },
        "Masked": {"extras": [["m.B", [2, 3]]]},
        "AskUnmask": {"session": session, "cohort": _KEY, "survivors": ["a", "b"], "dropped": []},
        "Unmask": {"seeds": {"b": share}, "mask_keys": {}},
    }  # fmt: skip
    for kind, example in said.items():
        KINDS[kind].read(example)
    return [json.dumps({"kind": kind, "said": example}).encode() for kind, example in said.items()]


def _message(data: bytes) -> None:
    table = table_of(data)
    kind = KINDS.get(str(table.get("kind")))
    if kind is None:
        raise ProtocolError("no such kind")
    found = kind.read(table.get("said"))
    promise(
        kind.read(json.loads(json.dumps(found.as_json()))) == found, "a message that is another when read again"
    )


def _session(data: bytes) -> None:
    """A session in which what is said, both ways, is changed: ``{stage: {client: {field: value}}}``."""
    Play(table_of(data)).on()


class Play:
    """A server and three clients; who breaks the rules has dropped out, as in a run."""

    def __init__(self, changes: Mapping[str, object]) -> None:
        self._changes = changes
        self._server = Session(CLIENTS, threshold=THRESHOLD)
        self._clients: dict[str, Client] = {}
        self._masked: dict[str, np.ndarray] = {}
        self._vectors = {name: np.arange(3, dtype=np.uint64) + ord(name) for name in CLIENTS}

    def on(self) -> None:
        server = self._server
        self._stage("keys", AskKeys, server.ask_keys(), self._begin, server.keys)
        self._stage("shares", AskShares, server.ask_shares(), self._hand_out, server.shares)
        self._stage("masked", AskMasked, server.ask_masked(_TERMS), self._mask, self._take)
        self._stage("unmask", AskUnmask, server.ask_unmask(), self._reveal, server.unmask)
        total = server.total()
        if not self._changes:
            promise(bool((total == sum(self._vectors.values())).all()), "a sum that is not that of the vectors")

    def _stage(
        self,
        name: str,
        kind: type[Message],
        asked: Mapping[str, Message],
        answer: Callable[[str, Message], Message],
        take: Callable[[str, object], None],
    ) -> None:
        for client in sorted(asked):
            try:
                question = kind.read(self._changed(f"ask_{name}", client, asked[client]))
                take(client, self._changed(name, client, answer(client, question)))
            except ProtocolError:
                self._clients.pop(client, None)

    def _changed(self, stage: str, client: str, said: Message) -> object:
        of_stage = self._changes.get(stage)
        change = of_stage.get(client, {}) if isinstance(of_stage, Mapping) else {}
        return {**said.as_json(), **change} if isinstance(change, Mapping) else change

    def _begin(self, client: str, asked: Message) -> Message:
        assert isinstance(asked, AskKeys)
        self._clients[client], keys = ours.begin(client, 1, asked)
        return keys

    def _hand_out(self, client: str, asked: Message) -> Message:
        assert isinstance(asked, AskShares)
        self._clients[client], shares = ours.hand_out(self._there(client), asked, THRESHOLD)
        return shares

    def _mask(self, client: str, asked: Message) -> Message:
        assert isinstance(asked, AskMasked)
        accepted = ours.accept(self._there(client), asked, THRESHOLD)
        self._masked[client] = self._vectors[client].copy()
        self._clients[client] = ours.mask(accepted, self._masked[client])
        return Masked(())

    def _take(self, client: str, said: object) -> None:
        self._server.masked(client, said, self._masked[client])

    def _reveal(self, client: str, asked: Message) -> Message:
        assert isinstance(asked, AskUnmask)
        self._clients[client], answer = ours.reveal(self._there(client), asked, THRESHOLD)
        assert isinstance(answer, Unmask)
        promise(not set(answer.seeds) & set(answer.mask_keys), "both secrets of one client are revealed")
        return answer

    def _there(self, client: str) -> Client:
        if client not in self._clients:
            raise ProtocolError("it has dropped out")
        return self._clients[client]


_PLAYS = (
    b"{}",
    b'{"ask_unmask": {"a": {"survivors": ["a", "b"], "dropped": ["c"]}}}',
    b'{"masked": {"c": null}, "shares": {"b": {"sealed": {}}}}',
    b'{"ask_shares": {"a": {"peers": {}}}, "ask_masked": {"b": {"sealed": {}, "clients": 2}}}',
    b'{"keys": {"a": {"mask_key": "' + _KEY.encode() + b'"}}, "unmask": {"c": {"seeds": {}, "mask_keys": {}}}}',
)

TARGETS = [
    Target("secagg_message", ("fedit.privacy.secagg.messages",), _message, _messages, (ProtocolError,), "json"),
    Target(
        "secagg_session",
        ("fedit.privacy.secagg.server", "fedit.privacy.secagg.client"),
        _session,
        lambda: _PLAYS,
        (NoUpdates,),
        "json",
    ),
]
