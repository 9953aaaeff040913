"""What leaves a site, on record there: names, shapes, sizes and numbers; no text of anybody's rows."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedit import tensors
from fedit.errors import FeditError
from fedit.events import round_time
from fedit.files import reason


class AuditError(FeditError):
    """The record cannot be written, so nothing may leave."""


class Audit:
    """Appends to ``audit.jsonl``, one JSON object a line; each line is on the disk before the call returns.

    Call it before what it records leaves: where it raises, nothing may be sent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def announced(self, run: str, clients: Mapping[str, int]) -> None:
        """Record that the server is told of these clients, id -> number of examples.

        Raises:
            AuditError: the disk is full or the file cannot be written.
        """
        self._append({"event": "announced", "run": run, "clients": dict(clients)})

    def sent(
        self,
        run: str,
        round: int,
        client: str,
        parts: Mapping[str, Tensor],
        metrics: Mapping[str, float],
        message: Sequence[str] = (),
    ) -> None:
        """Record a client's update: of each tensor its name, shape, dtype, bytes and norm, and all numbers.

        parts:   every tensor that leaves, by name. Norms are Euclidean; tensors of whole numbers, such as packed
                 ones, have none.
        metrics: every number that leaves, those beside the client's metrics, such as its weight, among them.
                 NaN and infinity are written as "nan", "inf" and "-inf", which JSON has no numbers for.
        message: names of what it says beside, in a stage of secure aggregation; all of it is keys or encrypted,
                 or undoes a mask.

        Raises:
            AuditError: the disk is full or the file cannot be written.
        """
        self._append(
            {
                "event": "sent",
                "run": run,
                "round": round,
                "client": client,
                "bytes": sum(tensors.num_bytes({name: tensor}) for name, tensor in parts.items()),
                "tensors": [_describe(name, tensor) for name, tensor in parts.items()],
                "metrics": {name: _number(value) for name, value in metrics.items()},
                **({"message": list(message)} if message else {}),
            }
        )

    def failed(self, run: str, round: int, client: str, why: str) -> None:
        """Record that the server is told why a client delivers nothing.

        Raises:
            AuditError: the disk is full or the file cannot be written.
        """
        self._append({"event": "failed", "run": run, "round": round, "client": client, "reason": why})

    def _append(self, record: Mapping[str, object]) -> None:
        line = json.dumps({"time": round_time(), **record}, ensure_ascii=True, allow_nan=False) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Its owner alone reads it, and no writer can cut short what stands there.
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "r+b", buffering=0) as file:
                _write_line(file.fileno(), line.encode())
        except OSError as error:
            raise AuditError(
                f"what is to leave this site cannot be recorded in {self._path}: {reason(error)}; "
                "until it can be, nothing is sent."
            ) from error


def _write_line(descriptor: int, line: bytes) -> None:
    """Append a line and wait until it is on the disk; what of it cannot be written is taken back."""
    before = os.fstat(descriptor).st_size
    if before and os.pread(descriptor, 1, before - 1) != b"\n":
        line = b"\n" + line  # a killed process left half a line
    try:
        done = 0
        while done < len(line):
            done += os.write(descriptor, line[done:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _describe(name: str, tensor: Tensor) -> dict[str, object]:
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "bytes": tensor.numel() * tensor.element_size(),
        "norm": _number(tensors.norm({name: tensor})) if tensor.is_floating_point() else None,
    }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
