"""A tuned model behind ``transformers serve``: an OpenAI-compatible endpoint that only this machine reaches."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedit.errors import ConfigError, ServeError
from fedit.export.formats import Options
from fedit.export.write import export
from fedit.model.sources import check_folder

HOST = "127.0.0.1"
_SERVE = "from transformers.cli.transformers import main; main()"
_SECONDS_TO_END = 10


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers.

    address: base URL for OpenAI clients; model: what requests call the model.
    """

    address: str
    model: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            ServeError: it did so by itself.
        """
        code = self.process.wait()
        raise ServeError(f"the server ended with exit code {code}.\n{_tail(self.log)}")


@contextmanager
def serving(
    run: Path,
    *,
    port: int,
    name: str | None = None,
    device: str = "auto",
    model: str | None = None,
    template: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Endpoint]:
    """Yield a server of the tuned model in ``run`` once it answers; it ends with the block.

    run:  a run, an arm of one, a PEFT folder, or a folder that ``fedit export --to merged`` wrote. All but the
          last are merged into a temporary folder first.
    port: 0 takes any that is free.
    name: what requests call the model; None: as its folder is called.

    Raises:
        ConfigError: the port is taken, or the server's packages are not installed.
        ServeError: the server does not start.
    """
    _check_installed()
    free = _free_port(port)
    with tempfile.TemporaryDirectory(prefix="fedit-serve-") as scratch:
        own = _safe(name or run.resolve().name)
        home = Path(scratch) / own
        if (run / "config.json").is_file():
            check_folder(run)
            _link(run.resolve(), home)
        else:
            export(run, "merged", home, options=Options(), model=model, template=template, say=say)
        say("starting the server")
        endpoint = _start(Path(scratch), own, free, device)
        try:
            _wait_until_it_answers(endpoint, free)
            yield endpoint
        finally:
            end(endpoint.process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server, gently first."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start(scratch: Path, name: str, port: int, device: str) -> Endpoint:
    # Requests name the model as the server knows it: a folder where it runs, no path of this machine.
    where = ["--host", HOST, "--port", str(port), "--device", device]
    command = [sys.executable, "-c", _SERVE, "serve", name, *where]
    cache, log = scratch / "hub", scratch / "serve.log"
    cache.mkdir()
    # The list of models is what lies in the hub's cache: an empty one of its own, so that it tells nothing.
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **own}
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    return Endpoint(f"http://{HOST}:{port}/v1", name, process, log)


def _link(folder: Path, at: Path) -> None:
    try:
        at.symlink_to(folder, target_is_directory=True)
    except OSError:  # systems where a link needs a privilege
        shutil.copytree(folder, at)


def _wait_until_it_answers(endpoint: Endpoint, port: int) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    while True:
        if endpoint.process.poll() is not None:
            raise ServeError(f"the server did not start.\n{_tail(endpoint.log)}")
        try:
            with direct.open(f"http://{HOST}:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)


def _check_installed() -> None:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ConfigError("the server needs more packages; install them with: pip install 'fedit[serve]'")


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} is taken ({error.strerror}); choose another --port, or 0.") from error
        found: int = probe.getsockname()[1]
    return found


def _safe(name: str) -> str:
    """Return a name that is a folder's and that the server does not read as something else (repo@revision)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-15:])
