"""Which verdicts are wanted: each pair in both orders, each repeat, and canaries whose right verdict is known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedit import seeds
from fedit.evaluation.answerfiles import Answered
from fedit.judging.answers import common_questions
from fedit.judging.asking import Wanted
from fedit.judging.prompts import Mode, compose, template_for
from fedit.judging.verdicts import Verdict

COMPARISON = "comparison"
CANARY_QUESTIONS = 5
"""Most questions that each canary is tried on."""
_EMPTY, _REFERENCE = "(empty)", "(reference)"
_TIE_WITHIN = 0.05
"""How far from even a weighing judge's preference between two equal answers may be."""


@dataclass(frozen=True, slots=True)
class Asker:
    """How the requests of one judgement are written.

    explains: the judge writes text.
    longest:  characters of a text that it is shown.
    """

    mode: Mode
    explains: bool
    repeats: int
    longest: int

    def want(self, purpose: str, repeat: int, *shown: tuple[str, Answered]) -> Wanted:
        """Return the wanted verdict on these arms' answers to one question, shown in this order."""
        question = shown[0][1]
        template = template_for(
            self.mode,
            question.category,
            reference=any(question.reference or ()),
            turns=len(question.turns),
            explains=self.explains,
        )
        answers = [item.answers for _, item in shown]
        messages = compose(template, question.turns, question.reference or (), answers, longest=self.longest)
        return Wanted(purpose, question.question_id, tuple(name for name, _ in shown), repeat, template, messages)


def pairs_of(arms: Sequence[str], baseline: str, *, all_pairs: bool) -> list[tuple[str, str]]:
    """Return which arms are compared: each with the baseline, and with each other where asked for."""
    others = [arm for arm in arms if arm != baseline]
    pairs = [(arm, baseline) for arm in others]
    if all_pairs:
        pairs += [(a, b) for index, a in enumerate(others) for b in others[index + 1 :]]
    return pairs


def comparisons(
    arms: Mapping[str, Sequence[Answered]], pairs: Sequence[tuple[str, str]], asker: Asker
) -> list[Wanted]:
    """Return all verdicts that compare ``pairs``, question by question, so that an early stop leaves whole ones.

    Raises:
        DataError: a question has different texts in two arms.
    """
    by_question: dict[str, list[Wanted]] = {}
    for a, b in pairs:
        for item_a, item_b in common_questions(arms[a], arms[b]):
            wanted = by_question.setdefault(item_a.question_id, [])
            for repeat in range(asker.repeats):
                wanted.append(asker.want(COMPARISON, repeat, (a, item_a), (b, item_b)))
                wanted.append(asker.want(COMPARISON, repeat, (b, item_b), (a, item_a)))
    return [want for wanted in by_question.values() for want in wanted]


def ratings(arms: Mapping[str, Sequence[Answered]], asker: Asker) -> list[Wanted]:
    """Return all verdicts that rate arms one at a time, question by question."""
    by_question: dict[str, list[Wanted]] = {}
    for arm, items in arms.items():
        for item in items:
            wanted = by_question.setdefault(item.question_id, [])
            wanted += [asker.want(COMPARISON, repeat, (arm, item)) for repeat in range(asker.repeats)]
    return [want for wanted in by_question.values() for want in wanted]


# --- canaries ---


@dataclass(frozen=True, slots=True)
class Canary:
    """How a judge did on questions whose right verdict is known.

    missing: verdicts that are invalid or were not had.
    """

    name: str
    tried: int
    passed: int
    missing: int

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        return {"name": self.name, "tried": self.tried, "passed": self.passed, "missing": self.missing}


def canaries(arm: str, items: Sequence[Answered], asker: Asker, seed: int) -> list[Wanted]:
    """Return verdicts on a few of an arm's answers whose right outcome is known.

    empty:     the answer beside an empty one; the answer has to win.
    identical: the answer beside itself; it has to be a tie. Not in single mode.
    reference: the reference beside an empty answer; the reference has to win.
    """
    full = [item for item in items if any(text.strip() for text in item.answers)]
    known = [item for item in items if item.reference and all(item.reference)]
    wanted: list[Wanted] = []
    for item in _some(full, seed):
        wanted += _against_empty("empty", arm, item, asker)
        if asker.mode != "single":
            wanted.append(asker.want("identical", 0, (arm, item), (arm, item)))
    for item in _some(known, seed):
        # The judge is not shown what it has to recognise.
        right = replace(item, answers=item.reference or (), reference=None)
        wanted += _against_empty("reference", _REFERENCE, right, asker)
    return wanted


def score_canaries(wanted: Sequence[Wanted], verdicts: Sequence[Verdict | None]) -> list[Canary]:
    """Return how a judge did on `canaries`."""
    groups: dict[tuple[str, str], list[tuple[Wanted, Verdict | None]]] = {}
    for want, verdict in zip(wanted, verdicts, strict=True):
        groups.setdefault((want.purpose, want.question_id), []).append((want, verdict))
    results: dict[str, list[bool | None]] = {}
    for (name, _), members in groups.items():
        results.setdefault(name, []).append(_passed(name, members))
    return [
        Canary(name, len(passed), sum(p is True for p in passed), sum(p is None for p in passed))
        for name, passed in results.items()
    ]


def _passed(name: str, members: Sequence[tuple[Wanted, Verdict | None]]) -> bool | None:
    """Whether the verdicts on one question are right; None without all of them."""
    valid = [(want, verdict) for want, verdict in members if verdict is not None and not verdict.invalid]
    if len(valid) < len(members):
        return None
    if name == "identical":
        return all(abs((verdict.preference or 0.0) - 0.5) <= _TIE_WITHIN for _, verdict in valid)
    if len(valid[0][0].shown) == 1:
        rating = {want.shown[0]: verdict.scores[0] for want, verdict in valid}
        empty = rating.pop(_EMPTY)
        return all(value > empty for value in rating.values())
    for_empty = [
        (verdict.preference or 0.0) if want.shown[0] == _EMPTY else 1 - (verdict.preference or 0.0)
        for want, verdict in valid
    ]
    return sum(for_empty) / len(for_empty) < 0.5


def _against_empty(name: str, arm: str, item: Answered, asker: Asker) -> Iterator[Wanted]:
    empty = replace(item, answers=("",) * len(item.turns))
    shown, nothing = (arm, item), (_EMPTY, empty)
    if asker.mode == "single":
        yield asker.want(name, 0, shown)
        yield asker.want(name, 0, nothing)
    else:
        yield asker.want(name, 0, shown, nothing)
        yield asker.want(name, 0, nothing, shown)


def _some(items: Sequence[Answered], seed: int) -> list[Answered]:
    generator = np.random.default_rng(seeds.derive(seed, "canaries"))
    chosen = generator.permutation(len(items))[:CANARY_QUESTIONS]
    return [items[index] for index in sorted(chosen)]
