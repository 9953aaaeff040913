"""Whole deployments on this machine: real SuperLink, SuperNodes and workers, started, used and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import torch
import yaml
from splitting import SITES, split, write_owned_rows

from fedit import settings
from fedit.flower.processes import free_port
from fedit.launch import run
from fedit.model.export import read_adapter
from fedit.types import Tensors

T = TypeVar("T")

PATIENCE = 420.0
"""Seconds to wait for what must happen, on a machine that does other things, too."""
NAME = "first"
SERVER, FOLDER = "server", "deployment"
JOB: dict[str, object] = {
    "device": "cpu",
    "dtype": "fp32",
    "lora_r": 4,
    "lora_alpha": 8,
    "num_rounds": 3,
    "local_steps": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "max_length": 96,
    "min_clients": 3,
    "stack_clients": 1,
}
SITE_KINDS: dict[str, tuple[str, ...]] = {
    "worker": ("fedit.flower.site",),
    "supernode": ("flower-supernode",),
    "site-executor": ("flower-superexec",),
    "node": ("deploy node",),
}
"""Kind of a site's process -> words of its command, beside the site's name."""
KINDS: dict[str, tuple[str, ...]] = {
    **SITE_KINDS,
    "client-app": ("flwr-clientapp",),
    "server-app": ("flwr-serverapp",),
    "superlink": ("flower-superlink",),
    "server-executor": ("flower-superexec", f"{FOLDER}/state"),
    "server": ("deploy server",),
}
"""Kind of process -> words of its command."""


@dataclass
class Deployed:
    """A deployment in a folder and the processes that a test started for it.

    variables: environment of its processes; prefix: what their commands are run by, for example in another
    network.
    """

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _commands: dict[str, Sequence[object]] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        folder: Path,
        model: Path,
        variables: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **job: object,
    ) -> "Deployed":
        """Write rows, a job and a deployment to a folder; nothing runs yet."""
        own = cls(folder, variables or {}, prefix)
        folder.mkdir(parents=True, exist_ok=True)
        write_owned_rows(folder / "all.jsonl", 48)
        (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "model": str(model), **job}))
        own.fedit("deploy", "init", "--sites", ",".join(SITES), "--host", "127.0.0.1", "--port", free_port())
        return own

    @property
    def environment(self) -> dict[str, str]:
        own = {"FEDIT_CACHE": str(self.folder / "cache"), "FEDIT_TEST_DEPLOYMENT": str(self.folder)}
        return {**os.environ, **own, **self.variables}

    # --- commands and processes ---

    def fedit(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = [*self.prefix, sys.executable, "-m", "fedit", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, name: str, *arguments: object) -> None:
        self._commands[name] = arguments
        command = [*self.prefix, sys.executable, "-m", "fedit", *map(str, arguments)]
        with open(self.folder / f"{name}.out", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, cwd=self.folder, start_new_session=True
            )

    def begin(self, sites: Sequence[str] = SITES) -> None:
        """Start the server and the nodes, and wait until they are there."""
        self.start(SERVER, "deploy", "server", FOLDER)
        for site in sites:
            self.start(
                site, "deploy", "node", self.bundle(site).relative_to(self.folder), "--data", f"{site}.jsonl"
            )
        self.wait_for_sites(sites)

    def submit(self, *options: object, name: str = NAME) -> None:
        self.fedit(
            *("deploy", "submit", FOLDER, "job.yaml", "--held-out", "held-out.jsonl", "--name", name), *options
        )

    def find(self, *words: str) -> list[psutil.Process]:
        """Return the processes of this deployment whose command holds all words."""
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                own = process.environ().get("FEDIT_TEST_DEPLOYMENT") == str(self.folder)
            except psutil.Error:
                continue
            if own and all(word in command for word in words):
                found.append(process)
        return found

    def kill(self, kind: str, site: str = "", until: Callable[[], bool] = lambda: False) -> int:
        """Kill the processes of a kind, the moment that there is one; return how many there were.

        A supervisor is started again, as an init system does.

        until: whether none is waited for any more.
        """
        words = [*KINDS[kind], *([site] if kind in SITE_KINDS else [])]
        found: list[psutil.Process] = []
        self.wait_for(lambda: found.extend(self.find(*words)) or found or until(), pause=0.02)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        supervisor = SERVER if kind == SERVER else site
        if kind in (SERVER, "node"):
            self.processes.pop(supervisor).wait()
            self.start(supervisor, *self._commands[supervisor])
        return len(found)

    def stop(self) -> list[psutil.Process]:
        """Tell all to end; return what did not, which is then ended by force."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        left = self.find("")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return left

    # --- what is known ---

    def bundle(self, site: str) -> Path:
        return self.folder / FOLDER / "sites" / site

    def status(self) -> dict[str, list[dict[str, object]]]:
        return json.loads(self.fedit("deploy", "status", FOLDER, "--json").stdout)

    def events(self, name: str = NAME) -> list[dict[str, object]]:
        """Return what happened in a run."""
        return read_lines(self.folder / FOLDER / "runs" / name / "events.jsonl")

    def rounds(self, name: str = NAME) -> list[dict[str, object]]:
        return [event for event in self.events(name) if event["event"] == "round"]

    def journal(self, who: str) -> list[str]:
        """Return the events of the server's or a site's supervisor."""
        state = self.folder / FOLDER if who == SERVER else self.bundle(who)
        return [str(event["event"]) for event in read_lines(state / "state" / "events.jsonl")]

    def jobs(self) -> list[Path]:
        """Return the files of all jobs that were submitted."""
        return list((self.folder / FOLDER / "state" / "jobs").glob("*.json"))

    def audited(self, site: str) -> list[str]:
        return [str(line["event"]) for line in read_lines(self.bundle(site) / "state" / "audit.jsonl")]

    def adapter(self, name: str = NAME) -> Tensors:
        return read_adapter(self.folder / FOLDER / "runs" / name / "adapter")

    def told(self) -> str:
        logs = [*self.folder.glob("*.out"), *self.folder.glob(f"{FOLDER}/**/*.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-800:]}" for path in logs)

    # --- waiting ---

    def wait_for(self, what: Callable[[], T], seconds: float = PATIENCE, pause: float = 0.3) -> T:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if found := what():
                return found
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended} ended; {self.told()}"
            failed = [job.stem for job in self.jobs() if json.loads(job.read_text())["state"] == "failed"]
            assert not failed, f"{failed} failed; {self.told()}"
            time.sleep(pause)
        raise AssertionError(f"it did not come; {self.told()}")

    def wait_for_sites(self, sites: Sequence[str] = SITES) -> None:
        def there() -> bool:
            done = self.fedit("deploy", "status", FOLDER, "--json", check=False)
            if done.returncode:
                return False  # the server is not there yet, or not again
            return {s["name"] for s in json.loads(done.stdout)["sites"] if s["state"] == "online"} >= set(sites)

        self.wait_for(there)

    def wait_for_round(self, number: int, name: str = NAME) -> None:
        self.wait_for(lambda: any(event["round"] == number for event in self.rounds(name)))

    def wait_for_the_end(self, name: str = NAME) -> str:
        """Return how a run ended."""
        return self.wait_for(lambda: (state := self.state(name)) != "active" and state)

    def state(self, name: str = NAME) -> str:
        """Return what the server's supervisor says of a run: "active", or how it ended."""
        (job,) = [job for job in self.jobs() if job.stem == name]
        return str(json.loads(job.read_text())["state"])


def read_lines(path: Path) -> list[dict[str, object]]:
    """Return the whole lines of a JSONL file, none where there is no file."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def simulated(own: Deployed) -> Tensors:
    """Run the job as a simulation and write each site's rows to a file; return the adapter it ends with."""
    values = yaml.safe_load((own.folder / "job.yaml").read_text())
    data = own.folder / "all.jsonl"
    where = {"dataset": str(data), "partitioner": "natural", "partition_by": "site", "held_out": 0.2}
    config = settings.from_values({**values, **where, "num_workers": 1}, "test")
    split(config, data)
    return read_adapter(run(config, own.folder / "simulated").adapter)


def assert_ended_like(own: Deployed, expected: Tensors, name: str = NAME, rounds: int = 3) -> None:
    """Assert that a run is finished, that each round counted once, and that it ended with these bits."""
    assert own.wait_for_the_end(name) == "finished", own.told()
    assert [event["round"] for event in own.rounds(name)] == list(range(1, rounds + 1))
    assert [event["delivered"] for event in own.rounds(name)] == [3] * rounds
    found = own.adapter(name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[one], tensor) for one, tensor in expected.items())
