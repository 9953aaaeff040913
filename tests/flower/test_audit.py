"""What leaves a site stands in its record first, whole, and without anybody's text."""

import errno
import json
import math
import os
import stat

import pytest
import torch

from fedit.errors import FeditError
from fedit.flower.audit import Audit, AuditError
from fedit.tensors import flatten

PARTS = {
    "delta/q.A": torch.tensor([[3.0, 0.0], [0.0, 4.0]]),
    "delta/q.B": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
    "extra/packed": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "extra/none": torch.zeros(0, 4),
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_update_is_recorded_with_names_shapes_sizes_norms_and_numbers(tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    Audit(path).sent("run", 3, "client-é", PARTS, {"loss": 1.5, "weight": math.inf, "gap": math.nan})
    (line,) = lines(path)
    assert line.pop("time") > 1.7e9
    assert line == {
        "event": "sent",
        "run": "run",
        "round": 3,
        "client": "client-é",
        "bytes": 16 + 4 + 3,
        "tensors": [
            {"name": "delta/q.A", "shape": [2, 2], "dtype": "float32", "bytes": 16, "norm": 5.0},
            {"name": "delta/q.B", "shape": [2], "dtype": "bfloat16", "bytes": 4, "norm": "nan"},
            {"name": "extra/packed", "shape": [3], "dtype": "uint8", "bytes": 3, "norm": None},
            {"name": "extra/none", "shape": [0, 4], "dtype": "float32", "bytes": 0, "norm": 0.0},
        ],
        "metrics": {"loss": 1.5, "weight": "inf", "gap": "nan"},
    }


def test_a_flat_set_is_recorded_like_any_other(tmp_path):
    parts = {"a": torch.ones(3), "b": torch.full((2, 2), 2.0)}
    Audit(tmp_path / "one").sent("run", 1, "c", parts, {})
    Audit(tmp_path / "two").sent("run", 1, "c", flatten(parts), {})
    (one,), (two,) = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert one["tensors"] == two["tensors"]


def test_clients_and_failures_that_the_server_is_told_of_are_recorded_too(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl")
    audit.announced("run", {"a": 3, "b": 4})
    audit.failed("run", 2, "a", "out of\nmemory")
    first, second = lines(tmp_path / "audit.jsonl")
    assert (first["event"], first["clients"]) == ("announced", {"a": 3, "b": 4})
    assert (second["event"], second["round"], second["reason"]) == ("failed", 2, "out of\nmemory")


def test_only_the_owner_reads_it_and_later_processes_append(tmp_path):
    path = tmp_path / "audit.jsonl"
    for round in (1, 2):
        Audit(path).sent("run", round, "c", {}, {})
    assert [line["round"] for line in lines(path)] == [1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.sent("run", 1, "c", {}, {})
    with open(path, "a") as file:
        file.write('{"event": "se')
    audit.sent("run", 2, "c", {}, {})
    first, half, second = path.read_text().splitlines()
    assert (json.loads(first)["round"], half, json.loads(second)["round"]) == (1, '{"event": "se', 2)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_an_error_before_anything_is_sent_and_leaves_whole_lines(tmp_path, monkeypatch, call):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.sent("run", 1, "c", {}, {})
    before = path.read_bytes()
    write = os.write
    calls = []

    def full(descriptor, *data):
        calls.append(data)
        if call == "write" and len(calls) == 1:
            return write(descriptor, data[0][:5])  # the disk fills up within the line
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(AuditError, match=r"recorded in .*audit\.jsonl: No space left on device.*nothing is sent"):
        audit.sent("run", 2, "c", {}, {})
    monkeypatch.undo()
    assert calls
    assert path.read_bytes() == before
    audit.sent("run", 3, "c", {}, {})
    assert [line["round"] for line in lines(path)] == [1, 3]


def test_a_place_that_cannot_be_written_is_an_error_of_fedits(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeditError, match="cannot be recorded"):
        Audit(tmp_path / "file" / "audit.jsonl").sent("run", 1, "c", {}, {})
