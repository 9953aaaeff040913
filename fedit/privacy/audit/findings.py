"""What is found of one model: how well members are told from others, and what it knows of canaries."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedit import seeds
from fedit.data.examples import Example, row_id
from fedit.evaluation.tokenscores import TokenScores, token_scores
from fedit.job import Job
from fedit.privacy.audit.drawn import Drawn, total
from fedit.privacy.audit.rows import FEWEST, Compared, compared
from fedit.privacy.audit.scores import Numbers, membership_scores
from fedit.privacy.audit.secrets import Known, Secrets, by_repetitions, known_of
from fedit.privacy.audit.separation import separation
from fedit.privacy.audit.subjects import Model, Subject
from fedit.types import Tensors


@dataclass(slots=True)
class Auditor:
    """Holds what all models of an audit are measured with.

    most:  rows of either kind; last: round of the final adapter; delta: of the run's privacy claim, 0 without one.
    """

    job: Job
    drawn: Drawn
    secrets: Secrets
    base: Tensors
    most: int
    last: int
    delta: float = 0.0
    _of_base: dict[str, TokenScores] = field(default_factory=dict)

    def rows(self, subject: Subject) -> Compared:
        """Return the rows that a model is asked about; the base is asked about those of the final adapter."""
        if subject.kind == "upload":
            trained = self.drawn.within(subject.client, subject.round)
            return compared(self.job, trained, self.most, client=subject.client)
        until = self.last if subject.kind == "base" else subject.round
        return compared(self.job, total(self.drawn.until(until)), self.most)

    def tokens(self, subject: Subject) -> int:
        """Return about how many tokens looking at a model takes."""
        rows = sum(len(row.ids) for row in self.job.tokens(self.rows(subject).all))
        return rows * (2 if subject.kind == "upload" else 1) + self.secrets.tokens

    def scores(self, subject: Subject, model: Model, rows: Compared) -> dict[str, Numbers]:
        """Return every membership score, members first."""
        own = self._token_scores(model.adapter, rows.all)
        reference: Sequence[TokenScores] | None = None
        if model.before is not None:
            reference = self._token_scores(model.before, rows.all)
        elif subject.kind != "base":
            reference = self._base_scores(rows.all)
        return membership_scores(own, reference, [row.answer for row in rows.all])

    def membership(self, rows: Compared, scores: Mapping[str, Numbers]) -> dict[str, object]:
        """Return how well every score tells members from others, for JSON."""
        count, seed = len(rows.members), seeds.derive(self.job.config.seed, "audit", "intervals")
        found = {
            name: separation(values[:count], values[count:], seed=seed, delta=self.delta).as_dict()
            for name, values in scores.items()
        }
        return {"members": count, "others": len(rows.others), "scores": found}

    def canaries(self, subject: Subject, model: Model) -> dict[str, object] | None:
        """Return what a model knows of the canaries, for JSON; of an upload, of its client's alone."""
        mine = self._canaries_of(subject)
        if not mine.canaries:
            return None
        known = known_of(self.job, model.adapter, mine, extrapolate=subject.kind == "final")
        times = self._times(subject)
        found = [self._canary(one, times) for one in known]
        summed = by_repetitions(known, times, seeds.derive(self.job.config.seed, "audit", "canaries"))
        return {"references": mine.references, "by_repetitions": summed, "canaries": found}

    def _canaries_of(self, subject: Subject) -> Secrets:
        if subject.kind != "upload":
            return self.secrets
        chosen = [i for i, canary in enumerate(self.secrets.canaries) if canary.client == subject.client]
        return Secrets([self.secrets.canaries[i] for i in chosen], [self.secrets.rows[i] for i in chosen])

    def _times(self, subject: Subject) -> dict[str, int]:
        """Return the name in a canary -> how often it was trained on by then."""
        counts = self.drawn.until(subject.round)
        return {c.name: counts.get(c.client, Counter())[row_id(c.row)] for c in self.secrets.canaries}

    def _canary(self, known: Known, times: Mapping[str, int]) -> dict[str, object]:
        return {
            **known.canary.as_dict(),
            "times_trained_on": times[known.canary.name],
            "loss": known.loss,
            "exposure": known.exposure,
            "exposure_extrapolated": known.extrapolated,
            "extracted": known.extracted,
        }

    def _token_scores(self, adapter: Tensors, rows: Sequence[Example]) -> list[TokenScores]:
        return token_scores(self.job.model, adapter, self.job.tokens(rows))

    def _base_scores(self, rows: Sequence[Example]) -> list[TokenScores]:
        """Return the base's scores, which are the same for every model that is compared with it."""
        new = [row for row in rows if row_id(row) not in self._of_base]
        if new:
            found = self._token_scores(self.base, new)
            self._of_base |= {row_id(row): own for row, own in zip(new, found, strict=True)}
        return [self._of_base[row_id(row)] for row in rows]


def too_few(rows: Compared) -> str | None:
    """Return why rows say nothing; None where there are enough."""
    if len(rows.members) >= FEWEST:
        return None
    return f"only {len(rows.members)} rows that were trained on are like a held-out one; {FEWEST} are needed"
