"""How many workers there are, on which device, in which environment."""

import platform

import pytest
import torch

from fedit.config import RunConfig
from fedit.engines import sizing
from fedit.engines.sizing import assign, environments, fitting, num_workers, visible_gpus
from fedit.process import TUNABLES, allocator_settings


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(sizing, "cores", lambda: 8)


@pytest.fixture
def gpus(monkeypatch):
    """Stand for a machine with four GPUs."""

    def device(name):
        return torch.device("cuda" if name == "auto" else name)

    monkeypatch.setattr(sizing, "choose_device", device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("settings", "threads", "expected"),
    [
        ({}, None, 8),
        ({}, 3, 2),
        ({}, 9, 1),
        ({"num_workers": 3}, 5, 3),
        ({"clients_per_round": 2}, None, 2),
        ({"clients_per_round": 1}, None, 1),
        ({"clients_per_round": 0.25, "num_clients": 10}, None, 3),
        ({"clients_per_round": 1, "compare": ["local", "centralised"], "compare_clients": 2}, None, 5),
        ({"clients_per_round": 0.1, "partitioner": "natural", "partition_by": "who"}, None, 8),
    ],
)
def test_a_worker_a_core_as_far_as_there_is_work(eight_cores, settings, threads, expected):
    assert num_workers(RunConfig(device="cpu", **settings), threads) == expected


@pytest.mark.parametrize(("device", "expected"), [("auto", 4), ("cuda", 4), ("cuda:1", 1)])
def test_a_worker_a_gpu(gpus, device, expected):
    assert num_workers(RunConfig(device=device), None) == expected


def test_each_worker_sees_its_gpu(gpus):
    found = [place.get("CUDA_VISIBLE_DEVICES") for place in environments(RunConfig(device="cuda"), 6, 1, {})]
    assert found == ["0", "1", "2", "3", "0", "1"]
    hidden = {"CUDA_VISIBLE_DEVICES": "3, GPU-8f,1"}
    assert visible_gpus(hidden, 3) == ["3", "GPU-8f", "1"]
    assert assign(4, visible_gpus(hidden, 3)) == ["3", "GPU-8f", "1", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in environments(RunConfig(device="cuda:2"), 2, 1, {})[1]


def test_the_environment_has_threads_and_what_the_user_set():
    (place, _) = environments(RunConfig(device="cpu"), 2, 3, {"A": "b", "OMP_NUM_THREADS": "8"})
    assert (place["A"], place["OMP_NUM_THREADS"]) == ("b", "3")


def test_no_more_workers_than_fit_into_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setattr(sizing, "_free_memory", lambda: 3.2e9)
    assert fitting(8, RunConfig(device="cpu"), tmp_path) == 2
    assert "num_threads" in caplog.text
    assert fitting(2, RunConfig(device="cpu"), tmp_path) == 2
    assert fitting(8, RunConfig(device="cpu", num_workers=8), tmp_path) == 8
    monkeypatch.setattr(sizing, "_free_memory", lambda: 1.0)
    assert fitting(8, RunConfig(device="cpu"), tmp_path) == 1
    monkeypatch.setattr(sizing, "_free_memory", lambda: None)
    assert fitting(8, RunConfig(device="cpu"), tmp_path) == 8


def test_free_memory_is_that_of_this_machine():
    found = sizing._free_memory()
    assert found is None or 1e6 < found < 1e15


# --- the allocator ---


@pytest.fixture
def glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))


def test_the_allocator_is_set_up_beside_what_the_user_set(glibc):
    everything = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    assert allocator_settings({}) == {"GLIBC_TUNABLES": everything}
    given = "glibc.malloc.trim_threshold=1:glibc.cpu.hwcaps=x"
    found = allocator_settings({"GLIBC_TUNABLES": given})["GLIBC_TUNABLES"]
    assert found.startswith(given + ":")
    assert found.count("trim_threshold") == 1
    assert found.count("mmap_threshold") == 1


def test_it_can_be_left_alone(glibc, monkeypatch):
    assert allocator_settings({"FEDIT_ALLOCATOR": "system"}) == {}
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator_settings({}) == {}
