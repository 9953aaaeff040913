"""Several processes that compute a client's gradient together: the numbers of one, and an end that is told."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import crew as module
from fedit import settings
from fedit.crew import Crew, CrewError, follower_environments
from fedit.errors import ConfigError
from fedit.launch import run
from fedit.prepare import load_model
from fedit.strategies.fed_sb import FedSB
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("importable")


def config_of(folder, **changes):
    values = {"model": str(folder), "device": "cpu", "dtype": "fp64", "lora_r": 4, "lora_alpha": 8}
    return settings.from_values({**values, **changes}, "test")


def start(model, config, size, **options):
    hello = {"config": config.model_dump(mode="json"), "num_threads": 1}
    return Crew(model, size, hello, follower_environments(CPU, size, 1), **options)


def train(model, crew, adapter, how, trainable=None):
    model.load(adapter)
    job = LocalJob(
        make_rows([20, 33, 7, 15, 28, 11], seed=1),
        how,
        round=1,
        batches_seen=0,
        data_seed=0,
        noise_seed=5,
        trainable=trainable or list(model.parameters),
        optimizer_state={},
        correct=lambda params, grads: None,
    )
    progress, _, trained = Trainer(model, crew).train(job, model.read())
    return progress, trained


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("llama", 2), ("llama", 3), ("gpt2", 2)])
def test_a_crew_trains_what_one_process_does(model_folder, kind, size):
    config = config_of(model_folder(kind), lora_dropout=0.2)
    model = load_model(config)
    adapter = random_adapter(model, 1)
    # Five rows a step; a crew's passes have as many rows as give everybody one.
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=4, batch_size=5, max_grad_norm=0.5)
    alone = LocalTraining(**{**vars_of(how), "micro_batch_size": -(-5 // size)})
    some = [name for name in model.parameters if name.endswith(".B")]
    crew = start(model, config, size)
    try:
        for trainable in (None, some):
            progress, found = train(model, crew, adapter, how, trainable)
            expected_progress, expected = train(model, None, adapter, alone, trainable)
            assert progress.loss == pytest.approx(expected_progress.loss, rel=1e-12)
            for name in found:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
            assert any(not torch.equal(found[name], adapter[name]) for name in found)
    finally:
        crew.close()


def vars_of(how):
    return {name: getattr(how, name) for name in how.__dataclass_fields__}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_crew_trains_what_stands_for_factors(model_folder, kind):
    config = config_of(model_folder(kind))
    model = load_model(config)
    adapter = FedSB().init(random_adapter(model, 1)).adapter
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=3, batch_size=4)
    job = LocalJob(
        make_rows([20, 33, 7, 15, 28, 11], seed=1),
        how,
        round=1,
        batches_seen=0,
        data_seed=0,
        noise_seed=5,
        trainable=[name for name in adapter if name.endswith(".R")],
        optimizer_state={},
        correct=lambda params, grads: None,
        factors=FedSB().factors,
    )
    expected = Trainer(model).train(job, adapter)[2]
    crew = start(model, config, 2)
    try:
        found = Trainer(model, crew).train(job, adapter)[2]
    finally:
        crew.close()
    for name in adapter:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)
        assert torch.equal(found[name], adapter[name]) == (not name.endswith(".R"))


@pytest.mark.slow
def test_everybody_starts_again_when_memory_gives_out_for_one(model_folder, monkeypatch):
    config = config_of(model_folder("llama"))
    model = load_model(config)
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=2, batch_size=6)
    calls = []
    real = module.accumulate

    def full_at_first(model, rows, most_rows, *args):
        calls.append(most_rows)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, rows, most_rows, *args)

    crew = start(model, config, 2)
    try:
        monkeypatch.setattr(module, "accumulate", full_at_first)
        adapter = random_adapter(model, 1)
        _, found = train(model, crew, adapter, how)
        _, expected = train(model, None, adapter, how)
    finally:
        crew.close()
    assert calls == [3, 3, 3]  # six rows at most became three, which a crew of two takes anyway
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_follower_that_ends_is_an_error_that_names_it(model_folder):
    config = config_of(model_folder("llama"))
    model = load_model(config)
    crew = start(model, config, 2)
    crew._followers[0].kill()
    crew._followers[0].wait()
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=2, batch_size=6)
    with pytest.raises(CrewError, match=r"process 1 ended with exit code -9.*devices_per_client=1"):
        train(model, crew, random_adapter(model, 1), how)
    again = start(model, config, 2)
    again.close()


@pytest.mark.slow
def test_a_crew_that_cannot_start_says_so(model_folder, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_WAIT", module.timedelta(seconds=20))
    config = config_of(model_folder("llama"))
    with pytest.raises(CrewError, match=r"process 1 ended with exit code 1"):
        start(load_model(config), config, 2, module="fedit.no_such_module")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_with_two_devices_a_client_learns_the_same(make_config, tmp_path, workers):
    changes = {"dtype": "fp64", "stack_clients": 1, "micro_batch_size": 2}
    one = run(make_config(**changes), tmp_path / "one")
    two = run(make_config(**changes, devices_per_client=2, num_workers=workers), tmp_path / "two")
    first, second = (r.summary["held_out"]["after"]["loss"] for r in (one, two))
    assert second == pytest.approx(first, rel=1e-9)
    assert first != one.summary["held_out"]["before"]["loss"]


@pytest.mark.slow
def test_the_end_of_a_leader_leaves_no_process_and_no_folder(model_folder):
    """A leader that is killed cannot tidy up: its followers do."""
    config = config_of(model_folder("llama"))
    crew = start(load_model(config), config, 2)
    follower, folder = crew._followers[0], Path(crew._folder.name)
    assert folder.is_dir()
    follower.stdin.close()  # as the system does when a process ends
    assert follower.wait(timeout=60) == 0
    assert not folder.exists()
    crew.close()


# --- what needs no process ---


def test_a_step_survives_its_way_as_numbers():
    rows = make_rows([3, 1, 9], seed=2)
    found, most, seed, trained = module._unpack(module._pack(rows, 2, 2**62 + 1, [True, False, True]))
    assert (most, seed, trained) == (2, 2**62 + 1, [True, False, True])
    for one, other in zip(found, rows, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.supervised, other.supervised)


def test_every_follower_sees_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "PATH": os.environ["PATH"]}
    found = follower_environments(torch.device("cuda"), 3, 2, environ)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found] == ["5", "6"]
    assert {own["OMP_NUM_THREADS"] for own in found} == {"2"}
    with pytest.raises(ConfigError, match="devices_per_client is 5, but 4 GPUs are visible"):
        follower_environments(torch.device("cuda"), 5, 1, environ)
    with pytest.raises(ConfigError, match=r"device is 'cuda:1'"):
        follower_environments(torch.device("cuda", 1), 2, 1, environ)


def test_devices_of_a_client_and_stacks_of_clients_exclude_each_other(make_config):
    with pytest.raises(ConfigError, match="only one of devices_per_client and stack_clients"):
        make_config(devices_per_client=2, stack_clients=4)
