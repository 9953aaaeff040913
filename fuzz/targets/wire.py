"""What comes over sockets, pipes and networks: envelopes, frames, tensors, tasks, answers, packed updates."""

import hashlib
import io
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import safetensors.torch
import torch

from fedit import tensorfiles
from fedit.config import RunConfig
from fedit.engines import frames
from fedit.engines.messages import read_error, read_result, read_task
from fedit.errors import ConfigError, DamagedPayload, FeditError, NoUpdates, RoundError
from fedit.flower.engine import TENSORS, Flower, read_piece
from fedit.flower.link import Node, Parcel, Trouble
from fedit.flower.policy import Policy
from fedit.flower.wire import LONGEST_HEADER, Envelope, WireError, receive, send
from fedit.transforms import build_transforms
from fedit.transforms.chain import receive as unpacked
from fedit.transforms.chain import send as packed
from fedit.types import Broadcast, ClientTask, ClientUpdate, LocalTraining, Tensors
from fedit.updates import Updates
from fuzz.target import Target, promise, table_of

START = {"m.A": torch.ones(2, 3), "m.B": torch.zeros(4, 2)}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_HEADERS = (
    b'"data_offsets":[0,',
    b'"dtype":"F8_E4M3"',
    b'"shape":[',
    b"9223372036854775807",
    b"__metadata__",
    b'"dtype":"F32"',
    b"\xff" * 8,
    b"\0" * 8,
)


# --- tensors as files ---


@cache
def _tensor_files() -> list[bytes]:
    half = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.zeros(0, 3)}
    return [
        tensorfiles.encode({TENSORS: START}, {"round": "3"}),
        tensorfiles.encode({TENSORS: half}, {}),
        safetensors.torch.save(START),
    ]


def _tensor_file(data: bytes) -> None:
    tensorfiles.decode(data, (TENSORS,))


def signed(data: bytes) -> bytes:
    """Return a tensor file with the digest that its content has: what lies behind the digest is reached."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = {k: v for k, v in header.pop("__metadata__", {}).items() if k != "sha256"}
    except (ValueError, AttributeError, RecursionError):
        return data
    digest = hashlib.sha256(json.dumps([header, metadata], sort_keys=True).encode() + data[8 + length :])
    text = json.dumps({"__metadata__": {**metadata, "sha256": digest.hexdigest()}, **header}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _signed_file(data: bytes) -> None:
    parts, metadata = tensorfiles.decode(signed(data), (TENSORS,))
    promise(all(isinstance(value, str) for value in metadata.values()), "metadata that is no text")
    promise(set(parts) == {TENSORS}, "a part that was not asked for")
    read_piece(signed(data))


# --- envelopes and frames ---


@cache
def _envelopes() -> list[bytes]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, {"do": "train", "run": "r"}, {"0": b"abc", "1": b""})
        ours.shutdown(socket.SHUT_WR)
        return [theirs.recv(1 << 16)]


def _envelope(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        header, pieces = receive(theirs)
        promise(isinstance(header, dict), "a header that is no table")
        promise(sum(map(len, pieces.values())) <= len(data), "more bytes than were sent")


def _header(data: bytes) -> None:
    """An envelope whose lengths are right: what lies behind them is reached."""
    promise(len(data) <= LONGEST_HEADER, "too long")
    _envelope(b"fedS" + len(data).to_bytes(4, "big") + data + b"x" * 32)


@cache
def _frames() -> list[bytes]:
    stream = io.BytesIO()
    frames.write_frame(stream, {"kind": "train", "round": 1}, START)
    return [stream.getvalue(), stream.getvalue()[:40]]


def _frame(data: bytes) -> None:
    stream = io.BytesIO(data)
    while frames.read_frame(stream) is not None:
        pass


# --- tasks ---

_TRAINING = {"learning_rate": 0.01, "num_rounds": 3, "steps": 2, "batch_size": 4, "objective": "sft"}
_TASK = {"round": 1, "client_id": "a", "training": _TRAINING, "seed": 5, "scale": 2.0}


def _task(data: bytes) -> None:
    """A task as a site reads it, with the job that it belongs to, up to its policy's word."""
    value = table_of(data)
    config = RunConfig.model_validate(value.get("config"))
    task = read_task(value.get("task"), {"adapter": START, "ledger": {}, "extra": {}})
    Policy().refusal(config, task.training, 10, 100)
    promise(isinstance(task.client_id, str) and type(task.round) is int, "a task of another type")


