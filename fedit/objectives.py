"""Objectives: what a client minimises, and what an example of it makes the model run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fedit.data.pairs import PairRow
from fedit.data.tokens import TokenRow
from fedit.errors import ConfigError
from fedit.model.adapted import AdaptedModel
from fedit.model.batch import Batch
from fedit.model.fast.layout import Layout
from fedit.types import LocalTraining

Learnt = TokenRow | PairRow
"""An example as a client trains on it: one row, or the two of a preference."""


class Objective(Protocol):
    """A loss that is a mean over something: supervised tokens, or pairs.

    measures: names of what is measured on the way, each a mean over the same.
    """

    @property
    def measures(self) -> tuple[str, ...]:
        """The names."""
        ...

    def count(self, examples: Sequence[Learnt]) -> int:
        """Return how many of them there are, which the summed loss is divided by."""
        ...

    def sums(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return the summed loss, differentiable, and the sum of every measure, (1 + measures,).

        scores: log-probability of every target of the examples' rows in order, (targets,).
        """
        ...

    def losses(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return each example's own mean loss, differentiable, (examples,); no example counts in another's."""
        ...


class SupervisedTuning:
    """Negative log-likelihood of the supervised tokens (nats), a mean over tokens."""

    measures: tuple[str, ...] = ()

    def count(self, examples: Sequence[Learnt]) -> int:
        """Return the supervised tokens."""
        return num_supervised(examples)

    def sums(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return the summed loss, (1,)."""
        return (-scores.sum()).reshape(1)

    def losses(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return each example's loss, a mean over its own supervised tokens, (examples,)."""
        rows = rows_of(examples)
        counts = [max(num_targets(row), 1) for row in rows]
        return -row_sums(scores, rows) / torch.tensor(counts, dtype=scores.dtype, device=scores.device)


@dataclass(frozen=True, slots=True)
class PreferenceOptimisation:
    """Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290, equation 7), a mean over pairs.

    A pair loses -(1 - e) log sigmoid(m) - e log sigmoid(-m), where m is its reward margin: beta times the
    difference between the chosen and the rejected answer of (log-probability minus that under the reference).

    beta:      how much leaving the reference costs.
    smoothing: e, the share of preferences that are taken to be the wrong way round (cDPO); 0 in the paper.
    """

    beta: float
    smoothing: float = 0.0
    measures: ClassVar[tuple[str, ...]] = ("reward_margin", "preference_accuracy")

    def count(self, examples: Sequence[Learnt]) -> int:
        """Return the pairs."""
        return len(examples)

    def sums(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return the summed loss, reward margins and pairs told apart, (3,)."""
        return self.sums_of(*_gaps(scores, examples))

    def losses(self, scores: Tensor, examples: Sequence[Learnt]) -> Tensor:
        """Return each pair's loss, (pairs,)."""
        gaps, reference = _gaps(scores, examples)
        return self._losses(self.beta * (gaps - reference))

    def _losses(self, margins: Tensor) -> Tensor:
        losses = -(1 - self.smoothing) * nn.functional.logsigmoid(margins)
        if self.smoothing > 0:
            losses = losses - self.smoothing * nn.functional.logsigmoid(-margins)
        return losses

    def sums_of(self, gaps: Tensor, reference: Tensor) -> Tensor:
        """Return the sums from log-probabilities of chosen minus rejected answers, both (pairs,)."""
        margins = self.beta * (gaps - reference)
        losses = self._losses(margins)
        known = margins.detach()
        # A pair that the model does not tell apart is half right, as a guess is on average.
        right = (known > 0).to(known.dtype) + 0.5 * (known == 0).to(known.dtype)
        return torch.stack([losses.sum(), known.sum(), right.sum()])


def _gaps(scores: Tensor, examples: Sequence[Learnt]) -> tuple[Tensor, Tensor]:
    """Return log-probability of chosen minus rejected answers, and the same under the reference, (pairs,)."""
    gaps = answer_gaps(row_sums(scores, rows_of(examples)))
    known = [example.reference for example in examples if isinstance(example, PairRow)]
    reference = torch.tensor([math.nan if r is None else r for r in known], dtype=torch.float64)
    return gaps, reference.to(gaps)


OBJECTIVES = ("sft", "dpo")


def objective_of(training: LocalTraining) -> Objective:
    """Return what local training minimises."""
    if training.objective == "dpo":
        return PreferenceOptimisation(training.dpo_beta, training.dpo_label_smoothing)
    if training.objective == "sft":
        return SupervisedTuning()
    raise ConfigError(f"objective is '{training.objective}'; expected one of {', '.join(OBJECTIVES)}.")


# --- examples and their rows ---


def rows_of(examples: Sequence[Learnt]) -> list[TokenRow]:
    """Return the rows of all examples, one example after the other."""
    return [row for example in examples for row in example.rows]


def num_tokens(examples: Sequence[Learnt]) -> int:
    """Return the tokens of the examples' rows."""
    return sum(len(row.ids) for example in examples for row in example.rows)


def num_supervised(examples: Sequence[Learnt]) -> int:
    """Return how many tokens of ``examples`` are targets."""
    return sum(num_targets(row) for example in examples for row in example.rows)


def num_targets(row: TokenRow) -> int:
    """Return how many tokens of a row are predicted from those before them."""
    return int(row.supervised[1:].sum())


def passes(
    model: AdaptedModel, examples: Sequence[Learnt], most: int | None, *, apart: bool = False
) -> list[list[int]]:
    """Cut examples into passes of at most ``most``; the rows of one example stay together.

    apart: whether the passes tell examples apart.
    """
    together = len(examples[0].rows) if examples else 1
    return model.passes(rows_of(examples), most, together, apart=apart)


def row_sums(scores: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """Return each row's log-probability (rows,), from those of the targets of all rows in order (targets,).

    Added up row by row, in one order: the same bits every time, also on a GPU.
    """
    return torch.stack([part.sum() for part in scores.split([num_targets(row) for row in rows])])


def answer_gaps(sums: Tensor) -> Tensor:
    """Return log-probability of chosen minus rejected answers (pairs,), from those of both in turn (2 pairs,)."""
    return sums[0::2] - sums[1::2]


# --- losses of one pass ---


def negative_log_likelihood(model: AdaptedModel, batch: Batch | Layout) -> Tensor:
    """Return the summed negative log-likelihood of the supervised tokens (nats), a scalar with gradient.

    The caller divides by the supervised tokens of the whole optimizer step, so the size of
    a micro-batch does not change the result.
    """
    return -model.log_probabilities(batch).sum()


def reference_gaps(model: AdaptedModel, pairs: Sequence[PairRow]) -> Tensor:
    """Return what `PairRow.reference` is under the loaded adapter, float64 (pairs,)."""
    gaps = torch.zeros(len(pairs), dtype=torch.float64)
    with torch.no_grad():
        for members in passes(model, pairs, None):
            rows = rows_of([pairs[i] for i in members])
            scores, _ = model.target_scores(model.collate(rows))
            gaps[members] = answer_gaps(row_sums(scores, rows)).double().cpu()
    return gaps
