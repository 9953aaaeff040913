"""Answers of finished tasks, kept at the site: a task that is asked for again is not trained again."""

import json
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedit import tensorfiles
from fedit.engines.frames import Header
from fedit.errors import FeditError, RunFolderError
from fedit.files import reason, remove_leftovers, safe_name, write_bytes
from fedit.reading import parse_json
from fedit.types import Tensors

log = logging.getLogger(__name__)

Answer = tuple[Header, Tensors]

_PART = "tensors"
_NAME = re.compile(r"(\d{10})\.(.*)\.answer")


class CacheError(FeditError):
    """An answer cannot be kept on the disk; it is kept in memory."""


class ResultCache:
    """The newest answers by task id, each in a file that is whole or absent and carries its own digest.

    An answer that could not be written stays in memory, so that it can still be given, until as many newer ones
    have come. Safe to use from several threads.
    """

    def __init__(self, folder: Path, keep: int = 8) -> None:
        """Find what an earlier process left in ``folder``.

        keep: answers that stay, the newest.

        Raises:
            CacheError: the folder cannot be read.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1")
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        self._memory: dict[str, Answer] = {}  # by name, of those that are in no file
        self._places: dict[str, int] = {}  # name -> number in the order of arrival, oldest first
        self._find()

    def put(self, task_id: str, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Keep the answer of a task, in place of an earlier one of the same id.

        header: what JSON can say.

        Raises:
            CacheError: the disk is full or the folder cannot be written; `get` has the answer nevertheless.
        """
        name, text = safe_name(task_id), json.dumps(header)
        content = tensorfiles.encode({_PART: tensors}, {"task": task_id, "header": text})
        with self._lock:
            number = max(self._places.values(), default=0) + 1
            failure = None
            try:
                # The new file before the end of the old one: whenever the process is killed, one of them is there.
                write_bytes(self._path(name, number), content)
            except RunFolderError as error:
                failure = error
            self._forget(name)
            self._places[name] = number
            if failure is not None:
                self._memory[name] = json.loads(text), dict(tensors)
            self._prune()
        if failure is not None:
            raise CacheError(_not_kept(task_id, self._folder, failure)) from failure

    def get(self, task_id: str) -> Answer | None:
        """Return the header and the tensors of a task's answer; None where none is there and whole."""
        name = safe_name(task_id)
        with self._lock:
            if name in self._memory:
                return self._memory[name]
            if name not in self._places:
                return None
            path = self._path(name)
            try:
                return _read(path, task_id)
            except (OSError, ValueError) as error:
                log.warning(
                    "the answer kept in %s is dropped, and its task done again if asked for: %s", path, error
                )
                self._forget(name)
                return None

    def _find(self) -> None:
        try:
            remove_leftovers(self._folder)
            for path in sorted(self._folder.glob("*.answer")):
                if found := _NAME.fullmatch(path.name):
                    number, name = int(found[1]), found[2]
                    if name in self._places:  # killed between the new file and the end of the old one
                        self._forget(name)
                    self._places[name] = number
        except OSError as error:
            raise CacheError(f"the answers in {self._folder} cannot be read: {reason(error)}.") from error
        self._prune()

    def _prune(self) -> None:
        for name in list(self._places)[: -self._keep]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        if name not in self._places:
            return
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", self._path(name), reason(error))
        del self._places[name]
        self._memory.pop(name, None)

    def _path(self, name: str, number: int | None = None) -> Path:
        return self._folder / f"{self._places[name] if number is None else number:010d}.{name}.answer"


def _read(path: Path, task_id: str) -> Answer:
    """Return the answer in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: a bit of it differs from what was written, or it is another task's.
    """
    parts, metadata = tensorfiles.decode(path.read_bytes(), (_PART,))
    if metadata.get("task") != task_id:
        raise ValueError("it is the answer of another task")
    header = parse_json(metadata.get("header", ""))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, parts[_PART]


def _not_kept(task_id: str, folder: Path, error: RunFolderError) -> str:
    cause = error.__cause__
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return (
        f"the answer of task {task_id[:80]} cannot be kept in {folder}: {why}; free some space there. It is given "
        "from memory, but a restart of this site's worker would mean training it again."
    )
