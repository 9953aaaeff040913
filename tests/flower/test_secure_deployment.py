"""Secure sums over a whole deployment on this machine, whose processes are killed in each stage."""

from dataclasses import replace

import pytest
import yaml
from deploying import SITES, Deployed, read_lines, simulated

from fedit import arms, settings, tensors
from fedit.compute import Here
from fedit.prepare import prepare
from fedit.rounds import run_rounds
from fedit.types import ClientFailure

pytest.importorskip("flwr")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def deployed(tmp_path_factory, tiny, importable, monkeypatch):
    own = Deployed.create(tmp_path_factory.mktemp("d"), tiny, min_clients=2)
    monkeypatch.setenv("FEDIT_CACHE", str(own.folder / "cache"))
    simulated(own)  # deals the rows
    own.begin()
    yield own
    own.stop()


def kill_after(own, site, round, message, *words):
    """Kill processes of a site, all if there are no words, as soon as it has answered a stage of a round."""
    path = own.bundle(site) / "state" / "audit.jsonl"
    own.wait_for(lambda: any((e.get("round"), e.get("message")) == (round, message) for e in read_lines(path)))
    if not words:
        supervisor = own.processes.pop(site)
        supervisor.kill()
        supervisor.wait(60)
    for process in own.find(f"sites/{site}", *words):
        process.kill()


def test_secure_sums_are_exact_while_processes_are_killed_in_each_stage(deployed, tmp_path):
    deployed.submit("secure_aggregation=true", "--deadline", 40)
    # A worker that is killed between two stages goes on with the session that it kept.
    kill_after(deployed, SITES[2], 1, ["extras"], "fedit.flower.site")
    kill_after(deployed, SITES[2], 2, ["sealed"])
    kill_after(deployed, SITES[1], 3, ["commitment", "mask_key", "share_key"])
    assert deployed.wait_for_the_end() == "finished", deployed.told()
    rounds = {e["round"]: e for e in deployed.rounds()}
    missing = {(e["round"], e["client"]) for e in deployed.events() if e["event"] == "client_failed"}
    assert {(2, SITES[2]), (3, SITES[2])} <= missing, deployed.told()
    assert [rounds[number]["aggregated"] for number in (1, 2, 3)] == [True, True, False]
    assert "nothing was revealed" in rounds[3]["reason"]
    start, expected = without_masks(deployed, missing | {(3, site) for site in SITES}, tmp_path)
    apart = tensors.norm(tensors.sub(expected, deployed.adapter()))
    assert apart < 1e-4 * tensors.norm(tensors.sub(expected, start))


def without_masks(own, missing, folder):
    """Return the first and the last adapter of the job in the open, where some do not answer in some rounds."""
    values = yaml.safe_load((own.folder / "job.yaml").read_text())
    where = {"dataset": str(own.folder / "all.jsonl"), "partitioner": "natural", "partition_by": "site"}
    job = prepare(settings.from_values({**values, **where, "held_out": 0.2, "num_workers": 1}, "test"))
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

    seed = job.config.seed
    state = replace(arm.strategy.init(job.model.initial(seed)), scale=job.config.scale)
    played = run_rounds(
        state,
        Missing(),
        arm.strategy,
        rounds=3,
        cohort=arm.cohort,
        training=arm.training,
        seed=seed,
        min_clients=arm.min_clients,
    )
    return state.adapter, [after.adapter for after, _ in played][-1]
