"""The engine of a deployment: tasks go to the sites that hold their clients, results come as they are ready."""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedit import tensorfiles
from fedit.engines.messages import BROADCAST_PARTS, Fields, broadcast_sets, join, read_result, split, task_header
from fedit.flower.link import Link, Node, Parcel, Trouble
from fedit.flower.roster import LONGEST_REASON, Roster
from fedit.flower.wire import Envelope
from fedit.reading import shown
from fedit.stacked import stacks
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
    quorum:   clients whose sites must be there before a round begins; it waits for them until its deadline.
    deadline: seconds of a round; None: from the durations of earlier ones.
    together: clients of a site that travel in one message, and may train in one pass.
    tell:     hears (event, round, fields) of what happens to sites.
    """

    link: Link
    run_name: str
    config: Mapping[str, object]
    sites: int
    quorum: int = 1
    deadline: float | None = None
    together: int = 1
    joining: float = FIRST_DEADLINE
    tell: Callable[[str, int, Mapping[str, object]], None] = lambda event, round, fields: None
    clock: Callable[[], float] = time.monotonic
    _roster: Roster = field(init=False)
    _late: dict[str, _Work] = field(default_factory=dict)
    _durations: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin without anybody."""
        self._roster = Roster(
            self.link,
            {"do": "clients", "run": self.run_name, "config": self.config},
            self.sites,
            self.quorum,
            SHORTEST_DEADLINE if self.deadline is None else self.deadline,
            self.joining,
            lambda event, round, fields: self.tell(event, round, fields),
            self.clock,
        )

    @property
    def roster(self) -> Roster:
        """Who takes part."""
        return self._roster

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id, once enough sites have said who they have.

        Raises:
            RoundError: too few sites came in time, or do the job; the message says why not.
        """
        return self._roster.clients()

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks, as soon as it can be had."""
        self._forget_late()
        ends = self.clock() + self._deadline_of(tasks)
        self._wait_for_quorum(tasks, ends)
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

    def _deadline_of(self, tasks: Sequence[ClientTask]) -> float:
        """Return the seconds that some tasks may take; those of one stage take about as long in every round."""
        if self.deadline is not None:
            return self.deadline
        if not (known := self._durations.get(tasks[0].stage if tasks else "")):
            return FIRST_DEADLINE
        return max(SLACK * statistics.median(known), SHORTEST_DEADLINE)

    def _work(self, tasks: Sequence[ClientTask], failed: dict[str, ClientFailure]) -> list[_Work]:
        """Return what goes out, grouped by site; who cannot be asked now is in ``failed``."""
        away = self._away()
        groups: dict[str, list[ClientTask]] = {}
        for task in tasks:
            site = self._roster.site_of(task)
            if site in away:
                failed[task.client_id] = ClientFailure(task.client_id, task.round, away[site])
            else:
                groups.setdefault(site, []).append(task)
        encoded: dict[Same, bytes] = {}
        work = []
        for site, own in groups.items():
            node = self._roster.node_of(site)
            for piece in stacks(len(own), self.together):  # as a simulation stacks them
                chosen = [own[index] for index in piece]
                work.append(_Work(node, chosen, self._parcel(node.node_id, chosen, encoded)))
        return work

    def _away(self) -> dict[str, str]:
        """Return site -> why it can be asked for nothing now."""
        found = {site: f"site {site} is offline" for site in self._roster.offline()}
        for one in self._late.values():
            found[one.node.name] = f"site {one.node.name} is still at work on round {one.tasks[0].round}"
        return found

    def _wait_for_quorum(self, tasks: Sequence[ClientTask], ends: float) -> None:
        """Wait until so many of those who are asked can be, or the round's time is up."""
        while True:
            self._roster.look_around()
            self._forget_late()
            away = self._away()
            there = sum(self._roster.site_of(task) not in away for task in tasks)
            if there >= min(self.quorum, len(tasks)) or self.clock() > ends:
                return
            for message_id, answer in self.link.answers(list(self._roster.asked)):
                self._roster.welcome(message_id, answer)

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
            node_id, "train", {**header, "task_id": identity.hexdigest()}, pieces, 2 * self._deadline_of(tasks)
        )

    def _look(self, work: Sequence[_Work], ends: float) -> None:
        """Send what is due, take in the answers that are there, and give up on what is late."""
        self._send_due(work)
        open_work = [one for one in work if one.results is None]
        waiting = {one.message_id: one for one in open_work if one.message_id is not None}
        for message_id, answer in self.link.answers([*waiting, *self._roster.asked]):
            if message_id not in waiting:
                self._roster.welcome(message_id, answer)
                continue
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
            self._follow_moved(due)
            online = self._roster.online()
            due = [one for one in due if not one.sendings or one.node.node_id in online]
        if due:
            for one, sent in zip(due, self.link.send([one.parcel for one in due]), strict=True):
                one.sendings += 1
                one.sent = self.clock()
                if isinstance(sent, Trouble):
                    self._troubled(one, sent)
                else:
                    one.message_id = sent

    def _follow_moved(self, due: Sequence[_Work]) -> None:
        """Address work to the node that its site has now: without keys a restarted one is another."""
        for one in due:
            if (node := self._roster.node_of(one.node.name)) != one.node:
                one.node, one.parcel = node, replace(one.parcel, node_id=node.node_id)

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
        stage, took = one.tasks[0].stage, self.clock() - one.sent
        self._durations[stage] = [*self._durations.get(stage, []), took][-KEPT_DURATIONS:]
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
