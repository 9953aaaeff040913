"""The supervisor of a deployment's server: keeps its SuperLink up, its sites known, and its runs going."""

import os
import threading
import time

from fedit.errors import FeditError
from fedit.files import read_json, write_json
from fedit.flower import control
from fedit.flower.children import Kept, end_leftovers, remembered
from fedit.flower.connection import LinkError
from fedit.flower.journal import FILE, Journal, Tell
from fedit.flower.layout import Deployment, check_insecure
from fedit.flower.processes import (
    check_port,
    keep_executor,
    only_supervisor,
    own_address,
    server_executor,
    superlink,
    until_told_to_stop,
)
from fedit.flower.restarts import Restarts

TICK = 0.5
LOOK = 3.0
"""Seconds between two looks at sites and runs."""
PATIENCE = 60.0
"""Seconds in which a SuperLink must answer, at its start and later; then it is started anew."""
LINK_GRACE = 3.0
"""A SuperLink waits for its clients to hang up, which they do not; all it knows is in memory anyway."""


def supervise_server(deployment: Deployment, host: str, port: int | None, tell: Tell) -> None:
    """Run a deployment's server in the foreground until the process is told to end.

    host: address to listen on; port: None: the deployment's own; tell: hears what happens, a line an event.

    Raises:
        ConfigError: another one runs, the port is taken, or others could listen to a server that does not encrypt.
        FeditError: the SuperLink cannot be started at all.
    """
    port = deployment.port if port is None else port
    check_insecure(deployment.insecure, host)
    with only_supervisor(deployment.state, "a server of this deployment"), until_told_to_stop() as told:
        Server(deployment, host, port, Journal(deployment.state / FILE, tell)).run(told)


class Server:
    """The programs of the server's machine, and what is done about their deaths and those of runs."""

    def __init__(self, deployment: Deployment, host: str, port: int, journal: Journal) -> None:
        self._deployment = deployment
        self._host, self._port = host, port
        self._journal = journal
        self._address = own_address(host, port)
        self._file = deployment.state / "server.json"
        self._link = Kept(superlink(deployment, host, port))
        self._executor = Kept(server_executor(deployment, self._address))
        self._ever_up = False
        self._up = False
        self._answered = 0.0
        self._looked = 0.0
        self._sites: dict[str, str] = {}
        self._restarts = Restarts(deployment, journal)

    def run(self, told: threading.Event) -> None:
        """Keep everything running until ``told`` is set, then end it."""
        self._end_leftovers()
        check_port(self._host, self._port)
        try:
            self._start_link()
            while not told.wait(TICK):
                self._keep_link()
                if self._up:
                    keep_executor(self._executor, self._journal, self._note)
                    self._look()
        finally:
            self._journal.say("stopping", "stopping; sites and runs are picked up again at the next start")
            for kept in (self._executor, self._link):
                kept.child.stop(LINK_GRACE)
            self._file.unlink(missing_ok=True)
            self._journal.say("stopped", "stopped")

    # --- processes ---

    def _end_leftovers(self) -> None:
        if self._file.is_file() and (found := end_leftovers(read_json(self._file).get("processes"))):
            self._journal.say(
                "leftovers", f"ended what an earlier server had left behind: {', '.join(found)}", processes=found
            )

    def _start_link(self) -> None:
        self._link.start()
        self._up, self._answered = False, time.monotonic()
        self._note()

    def _keep_link(self) -> None:
        child = self._link.child
        if self._link.waiting:
            if self._link.due:
                self._start_link()
        elif not child.alive:
            if not self._ever_up:
                raise FeditError(
                    f"the SuperLink does not start, it {child.how_it_ended()}: {child.last_line()}. "
                    f"Its log: {child.log}"
                )
            self._lost(child.how_it_ended())
        elif not self._up:
            self._welcome()
        elif time.monotonic() - self._answered > PATIENCE:
            child.stop(LINK_GRACE)
            self._lost(f"did not answer for {PATIENCE:.0f} s and was ended")

    def _lost(self, how: str) -> None:
        """Note the death of the SuperLink; the server's halves of runs know nobody without it and go, too."""
        self._up = False
        pause = self._link.died()
        self._executor.child.stop()
        self._sites = {}
        self._journal.say(
            "superlink_died",
            f"the SuperLink {how}; it is started again in {pause:.0f} s, runs go on from their last whole round",
            pause=pause,
        )

    def _welcome(self) -> None:
        """Greet a SuperLink that answers for the first time."""
        try:
            control.flower_states(self._deployment)
            known = [] if self._deployment.insecure else control.register(self._deployment)
        except LinkError:
            if time.monotonic() - self._answered > PATIENCE:
                self._link.child.stop(LINK_GRACE)
                self._lost(f"did not answer within {PATIENCE:.0f} s of its start and was ended")
            return
        self._up = self._ever_up = True
        self._answered = time.monotonic()
        self._executor.start()
        self._note()
        sites = (
            f"{len(known)} sites may join" if not self._deployment.insecure else "any site may join, unencrypted"
        )
        self._journal.say(
            "superlink_up", f"the SuperLink listens on {self._host}:{self._port}; {sites}", sites=known
        )

    def _note(self) -> None:
        """Write down what commands and a later supervisor need to know."""
        write_json(
            self._file,
            {
                "pid": os.getpid(),
                "host": self._host,
                "port": self._port,
                "address": self._address,
                "insecure": self._deployment.insecure,
                "started": time.time(),
                "processes": remembered([self._link.child, self._executor.child]),
            },
        )

    # --- sites and runs ---

    def _look(self) -> None:
        """Look after sites, runs and logs, now and then."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        try:
            self._look_at_sites()
            self._restarts.look()
            self._answered = time.monotonic()
        except LinkError:
            return  # how long it does not answer is watched elsewhere
        for kept in (self._link, self._executor):
            kept.child.trim_log()

    def _look_at_sites(self) -> None:
        for site in control.nodes(self._deployment):
            if site.state != self._sites.get(site.name, control.NEVER_SEEN):
                self._journal.say(f"site_{site.state}", f"site {site.name} is {site.state}", site=site.name)
            self._sites[site.name] = site.state
