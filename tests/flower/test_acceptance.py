"""Whole deployments on this machine: real SuperLink, SuperNodes and workers, started, used and killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from splitting import SITES, split, write_owned_rows

from fedit import arms, tensors
from fedit.compute import Here
from fedit.launch import run
from fedit.model.export import read_adapter
from fedit.prepare import prepare
from fedit.rounds import run_rounds
from fedit.types import ClientFailure

pytest.importorskip("flwr")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE = 420.0
JOB = {
    "device": "cpu",
    "dtype": "fp32",
    "lora_r": 4,
    "lora_alpha": 8,
    "num_rounds": 3,
    "local_steps": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "max_length": 96,
    "stack_clients": 1,
}


@dataclass
class Deployed:
    """A deployment in a folder and the processes that a test started for it."""

    folder: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def fedit(self, *arguments, check=True):
        command = [sys.executable, "-m", "fedit", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, name, *arguments):
        command = [sys.executable, "-m", "fedit", *map(str, arguments)]
        with open(self.folder / f"{name}.out", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, cwd=self.folder, start_new_session=True
            )

    def status(self):
        return json.loads(self.fedit("deploy", "status", "deployment", "--json").stdout)

    def events(self, name="first"):
        path = self.folder / "deployment" / "runs" / name / "events.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def wait_for(self, what, seconds=PATIENCE):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if found := what():
                return found
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended} ended; {self.told()}"
            time.sleep(0.3)
        raise AssertionError(f"it did not come; {self.told()}")

    def told(self):
        logs = [*self.folder.glob("*.out"), *self.folder.glob("deployment/**/*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)

    def wait_for_round(self, number):
        self.wait_for(lambda: any(e["event"] == "round" and e["round"] == number for e in self.events()))

    def wait_for_the_end(self, name="first"):
        def ended():
            (own,) = [own for own in self.status()["runs"] if own["name"] == name]
            return own if own["state"] in ("finished", "failed", "stopped") else None

        return self.wait_for(ended)

    def find(self, *words):
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

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        left = self.find("")
        for process in left:
            process.kill()
        return left


@pytest.fixture
def deployed(tmp_path_factory, tiny, importable):
    folder = tmp_path_factory.mktemp("d")
    environment = {
        **os.environ,
        "FEDIT_CACHE": str(folder / "cache"),
        "FEDIT_TEST_DEPLOYMENT": str(folder),
    }
    own = Deployed(folder, environment)
    write_owned_rows(folder / "all.jsonl", 48)
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "model": str(tiny)}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own.fedit("deploy", "init", "--sites", ",".join(SITES), "--host", "127.0.0.1", "--port", port)
    yield own
    own.stop()


def simulated(own, make_config, **changes):
    """Run the job as a simulation and write each site's rows to a file; return the adapter it ends with."""
    values = {**yaml.safe_load((own.folder / "job.yaml").read_text()), **changes}
    config = make_config(
        **{
            **values,
            "dataset": str(own.folder / "all.jsonl"),
            "partitioner": "natural",
            "partition_by": "site",
            "held_out": 0.2,
            "num_clients": None,
        }
    )
    split(config, own.folder / "all.jsonl")
    return read_adapter(run(config, own.folder / "simulated").adapter)


def begin(own, *overrides, sites=SITES):
    own.start("server", "deploy", "server", "deployment")
    for site in sites:
        own.start(site, "deploy", "node", f"deployment/sites/{site}", "--data", f"{site}.jsonl")
    own.wait_for(lambda: {s["name"] for s in own.status()["sites"] if s["state"] == "online"} >= set(sites))
    own.fedit(
        "deploy", "submit", "deployment", "job.yaml", "--held-out", "held-out.jsonl", "--name", "first", *overrides
    )


def assert_ended_like(own, expected, rounds=3):
    assert own.wait_for_the_end()["state"] == "finished", own.told()
    found = read_adapter(own.folder / "deployment" / "runs" / "first" / "adapter")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    counted = [e["round"] for e in own.events() if e["event"] == "round"]
    assert counted == list(range(1, rounds + 1))


