"""Tasks, updates and failures as headers and tensors, and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast, get_args, get_type_hints

from fedit import errors
from fedit.engines.frames import Header
from fedit.errors import FeditError
from fedit.reading import shown
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining, Tensors


class WorkerError(FeditError):
    """A worker process cannot start, or failed at what was asked of it."""


LONGEST_TEXT = 4096
"""Characters of a client's id or another text; a reason may be cut to fewer."""
LONGEST_REASON = 1000
MOST_METRICS = 256
"""Numbers that a client may report of a round."""
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


def read_task(header: object, sets: Mapping[str, Tensors]) -> ClientTask:
    """Return the task that a header and the sets of its broadcast describe.

    Raises:
        ValueError: a field is missing or has another type.
    """
    fields = Fields.of(header, "a task")
    scale = None if fields.values.get("scale") is None else fields.number("scale")
    broadcast = Broadcast(**sets, scale=scale)
    training = read_training(fields.values.get("training"))
    return ClientTask(
        fields.whole("round"),
        fields.text("client_id"),
        broadcast,
        training,
        fields.whole("seed"),
        fields.text("stage") if "stage" in fields.values else "",
        read_message(fields),
    )


def read_message(fields: "Fields") -> dict[str, object]:
    """Return what is told beside tensors: names and plain values, which whoever reads them has to look at.

    Raises:
        ValueError: it is no mapping.
    """
    message = fields.values.get("message", {})
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise fields.error("message")
    return message


def read_training(values: object) -> LocalTraining:
    """Return how a client trains, from plain values by name.

    Raises:
        ValueError: a field is missing, unknown or has another type.
    """
    fields = Fields.of(values, "a task's training")
    hints = get_type_hints(LocalTraining)
    for name, value in fields.values.items():
        if name not in hints or not _is_a(hints[name], value):
            raise fields.error(name)
    try:
        return LocalTraining(**fields.values)  # type: ignore[arg-type]  # each was looked at
    except TypeError as error:
        raise ValueError(f"a task's training is not whole: {error}") from error


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


def read_result(header: object, tensors: Tensors) -> ClientUpdate | ClientFailure:
    """Return the result that a header and tensors describe.

    Whether its numbers make sense is for `fedit.updates` to say; here they are numbers.

    Raises:
        ValueError: a field is missing, has another type, or is larger than any that is true.
    """
    fields = Fields.of(header, "a result")
    client_id, round = fields.text("client_id"), fields.whole("round")
    if "reason" in fields.values:
        return ClientFailure(client_id, round, str(fields.values["reason"])[:LONGEST_REASON])
    parts = split(tensors)
    if unknown := sorted(set(parts) - {"delta", "extra"}):
        raise ValueError(f"a result has tensors called {unknown[0][:40]}/…; expected delta/… and extra/…")
    return ClientUpdate(
        client_id,
        round,
        fields.whole("num_examples"),
        fields.number("weight"),
        parts.get("delta", {}),
        parts.get("extra", {}),
        _metrics(fields),
        fields.number("scale"),
        message=read_message(fields),
    )


def _metrics(fields: "Fields") -> dict[str, float]:
    values = fields.values.get("metrics")
    if not isinstance(values, dict) or len(values) > MOST_METRICS or max(map(len, values), default=0) > 100:
        raise fields.error("metrics")
    if not all(_is_a(float, value) for value in values.values()):
        raise fields.error("metrics")
    return {name: float(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Fields:
    """A header's fields, read with errors that name them. what: whose they are."""

    values: dict[str, object]
    what: str

    @classmethod
    def of(cls, values: object, what: str) -> "Fields":
        """Return the fields of a table.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{what} is {shown(values)}; expected a table of fields")
        return cls(values, what)

    def text(self, name: str) -> str:
        """Return a text of at most `LONGEST_TEXT` characters."""
        value = self.values.get(name)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            raise self.error(name)
        return value

    def whole(self, name: str) -> int:
        """Return a whole number of at most 63 bits, not below zero."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self.error(name)
        return value

    def number(self, name: str) -> float:
        """Return a number; it may be infinite or none (NaN)."""
        value = self.values.get(name)
        if not _is_a(float, value):
            raise self.error(name)
        return float(cast(float, value))

    def error(self, name: str) -> ValueError:
        """Return the error that a field is missing or not what it should be."""
        found = shown(self.values[name]) if name in self.values else "missing"
        return ValueError(f"{self.what}: {name[:40]!r} is {found}")


def _is_a(kind: object, value: object) -> bool:
    """Return whether a value read from JSON has a type, or one of several; whole numbers are numbers too."""
    if kinds := get_args(kind):
        return any(_is_a(own, value) for own in kinds)
    if kind in (int, float):
        fits = isinstance(value, int) if kind is int else isinstance(value, int | float)
        return (
            fits and not isinstance(value, bool) and (isinstance(value, float) or abs(cast(int, value)) < 1 << 63)
        )
    return isinstance(value, cast(type, kind)) and not (isinstance(value, str) and len(value) > LONGEST_TEXT)


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


def read_error(header: object, log: str) -> FeditError:
    """Return the error that a worker met, as it would have been raised here."""
    said = header if isinstance(header, dict) else {}
    kind, message = getattr(errors, str(said.get("kind")), None), str(said.get("message"))
    if isinstance(kind, type) and issubclass(kind, FeditError) and kind.__init__ is FeditError.__init__:
        return kind(message)
    return WorkerError(f"a worker process failed: {message}; see {log}")
