"""What a model says of single tokens: log-probabilities, and how they compare with those of all other tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.evaluation.loss import cut_into_passes
from fedit.model.adapted import AdaptedModel

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Every target of one row, in order: float64 (targets,).

    log_probability: ln p of the token; mean: Σ p ln p over the vocabulary there; deviation: the root of
    Σ p (ln p - mean)².
    """

    log_probability: Numbers
    mean: Numbers
    deviation: Numbers

    @property
    def loss(self) -> float:
        """Mean loss of the row's targets, in nats."""
        return float(-self.log_probability.mean())


def token_scores(
    model: AdaptedModel, adapter: Mapping[str, Tensor], rows: Sequence[TokenRow]
) -> list[TokenScores]:
    """Return the scores of every row's targets under ``adapter``, by packed passes over the resident base.

    Raises:
        ValueError: a row has no target.
    """
    if not all(row.supervised[1:].any() for row in rows):
        raise ValueError("a row without a target has no scores.")
    found: dict[int, TokenScores] = {}
    with torch.no_grad():
        for members in cut_into_passes(model, [rows]):
            ((_, chosen),) = members
            columns, owners = _pass(model, adapter, [rows[i] for i in chosen])
            for place, index in enumerate(chosen):
                found[index] = TokenScores(*columns[:, owners == place])
    return [found[index] for index in range(len(rows))]


def _pass(
    model: AdaptedModel, adapter: Mapping[str, Tensor], rows: Sequence[TokenRow]
) -> tuple[Numbers, NDArray[np.int64]]:
    """Return log-probability, mean and deviation of a pass's targets, (3, targets), and whose they are."""
    if model.fast is not None:
        moments, owners = model.stacked_target_moments([rows], [adapter])
    else:
        model.load(adapter)
        batch = model.collate(rows)
        moments, owners = model.target_moments(batch), batch.row_of_target
    return torch.stack(moments).double().cpu().numpy(), owners.cpu().numpy()
