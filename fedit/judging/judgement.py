"""A judgement: everything that a judge's verdicts on some arms add up to, and where they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedit import files
from fedit.evaluation.intervals import Interval
from fedit.judging.agreement import Agreement
from fedit.judging.comparison import Comparison
from fedit.judging.plan import Canary
from fedit.judging.prompts import Mode
from fedit.judging.spending import Spending
from fedit.judging.statistics import Strength

JSON, MARKDOWN = "judgement.json", "judgement.md"
MANY_INVALID = 0.05
"""Share of invalid verdicts above which a judgement warns."""
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Arm:
    """What is known of an arm's answers before anybody judges them.

    length:       mean characters of an answer.
    empty:        questions with nothing but white space.
    verdict_like: answers that hold what looks like a verdict or an order to the judge.
    neutralised:  answers with special tokens, fence look-alikes or invisible characters, made harmless.
    cut:          answers that were too long to be shown whole.
    rating:       mean rating from 1 to 10 with its interval; None but in single mode.
    """

    name: str
    questions: int
    length: float
    empty: int
    verdict_like: int
    neutralised: int
    cut: int
    rating: Interval | None = None

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        counts = {"empty": self.empty, "verdict_like": self.verdict_like, "neutralised": self.neutralised}
        found = {
            "name": self.name,
            "questions": self.questions,
            "mean_length": self.length,
            **counts,
            "cut": self.cut,
        }
        if self.rating is not None:
            return {**found, "mean_rating": self.rating.estimate, "mean_rating_ci": self.rating.bounds()}
        return found


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How many verdicts there are, without canaries.

    invalid:  reason -> verdicts that could not be read, also not after asking again.
    missing:  verdicts that were not had: no reply, or stopped before.
    cached:   requests answered from the file of verdicts, canaries included.
    again:    requests that were asked once more for the verdict alone.
    failures: reason -> requests without a reply.
    broken:   lines of the file of verdicts that could not be read; what they held was asked for again.
    """

    wanted: int
    valid: int
    invalid: Mapping[str, int]
    missing: int
    cached: int
    again: int
    failures: Mapping[str, int]
    broken: int = 0

    @property
    def invalid_share(self) -> float:
        """Invalid verdicts among those that were had."""
        invalid = sum(self.invalid.values())
        return invalid / (self.valid + invalid) if self.valid + invalid else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        return {
            "wanted": self.wanted,
            "valid": self.valid,
            "invalid": sum(self.invalid.values()),
            "invalid_share": self.invalid_share,
            "invalid_reasons": dict(self.invalid),
            "missing": self.missing,
            "cached": self.cached,
            "asked_again": self.again,
            "failures": dict(self.failures),
            "broken_lines": self.broken,
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything that a judge's verdicts add up to.

    templates: name, version and checksum of each way of asking that was used.
    ranking:   Bradley-Terry strengths, for three arms or more.
    stopped:   why it is not complete; None if it is.
    """

    mode: Mode
    judge: Mapping[str, object]
    baseline: str
    repeats: int
    seed: int
    templates: Sequence[Mapping[str, object]]
    arms: Sequence[Arm]
    comparisons: Sequence[Comparison]
    verdicts: Verdicts
    spending: Spending
    ranking: Sequence[Strength] = ()
    canaries: Sequence[Canary] = ()
    agreement: Sequence[Agreement] = ()
    stopped: str | None = None

    @property
    def partial(self) -> bool:
        """Whether verdicts are missing; judging again into the same folder goes on."""
        return self.verdicts.missing > 0

    def warnings(self) -> list[str]:
        """Return what a reader has to know before the numbers, in sentences."""
        found = []
        if self.partial:
            why = self.stopped or "; ".join(self.verdicts.failures) or "the judge gave no reply"
            found.append(
                f"partial: {self.verdicts.missing} of {self.verdicts.wanted} verdicts are missing ({why}); "
                "numbers are of the questions that were judged in full"
            )
        if self.verdicts.invalid_share > MANY_INVALID:
            found.append(
                f"{self.verdicts.invalid_share:.1%} of the verdicts are invalid and left out, which is more than "
                f"{MANY_INVALID:.0%}: this judge or its sampling does not fit the format"
            )
        for one in self.comparisons:
            if one.unmatched:
                found.append(
                    f"{one.a} / {one.b}: {one.unmatched} questions are in one of the two only and are not used"
                )
        for canary in self.canaries:
            failed = canary.tried - canary.passed - canary.missing
            if failed:
                found.append(f"canary '{canary.name}': wrong on {failed} of {canary.tried} questions")
        for arm in self.arms:
            if arm.verdict_like:
                found.append(
                    f"{arm.name}: {arm.verdict_like} of {arm.questions} answers hold what looks like a verdict or "
                    "an order to the judge"
                )
        if self.judge.get("kind") == "local":
            found.append("a judge's verdicts are worth what the model is; small models tell answers apart badly")
        return found

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        spending = self.spending
        return {
            "format": _FORMAT,
            "fedit": version("fedit"),
            "mode": self.mode,
            "judge": dict(self.judge),
            "baseline": self.baseline,
            "repeats": self.repeats,
            "seed": self.seed,
            "templates": [dict(template) for template in self.templates],
            "partial": self.partial,
            "stopped": self.stopped,
            "warnings": self.warnings(),
            "arms": [arm.as_dict() for arm in self.arms],
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "ranking": [{"arm": s.arm, "elo": s.elo, "ci": [s.low, s.high]} for s in self.ranking],
            "canaries": [canary.as_dict() for canary in self.canaries],
            "agreement": [agreed.as_dict() for agreed in self.agreement],
            "verdicts": self.verdicts.as_dict(),
            "spent": {
                "requests": spending.requests,
                "tokens_in": spending.tokens_in,
                "tokens_out": spending.tokens_out,
                "estimated": spending.estimated,
                "cost": spending.cost,
            },
        }

    def markdown(self) -> str:
        """Return it for people."""
        from fedit.judging.markdown import render

        return render(self)

    def write(self, folder: Path) -> None:
        """Write judgement.json and judgement.md.

        Raises:
            RunFolderError: they cannot be written.
        """
        files.write_json(folder / JSON, self.as_dict())
        files.write_text(folder / MARKDOWN, self.markdown())
