"""What goes wrong at a site costs its update alone, and both sides are told why in one line."""

import errno
import logging
import os

import pytest
import torch
from loops import LoopLink
from splitting import SITES, split, write_owned_rows

from fedit import store, tensorfiles
from fedit.engines.messages import join
from fedit.errors import RunFolderError
from fedit.events import EventLog
from fedit.flower import cache
from fedit.flower.engine import TENSORS, Flower
from fedit.flower.policy import Policy
from fedit.flower.run import run_deployed
from fedit.flower.site import SiteSettings, SiteWorker
from fedit.prepare import load_model
from fedit.training import Trainer

BAD = SITES[0]
FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_FOLDER = RunFolderError("cannot write state: No space left on device")
NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory:\n"
    "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def played(make_config, tmp_path):
    """Play a round over three sites, with something broken while the first trains; return who failed, and why."""

    def play(broken):
        data = tmp_path / "all.jsonl"
        write_owned_rows(data, 24)
        job = {"held_out": None, "num_clients": None, "stack_clients": 1, "num_rounds": 1}
        dealt = {"dataset": str(data), "partitioner": "natural", "partition_by": "site", "held_out": 0.2}
        split(make_config(**{**job, **dealt}), data)
        link = LoopLink({name: site(tmp_path, name).answer for name in SITES})
        real = link.sites[BAD]

        def spoilt(header, pieces):
            with pytest.MonkeyPatch.context() as patch:
                if header["do"] == "train":
                    broken(patch)
                return real(header, pieces)

        link.sites[BAD] = spoilt
        folder = tmp_path / "deployed"
        run_deployed(
            make_config(**job),
            folder,
            tmp_path / "held-out.jsonl",
            lambda c: Flower(link, "first", c.model_dump(mode="json"), len(SITES), clock=link.clock),
            lambda event: None,
        )
        events = EventLog(folder).read()
        delivered = [event["client"] for event in events if event["event"] == "client"]
        failed = {event["client"]: event["reason"] for event in events if event["event"] == "client_failed"}
        assert [*failed, *delivered] == list(SITES)
        return failed

    return play


def site(folder, name):
    settings = SiteSettings(name, folder / f"{name}.jsonl", folder / "sites" / name)
    settings.folder.mkdir(parents=True)
    return SiteWorker(settings, Policy())


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


def diverge(patch):
    real = Trainer.train

    def train(self, *args):
        progress, state, adapter = real(self, *args)
        return progress, state, {name: torch.full_like(tensor, torch.nan) for name, tensor in adapter.items()}

    patch.setattr(Trainer, "train", train)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda patch: patch.setattr(os, "write", raising(FULL)), "until it can be, nothing is sent"),
        (lambda patch: patch.setattr(store, "write_bytes", raising(FULL_FOLDER)), "No space left on device"),
        (lambda patch: patch.setattr(Trainer, "_accumulate", raising(NO_MEMORY)), "out of memory on a single"),
        (lambda patch: patch.setattr(Trainer, "train", raising(NO_MEMORY)), "out of memory; a smaller"),
        (lambda patch: patch.setattr(Trainer, "train", raising(MemoryError())), "out of memory; a smaller"),
        (diverge, "the trained adapter is not finite"),
    ],
    ids=["disk-of-the-record", "disk-of-the-state", "memory-of-a-step", "memory", "memory-of-python", "nan"],
)
@pytest.mark.check(5)
def test_a_site_that_cannot_deliver_says_why_in_a_line_to_both_sides(played, caplog, broken, said):
    with caplog.at_level(logging.WARNING, "fedit.flower.site"):
        reason = played(broken)[BAD]
    assert said in reason
    assert "\n" not in reason
    assert any(said in record.getMessage() and "\n" not in record.getMessage() for record in caplog.records)


def test_a_disk_that_cannot_keep_an_answer_costs_nothing_but_a_warning(played, caplog):
    with caplog.at_level(logging.WARNING, "fedit.flower.site"):
        assert played(lambda patch: patch.setattr(cache, "write_bytes", raising(FULL_FOLDER))) == {}
    assert "cannot be kept" in caplog.text


def test_work_that_is_replayed_after_its_answer_was_forgotten_changes_nothing(make_config, tmp_path):
    write_owned_rows(tmp_path / f"{BAD}.jsonl", 12)
    config = make_config(held_out=None, num_clients=None, client_optimizer="keep", num_rounds=3)
    adapter = load_model(config).initial(0)
    piece = tensorfiles.encode({TENSORS: join({"adapter": adapter})}, {})
    worker = site(tmp_path, BAD)

    def train(round):
        how = {"learning_rate": 0.01, "num_rounds": 3, "steps": 2, "batch_size": 4, "keep_optimizer": True}
        task = {"round": round, "client_id": BAD, "training": how, "seed": round, "scale": 2.0, "broadcast": "b"}
        header = {"do": "train", "run": "r", "config": config.model_dump(mode="json"), "tasks": [task]}
        return worker.answer({**header, "task_id": f"t{round}"}, {"b": piece})

    first, second = train(1), train(2)
    for path in (tmp_path / "sites" / BAD / "state" / "results").iterdir():
        path.unlink()
    assert train(1) == first
    assert train(2) == second
