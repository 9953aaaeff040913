"""Many requests to one judge: what is known already is not asked again, what fails is counted, limits are kept."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fedit.data.examples import Message
from fedit.errors import JudgeError
from fedit.judging.base import Judge, NoReply, Reply, Request, key_of
from fedit.judging.cache import Replies
from fedit.judging.prompts import Mode, Template, ask_again
from fedit.judging.spending import BudgetSpent, Pace, Spending
from fedit.judging.verdicts import Verdict, read, weigh

FAILURES_IN_A_ROW = 5
"""So many requests without a reply, each tried several times, and the judge is given up."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One verdict that is wanted.

    purpose: "comparison", or the canary's name.
    shown:   the arms whose answers are shown, in that order.
    """

    purpose: str
    question_id: str
    shown: tuple[str, ...]
    repeat: int
    template: Template
    messages: tuple[Message, ...]

    def about(self) -> dict[str, object]:
        """Return what the file of verdicts says of it."""
        return {
            "purpose": self.purpose,
            "question_id": self.question_id,
            "shown": list(self.shown),
            "repeat": self.repeat,
            "template": self.template.describe(),
        }


@dataclass
class Asked:
    """What came of all that was wanted.

    verdicts: one for each wanted, in that order; None where there was no reply.
    again:    how many were asked for once more because a reply held no verdict.
    failures: reasons of requests without a reply, and how often.
    stopped:  why not everything was asked; None if it was.
    """

    verdicts: list[Verdict | None]
    again: int = 0
    cached: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    verdict: Verdict
    again: bool


class Asking:
    """Asks one judge, in one mode, keeping replies in one file."""

    def __init__(self, judge: Judge, mode: Mode, replies: Replies, spending: Spending, pace: Pace) -> None:
        self._judge = judge
        self._mode = mode
        self._replies = replies
        self._spending = spending
        self._pace = pace
        self._stop = threading.Event()

    def ask(
        self, wanted: Sequence[Wanted], on_done: Callable[[int, int], None] = lambda done, total: None
    ) -> Asked:
        """Return a verdict for each of ``wanted``.

        Equal requests are asked once. Replies are on the disk before they count, so an interruption loses only
        what is in flight; asking again goes on from there.

        on_done: called in this thread with the number of verdicts that are there, and of all.

        Raises:
            UserError: the judge refuses as things are set up.
            JudgeError: it does not answer any more.
            RunFolderError: replies cannot be written.
        """
        asked = Asked([None] * len(wanted))
        waiting: dict[str, list[int]] = {}
        for index, want in enumerate(wanted):
            waiting.setdefault(self._key(want), []).append(index)
        open_ones: list[str] = []
        done = 0

        def settle(key: str, outcome: _Outcome) -> None:
            nonlocal done
            for index in waiting[key]:
                asked.verdicts[index] = outcome.verdict
                self._replies.note(key, self._about(wanted[index], outcome.verdict, again=outcome.again))
            asked.again += outcome.again
            done += len(waiting[key])
            on_done(done, len(wanted))

        for key, members in waiting.items():
            known = self._known(wanted[members[0]])
            if known is None:
                open_ones.append(key)
            else:
                asked.cached += 1
                settle(key, known)
        self._ask_open([(key, wanted[waiting[key][0]]) for key in open_ones], asked, settle)
        return asked

    def _ask_open(
        self, open_ones: Sequence[tuple[str, Wanted]], asked: Asked, settle: Callable[[str, _Outcome], None]
    ) -> None:
        """Ask for what is not known yet, in several threads where the judge can take it."""
        in_a_row = 0
        fault: Exception | None = None
        for key, result in self._results(open_ones):
            match result:
                case _Outcome():
                    settle(key, result)
                    in_a_row = 0
                case BudgetSpent():
                    asked.stopped = str(result)
                    self._stop.set()
                case NoReply():
                    asked.failures[str(result)] = asked.failures.get(str(result), 0) + 1
                    in_a_row += 1
                    if in_a_row >= FAILURES_IN_A_ROW:
                        raise JudgeError(
                            f"{in_a_row} requests in a row got no reply from {self._judge.name}, the last one: "
                            f"{result}. {len(self._replies)} replies are kept; judge again to go on from there."
                        )
                case _:
                    # What is in flight is waited for: it is paid for, and keeps its reply.
                    fault = fault or result
                    self._stop.set()
        if fault is not None:
            raise fault

    def _results(self, open_ones: Sequence[tuple[str, Wanted]]) -> Iterator[tuple[str, _Outcome | Exception]]:
        """Yield each request's outcome as it comes; when the caller leaves, no other is started."""
        self._stop.clear()
        threads = min(self._judge.concurrency, len(open_ones))
        if threads <= 1:
            for key, want in open_ones:
                if not self._stop.is_set():
                    yield key, self._attempt(want)
            return
        todo: queue.SimpleQueue[tuple[str, Wanted]] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[str, _Outcome | Exception] | None] = queue.SimpleQueue()
        for item in open_ones:
            todo.put(item)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    key, want = todo.get_nowait()
                except queue.Empty:
                    break
                result = self._attempt(want)
                if isinstance(result, Exception) and not isinstance(result, NoReply):
                    self._stop.set()  # no thread would fare better with the next
                results.put((key, result))
            results.put(None)

        # Daemons: whoever interrupts does not wait for requests in flight.
        for number in range(threads):
            threading.Thread(target=work, name=f"judge-{number}", daemon=True).start()
        try:
            while threads:
                if (result := results.get()) is None:
                    threads -= 1
                else:
                    yield result
        finally:
            self._stop.set()

    def _attempt(self, want: Wanted) -> _Outcome | Exception:
        try:
            return self._outcome(want)
        except Exception as error:  # raised again, or counted, in the caller's thread
            return error

    def _outcome(self, want: Wanted) -> _Outcome:
        """Ask, and once more for the verdict alone where a written reply holds none."""
        first = self._reply(want, self._request(want), again=False)
        verdict = self._read(first)
        if not verdict.invalid or first.text is None:
            return _Outcome(verdict, again=False)
        second = self._reply(want, self._request(want, first.text), again=True)
        return _Outcome(self._read(second), again=True)

    def _known(self, want: Wanted) -> _Outcome | None:
        """Return the outcome if every reply that it takes is kept."""
        first = self._replies.get(self._key(want))
        if first is None:
            return None
        verdict = self._read(first)
        if not verdict.invalid or first.text is None:
            return _Outcome(verdict, again=False)
        second = self._replies.get(key_of(self._judge, self._request(want, first.text)))
        return None if second is None else _Outcome(self._read(second), again=True)

    def _reply(self, want: Wanted, request: Request, *, again: bool) -> Reply:
        key = key_of(self._judge, request)
        if (kept := self._replies.get(key)) is not None:
            return kept
        self._spending.admit()
        reply = None
        try:
            self._pace.wait()
            reply = self._judge.ask(request)
        finally:
            self._spending.settle(reply)
        self._replies.add(key, reply, self._about(want, self._read(reply), again=again))
        return reply

    def _about(self, want: Wanted, verdict: Verdict, *, again: bool) -> dict[str, object]:
        asked = {"model": self._judge.name, "mode": self._mode, "asked_again": again}
        return {**want.about(), **asked, "verdict": verdict.as_dict()}

    def _request(self, want: Wanted, reply: str | None = None) -> Request:
        messages = want.messages if reply is None else ask_again(want.template, want.messages, reply)
        return Request(messages, want.template.choices, want.repeat)

    def _key(self, want: Wanted) -> str:
        return key_of(self._judge, self._request(want))

    def _read(self, reply: Reply) -> Verdict:
        if reply.likelihoods is not None:
            return weigh(self._mode, reply.likelihoods)
        return read(self._mode, reply.text or "")
