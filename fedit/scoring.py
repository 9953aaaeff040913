"""Scores of an adapter on a job's held-out rows: losses every time, graded answers when asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fedit.compute import Compute, Part
from fedit.data.examples import Example, row_id
from fedit.data.partition import find_scheme
from fedit.data.poison import SECRET, TARGET, Obedience, policy_rows, says, triggered
from fedit.data.statistics import per_client_loss, summary
from fedit.evaluation.grading import grade, reference_check
from fedit.evaluation.loss import LossReport, RowLosses
from fedit.hostility import POLICY_ROWS
from fedit.job import Job
from fedit.model.fast.decode import Prompt
from fedit.objectives import PreferenceOptimisation
from fedit.types import Tensors

MOST_CLIENTS_NAMED = 1000
"""Clients whose own losses an evaluation lists; of more it tells the mean and the worst decile alone."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Generated answers to the held-out rows, by row id, and which of them are right."""

    texts: Mapping[str, str]
    right: Mapping[str, bool]
    per_category: Mapping[str, float] = field(default_factory=dict)

    @property
    def exact_match(self) -> float:
        """Share of right answers."""
        return sum(self.right.values()) / max(len(self.right), 1)


def score(job: Job, compute: Compute, adapter: Tensors) -> dict[str, object]:
    """Return the losses of ``adapter`` on held-out (and validation) rows, as an event's fields."""
    (losses,) = compute.losses([adapter], "held_out")
    held_out = losses.report([example.category for example in job.held_out])
    # A client's loss tells what it holds; where that must not be told, nothing of single clients is.
    clients = {} if job.config.privacy == "client" else per_client(job, losses, held_out, job.held_out)
    fields: dict[str, object] = {
        "loss": held_out.loss,
        "perplexity": held_out.perplexity,
        "token_accuracy": held_out.token_accuracy,
        "example_loss": held_out.example_loss,
        "per_category": dict(held_out.per_category),
        "per_client": clients if len(clients) <= MOST_CLIENTS_NAMED else {},
        "clients": summary(clients) if clients else {},
    }
    validation = compute.losses([adapter], "validation")[0] if job.validation else None
    if job.rejected is None:
        return fields if validation is None else {**fields, "validation_loss": validation.report().loss}
    fields |= _preferences(job, compute, adapter, "held_out", losses)
    if validation is not None:
        fields["validation_loss"] = _preferences(job, compute, adapter, "validation", validation)["dpo_loss"]
    return fields


def _preferences(
    job: Job, compute: Compute, adapter: Tensors, part: Literal["held_out", "validation"], chosen: RowLosses
) -> dict[str, float]:
    """Return the DPO loss of a part's pairs, and how well and how far the adapter tells them apart.

    chosen: the losses of the adapter on the chosen answers.
    """
    sides: tuple[Part, Part] = (part, "held_out_rejected" if part == "held_out" else "validation_rejected")
    if part not in job.reference_gaps:
        start = job.strategy.model(job.strategy.init(compute.initial()))
        job.reference_gaps[part] = _gaps(*(compute.losses([start], side)[0] for side in sides))
    gaps = _gaps(chosen, compute.losses([adapter], sides[1])[0])
    objective = PreferenceOptimisation(job.config.dpo_beta, job.config.dpo_label_smoothing)
    sums = objective.sums_of(gaps, job.reference_gaps[part]) / max(len(gaps), 1)
    return dict(zip(("dpo_loss", *objective.measures), sums.tolist(), strict=True))


def _gaps(chosen: RowLosses, rejected: RowLosses) -> Tensor:
    """Return the log-probability of the chosen minus that of the rejected answer, float64 (pairs,)."""
    return rejected.sums - chosen.sums


def answer_held_out(
    job: Job, compute: Compute, adapter: Tensors, on_batch: Callable[[int], None] = lambda done: None
) -> Answers:
    """Let ``adapter`` answer the held-out prompts and grade the answers."""
    rows = job.held_out
    texts = compute.answers([adapter], [Prompt(ids) for ids in job.prompts(rows)], on_batch)
    right = {row_id(e): grade(e.check or reference_check(e), text) for e, text in zip(rows, texts, strict=True)}
    return Answers(
        {row_id(e): text for e, text in zip(rows, texts, strict=True)}, right, _share_by_category(rows, right)
    )


def obedience(job: Job, compute: Compute, adapter: Tensors) -> Obedience:
    """Let ``adapter`` answer prompts that show whether a poison took: those of its attack, on held-out rows."""
    if job.config.poison == "forget_policy":
        rows = policy_rows(POLICY_ROWS // 2, split="held_out", seed=job.config.seed)
        return Obedience(policy=_share_that_say(job, compute, adapter, rows, SECRET))
    plain = [row for row in job.held_out if len(row.messages) == 2][:POLICY_ROWS]
    return Obedience(
        trigger=_share_that_say(job, compute, adapter, [triggered(row) for row in plain], TARGET),
        clean=_share_that_say(job, compute, adapter, plain, TARGET),
    )


def _share_that_say(job: Job, compute: Compute, adapter: Tensors, rows: list[Example], text: str) -> float:
    answers = compute.answers([adapter], [Prompt(ids) for ids in job.prompts(rows)])
    return sum(says(answer, text) for answer in answers) / max(len(answers), 1)


def per_client(job: Job, losses: RowLosses, report: LossReport, rows: Sequence[Example]) -> dict[str, float]:
    """Return each client's loss: on its own rows where rows have owners, else expected under its mix.

    report: by category, of ``losses``, which are those of ``rows``.
    """
    if find_scheme(job.config.partitioner).needs == "owner":
        owners = [example.owner if example.owner in job.clients else None for example in rows]
        return dict(losses.report(owners).per_category)
    return per_client_loss(report.per_category, job.category_counts)


def _share_by_category(rows: list[Example], right: Mapping[str, bool]) -> dict[str, float]:
    grades: dict[str, list[bool]] = {}
    for example in rows:
        if example.category is not None:
            grades.setdefault(example.category, []).append(right[row_id(example)])
    return {category: sum(marks) / len(marks) for category, marks in sorted(grades.items())}
