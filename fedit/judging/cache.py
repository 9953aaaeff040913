"""Verdicts on disk: one JSON line each, only ever appended to; replies are found again by content."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedit.errors import RunFolderError
from fedit.files import reason
from fedit.judging.base import Reply
from fedit.reading import parse_json

VERDICTS = "verdicts.jsonl"
_LOCK = ".judge.lock"


class Replies:
    """The replies in one file, by key, and the verdicts that rest on them.

    The line of the first verdict that needed a reply holds it; verdicts that the same reply answers (equal answers
    in both orders, say) have lines of their own without it.

    A process that is killed while it writes leaves a line without an end; such lines are skipped, and the next
    reply starts on a line of its own.

    Attributes:
        broken: lines that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        self._verdicts: set[str] = set()
        data = path.read_bytes() if path.is_file() else b""
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            record = _parsed(line)
            if record is None:
                self.broken += 1
                continue
            key = str(record["key"])
            self._verdicts.add(_identity(key, record))
            if (reply := _reply_of(record)) is not None:
                self._replies[key] = reply

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return the reply kept under ``key``."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply, about: Mapping[str, object]) -> None:
        """Keep a reply, on the disk before this returns; ``about`` says which verdict asked for it.

        Raises:
            RunFolderError: it cannot be written.
        """
        self._append({**about, "key": key, "reply": _as_dict(reply)})
        self._replies[key] = reply

    def note(self, key: str, about: Mapping[str, object]) -> None:
        """Write that a verdict rests on the reply under ``key``, unless a line says so already.

        Raises:
            RunFolderError: it cannot be written.
        """
        if _identity(key, about) not in self._verdicts:
            self._append({**about, "key": key})

    def _append(self, record: Mapping[str, object]) -> None:
        # ASCII: a lone half of a surrogate pair, which JSON may hold, is not UTF-8.
        line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                with open(self.path, "ab") as file:
                    file.write(b"\n" + line if self._torn else line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise RunFolderError(f"cannot write {self.path}: {reason(error)}") from error
            self._torn = False
            self._verdicts.add(_identity(str(record["key"]), record))


@contextmanager
def open_replies(folder: Path) -> Iterator[Replies]:
    """Yield the replies in ``folder``, which no other process may add to meanwhile.

    Raises:
        RunFolderError: another process judges into the folder, or it cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another process judges into {folder}; wait for it or choose another --out."
        ) from error
    except OSError as error:
        raise RunFolderError(f"cannot write to {folder}: {reason(error)}") from error
    try:
        yield _opened(folder / VERDICTS)
    finally:
        lock.release()
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)


def read_records(path: Path) -> list[dict[str, object]]:
    """Return the whole lines of a file of verdicts, as they were written."""
    records: list[dict[str, object]] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = parse_json(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _opened(path: Path) -> Replies:
    try:
        return Replies(path)
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {reason(error)}") from error


def _as_dict(reply: Reply) -> dict[str, object]:
    content = {"text": reply.text} if reply.likelihoods is None else {"likelihoods": dict(reply.likelihoods)}
    usage = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
    return {**content, **usage, **({"estimated": True} if reply.estimated else {})}


def _identity(key: str, about: Mapping[str, object]) -> str:
    """Return what tells the verdicts that rest on one reply apart."""
    return json.dumps([key, *(about.get(name) for name in ("purpose", "question_id", "shown", "repeat"))])


def _parsed(line: bytes) -> dict[str, object] | None:
    try:
        record = parse_json(line)
        whole = isinstance(record, dict) and isinstance(record.get("key"), str)
        if not whole or ("reply" in record and _reply_of(record) is None):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(record)


def _reply_of(record: Mapping[str, object]) -> Reply | None:
    match record.get("reply"):
        case {"tokens_in": int() as tokens_in, "tokens_out": int() as tokens_out, **content}:
            pass
        case _:
            return None
    match content:
        case {"likelihoods": dict() as likelihoods}:
            weights = {str(choice): float(value) for choice, value in likelihoods.items()}
            return Reply(None, weights, tokens_in, tokens_out)
        case {"text": str() as text, **rest}:
            return Reply(text, None, tokens_in, tokens_out, rest.get("estimated") is True)
        case _:
            return None
