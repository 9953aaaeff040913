"""Aggregating adapters on disk: the numbers of a run, and refusals that name the folder."""

import json

import pytest
import safetensors.torch
import torch

from fedit.model.export import read_adapter, read_adapter_config, write_adapter_files
from fedit.rehearsal import effective, fresh
from fedit.types import with_ledger

SHAPES = {"layers.0.q_proj": (12, 8), "layers.0.v_proj": (12, 20)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
}


def adapter(seed, rank=4, b=1.0):
    found = dict(fresh(SHAPES, rank, seed))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in found.items():
        if name.endswith(".B"):
            found[name] = b * torch.randn(tensor.shape, generator=generator)
    return found


def write(folder, tensors, scale=2.0, **changes):
    folder.mkdir(parents=True)
    write_adapter_files(folder, tensors, {**CONFIG, **changes}, scale)
    return folder


def weight_of(state):
    config = read_adapter_config(state / "adapter")
    ledger = safetensors.torch.load_file(state / "ledger.safetensors")
    return effective(with_ledger(read_adapter(state / "adapter"), ledger), config["lora_alpha"] / config["r"])


def part_of(whole):
    return {name: tensor for name, tensor in whole.items() if "q_" in name}


@pytest.fixture
def state(tmp_path):
    write(tmp_path / "state" / "adapter", adapter(0, b=0.0))
    return tmp_path / "state"


def test_the_mean_of_factors_is_written_and_can_be_gone_on_from(fedit, state, tmp_path):
    a, b = write(tmp_path / "a", adapter(1)), write(tmp_path / "b", adapter(2))
    out = tmp_path / "one"
    outcome = fedit(
        "aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", f"{b}:3", "--out", out, "--json"
    )
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert (told["round"], told["clients"], told["rank"], told["scale"], told["ledger_rank"]) == (1, 2, 4, 2.0, 0)
    found = read_adapter(out / "adapter")
    for name, tensor in found.items():
        expected = (adapter(1)[name].double() + 3 * adapter(2)[name].double()) / 4
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
    again = fedit(
        "aggregate", "--strategy", "fedit", "--state", out, f"{a}:1", "--out", tmp_path / "two", "--json"
    )
    assert json.loads(again.out)["round"] == 2
    product = effective(adapter(1), 2.0)
    for module, matrix in weight_of(tmp_path / "two").items():
        torch.testing.assert_close(matrix, product[module], rtol=0, atol=1e-5)


def test_options_of_the_strategy_are_read(fedit, state, tmp_path):
    a = write(tmp_path / "a", adapter(1))
    run = ("aggregate", "--strategy", "fedit", "--state", state, f"{a}:1")
    assert fedit(*run, "--out", tmp_path / "half", "--option", "server_lr=0.5").code == 0
    found = read_adapter(tmp_path / "half" / "adapter")
    name = "layers.0.q_proj.B"
    torch.testing.assert_close(found[name], adapter(1)[name] / 2)
    outcome = fedit(*run, "--out", tmp_path / "x", "--option", "server_rate=0.5")
    assert outcome.code == 2
    assert "did you mean 'server_lr'?" in outcome.err


def test_an_adapter_that_is_not_finite_is_left_out_and_named(fedit, state, tmp_path):
    bad = adapter(1)
    bad["layers.0.q_proj.A"][0, 0] = float("nan")
    a, b = write(tmp_path / "bad", bad), write(tmp_path / "b", adapter(2))
    outcome = fedit(
        "aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", f"{b}:3", "--out", tmp_path / "o", "--json"
    )
    told = json.loads(outcome.out)
    assert told["clients"] == 1
    assert "0:bad" in told["rejected"][0]["client"]
    assert "not finite" in told["rejected"][0]["reason"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: f"{write(p / 'c', adapter(1, rank=2), 4.0)}:5", "rank 2 an adapter of rank 4"),
        (lambda p: f"{write(p / 'c', adapter(1), 4.0)}:5", "has scale 4 (alpha over rank)"),
        (
            lambda p: f"{write(p / 'c', part_of(adapter(1)))}:5",
            "lacks layers.0.v_proj",
        ),
        (lambda p: f"{write(p / 'c', adapter(1))}", "expected PEFT_DIR:num_examples"),
        (lambda p: f"{write(p / 'c', adapter(1))}:0", "expected PEFT_DIR:num_examples"),
        (lambda p: f"{p / 'nowhere'}:3", "is no adapter"),
    ],
)
def test_what_cannot_be_averaged_is_refused(fedit, state, tmp_path, make, said):
    out = tmp_path / "out"
    outcome = fedit("aggregate", "--strategy", "fedit", "--state", state, make(tmp_path), "--out", out)
    assert outcome.code == 2
    assert said in outcome.err
    assert not out.exists()


def test_a_state_of_another_strategy_and_a_taken_folder_are_refused(fedit, state, tmp_path):
    a = write(tmp_path / "a", adapter(1))
    out = tmp_path / "one"
    run = ("aggregate", "--strategy", "fedit", "--state", state, f"{a}:1", "--out", out)
    assert fedit(*run).code == 0
    taken = fedit(*run)
    assert taken.code == 2
    assert "already exists" in taken.err
    (out / "state.safetensors").write_bytes(b"nothing")
    damaged = fedit("aggregate", "--strategy", "fedit", "--state", out, f"{a}:1", "--out", tmp_path / "two")
    assert damaged.code == 2
    assert "cannot be read" in damaged.err
