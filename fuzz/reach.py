"""Which lines of fedit an input reaches, so that inputs that reach new ones are built upon."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = str(Path(__file__).parent.parent / "fedit")
_PATIENCE = 400
"""Calls of a function in which nothing new was reached; then it is no longer watched, which would only cost."""


class Reach:
    """Lines of fedit that were reached so far.

    Tracing makes a program several times slower: functions all of whose lines are known, or that showed nothing
    new for long, are left alone.
    """

    def __init__(self) -> None:
        self._unseen: dict[CodeType, set[int]] = {}
        self._in_vain: dict[CodeType, int] = {}
        self.lines = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the block reaches."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:  # as sys.settrace has it
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if code not in self._unseen:
            self._unseen[code] = {line for _, _, line in code.co_lines() if line}
            self._in_vain[code] = 0
        if not self._unseen[code] or self._in_vain[code] > _PATIENCE:
            return None
        self._in_vain[code] += 1
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, argument: object) -> Any:  # as sys.settrace has it
        if event == "line":
            unseen = self._unseen[frame.f_code]
            if frame.f_lineno in unseen:
                unseen.discard(frame.f_lineno)
                self._in_vain[frame.f_code] = 0
                self.lines += 1
        return self._stepped
