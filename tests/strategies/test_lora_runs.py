"""Whole runs with strategies that train something else than factors or keep some: scores, adapters, resuming."""

import json

import pytest
import torch

from fedit import checkpoint, tuned
from fedit.launch import resume, run
from fedit.model.export import read_adapter
from fedit.strategies import build_strategy


class Killed(BaseException):
    """Stands for the end of the process."""


def killer(moment):
    heard = 0

    def listen(event):
        nonlocal heard
        heard += 1
        if heard == moment:
            raise Killed

    return listen


def events(folder, name):
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def states(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


RUNS = {
    "fed_sb": {},
    "fed_sb, first update": {"bases": "first_update"},
    "ravan": {"heads": 2},
    "fedsa_lora": {},
    "hetlora": {"gamma": 0.5, "regularisation": 50.0, "min_rank": 1},
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_killed_run_ends_with_the_same_bits_and_what_it_exports_is_what_it_scored(make_config, tmp_path, name):
    kind = name.split(",")[0]
    config = make_config(
        strategy=kind, strategy_options=RUNS[name], num_rounds=3, clients_per_round=2, local_steps=1, num_clients=3
    )
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", listener=killer(len(heard) - 6))
    resume(tmp_path / "killed")
    assert states(tmp_path / "killed") == states(tmp_path / "whole")
    server = checkpoint.load(tmp_path / "whole" / "server", 3)
    model = build_strategy(kind, RUNS[name]).model(server)
    exported = read_adapter(tmp_path / "whole" / "adapter")
    assert set(exported) == set(model)
    assert all(torch.equal(exported[key], model[key]) for key in model)
    losses = [event["loss"] for event in events(tmp_path / "whole", "evaluation")]
    assert len(losses) == 4
    # FedSA's server holds no B; whatever else is trained reaches the model that is scored.
    assert (len(set(losses)) == 1) == (kind == "fedsa_lora")


def test_an_unfinished_run_of_another_form_can_be_chatted_with(make_config, tmp_path):
    config = make_config(strategy="ravan", num_rounds=2, local_steps=1)
    with pytest.raises(Killed):
        run(config, tmp_path / "run", listener=lambda event: _stop(event))
    found = tuned.find_tuned(tmp_path / "run").adapter
    assert {name.rpartition(".")[2] for name in found} == {"A", "B"}


def _stop(event):
    if event["event"] == "evaluation" and event["round"] == 2:
        raise Killed


def test_what_is_trained_is_counted(make_config, tmp_path):
    counts = {}
    for kind in ("ffa_lora", "fed_sb", "rolora"):
        run(make_config(strategy=kind, num_rounds=2, local_steps=1), tmp_path / kind)
        (started,) = events(tmp_path / kind, "arm_started")
        adapter = checkpoint.load(tmp_path / kind / "server", 2).adapter
        factors = {"ffa_lora": ".B", "fed_sb": ".R", "rolora": (".A", ".B")}[kind]
        counts[kind] = sum(t.numel() for n, t in adapter.items() if n.endswith(factors))
        assert started["trainable_parameters"] == counts[kind]
    assert counts["fed_sb"] < counts["ffa_lora"] < counts["rolora"]


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(make_config, tmp_path, importable):
    """Frozen factors are not sent: every process makes its own, and they must be the same."""
    options = {"strategy": "fed_sb", "num_rounds": 2, "local_steps": 1, "stack_clients": 1}
    for workers in (1, 2):
        run(make_config(**options, num_workers=workers), tmp_path / str(workers))
    one, two = (states(tmp_path / str(workers)) for workers in (1, 2))
    assert one == two
