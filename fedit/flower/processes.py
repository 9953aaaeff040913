"""The programs that make a deployment, and the supervisors that keep them running in the foreground."""

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from fedit.errors import ConfigError
from fedit.flower.children import Child, Kept
from fedit.flower.environment import child_environment, messenger_environment, program
from fedit.flower.journal import Journal
from fedit.flower.layout import Deployment, Site, join_address

SITE_WORKER = "fedit.flower.site"
"""Module of a site's resident worker."""
HOME = "flwr"
SOCKET = "worker.sock"
LONGEST_SOCKET = 100
"""Bytes of a local socket's path; systems allow 104 to 108."""


def superlink(deployment: Deployment, host: str, port: int) -> Child:
    """Return Flower's server: it passes messages on and knows who is there; it keeps all in memory."""
    state = deployment.state
    safety = (
        ["--insecure"]
        if deployment.insecure
        else [
            *("--ssl-ca-certfile", str(deployment.ca_crt)),
            *("--ssl-certfile", str(deployment.server_crt)),
            *("--ssl-keyfile", str(deployment.server_key)),
            "--enable-supernode-auth",
        ]
    )
    environment = messenger_environment(state / HOME)
    command = [
        program("flower-superlink", environment),
        *("--host", host, "--port", str(port)),
        *safety,
        "--disable-runtime-dependency-installation",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(_secret(state))),
    ]
    return Child("superlink", command, environment, state / "superlink.log")


def server_executor(deployment: Deployment, address: str) -> Child:
    """Return what starts the server's half of every run.

    A SuperLink starts it by itself otherwise, does not notice its death, and can start no run from then on.
    """
    safety = ["--insecure"] if deployment.insecure else ["--root-certificates", str(deployment.ca_crt)]
    return _executor(deployment.state, address, safety)


def supernode(site: Site, port: int) -> Child:
    """Return Flower's half of a site: it fetches messages and hands them to the site's worker.

    port: on which its own processes reach it, on this machine only.
    """
    state = site.state
    safety = (
        ["--insecure"]
        if site.insecure
        else [
            *("--root-certificates", str(site.ca_crt)),
            *("--auth-supernode-private-key", str(site.node_key)),
        ]
    )
    environment = messenger_environment(state / HOME)
    command = [
        program("flower-supernode", environment),
        *("--superlink", site.server),
        *safety,
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(_secret(state))),
        *("--node-config", f'socket="{worker_socket(site)}" site="{site.name}"'),
    ]
    return Child("supernode", command, environment, state / "supernode.log")


def site_executor(site: Site, port: int) -> Child:
    """Return what starts a process for every message that the site's SuperNode fetched."""
    return _executor(site.state, f"127.0.0.1:{port}", ["--insecure"])


def site_worker(site: Site, data: Path, client_by: str | None = None) -> Child:
    """Return the site's resident worker, which holds the base model and the rows and trains.

    client_by: the field each of whose values is a client; None: the site is one.
    """
    command = [sys.executable, "-m", SITE_WORKER, str(site.folder.absolute()), "--data", str(data.absolute())]
    if client_by is not None:
        command += ["--client-by", client_by]
    return Child("worker", command, child_environment(site.state / HOME), site.state / "worker.log")


def worker_socket(site: Site) -> Path:
    """Return the local socket on which the site's worker listens.

    Raises:
        ConfigError: its path is longer than a socket's may be.
    """
    path = (site.state / SOCKET).absolute()
    if len(os.fsencode(path)) > LONGEST_SOCKET or '"' in str(path):
        raise ConfigError(
            f"{path} cannot be a local socket's path; move the site's folder to a shorter one without quotes."
        )
    return path


@contextmanager
def only_supervisor(state: Path, what: str) -> Iterator[None]:
    """Hold a folder's state while the block lasts; the lock dies with its process.

    Raises:
        ConfigError: another supervisor holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "supervisor.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{what} runs already: another process holds {state}. Stop that one first.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def until_told_to_stop() -> Iterator[threading.Event]:
    """Yield what is set once the process is told to end: Ctrl-C, SIGTERM, or its terminal gone."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), tell) for name in names}
    try:
        yield told
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def check_port(host: str, port: int) -> None:
    """Refuse a port that something listens on.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port."
            ) from error


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address(host: str, port: int) -> str:
    """Return host:port under which this machine reaches a server that listens on ``host``."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return join_address(shown, port)


def _executor(state: Path, address: str, safety: list[str]) -> Child:
    environment = messenger_environment(state / HOME)
    command = [
        program("flower-superexec", environment),
        *("--runtime-api-address", address),
        *safety,
        *("--superexec-auth-secret-file", str(_secret(state))),
    ]
    return Child("superexec", command, environment, state / "superexec.log")


def _secret(state: Path) -> Path:
    """Return the file of the secret that fetching this folder's tasks takes; made where it is missing."""
    path = state / "superexec.secret"
    if not path.is_file():
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path


def keep_executor(kept: Kept, journal: Journal, note: Callable[[], None]) -> None:
    """Have a SuperExec that died started again in a while; ``note`` is called when it was."""
    if kept.waiting:
        if kept.due:
            kept.start()
            note()
    elif not kept.child.alive:
        how = kept.child.how_it_ended()
        pause = kept.died()
        journal.say("superexec_died", f"the SuperExec {how}; it is started again in {pause:.0f} s", pause=pause)
