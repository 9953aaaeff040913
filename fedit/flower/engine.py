"""The engine of a deployment: tasks go to the sites that hold their clients, results come as they are ready."""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedit import tensorfiles
from fedit.engines.messages import BROADCAST_PARTS, Fields, broadcast_sets, join, read_result, split, task_header
from fedit.errors import RoundError
from fedit.flower.link import Link, Node, Parcel, Trouble
from fedit.flower.wire import Envelope
from fedit.reading import shown
from fedit.tensors import can_flatten, flatten
from fedit.types import Broadcast, ClientFailure, ClientInfo, ClientTask, ClientUpdate, Tensors

log = logging.getLogger(__name__)

FIRST_DEADLINE = 3600.0
"""Seconds for a round of which no duration is known yet: the base model is fetched and loaded in it."""
SHORTEST_DEADLINE = 120.0
SLACK = 3.0
"""A round may take so many times the median of earlier ones."""
KEPT_DURATIONS = 20
SENDINGS = 3
"""Times that the same work is sent at most; what a site had finished it answers at once."""
TENSORS = "tensors"
MOST_CLIENTS = 100_000
"""Clients that one site may say it has."""
LONGEST_REASON = 1000
"""Characters of what a site says for itself that are kept."""

Same = tuple[int, ...]


@dataclass(slots=True)
class _Work:
    """Tasks of clients of one site that travel together."""

    node: Node
    tasks: Sequence[ClientTask]
    parcel: Parcel
    message_id: str | None = None
    sendings: int = 0
    sent: float = 0.0
    results: "Sequence[ClientUpdate | ClientFailure] | _Results | None" = None


