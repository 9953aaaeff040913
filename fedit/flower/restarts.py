"""What a server's supervisor does about runs: notes their end, starts again those that ended too early."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedit.flower import control, printed
from fedit.flower.jobs import REFUSED, Submitted
from fedit.flower.journal import Journal
from fedit.flower.layout import Deployment
from fedit.flower.progress import read_progress

MOST_IN_VAIN = 5
"""Starts in a row of one run that end without a new round, after which it has failed."""
FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class _Again:
    """A run that is to be started again. when: by the monotonic clock."""

    when: float
    in_vain: int
    round: int


class Restarts:
    """Looks after the runs of a deployment."""

    def __init__(self, deployment: Deployment, journal: Journal) -> None:
        self._deployment = deployment
        self._jobs = control.jobs_of(deployment)
        self._journal = journal
        self._again: dict[str, _Again] = {}

    def look(self) -> None:
        """Look at every run once.

        Raises:
            LinkError: the SuperLink does not answer.
        """
        states = control.flower_states(self._deployment)
        for job in self._jobs.all():
            if job.state == "active":
                self._look_at(job, states)
            else:
                self._again.pop(job.name, None)

    def _look_at(self, job: Submitted, states: Mapping[int, tuple[str, str]]) -> None:
        state, reason = states.get(job.run_id, (FORGOTTEN, "the SuperLink was started anew"))
        progress = read_progress(self._deployment.runs / job.name)
        if state == "finished" or (progress.finished and state in ("failed", FORGOTTEN)):
            self._end(job, "finished", "", f"run {job.name} is finished after {progress.round} rounds")
        elif state == "stopped":
            self._end(job, "stopped", reason, f"run {job.name} was stopped after round {progress.round}")
        elif state in ("failed", FORGOTTEN):
            self._go_on(job, progress.round, state, reason)

    def _go_on(self, job: Submitted, round: int, state: str, reason: str) -> None:
        """Start a run again from its newest whole round, or give up on one that gets nowhere."""
        if job.name not in self._again:
            # A SuperLink that was started anew says nothing of the run.
            gained = round > job.round
            in_vain = job.in_vain if state == FORGOTTEN else 0 if gained else job.in_vain + 1
            refused = round == 0 and REFUSED in reason
            if refused or in_vain >= MOST_IN_VAIN:
                times = "" if refused else f" {in_vain} times in a row before round {round + 1} was whole"
                text = f"run {job.name} failed{times}: {reason}"
                self._end(
                    job,
                    "failed",
                    reason,
                    f"{text}. What it printed: {printed.kept(self._deployment, job.name)}",
                )
                return
            if state != FORGOTTEN:
                printed.keep(self._deployment, job)
            pause = 2.0**in_vain if in_vain else 0.0
            self._again[job.name] = _Again(time.monotonic() + pause, in_vain, round)
            self._journal.say(
                "run_ended_early",
                f"run {job.name} ended after round {round}: {reason}; it is started again"
                + (f" in {pause:.0f} s" if pause else ""),
                run=job.name,
                round=round,
                reason=reason,
                pause=pause,
            )
        again = self._again[job.name]
        if time.monotonic() < again.when:
            return
        del self._again[job.name]
        run_id = control.submit_again(self._deployment, job, in_vain=again.in_vain, round=again.round)
        if run_id is not None:
            self._journal.say(
                "run_started_again",
                f"run {job.name} goes on after round {round}",
                run=job.name,
                run_id=str(run_id),
            )

    def _end(self, job: Submitted, state: str, reason: str, text: str) -> None:
        printed.keep(self._deployment, job)
        self._jobs.change(job.name, state=state, reason=reason)
        self._journal.say(f"run_{state}", text, run=job.name, reason=reason)
