"""Who takes part in a deployed run: which sites there are, whose clients they hold, and under which node now."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedit.engines.messages import Fields
from fedit.errors import RoundError
from fedit.flower.jobs import REFUSED
from fedit.flower.link import Link, Node, Parcel, Trouble
from fedit.flower.wire import Envelope
from fedit.reading import shown
from fedit.types import ClientInfo, ClientTask

log = logging.getLogger(__name__)

MOST_CLIENTS = 100_000
"""Clients that one site may say it has."""
LONGEST_REASON = 1000
"""Characters of what a site says for itself that are kept."""

Tell = Callable[[str, int, Mapping[str, object]], None]


@dataclass(slots=True)
class Roster:
    """The clients of a run by site.

    question: what a site is asked that was not heard of yet.
    sites:    how many nodes must have answered before the first round begins.
    quorum:   clients whose sites must do the job for it to begin or to go on.
    patience: seconds in which all sites of an interrupted run may come back; then a quorum suffices.
    joining:  seconds after which the wait ends in an error.
    """

    link: Link
    question: Mapping[str, object]
    sites: int
    quorum: int
    patience: float
    joining: float
    tell: Tell
    clock: Callable[[], float]
    _clients: dict[str, tuple[ClientInfo, str]] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict)  # by site
    _asked: dict[str, Node] = field(default_factory=dict)  # by message
    _heard: dict[int, str] = field(default_factory=dict)  # node -> site
    _refused: list[str] = field(default_factory=list)
    _began: bool = False
    _recalled: bool = False

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id, once enough sites are there.

        Raises:
            RoundError: too few sites came in time, or do the job; the message says why not.
        """
        if not self._began:
            self._wait()
            self._began = True
        return [self._clients[client][0] for client in sorted(self._clients)]

    def redescribe(self, describe: Callable[[str, int], ClientInfo]) -> None:
        """Describe every client anew: (client, rows) -> what the server knows of it."""
        known = self._clients.items()
        self._clients = {name: (describe(name, info.num_examples), site) for name, (info, site) in known}

    def table(self) -> dict[str, dict[str, int]]:
        """Return site -> client -> rows: what `recall` needs."""
        found: dict[str, dict[str, int]] = {}
        for client, (info, site) in sorted(self._clients.items()):
            found.setdefault(site, {})[client] = info.num_examples
        return found

    def recall(self, table: Mapping[str, Mapping[str, int]]) -> None:
        """Have the clients of an interrupted run: it need not wait for all of its sites again."""
        self._recalled = True
        for site, own in table.items():
            self._clients |= {client: (ClientInfo(client, rows), site) for client, rows in own.items()}

    def site_of(self, task: ClientTask) -> str:
        """Return the site that holds a task's client."""
        return self._clients[task.client_id][1]

    def node_of(self, site: str) -> Node:
        """Return the node of a site that has been there."""
        return self._nodes[site]

    def online(self) -> set[int]:
        """Return the nodes that are there now."""
        return {node.node_id for node in self.link.nodes() if node.online}

    def offline(self) -> set[str]:
        """Return the sites of the run that are not there now."""
        online, sites = self.online(), {site for _, site in self._clients.values()}
        return {site for site in sites if site not in self._nodes or self._nodes[site].node_id not in online}

    # --- newcomers ---

    @property
    def asked(self) -> Iterable[str]:
        """The messages to newcomers that have no answer yet."""
        return tuple(self._asked)

    def look_around(self) -> None:
        """Ask nodes that are new who their clients are."""
        known = {node.node_id for node in self._asked.values()} | set(self._heard)
        new = [node for node in self.link.nodes() if node.online and node.node_id not in known]
        parcels = [Parcel(node.node_id, "query", self.question, {}, self.joining) for node in new]
        for node, sent in zip(new, self.link.send(parcels) if parcels else [], strict=True):
            if isinstance(sent, str):
                self._asked[sent] = node

    def welcome(self, message_id: str, answer: Envelope | Trouble) -> None:
        """Take in what a newcomer answered."""
        node = self._asked.pop(message_id)
        if isinstance(answer, Trouble):
            log.warning("%s: %s", node.name, answer.reason)
            if not answer.lost:
                self._refuse(node, answer.reason)
            return
        header = answer[0]
        if not node.registered:  # a trial without keys: the site itself says which it is
            node = replace(node, name=str(header.get("site", node.name))[:LONGEST_REASON])
        if (reason := header.get("refused") or header.get("error") or header.get("lost")) is not None:
            self._turn_away(node, str(reason)[:LONGEST_REASON])
            return
        try:
            listed = _read_clients(header)
        except ValueError as error:
            self._turn_away(node, f"its answer cannot be read: {error}")
            return
        self._heard[node.node_id] = node.name
        if self._began or self._recalled:
            self._welcome_back(node)
            return
        for info in listed:
            client = info.client_id
            if client in self._clients and (other := self._clients[client][1]) != node.name:
                raise RoundError(f"sites {other} and {node.name} both have a client '{client}'; names must differ")
            self._clients[client] = (info, node.name)
        self._nodes[node.name] = node
        self.tell("site_joined", 0, {"site": node.name, "clients": len(listed)})

    def _welcome_back(self, node: Node) -> None:
        """Take in a site that comes when the run had begun: one of the run's own, or one that it does not know."""
        if all(site != node.name for _, site in self._clients.values()):
            reason = "came when the run had begun, and takes no part in it"
            self.tell("site_left_out", 0, {"site": node.name, "reason": reason})
            return
        self._nodes[node.name] = node
        self.tell("site_back", 0, {"site": node.name})

    def _turn_away(self, node: Node, reason: str) -> None:
        self._refuse(node, reason)
        self.tell("site_refused", 0, {"site": node.name, "reason": reason})

    def _refuse(self, node: Node, reason: str) -> None:
        self._heard[node.node_id] = node.name
        self._refused.append(f"{node.name}: {reason}")

    # --- the wait ---

    def _wait(self) -> None:
        began = self.clock()
        while not self._enough(waited := self.clock() - began):
            if waited > self.joining:
                wanted = len(self.table()) if self._recalled else self.sites
                raise RoundError(
                    f"{len(self._heard)} of {wanted} sites answered within {self.joining:.0f} s{self._why_not()}"
                )
            self.look_around()
            for message_id, answer in self.link.answers(list(self._asked)):
                self.welcome(message_id, answer)
        able = self._able()
        if able == 0:
            raise RoundError(f"{REFUSED}{self._why_not()}")
        if able < self.quorum:
            raise RoundError(f"min_clients is {self.quorum}, but only {able} clients do this job{self._why_not()}")

    def _enough(self, waited: float) -> bool:
        if not self._recalled:
            return len(self._heard) >= self.sites
        away = set(self.table()) - set(self._heard.values())
        if away and (waited <= self.patience or self._able() < self.quorum):
            return False
        for site in sorted(away):
            self.tell("site_late", 0, {"site": site, "reason": f"did not come back within {waited:.0f} s"})
        return True

    def _able(self) -> int:
        """Return how many clients are at sites that do this job and have been there."""
        return sum(site in self._nodes for _, site in self._clients.values())

    def _why_not(self) -> str:
        return f"; refused: {'; '.join(self._refused)}" if self._refused else ""


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