@dataclass(slots=True)
class Flower:
    """Clients at the sites of a deployment.

    run:      the run's name; config: its settings as JSON values, which the sites' policies see.
    sites:    how many nodes must have answered before the first round begins.
    deadline: seconds of a round; None: from the durations of earlier ones.
    together: clients of a site that travel in one message, and may train in one pass.
    tell:     hears (event, round, fields) of what happens to sites.
    """

    link: Link
    run_name: str
    config: Mapping[str, object]
    sites: int
    deadline: float | None = None
    together: int = 1
    joining: float = FIRST_DEADLINE
    tell: Callable[[str, int, Mapping[str, object]], None] = lambda event, round, fields: None
    clock: Callable[[], float] = time.monotonic
    _clients: dict[str, tuple[ClientInfo, Node]] = field(default_factory=dict)
    _late: dict[str, _Work] = field(default_factory=dict)
    _durations: list[float] = field(default_factory=list)

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id, once enough sites have said who they have.

        Raises:
            RoundError: too few sites came in time, or none of them does the job; the message says why not.
        """
        if not self._clients:
            self._join()
        return [self._clients[client][0] for client in sorted(self._clients)]

    def redescribe(self, describe: Callable[[str, int], ClientInfo]) -> None:
        """Describe every client anew: (client, rows) -> what the server knows of it."""
        known = self._clients.items()
        self._clients = {name: (describe(name, info.num_examples), node) for name, (info, node) in known}

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks, as soon as it can be had."""
        self._forget_late()
        ends = self.clock() + self._round_deadline()
        failed: dict[str, ClientFailure] = {}
        work = self._work(tasks, failed)
        place = {task.client_id: (one, index) for one in work for index, task in enumerate(one.tasks)}
        for task in tasks:
            if task.client_id in failed:
                yield failed[task.client_id]
                continue
            one, index = place[task.client_id]
            while one.results is None:
                self._look(work, ends)
            yield one.results[index]

    # --- who is there ---

    def _join(self) -> None:
        ends = self.clock() + self.joining
        asked: dict[str, Node] = {}
        heard: dict[int, str] = {}
        refused: list[str] = []
        while len(heard) < self.sites:
            if self.clock() > ends:
                raise RoundError(
                    f"{len(heard)} of {self.sites} sites answered within {self.joining:.0f} s"
                    + (f"; refused: {'; '.join(refused)}" if refused else "")
                )
            under_way = {node.node_id for node in asked.values()}
            new = [
                n for n in self.link.nodes() if n.online and n.node_id not in heard and n.node_id not in under_way
            ]
            question = {"do": "clients", "run": self.run_name, "config": self.config}
            parcels = [Parcel(node.node_id, "query", question, {}, self.joining) for node in new]
            for node, sent in zip(new, self.link.send(parcels) if parcels else [], strict=True):
                if isinstance(sent, str):
                    asked[sent] = node
            for message_id, answer in self.link.answers(list(asked)):
                node = asked.pop(message_id)
                self._welcome(node, answer, heard, refused)
        if not self._clients:
            raise RoundError(f"no site does this job: {'; '.join(refused)}")

    def _welcome(self, node: Node, answer: Envelope | Trouble, heard: dict[int, str], refused: list[str]) -> None:
        if isinstance(answer, Trouble):
            log.warning("%s: %s", node.name, answer.reason)
            if not answer.lost:
                heard[node.node_id] = node.name
                refused.append(f"{node.name}: {answer.reason}")
            return
        heard[node.node_id] = node.name
        header = answer[0]
        if (reason := header.get("refused") or header.get("error") or header.get("lost")) is not None:
            told = str(reason)[:LONGEST_REASON]
            refused.append(f"{node.name}: {told}")
            self.tell("site_refused", 0, {"site": node.name, "reason": told})
            return
        try:
            found = _read_clients(header)
        except ValueError as error:
            refused.append(f"{node.name}: its answer cannot be read: {error}")
            self.tell("site_refused", 0, {"site": node.name, "reason": f"its answer cannot be read: {error}"})
            return
        for client in found:
            if client.client_id in self._clients:
                other = self._clients[client.client_id][1].name
                raise RoundError(
                    f"sites {other} and {node.name} both have a client '{client.client_id}'; names must differ"
                )
            self._clients[client.client_id] = (client, node)
        self.tell("site_joined", 0, {"site": node.name, "clients": len(found)})

    # --- a round ---

    def _round_deadline(self) -> float:
        if self.deadline is not None:
            return self.deadline
        if not self._durations:
            return FIRST_DEADLINE
        return max(SLACK * statistics.median(self._durations), SHORTEST_DEADLINE)

    def _work(self, tasks: Sequence[ClientTask], failed: dict[str, ClientFailure]) -> list[_Work]:
        """Return what goes out, grouped by site; who cannot be asked now is in ``failed``."""
        online = {node.node_id: node.online for node in self.link.nodes()}
        busy = {one.node.node_id: one.tasks[0].round for one in self._late.values()}
        groups: dict[int, list[ClientTask]] = {}
        nodes: dict[int, Node] = {}
        for task in tasks:
            node = self._clients[task.client_id][1]
            if (round := busy.get(node.node_id)) is not None:
                reason = f"site {node.name} is still at work on round {round}"
            elif not online.get(node.node_id, False):
                reason = f"site {node.name} is offline"
            else:
                nodes[node.node_id] = node
                groups.setdefault(node.node_id, []).append(task)
                continue
            failed[task.client_id] = ClientFailure(task.client_id, task.round, reason)
        encoded: dict[Same, bytes] = {}
        work = []
        for node_id, own in groups.items():
            for start in range(0, len(own), self.together):
                chosen = own[start : start + self.together]
                work.append(_Work(nodes[node_id], chosen, self._parcel(node_id, chosen, encoded)))
        return work

    def _parcel(self, node_id: int, tasks: Sequence[ClientTask], encoded: dict[Same, bytes]) -> Parcel:
        """Return the message of some tasks; a broadcast that several share is encoded once a round."""
        pieces: dict[str, bytes] = {}
        names: dict[Same, str] = {}
        headers = []
        for task in tasks:
            own = _sameness(task.broadcast)
            if own not in names:
                if own not in encoded:
                    encoded[own] = _encode(task.broadcast)
                names[own] = f"broadcast-{len(names)}"
                pieces[names[own]] = encoded[own]
            headers.append({**task_header(task), "broadcast": names[own]})
        header = {"do": "train", "run": self.run_name, "config": self.config, "tasks": headers}
        identity = hashlib.sha256(json.dumps([header, self.run_name], sort_keys=True).encode())
        for piece in pieces.values():
            identity.update(piece)
        return Parcel(
            node_id, "train", {**header, "task_id": identity.hexdigest()}, pieces, 2 * self._round_deadline()
        )

    def _look(self, work: Sequence[_Work], ends: float) -> None:
        """Send what is due, take in the answers that are there, and give up on what is late."""
        self._send_due(work)
        open_work = [one for one in work if one.results is None]
        waiting = {one.message_id: one for one in open_work if one.message_id is not None}
        for message_id, answer in self.link.answers(list(waiting)):
            one = waiting[message_id]
            if isinstance(answer, Trouble):
                self._troubled(one, answer)
            else:
                self._answered(one, answer)
        if self.clock() > ends:
            for one in open_work:
                if one.results is None:
                    one.results = _all_failed(one.tasks, f"site {one.node.name} did not answer in time")
                    if one.message_id is not None:
                        self._late[one.message_id] = one
                    self.tell("site_late", one.tasks[0].round, {"site": one.node.name})

    def _send_due(self, work: Sequence[_Work]) -> None:
        due = [one for one in work if one.results is None and one.message_id is None]
        if any(one.sendings for one in due):  # what got lost waits until its site is there again
            online = {node.node_id for node in self.link.nodes() if node.online}
            due = [one for one in due if not one.sendings or one.node.node_id in online]
        if due:
            for one, sent in zip(due, self.link.send([one.parcel for one in due]), strict=True):
                one.sendings += 1
                one.sent = self.clock()
                if isinstance(sent, Trouble):
                    self._troubled(one, sent)
                else:
                    one.message_id = sent

    def _troubled(self, one: _Work, trouble: Trouble) -> None:
        """Have lost work sent again, which is due as soon as it has no message; else it failed."""
        one.message_id = None
        again = trouble.lost and one.sendings < SENDINGS
        self._tell_trouble(one, trouble.reason, again=again)
        if not again:
            one.results = _all_failed(one.tasks, f"site {one.node.name}: {trouble.reason}")

    def _answered(self, one: _Work, answer: Envelope) -> None:
        header = answer[0]
        for kind in ("refused", "error", "lost"):
            if kind in header:
                told = str(header[kind])[:LONGEST_REASON]
                one.results = _all_failed(one.tasks, f"site {one.node.name}: {told}")
                self._tell_trouble(one, told, again=False)
                return
        try:
            one.results = _Results(one.node.name, one.tasks, answer)
        except ValueError as error:
            one.results = _all_failed(one.tasks, f"site {one.node.name}: its answer cannot be read: {error}")
            return
        took = self.clock() - one.sent
        self._durations = [*self._durations, took][-KEPT_DURATIONS:]
        log.info("site %s answered in round %d after %.1f s", one.node.name, one.tasks[0].round, took)

    def _tell_trouble(self, one: _Work, reason: str, *, again: bool) -> None:
        self.tell("site_trouble", one.tasks[0].round, {"site": one.node.name, "reason": reason, "again": again})

    def _forget_late(self) -> None:
        """Take in and drop answers to earlier rounds: nothing counts twice, and those sites are free again."""
        for message_id, _ in self.link.answers(list(self._late)) if self._late else ():
            one = self._late.pop(message_id)
            self.tell("site_back", one.tasks[0].round, {"site": one.node.name})