def _tasks() -> list[bytes]:
    config = RunConfig(num_rounds=3).model_dump(mode="json")
    return [json.dumps({"config": config, "task": task}).encode() for task in (_TASK, {**_TASK, "scale": None})]


# --- answers of sites ---


def tensors_of(described: object) -> Tensors:
    """Return tensors from {name: [dtype, shape, value]}; what is none of that is left out."""
    found: Tensors = {}
    for name, own in described.items() if isinstance(described, dict) else ():
        match own:
            case [str(dtype), list(shape), int() | float() as value] if dtype in DTYPES:
                sizes = [size for size in shape if type(size) is int and 0 <= size <= 64][:5]
                try:
                    found[name] = torch.full(sizes, value, dtype=DTYPES[dtype])
                except (RuntimeError, OverflowError):
                    continue
    return found


class _Site:
    """A connection to one site that answers as it is told."""

    def __init__(self, said: Mapping[str, object]) -> None:
        self._said = said
        self._asked: list[Parcel] = []

    def nodes(self) -> Sequence[Node]:
        return [Node(1, "site", True)]

    def send(self, parcels: Sequence[Parcel]) -> list[str | Trouble]:
        self._asked += parcels
        return [parcel.kind for parcel in parcels]

    def answers(self, ids: Sequence[str]) -> Iterator[tuple[str, Envelope | Trouble]]:
        for one in ids:
            header = self._said.get(one)
            pieces = self._said.get("pieces")
            found = {
                str(name): tensorfiles.encode({TENSORS: tensors_of(own)}, {})
                for name, own in (pieces if isinstance(pieces, dict) else {}).items()
            }
            yield one, (header if isinstance(header, dict) else {}, found)


_ANSWER = {
    "query": {"clients": [{"client_id": "a", "num_examples": 10}]},
    "train": {
        "results": [
            {
                "client_id": "a",
                "round": 1,
                "num_examples": 10,
                "weight": 10.0,
                "metrics": {"loss": 1.0, "tokens": 5.0},
                "scale": 2.0,
            }
        ]
    },
    "pieces": {"0": {"delta/m.A": ["F32", [2, 3], 0.5], "delta/m.B": ["F32", [4, 2], -1]}},
}


def _answers() -> list[bytes]:
    failed = {**_ANSWER, "train": {"results": [{"client_id": "a", "round": 1, "reason": "no"}]}}
    refused = {**_ANSWER, "query": {"refused": "no"}}
    extra = {**_ANSWER, "pieces": {"0": {**_ANSWER["pieces"]["0"], "extra/c": ["F32", [3], 1]}}}
    return [json.dumps(own).encode() for own in (_ANSWER, failed, refused, extra)]


def _answer(data: bytes) -> None:
    """All that a site says, through the engine, the screen and the mean."""
    said = table_of(data)
    now = iter(range(1_000_000))
    engine = Flower(_Site(said), "run", {}, sites=1, deadline=5.0, joining=5.0, clock=lambda: float(next(now)))
    known = {client.client_id: client for client in engine.clients()}
    for client in known.values():
        promise(isinstance(client.client_id, str) and type(client.num_examples) is int, "a client of another type")
    training = LocalTraining(**_TRAINING)
    tasks = [ClientTask(1, name, Broadcast(START), training, 0) for name in sorted(known)]
    results = list(engine.run(tasks))
    promise(len(results) == len(tasks), "another number of results than of tasks")
    screen(results, {name: client.num_examples for name, client in known.items()})


def screen(results: Sequence[object], announced: Mapping[str, int]) -> None:
    """Pass results through the screen into a mean, which then is finite and of the right shapes."""
    updates = Updates(results, START, announced=announced)
    mean = updates.mean()
    promise({n: t.shape for n, t in mean.delta.items()} == {n: t.shape for n, t in START.items()}, "other shapes")
    promise(all(bool(torch.isfinite(t).all()) for t in mean.delta.values()), "a mean that is not finite")


def _result(data: bytes) -> None:
    """A result as a worker process sends it."""
    value = table_of(data)
    result = read_result(value.get("header"), tensors_of(value.get("tensors")))
    if isinstance(result, ClientUpdate):
        promise(type(result.weight) is float and all(type(v) is float for v in result.metrics.values()), "types")


def _error(data: bytes) -> None:
    promise(isinstance(read_error(table_of(data), "log"), FeditError), "an error of another kind")


