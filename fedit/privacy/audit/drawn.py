"""Which rows a run's clients were trained on, and how often: what its log and its seeds say."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from fedit import seeds
from fedit.data.examples import Example, row_id
from fedit.events import Event
from fedit.job import Job
from fedit.store import ClientStore
from fedit.training import batches


class Drawn:
    """Rows by client and round.

    events: of the federation, those of single clients among them; folder: the run's.

    A client takes its rows in an order that the seed gives, going on where it stopped; its events say how many
    steps it took. A log that keeps silent about clients, for privacy's sake, leaves what each of a simulation's
    clients keeps: how many batches it took in all, which then stands for any round. Where clients sample rows
    (privacy=example), every row of one that took part counts once a round.
    """

    def __init__(self, job: Job, events: Sequence[Event], folder: Path) -> None:
        self._job = job
        self._in_all: dict[str, int] = {}
        self._steps: dict[str, dict[int, int]] = {}
        for event in events:
            if event["event"] == "client":
                own = self._steps.setdefault(str(event["client"]), {})
                own[int(str(event["round"]))] = int(float(str(event["steps"])))
        self._rows: dict[str, list[Example]] = {}
        if not self._steps:
            store = ClientStore(folder / "clients")
            found = {client: store.read(client, job.config.num_rounds + 1).batches_seen for client in job.seen}
            self._in_all = {client: seen for client, seen in found.items() if seen}

    def until(self, round: int) -> dict[str, Counter[str]]:
        """Return client -> row id -> how often it was trained on in the rounds up to this one."""
        return {client: self._count(client, 0, round) for client in sorted(self._steps or self._in_all)}

    def within(self, client: str, round: int) -> Counter[str]:
        """Return row id -> how often a client was trained on it in one round."""
        return self._count(client, round - 1, round)

    def _count(self, client: str, after: int, round: int) -> Counter[str]:
        """Count a client's rows in the rounds after ``after`` up to ``round``."""
        steps = self._steps.get(client, {after + 1: self._in_all.get(client, 0)})
        skipped = sum(count for number, count in steps.items() if number <= after)
        taken = sum(count for number, count in steps.items() if after < number <= round)
        rows = self._learnt(client)
        if self._job.config.privacy == "example":
            rounds = sum(after < number <= round and count > 0 for number, count in steps.items())
            return Counter({row_id(row): rounds for row in rows if rounds})
        seed = seeds.derive(self._job.config.seed, "data", client)
        stream = islice(batches(len(rows), self._job.config.batch_size, seed, skipped), taken)
        return Counter(row_id(rows[index]) for batch in stream for index in batch)

    def _learnt(self, client: str) -> list[Example]:
        """Return a client's rows as its worker has them: those with a target, in their order."""
        if client not in self._rows:
            rows = self._job.clients[client]
            learnt = zip(rows, self._job.learnt(rows), strict=True)
            self._rows[client] = [e for e, own in learnt if all(row.supervised.any() for row in own.rows)]
        return self._rows[client]


def total(counts: Mapping[str, Counter[str]]) -> Counter[str]:
    """Return row id -> how often any client was trained on it."""
    return sum(counts.values(), Counter())
