"""One target for so long: make an input, run it within limits of time and memory, keep what is new or breaks."""

import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from fuzz.mutation import Mutator
from fuzz.reach import Reach
from fuzz.target import Target

SLOWEST = 4.0
"""Seconds of processor that an input of at most 64 KiB may take."""
MOST_GROWTH = 512 << 10
"""KiB by which one input may push the highest memory use of the process."""
_MOST_POOL = 2000


class TooSlow(BaseException):
    """An input took too long; no ``except Exception`` of a parser may swallow it."""


class TooLarge(BaseException):
    """An input made a parser take too much memory."""


@dataclass
class Crash:
    """An input that broke a parser. where: the innermost line of fedit; told: the error."""

    data: bytes
    where: str
    told: str


@dataclass
class Outcome:
    """What came of fuzzing a target.

    reached: lines of fedit that were reached; crashes: by where and what, the first input of each.
    """

    executions: int = 0
    seconds: float = 0.0
    reached: int = 0
    crashes: dict[str, Crash] = field(default_factory=dict)


def fuzz(
    target: Target,
    *,
    seed: int,
    seconds: float | None = None,
    executions: int | None = None,
    guided: bool = True,
    note: Callable[[bytes], None] = lambda data: None,
) -> Outcome:
    """Run a target for ``seconds`` or for so many ``executions``; its examples come first.

    guided: build upon inputs that reach new lines.
    note:   hears every input before it is run, for what no exception tells of.
    """
    outcome, reach = Outcome(), Reach()
    mutator = Mutator(target.kind, target.words, seed)
    pool = list(target.seeds)
    first = list(pool)
    started = time.monotonic()
    while (executions is None or outcome.executions < executions) and (
        seconds is None or time.monotonic() - started < seconds
    ):
        data = first.pop() if first else mutator.broken(pool)
        note(data)
        before = reach.lines
        try:
            if guided:
                with limits(), reach.watching():
                    target.try_(data)
            else:
                with limits():
                    target.try_(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            crash = Crash(data, _where(error), f"{type(error).__name__}: {str(error)[:300]}")
            known = outcome.crashes.setdefault(f"{crash.where} {type(error).__name__}", crash)
            if len(data) < len(known.data):
                known.data = data
        outcome.executions += 1
        if reach.lines > before and len(pool) < _MOST_POOL:
            pool.append(data)
    outcome.seconds, outcome.reached = time.monotonic() - started, reach.lines
    return outcome


@contextmanager
def limits() -> Iterator[None]:
    """End what takes too long, and notice what took too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    earlier = signal.signal(signal.SIGVTALRM, _too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MOST_GROWTH:
        raise TooLarge(f"{grown >> 10} MiB more memory were needed")


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SLOWEST:g} seconds")


def _where(error: BaseException) -> str:
    """Return the innermost line of fedit that an error went through, or else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/fedit/" in frame.filename and "/site-packages/" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename.rpartition('/fedit/')[2]}:{frame.lineno} in {frame.name}"
