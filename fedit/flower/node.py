"""The supervisor of a site: keeps its worker and its SuperNode running, and joins again whatever happens."""

import os
import re
import socket
import threading
import time
from pathlib import Path

from fedit.errors import ConfigError, FeditError, RunFolderError
from fedit.files import read_json, write_json
from fedit.flower.children import Child, Kept, born, end_leftovers, remembered
from fedit.flower.journal import FILE, Journal, Tell
from fedit.flower.layout import Site
from fedit.flower.processes import (
    free_port,
    keep_executor,
    only_supervisor,
    site_executor,
    site_worker,
    supernode,
    until_told_to_stop,
    worker_socket,
)
from fedit.flower.reach import unreachable

TICK = 0.5
ABSENCE = 65.0
"""Seconds after a SuperNode's last sign of life in which the server takes it to be there, and refuses another."""
RETRY = 5.0
NOTE = 10.0
"""Seconds between two signs of life in ``node.json``."""
LONGEST_WAIT = 5.0
"""Seconds between two looks whether the server can be reached."""
FIRST_PATIENCE = 30.0
"""Seconds for which a SuperNode that was never let in tries: a new server may not know its keys yet."""
JOINED = "SuperNode ID:"
_REFUSED = re.compile(r"\[code: (\d+)\] (.+)")
_NOT_ACTIVATED, _NO_KEY = 2004, 2001


def supervise_node(site: Site, data: Path, tell: Tell, client_by: str | None = None) -> None:
    """Run a site in the foreground until the process is told to end.

    data:      file or folder of the site's rows; tell: hears what happens, a line an event.
    client_by: the field each of whose values is a client; None: the site is one.

    Raises:
        ConfigError: another one runs, or the server will not let this bundle in.
        FeditError: the worker cannot start.
    """
    if not data.exists():
        raise ConfigError(f"--data {data} does not exist.")
    with only_supervisor(site.state, f"site {site.name}"), until_told_to_stop() as told:
        Node(site, data, Journal(site.state / FILE, tell), client_by).run(told)