def _sameness(broadcast: Broadcast) -> Same:
    """Return what two broadcasts share whose tensors are the same objects."""
    return tuple(id(held) if (held := getattr(broadcast, part)) else 0 for part in BROADCAST_PARTS)


def _encode(broadcast: Broadcast) -> bytes:
    return tensorfiles.encode({TENSORS: join(broadcast_sets(broadcast))}, {})


def read_piece(piece: bytes) -> dict[str, Tensors]:
    """Return the sets in a piece, flat where they can be.

    Raises:
        ValueError: it is damaged.
    """
    parts, _ = tensorfiles.decode(piece, (TENSORS,))
    return {part: flatten(own) if can_flatten(own) else own for part, own in split(dict(parts[TENSORS])).items()}


def _read_clients(header: Mapping[str, object]) -> list[ClientInfo]:
    """Return the clients that a site says it has.

    Raises:
        ValueError: they cannot be read, one stands twice, or there are more than any site has.
    """
    listed = header.get("clients")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_CLIENTS:
        raise ValueError(f"clients is {shown(listed)}; expected a list of 1 to {MOST_CLIENTS:,}")
    fields = [Fields.of(one, "a client") for one in listed]
    found = [ClientInfo(one.text("client_id"), one.whole("num_examples")) for one in fields]
    if len({client.client_id for client in found}) < len(found):
        raise ValueError("a client stands twice")
    return found


class _Results:
    """The results in an answer, each read when its turn comes: until then they are not in memory.

    Raises:
        ValueError: it is no answer to what was asked.
    """

    def __init__(self, site: str, tasks: Sequence[ClientTask], answer: Envelope) -> None:
        header, self._pieces = answer
        self._site, self._tasks = site, tasks
        headers = header.get("results")
        if not isinstance(headers, list) or len(headers) != len(tasks):
            raise ValueError(f"results is {shown(headers)}; expected a list of {len(tasks)}")
        self._headers = headers
        for task, own in zip(tasks, headers, strict=True):
            fields = Fields.of(own, "a result")
            told = (fields.text("client_id"), fields.whole("round"))
            if told != (task.client_id, task.round):
                raise ValueError(f"a result of {shown(told[0])} in round {told[1]} where another was asked for")

    def __getitem__(self, index: int) -> ClientUpdate | ClientFailure:
        """Return one result; one that cannot be read is a failure."""
        name = str(index)
        try:
            parts = read_piece(self._pieces[name]) if name in self._pieces else {}
            return read_result(self._headers[index], join(parts))
        except ValueError as error:
            return _all_failed(self._tasks, f"site {self._site}: its answer cannot be read: {error}")[index]


def _all_failed(tasks: Sequence[ClientTask], reason: str) -> list[ClientUpdate | ClientFailure]:
    return [ClientFailure(task.client_id, task.round, reason) for task in tasks]
