"""A deployed run on the server: loop, checkpoints and report of any run, over clients that are elsewhere."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from fedit.arms import FEDERATED, Arm
from fedit.compute import Here, OnStep
from fedit.config import RunConfig
from fedit.corpus import load_corpus
from fedit.data.examples import Corpus
from fedit.engines.base import Engine
from fedit.events import EventLog, Listener
from fedit.files import read_json, remove_leftovers, write_json, write_text
from fedit.flower.engine import Flower
from fedit.job import Job
from fedit.launch import Result, check_same, go
from fedit.prepare import assemble_server
from fedit.runfolder import (
    check_writable,
    environment,
    identity_of,
    only_worker,
    read_identity,
    read_summary,
    to_yaml,
)

SITES = "sites.json"
"""Site -> client -> rows, as they were when the run began."""
NO_ROWS = Corpus("rows of the sites", ())


class Deployed(Here):
    """The server's half of the work: clients train at their sites, evaluations run here."""

    def __init__(self, job: Job, engine: Flower, news: "SiteNews") -> None:
        super().__init__(job)
        self._engine = engine
        self._news = news

    def engine(self, arm: Arm, folder: Path, on_step: OnStep) -> Engine:
        """Return where the arm's clients train."""
        self._news.keep()
        return self._engine


class SiteNews:
    """What happens to sites: told at once, and written once what a killed run left in its events is gone."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._waiting: list[tuple[str, int, Mapping[str, object]]] | None = []

    def tell(self, event: str, round: int, fields: Mapping[str, object]) -> None:
        """Tell the listener; from `keep` on, write it as well."""
        if self._waiting is None:
            self._log.write(event, round, **fields)
            return
        self._waiting.append((event, round, fields))
        self._log.tell(event, round, **fields)

    def keep(self) -> None:
        """Write what was only told yet, and all that follows."""
        waiting, self._waiting = self._waiting or [], None
        for event, round, fields in waiting:
            self._log.write(event, round, **fields)


def run_deployed(
    config: RunConfig,
    folder: Path,
    held_out: Path | None,
    engine: Callable[[RunConfig], Flower],
    listener: Listener,
) -> Result:
    """Begin a run, or go on with the one in ``folder``; a finished one is returned as it is.

    held_out: a file of rows, which the server measures on; None: it measures nothing.
    engine:   settings -> the connection to the sites.

    Raises:
        RunFolderError: settings, rows or model changed since the run began.
        UserError: settings, data or model cannot work.
        RoundError: too few sites came, or delivered.
    """
    check_writable(folder)
    if (finished := read_summary(folder)) is not None:
        return Result(folder, finished)
    rows = NO_ROWS if held_out is None else held_out_rows(config, held_out)
    with only_worker(folder):
        remove_leftovers(folder)
        sites = engine(config)
        news = SiteNews(EventLog(folder, listener, arm=FEDERATED))
        sites.tell = news.tell
        if (folder / "run.json").is_file() and (folder / SITES).is_file():
            sites.roster.recall(read_json(folder / SITES))
        sizes = {client.client_id: client.num_examples for client in sites.clients()}
        job = assemble_server(config, sizes, rows)
        sites.roster.redescribe(job.client_info)
        if (folder / "run.json").is_file():
            check_same(job, folder, read_identity(folder))
        else:
            write_json(folder / SITES, sites.roster.table())
            write_text(folder / "resolved.yaml", to_yaml(job.config))
            write_json(folder / "environment.json", environment())
            job.partition.save(folder / "partition.json")
            write_json(folder / "run.json", identity_of(job))
        with closing(job):
            return go(job, Deployed(job, sites, news), folder, listener, expect=False)


def held_out_rows(config: RunConfig, path: Path) -> Corpus:
    """Return the rows of a file, read as the job reads its data."""
    return load_corpus(
        config.model_copy(update={"dataset": str(path), "partition_by": None, "max_examples": None})
    )