class Node:
    """The programs of a site's machine, and what is done about their deaths."""

    def __init__(self, site: Site, data: Path, journal: Journal, client_by: str | None = None) -> None:
        self._site = site
        self._journal = journal
        self._socket = worker_socket(site)
        self._file = site.state / "node.json"
        self._worker = Kept(site_worker(site, data, client_by), soon=0.25)
        self._node: Kept | None = None
        self._executor: Kept | None = None
        self._worker_ready = self._worker_ever = False
        self._joined = self._ever_joined = False
        self._refused_since: float | None = None
        self._not_before = self._lingers_until = 0.0
        self._wait = 1.0
        self._outside = ""
        self._noted = 0.0

    def run(self, told: threading.Event) -> None:
        """Keep everything running until ``told`` is set, then end it."""
        self._look_back()
        try:
            self._worker.start()
            self._journal.say("worker_started", "the worker starts")
            while not told.wait(TICK):
                self._keep_worker()
                if self._worker_ever:
                    self._keep_node()
                self._note()
        finally:
            self._stop()

    def _look_back(self) -> None:
        """End what a killed supervisor left behind, and find out how long the server still counts on it."""
        if not self._file.is_file():
            return
        try:
            before = read_json(self._file)
        except RunFolderError:
            return
        found = end_leftovers(before.get("processes"))
        if found:
            self._journal.say(
                "leftovers", f"ended what an earlier start had left behind: {', '.join(found)}", processes=found
            )
        seen = before.get("seen")
        if isinstance(seen, int | float):
            self._lingers_until = time.monotonic() + min(max(seen + ABSENCE - time.time(), 0.0), ABSENCE)
            if "supernode" not in found:
                self._not_before = self._lingers_until

    def _stop(self) -> None:
        self._journal.say("stopping", "stopping; the server is told that this site leaves")
        signed_off = True
        if self._executor is not None:
            self._executor.child.stop()
        if self._node is not None:
            child = self._node.child
            signed_off = not self._joined or _signs_off(child)
            child.stop()
        self._worker.child.stop()
        self._write(seen=None if signed_off else time.time())
        self._journal.say("stopped", "stopped")

    # --- the worker ---

    def _keep_worker(self) -> None:
        child = self._worker.child
        if self._worker.waiting:
            if self._worker.due:
                self._worker.start()
                self._write_now()
        elif not child.alive:
            how = child.how_it_ended()
            if not self._worker_ever:
                kind = ConfigError if child.returncode == 2 else FeditError
                raise kind(f"the site's worker {how}: {child.last_line()}. Its log: {child.log}")
            pause = self._worker.died()
            self._worker_ready = False
            self._journal.say(
                "worker_died",
                f"the worker {how}; it is started again {f'in {pause:.0f} s' if pause > 1 else 'at once'}, "
                "what it was at is sent to it again",
                pause=pause,
            )
        elif not self._worker_ready and _listens(self._socket):
            self._worker_ready = self._worker_ever = True
            self._journal.say("worker_ready", "the worker is ready")

    # --- the SuperNode ---

    def _keep_node(self) -> None:
        if self._node is None:
            self._start_node()
            return
        child = self._node.child
        if not child.alive:
            self._node_died(child)
        elif not self._joined and JOINED in child.printed():
            self._joined = self._ever_joined = True
            self._refused_since, self._wait = None, 1.0
            self._write_now()
            self._journal.say("joined", f"site {self._site.name} has joined {self._site.server}")
        if self._executor is not None:
            keep_executor(self._executor, self._journal, self._write_now)

    def _start_node(self) -> None:
        """Start the SuperNode as soon as the server can be reached and has forgotten an earlier one."""
        if time.monotonic() < self._not_before:
            return
        outside = unreachable(self._site)
        if outside is not None:
            if outside != self._outside:
                text = (
                    f"the server at {self._site.server} cannot be reached ({outside}); trying again until it can"
                )
                self._journal.say("unreachable", text, reason=outside)
            self._outside = outside
            self._not_before = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            return
        self._outside, self._wait = "", 1.0
        port = free_port()
        self._node = Kept(supernode(self._site, port))
        self._executor = Kept(site_executor(self._site, port))
        self._node.start()
        self._executor.start()
        self._write_now()

    def _node_died(self, child: Child) -> None:
        """Find out why the SuperNode ended, and when another may be started."""
        said = None if self._joined else _REFUSED.search(child.printed())
        how, now = child.how_it_ended(), time.monotonic()
        if self._joined:
            # One that did not end by itself told the server nothing, which takes it to be there for a while.
            self._lingers_until = now + ABSENCE
            pause = RETRY if child.returncode == 0 else ABSENCE
        elif said is not None:
            how = f"was refused by the server: {said.group(2)}"
            pause = self._after_refusal(int(said.group(1)), said.group(2))
        else:
            pause = RETRY
        self._forget_node()
        self._not_before = now + pause
        self._journal.say(
            "supernode_died", f"the SuperNode {how}; it is started again in {pause:.0f} s", pause=pause
        )

    def _after_refusal(self, code: int, said: str) -> float:
        """Return the seconds until the next try.

        Raises:
            ConfigError: no waiting will change it.
        """
        if code == _NOT_ACTIVATED:
            if (lingers := self._lingers_until - time.monotonic()) > 0:
                return max(lingers, RETRY)
            self._refused_since = self._refused_since or time.monotonic()
            if self._ever_joined or time.monotonic() - self._refused_since < FIRST_PATIENCE:
                return RETRY  # a server that was just started learns the keys in a moment
        if code in (_NOT_ACTIVATED, _NO_KEY):
            raise ConfigError(
                f"the server at {self._site.server} does not know the key of site {self._site.name}, or another "
                "node uses it: take the bundle that the server's operator made for this site, on one machine only."
            )
        raise ConfigError(f"the server at {self._site.server} refuses site {self._site.name}: {said} ({code}).")

    def _forget_node(self) -> None:
        for kept in (self._executor, self._node):
            if kept is not None:
                kept.child.stop(grace=1.0)
        self._node = self._executor = None
        self._joined = False

    # --- what is written down ---

    def _note(self) -> None:
        """Write a sign of life now and then, and keep logs short."""
        if time.monotonic() - self._noted > NOTE:
            self._write_now()
            for child in self._children():
                child.trim_log()

    def _write_now(self) -> None:
        """Write a sign of life; while the site is away, the last one that the server may still count on."""
        lingers = self._lingers_until - time.monotonic()
        before = time.time() + lingers - ABSENCE if lingers > 0 else None
        self._write(seen=time.time() if self._joined else before)

    def _write(self, seen: float | None) -> None:
        self._noted = time.monotonic()
        write_json(
            self._file,
            {
                "pid": os.getpid(),
                "born": born(os.getpid()),
                "site": self._site.name,
                "server": self._site.server,
                "joined": self._joined,
                "worker_ready": self._worker_ready,
                "seen": seen,
                "updated": time.time(),
                "processes": remembered(self._children()),
            },
        )

    def _children(self) -> list[Child]:
        return [kept.child for kept in (self._worker, self._node, self._executor) if kept is not None]


def node_facts(site: Site) -> dict[str, object]:
    """Return what a site's folder says of its node: whether it runs, has joined, and its worker is ready."""
    path = site.state / "node.json"
    known = read_json(path) if path.is_file() else {}
    pid, birth = known.get("pid"), known.get("born")
    running = isinstance(pid, int) and birth is not None and born(pid) == birth
    return {
        "site": site.name,
        "server": site.server,
        "running": running,
        "joined": running and bool(known.get("joined")),
        "worker_ready": running and bool(known.get("worker_ready")),
        "updated": known.get("updated"),
    }


def _signs_off(child: Child) -> bool:
    """Ask a SuperNode to end; return whether it told the server so."""
    ends = child.alive
    child.stop()
    return ends and "terminated gracefully" in child.printed()


def _listens(path: Path) -> bool:
    """Return whether somebody listens on a local socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
