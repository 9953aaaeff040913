"""How like questions are to examples, by what a model makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.batch import collate

TOGETHER = 16
"""Prompts of a pass."""


def likeness(model: AdaptedModel, questions: Sequence[Sequence[int]], examples: Sequence[Sequence[int]]) -> Tensor:
    """Return each question's mean cosine with the examples, float64 (questions,), as arXiv:2403.19211 takes it.

    Both are prompts as token ids; what is compared is the last hidden state at a prompt's last token, under what
    is loaded in ``model``.
    """
    asked, known = (_unit(_states(model, prompts)) for prompts in (questions, examples))
    return (asked @ known.T).mean(dim=1)


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = torch.nn.functional.normalize(vectors.double(), dim=1)
    return unit


def _states(model: AdaptedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    found = []
    for start in range(0, len(prompts), TOGETHER):
        rows = [
            TokenRow(np.asarray(ids, dtype=np.int32), np.zeros(len(ids), dtype=bool))
            for ids in prompts[start : start + TOGETHER]
        ]
        found.append(model.last_hidden(collate(rows, packed=False).to(model.device)).cpu())
    return torch.cat(found)
