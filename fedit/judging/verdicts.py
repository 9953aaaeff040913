"""Verdicts from a judge's replies: read where the format says, and never guessed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedit.judging.prompts import HIGHEST, LOWEST, Mode

TIE_WITHIN = 0.1
"""Scores that differ by no more count as equal, as in MT-bench's evaluation (arXiv:2306.05685)."""

_THOUGHTS = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_DECORATION = " \t*_`#>\"'"
_LABEL = (
    r"(?:[^\[\]()\n]{0,40}?\b(?:scores?|ratings?|verdict|output|tuple|winner|decision|choice)\b"
    r"(?:\s+tuple)?(?:\s+(?:is|are))?\s*[:=]?\s*)?"
)
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_SCORES = re.compile(
    rf"{_LABEL}(?:\[\[|[\[(])?\s*({_NUMBER})(?:\s*,\s*|\s+)({_NUMBER})\s*(?:\]\]|[\])])?", re.IGNORECASE
)
_CHOICE = re.compile(rf"{_LABEL}\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_RATING = re.compile(rf"{_LABEL}\[\[\s*({_NUMBER})\s*\]\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge decided about the answers it was shown, in the order they were shown.

    scores:     one or two scores from 1 to 10; () in pairwise mode.
    preference: for the first answer, from 0 to 1, ties at 0.5; None in single mode.
    invalid:    why there is no verdict; "" for a valid one.
    """

    scores: tuple[float, ...] = ()
    preference: float | None = None
    invalid: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        if self.invalid:
            return {"invalid": self.invalid}
        return {"scores": list(self.scores), "preference": self.preference}


def outcome_of(preference: float) -> float:
    """Return 1, 0.5 or 0: who a preference is for."""
    # Rounded, as means of thirds and sevenths do not always meet at 0.5.
    return 0.5 if round(preference, 9) == 0.5 else float(preference > 0.5)


def from_scores(first: float, second: float, lowest: float = LOWEST) -> Verdict:
    """Return the verdict of two scores; invalid outside ``lowest`` to 10."""
    if not all(math.isfinite(score) and lowest <= score <= HIGHEST for score in (first, second)):
        return Verdict(invalid=f"scores outside {lowest:g} to {HIGHEST}")
    # Rounded, as 1.1 - 1 is a little more than 0.1.
    equal = round(abs(first - second), 9) <= TIE_WITHIN
    return Verdict((first, second), 0.5 if equal else float(first > second))


def read(mode: Mode, text: str, lowest: float = LOWEST) -> Verdict:
    """Return the verdict in a reply: its first or its last line, which must hold nothing else but a label.

    Lines between are never looked at: there a judge quotes answers. Where both lines hold verdicts they must be
    the same. A block of thoughts before the reply is no part of it.

    lowest: the end of the scale; numbers below it are invalid.
    """
    lines = [stripped for line in _THOUGHTS.sub("", text).splitlines() if (stripped := line.strip(_DECORATION))]
    ends = dict.fromkeys((lines[0], lines[-1])) if lines else {}
    found = {verdict for line in ends if (verdict := _read_line(mode, line, lowest)) is not None}
    if not found:
        return Verdict(invalid="no line with a verdict" if lines else "empty reply")
    return found.pop() if len(found) == 1 else Verdict(invalid="two different verdicts")


def weigh(mode: Mode, likelihoods: Mapping[str, float]) -> Verdict:
    """Return the expected verdict under a judge's log-likelihoods of all choices, normalised to sum to one.

    No text is read: scores are expected scores, and the preference is P(first wins) + P(tie) / 2.
    """
    highest = max(likelihoods.values())
    weights = {choice: math.exp(value - highest) for choice, value in likelihoods.items()}
    total = sum(weights.values())
    verdicts = [(weight / total, read(mode, choice)) for choice, weight in weights.items()]
    count = len(verdicts[0][1].scores)
    scores = tuple(sum(share * verdict.scores[i] for share, verdict in verdicts) for i in range(count))
    if mode == "single":
        return Verdict(scores)
    if mode == "score":
        return from_scores(*scores)
    return Verdict((), sum(share * (verdict.preference or 0.0) for share, verdict in verdicts))


def _read_line(mode: Mode, line: str, lowest: float) -> Verdict | None:
    pattern = {"score": _SCORES, "pairwise": _CHOICE, "single": _RATING}[mode]
    match = pattern.fullmatch(line.rstrip(". "))
    if match is None:
        return None
    if mode == "score":
        return from_scores(float(match[1]), float(match[2]), lowest)
    if mode == "pairwise":
        return Verdict((), {"A": 1.0, "B": 0.0, "C": 0.5}[match[1].upper()])
    rating = float(match[1])
    if not lowest <= rating <= HIGHEST:
        return Verdict(invalid=f"rating outside {lowest:g} to {HIGHEST}")
    return Verdict((rating,))
