"""Comparisons: who is shown in which place, whose answer it was, and the vote between them."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from fedit import seeds
from fedit.errors import ConfigError
from fedit.evaluation import votes
from fedit.resident import Sampling
from fedit.ui.questions import Question
from fedit.ui.speaker import Spoken

LABELS = "ABCD"
FEWEST, MOST = 2, len(LABELS)
TIE, BOTH_BAD = "tie", "both_bad"

_KEPT = 256
"""Comparisons that can still be voted on; older ones are forgotten."""


@dataclass(eq=False)
class Comparison:
    """One question put to several arms, in the order in which they are shown.

    arms:    names of arms; the one at place i is shown as `LABELS[i]`.
    blind:   whether the names are hidden until the vote.
    answers: what they said, in the same order, as far as they have answered.
    """

    id: str
    question: Question
    system: str
    arms: Sequence[str]
    blind: bool
    sampling: Sampling
    answers: list[Spoken] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str]:
        """Label -> arm."""
        return dict(zip(LABELS, self.arms, strict=False))


class Ballot:
    """Draws comparisons, takes one vote on each and keeps it in a file.

    identities: arm -> `fedit.resident.Resident.identity`, written with the votes on it.
    seed: decides the order in which arms are shown.
    """

    def __init__(self, path: Path, identities: dict[str, str], seed: int) -> None:
        self.path = path
        self._identities = identities
        self._seed = seed
        self._drawn = 0
        self._open: OrderedDict[str, Comparison] = OrderedDict()
        self._lock = threading.Lock()

    def draw(
        self, question: Question, arms: Sequence[str], *, system: str, blind: bool, sampling: Sampling
    ) -> Comparison:
        """Return a new comparison, its arms in an order of chance where it is blind.

        Answers that are drawn get a seed, so that the vote tells which they were.

        Raises:
            ConfigError: there are too few or too many arms, or one twice.
        """
        if not FEWEST <= len(arms) <= MOST or len(set(arms)) < len(arms):
            raise ConfigError(f"arms is {list(arms)}; expected {FEWEST} to {MOST} different ones.")
        if sampling.seed is None and sampling.temperature > 0:
            sampling = replace(sampling, seed=secrets.randbits(32))
        with self._lock:
            rng = np.random.default_rng(seeds.derive(self._seed, "order", self._drawn))
            self._drawn += 1
            order = rng.permutation(len(arms)) if blind else range(len(arms))
            comparison = Comparison(
                secrets.token_urlsafe(12), question, system, [arms[i] for i in order], blind, sampling
            )
            self._open[comparison.id] = comparison
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return comparison

    def vote(self, id: str, choice: str) -> Comparison:
        """Write the vote ``choice`` (a label, "tie" or "both_bad"), close the comparison and return it.

        A label is a verdict for it over each of the others; "tie" and "both_bad" are verdicts on every pair.

        Raises:
            ConfigError: there is no such comparison any more, it is not finished, or the choice is none of them.
            RunFolderError: the vote cannot be written; it can be tried again.
        """
        with self._lock:
            comparison = self._open.get(id)
            if comparison is None:
                raise ConfigError("this comparison was voted on already, or is not known here; ask again.")
            if len(comparison.answers) < len(comparison.arms):
                raise ConfigError("this comparison has no vote yet: not all of its answers are there.")
            choices = [*comparison.names, TIE, BOTH_BAD]
            if choice not in choices:
                raise ConfigError(f"choice is {choice!r}; expected one of {', '.join(choices)}.")
            votes.append(self.path, self._lines(comparison, choice))
            del self._open[id]
        return comparison

    def read(self) -> list[votes.Vote]:
        """Return the votes in the file, those of earlier times too.

        Raises:
            DataError: the file cannot be read.
        """
        return votes.read_votes(self.path) if self.path.is_file() else []

    def _lines(self, comparison: Comparison, choice: str) -> list[dict[str, object]]:
        common: dict[str, object] = {
            "version": votes.SCHEMA,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "vote": comparison.id,
            "question_id": comparison.question.id or None,
            "question": comparison.question.text,
            "category": comparison.question.category or None,
            "system": comparison.system,
            "arms": list(comparison.arms),
            "blind": comparison.blind,
            "settings": asdict(comparison.sampling),
        }
        lines = []
        for one, other in combinations(range(len(comparison.arms)), 2):
            verdict = {LABELS[one]: "first", LABELS[other]: "second", TIE: TIE, BOTH_BAD: BOTH_BAD}.get(choice)
            if verdict is None:
                continue  # a third answer was chosen: nothing is said about these two
            first, second = comparison.arms[one], comparison.arms[other]
            said = {"first": comparison.answers[one], "second": comparison.answers[other]}
            lines.append(
                common
                | {
                    "first": first,
                    "second": second,
                    "winner": verdict,
                    "answers": {place: answer.text for place, answer in said.items()},
                    "prompts": {place: answer.prompt for place, answer in said.items()},
                    "identities": {"first": self._identities[first], "second": self._identities[second]},
                }
            )
        return lines
