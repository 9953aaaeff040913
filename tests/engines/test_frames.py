"""Frames on the pipe, and the messages in them."""

import io
import json
import pickle
import struct

import pytest
import torch

from fedit.engines.frames import MARK, FrameError, read_frame, write_frame
from fedit.engines.messages import error_header, read_error, read_result, read_task, result_frame, task_header
from fedit.errors import DataError, RunFolderError, UnknownName
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining


def through(header, tensors):
    stream = io.BytesIO()
    write_frame(stream, header, tensors)
    stream.seek(0)
    return read_frame(stream)


TENSORS = {
    "z": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "a": torch.tensor(3.0, dtype=torch.float64),
    "m": torch.arange(6).reshape(2, 3).T,
    "h": torch.ones(5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
}


def test_a_frame_comes_back_in_its_order_and_bits():
    header, tensors = through({"do": "x", "f": 0.1, "text": "é\n"}, TENSORS)
    assert header == {"do": "x", "f": 0.1, "text": "é\n"}
    assert list(tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_views_of_one_buffer_are_sent():
    flat = torch.arange(10.0)
    _, tensors = through({}, {"a": flat[:4], "b": flat[4:].view(2, 3)})
    assert torch.equal(tensors["a"], flat[:4])
    assert torch.equal(tensors["b"], flat[4:].view(2, 3))


def test_the_end_of_the_stream_is_no_frame():
    assert read_frame(io.BytesIO()) is None


def whole(header=b'{"tensors": []}', payload=b"", mark=MARK):
    return struct.pack(">4sIQ", mark, len(header), len(payload)) + header + payload


@pytest.mark.parametrize(
    "data",
    [
        b"fed",
        b"Loading weights: 100%\n" * 3,
        whole(mark=b"fed2"),
        whole()[:-1],
        whole(b"{}"),
        whole(b"not json"),
        whole(b"[]"),
        whole(b'{"tensors": ["a"]}'),
        whole(b'{"tensors": ["a"]}', b"not safetensors"),
        whole(b'{"tensors": []}', pickle.dumps({"a": 1})),
        struct.pack(">4sIQ", MARK, 1 << 30, 0),
        struct.pack(">4sIQ", MARK, 2, 1 << 60),
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FrameError):
        read_frame(io.BytesIO(data))


def test_nothing_in_a_frame_is_pickled():
    stream = io.BytesIO()
    write_frame(stream, {"do": "x"}, {"a": torch.ones(2)})
    data = stream.getvalue()
    size = struct.unpack(">4sIQ", data[:16])[1]
    assert json.loads(data[16 : 16 + size]) == {"do": "x", "tensors": ["a"]}
    assert json.loads(data[16 + size + 8 :].split(b"}}")[0] + b"}}")["a"]["dtype"] == "F32"


def test_tasks_and_results_survive():
    task = ClientTask(3, "é/1", Broadcast({"m.A": torch.ones(2)}), LocalTraining(1 / 3, 7, steps=2), 2**62 + 1)
    header, _ = through(task_header(task), {})
    assert read_task(header, {"adapter": task.broadcast.adapter}) == task
    update = ClientUpdate(
        "c", 2, 5, 0.1, {"b": torch.ones(2), "a": torch.zeros(1)}, {"x/y": torch.ones(1)}, {"loss": float("nan")}
    )
    found = read_result(*through(*result_frame(update)))
    assert (found.client_id, found.round, found.num_examples, found.weight) == ("c", 2, 5, 0.1)
    assert list(found.delta) == ["b", "a"]
    assert list(found.extra) == ["x/y"]
    assert str(found.metrics) == "{'loss': nan}"
    failure = ClientFailure("c", 2, "too bad")
    assert read_result(*through(*result_frame(failure))) == failure


@pytest.mark.parametrize("error", [DataError("a"), RunFolderError("b")])
def test_errors_keep_their_kind(error):
    found = read_error(error_header(error), "log")
    assert type(found) is type(error)
    assert str(found) == str(error)


@pytest.mark.parametrize("error", [KeyError("x"), UnknownName("strategy", "x", ["y"]), ZeroDivisionError()])
def test_other_errors_are_those_of_a_worker(error):
    assert "some.log" in str(read_error(error_header(error), "some.log"))
