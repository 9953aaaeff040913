"""Tasks, updates and failures as headers and tensors, and back."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

from fedit import errors
from fedit.engines.frames import Header
from fedit.errors import FeditError
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining, Tensors


class WorkerError(FeditError):
    """A worker process cannot start, or failed at what was asked of it."""


BROADCAST_PARTS = ("adapter", "ledger", "extra")
"""The sets of tensors of a broadcast."""


def broadcast_sets(broadcast: Broadcast) -> dict[str, Tensors]:
    """Return the sets of a broadcast that are not empty."""
    return {part: held for part in BROADCAST_PARTS if (held := getattr(broadcast, part))}


def task_header(task: ClientTask) -> Header:
    """Return all of a task but its broadcast."""
    return {
        "round": task.round,
        "client_id": task.client_id,
        "training": asdict(task.training),
        "seed": task.seed,
        "scale": task.broadcast.scale,
        **({"stage": task.stage, "message": dict(task.message)} if task.stage else {}),
    }


def read_task(header: Header, sets: Mapping[str, Tensors]) -> ClientTask:
    """Return the task that a header and the sets of its broadcast describe."""
    broadcast = Broadcast(**sets, scale=cast("float | None", header["scale"]))
    training = LocalTraining(**cast(dict[str, object], header["training"]))  # type: ignore[arg-type]  # as written
    return ClientTask(
        cast(int, header["round"]),
        cast(str, header["client_id"]),
        broadcast,
        training,
        cast(int, header["seed"]),
        cast(str, header.get("stage", "")),
        cast(dict[str, object], header.get("message", {})),
    )


def result_frame(result: ClientUpdate | ClientFailure) -> tuple[Header, Tensors]:
    """Return a client's result as a header and tensors."""
    names: Header = {"client_id": result.client_id, "round": result.round}
    if isinstance(result, ClientFailure):
        return {**names, "reason": result.reason}, {}
    header = {
        **names,
        "num_examples": result.num_examples,
        "weight": result.weight,
        "metrics": dict(result.metrics),
        "scale": result.scale,
        **({"message": dict(result.message)} if result.message else {}),
    }
    return header, join({"delta": result.delta, "extra": result.extra})


def read_result(header: Header, tensors: Tensors) -> ClientUpdate | ClientFailure:
    """Return the result that a header and tensors describe."""
    client_id, round = cast(str, header["client_id"]), cast(int, header["round"])
    if "reason" in header:
        return ClientFailure(client_id, round, cast(str, header["reason"]))
    parts = split(tensors)
    return ClientUpdate(
        client_id,
        round,
        cast(int, header["num_examples"]),
        cast(float, header["weight"]),
        parts.get("delta", {}),
        parts.get("extra", {}),
        cast(dict[str, float], header["metrics"]),
        cast(float, header["scale"]),
        message=cast(dict[str, object], header.get("message", {})),
    )


def join(parts: Mapping[str, Tensors]) -> Tensors:
    """Return several sets of tensors as one, named part/name."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def split(tensors: Tensors) -> dict[str, Tensors]:
    """Return the sets that `join` made one."""
    parts: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        part, _, name = path.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def error_header(error: Exception) -> Header:
    """Return an error as a header; one that fedit raises on purpose keeps its kind."""
    known = isinstance(error, FeditError)
    return {
        "kind": type(error).__name__,
        "message": str(error) if known else f"{type(error).__name__}: {error}",
    }


def read_error(header: Header, log: str) -> FeditError:
    """Return the error that a worker met, as it would have been raised here."""
    kind = getattr(errors, str(header["kind"]), None)
    if isinstance(kind, type) and issubclass(kind, FeditError) and kind.__init__ is FeditError.__init__:
        return kind(str(header["message"]))
    return WorkerError(f"a worker process failed: {header['message']}; see {log}")
