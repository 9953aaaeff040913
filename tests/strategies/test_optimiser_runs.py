"""Whole tiny runs with the general optimisers: refused before anything trains, resumed, in several processes."""

import json

import pytest
import torch

from fedit import checkpoint, settings
from fedit.errors import ConfigError
from fedit.launch import resume, run
from fedit.store import ClientStore
from fedit.study.run import run_study

CHANGES = {
    "scaffold": {"optimizer": "sgd", "learning_rate": 0.1},
    "feddyn": {"strategy_options": {"alpha": 0.1}},
    "fedyogi": {"strategy_options": {"tau": "auto"}},
}


class Killed(BaseException):
    """Stands for the end of the process: nothing in a run may catch it."""


def killer(moment):
    """Return a listener that ends the run at the ``moment``-th thing it hears."""
    heard = []

    def listen(event):
        heard.append(event)
        if len(heard) == moment:
            raise Killed

    return listen


def states(folder):
    """Return the bytes of all server and client states, by file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def config_of(make_config, name, **changes):
    common = {"num_rounds": 3, "num_clients": 4, "clients_per_round": 2, "held_out": 1, "local_steps": 2}
    return make_config(**{**common, "strategy": name, **CHANGES[name], **changes})


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_killed_between_its_rounds_ends_with_the_same_bits(make_config, tmp_path, name):
    """A client's memory is written before the round is committed, and the round is then done again."""
    config, heard = config_of(make_config, name), []
    run(config, tmp_path / "whole", listener=heard.append)
    assert checkpoint.load(tmp_path / "whole" / "server", 3).memory
    for moment in (len(heard) // 2, len(heard) // 2 + 3):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert states(folder) == states(tmp_path / "whole")


def test_scaffolds_sum_over_all_clients_is_weighted_by_their_examples(make_config, tmp_path):
    """c = sum of p_k c_k over unequal clients, whoever was in a cohort last."""
    config = config_of(make_config, "scaffold", num_rounds=5, partitioner="quantity", alpha=1.0, min_examples=2)
    run(config, tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    sizes = {event["client"]: event["examples"] for event in events if event["event"] == "client"}
    assert len(sizes) == 4
    assert len(set(sizes.values())) > 1
    store = ClientStore(tmp_path / "clients")
    kept = {client: store.read(client, 6).memory for client in sizes}
    for name, control in checkpoint.load(tmp_path / "server", 5).memory.items():
        expected = sum(size * kept[client][name].double() for client, size in sizes.items()) / sum(sizes.values())
        torch.testing.assert_close(control.double(), expected, rtol=1e-5, atol=1e-6)


def test_scaffold_with_adamw_is_refused_before_anything_trains(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"strategy 'scaffold'.*set optimizer: sgd and momentum: 0"):
        run(config_of(make_config, "scaffold", optimizer="adamw"), tmp_path / "run")
    assert not (tmp_path / "run" / "server").exists()


def test_a_study_refuses_what_a_run_would(make_config, tmp_path):
    """It builds its strategies by name, at their default options."""
    given = settings.load(None, ['study.strategies=["fedit", "scaffold"]', 'study.arms=["federated"]'])
    study = settings.Settings(config_of(make_config, "feddyn", strategy_options={}), {}, study=given.study)
    with pytest.raises(ConfigError, match=r"strategy 'scaffold'.*set optimizer: sgd"):
        run_study(study, tmp_path / "study")
    assert not list((tmp_path / "study").rglob("events.jsonl"))


@pytest.mark.slow
def test_control_variates_travel_to_worker_processes_and_back(make_config, tmp_path, importable):
    for workers in (1, 2):
        run(config_of(make_config, "scaffold", num_workers=workers), tmp_path / str(workers))
    assert states(tmp_path / "1") == states(tmp_path / "2")