@pytest.mark.check(3)
def test_a_deployed_run_ends_with_the_bits_of_a_simulation(deployed, make_config):
    expected = simulated(deployed, make_config)
    begin(deployed)
    assert_ended_like(deployed, expected)
    sent = (deployed.folder / "deployment/sites" / SITES[0] / "state" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in sent] == ["announced", "sent", "sent", "sent"]
    assert deployed.stop() == []


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param(("fedit.flower.site", SITES[1]), marks=pytest.mark.check(6), id="worker"),
        pytest.param(("flwr-serverapp",), marks=pytest.mark.check(8), id="server-process"),
        pytest.param(("flower-superlink",), marks=pytest.mark.check(9), id="superlink"),
    ],
)
def test_what_is_killed_comes_back_and_the_run_ends_with_the_same_bits(deployed, make_config, victim):
    expected = simulated(deployed, make_config)
    begin(deployed)
    deployed.wait_for_round(1)
    found = deployed.find(*victim)
    assert found, deployed.told()
    for process in found:
        process.kill()
    assert_ended_like(deployed, expected)


# --- secure aggregation ---


def kill_after(own, site, round, message, *words):
    """Kill processes of a site, all if there are no words, as soon as it has answered a stage of a round."""
    path = own.folder / "deployment/sites" / site / "state" / "audit.jsonl"

    def answered():
        lines = path.read_text().splitlines() if path.is_file() else []
        return any((e.get("round"), e.get("message")) == (round, message) for e in map(json.loads, lines))

    own.wait_for(answered)
    if not words:
        supervisor = own.processes.pop(site)
        supervisor.kill()
        supervisor.wait(60)
    for process in own.find(f"deployment/sites/{site}", *words):
        process.kill()


def test_secure_sums_are_exact_while_processes_are_killed_in_each_stage(deployed, make_config, tmp_path):
    simulated(deployed, make_config)  # deals the rows
    begin(deployed, "secure_aggregation=true", "--deadline", 40)
    # A worker that is killed between two stages goes on with the session that it kept.
    kill_after(deployed, SITES[2], 1, ["extras"], "fedit.flower.site")
    kill_after(deployed, SITES[2], 2, ["sealed"])
    kill_after(deployed, SITES[1], 3, ["commitment", "mask_key", "share_key"])
    ended = deployed.wait_for_the_end()
    assert ended["state"] == "finished", deployed.told()
    rounds = {e["round"]: e for e in deployed.events() if e["event"] == "round"}
    missing = {(e["round"], e["client"]) for e in deployed.events() if e["event"] == "client_failed"}
    assert {(2, SITES[2]), (3, SITES[2])} <= missing, deployed.told()
    assert [rounds[number]["aggregated"] for number in (1, 2, 3)] == [True, True, False]
    assert "nothing was revealed" in rounds[3]["reason"]
    found = read_adapter(deployed.folder / "deployment" / "runs" / "first" / "adapter")
    start, expected = without_masks(deployed, make_config, missing | {(3, site) for site in SITES}, tmp_path)
    moved = tensors.norm(tensors.sub(expected, start))
    assert tensors.norm(tensors.sub(expected, found)) < 1e-4 * moved


def without_masks(own, make_config, missing, folder):
    """Return the first and the last adapter of the job in the open, where some do not answer in some rounds."""
    config = make_config(
        **{
            **yaml.safe_load((own.folder / "job.yaml").read_text()),
            "dataset": str(own.folder / "all.jsonl"),
            "partitioner": "natural",
            "partition_by": "site",
            "held_out": 0.2,
            "num_clients": None,
            "min_clients": 2,
        }
    )
    job = prepare(config)
    arm = arms.federated(job)
    engine = Here(job).engine(arm, folder, lambda *_: None)

    class Missing:
        clients = engine.clients

        def run(self, tasks):
            for task in tasks:
                if (task.round, task.client_id) in missing:
                    yield ClientFailure(task.client_id, task.round, "killed")
                else:
                    yield from engine.run([task])

    state = replace(arm.strategy.init(job.model.initial(config.seed)), scale=config.scale)
    played = run_rounds(
        state, Missing(), arm.strategy, rounds=3, cohort=arm.cohort, training=arm.training, seed=config.seed,
        min_clients=2,
    )  # fmt: skip
    return state.adapter, [after.adapter for after, _ in played][-1]
