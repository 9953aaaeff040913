"""A trial on one machine without TLS and keys, over both loopback addresses, watched as people watch it."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from deploying import JOB, PATIENCE, Deployed, simulated
from splitting import SITES, write_owned_rows

from fedit.flower.processes import free_port

pytest.importorskip("flwr")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What colours a terminal and moves its cursor."""


def ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def trial(tmp_path_factory, tiny, importable, request):
    """A deployment of one site that does without keys, on a loopback address."""
    folder = tmp_path_factory.mktemp("d")
    own = Deployed(folder)
    write_owned_rows(folder / "all.jsonl", 48)
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "model": str(tiny), "stack_clients": 2}))
    host = ("--host", request.param, "--port", free_port())
    own.fedit("deploy", "init", "--insecure", "--sites", "ward", *host)
    yield own
    own.stop()


def hears_interrupts():
    """Undo that what runs in a shell's background ignores Ctrl-C, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Screen:
    """A command of fedit's on a terminal; ``text`` is all that it wrote there, without colours."""

    def __init__(self, own, *arguments):
        self._own, theirs = pty.openpty()
        command = [sys.executable, "-m", "fedit", *arguments]
        environment = {**own.environment, "COLUMNS": "150", "LINES": "40"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=own.folder,
            preexec_fn=hears_interrupts,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                found = os.read(self._own, 4096)
            except OSError:  # its last writer is gone
                return
            self.text = CONTROL.sub("", self.text + found.decode(errors="replace"))

    def interrupt(self):
        """Press Ctrl-C and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        os.close(self._own)
        return code


@pytest.mark.parametrize(
    "trial",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not ipv6(), reason="there is no IPv6 here"))],
    indirect=True,
)
def test_many_clients_of_one_node_without_keys_and_rows_at_the_server(trial):
    expected = simulated(trial)
    rows = "".join((trial.folder / f"{site}.jsonl").read_text() for site in SITES)
    (trial.folder / "ward.jsonl").write_text(rows)
    trial.start("server", "deploy", "server", "deployment")
    node = ("deploy", "node", "deployment/sites/ward", "--data", "ward.jsonl", "--client-by", "site")
    trial.start("ward", *node)
    trial.wait_for(lambda: [site["state"] for site in trial.status()["sites"]] == ["online"])
    status = Screen(trial, "deploy", "status", "deployment", "--follow")
    told = trial.fedit("deploy", "submit", "deployment", "job.yaml", "--name", "first").stderr
    assert "nothing will be measured" in told
    logs = trial.fedit("deploy", "logs", "deployment", "first", "--follow").stdout
    ended = [json.loads(line)["event"] for line in logs.splitlines() if line.startswith("{")]
    assert ended.count("round") == 3
    assert ended[-1] == "finished"
    assert trial.wait_for_the_end() == "finished", trial.told()
    trial.wait_for(lambda: "3 of 3" in status.text, PATIENCE)
    assert status.interrupt() == 0
    for words in ("is up", "online", "privacy spent", "not measured", "up MB"):
        assert words in status.text
    assert "Traceback" not in status.text
    found = trial.adapter()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [event["cohort"] for event in trial.rounds()] == [list(SITES)] * 3
    assert trial.stop() == []