# --- packed updates ---

_CHAINS: dict[str, list[dict[str, dict]]] = {
    "zstd": [{"zstd": {}}],
    "quantize": [{"quantize": {"bits": 4}}],
    "top_k": [{"top_k": {"fraction": 0.3}}],
    "all": [{"top_k": {"fraction": 0.5}}, {"quantize": {"bits": 8}}, {"zstd": {}}],
    "cast": [{"cast": {}}],
}


@cache
def _packed() -> list[bytes]:
    found = []
    for name, chain in _CHAINS.items():
        delta = {n: torch.arange(t.numel(), dtype=torch.float32).view(t.shape) for n, t in START.items()}
        sent, _ = packed(build_transforms(chain), ClientUpdate("a", 1, 1, 1.0, delta), {}, 0)
        content = safetensors.torch.save({n: t.contiguous() for n, t in sent.delta.items()})
        found.append(name.encode() + b"\n" + content)
    return found


def _unpack(data: bytes) -> None:
    """A packed update with a right checksum, through its transforms backwards and into the mean."""
    name, _, content = data.partition(b"\n")
    try:
        held = safetensors.torch.load(content)
    except Exception:
        return  # the library's own parser, which tensor files go through
    from fedit.transforms.wire import CHECKSUM, sealed

    held.pop(CHECKSUM, None)
    chain = build_transforms(_CHAINS.get(name.decode("utf-8", "replace"), _CHAINS["all"]))
    screen([unpacked(chain, ClientUpdate("a", 1, 1, 1.0, sealed(held)))], {"a": 1})


def _record(data: bytes) -> None:
    """A message of Flower's, as its client and server hand it over."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from fedit.flower.records import unpack

    text, _, piece = data.decode("utf-8", "replace").partition("\n")
    arrays = ArrayRecord({"0": Array(np.frombuffer(piece.encode(), dtype=np.uint8))}, keep_input=False)
    header, _ = unpack(RecordDict({"header": ConfigRecord({"json": text}), "pieces": arrays}))
    promise(isinstance(header, dict), "a header that is no table")


TARGETS = (
    Target("tensor_file", ("fedit.tensorfiles",), _tensor_file, _tensor_files, (ValueError,), "bytes", _HEADERS),
    Target(
        "tensor_file_signed", ("fedit.tensorfiles",), _signed_file, _tensor_files, (ValueError,), "bytes", _HEADERS
    ),
    Target(
        "envelope",
        ("fedit.flower.wire",),
        _envelope,
        _envelopes,
        (WireError,),
        "bytes",
        (b"fedS", b'"pieces": [["0", ', b"\xff" * 4),
    ),
    Target(
        "envelope_header",
        ("fedit.flower.wire",),
        _header,
        lambda: [b'{"do": "train", "pieces": [["0", 3], ["1", 4]]}'],
        (WireError,),
        "json",
    ),
    Target(
        "frame", ("fedit.engines.frames",), _frame, _frames, (frames.FrameError,), "bytes", (b"fed1", *_HEADERS)
    ),
    Target("task", ("fedit.engines.messages", "fedit.flower.policy"), _task, _tasks, (ValueError,), "json"),
    Target(
        "site_answer", ("fedit.flower.engine", "fedit.updates"), _answer, _answers, (RoundError, NoUpdates), "json"
    ),
    Target(
        "worker_result",
        ("fedit.engines.messages",),
        _result,
        lambda: [
            json.dumps({"header": _ANSWER["train"]["results"][0], "tensors": _ANSWER["pieces"]["0"]}).encode(),
            b'{"header": {"client_id": "a", "round": 1, "reason": "no"}}',
        ],
        (ValueError,),
        "json",
    ),
    Target(
        "worker_error",
        ("fedit.engines.messages",),
        _error,
        lambda: [b'{"kind": "DataError", "message": "no"}', b'{"kind": "UnknownName", "message": "no"}'],
        (ValueError,),
        "json",
    ),
    Target(
        "packed_update",
        ("fedit.transforms.wire",),
        _unpack,
        _packed,
        (DamagedPayload, NoUpdates, ConfigError),
        "bytes",
        _HEADERS,
    ),
    Target(
        "flower_record",
        ("fedit.flower.records",),
        _record,
        lambda: [b'{"do": "train"}\nabc'],
        (WireError,),
        "jsonl",
    ),
)
