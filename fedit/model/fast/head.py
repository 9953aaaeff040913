"""The output head where there is a target: log-probabilities and their gradient, a few rows at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedit.model.fast import fused

PRODUCT_ROWS = {"cpu": 256, "cuda": 2048}
"""Device -> most targets of one product: enough for it to be fast."""
SOFTMAX_ROWS = {"cpu": 32, "cuda": 2048}
"""Device -> targets of one softmax: on a CPU few enough that their logits stay in its caches."""
MOST_LOGITS = 2**28
"""Logits of one product at most, so that large vocabularies do not fill a GPU."""


@dataclass(slots=True)
class Scores:
    """What the head says about every target.

    log_probability: (targets,).
    gradient:        (targets, width), d log-probability / d input of the head; None when it was not asked for.
    likeliest:       bool (targets,), whether the target has the highest score; None with a gradient.
    """

    log_probability: Tensor
    gradient: Tensor | None
    likeliest: Tensor | None


class Head:
    """A frozen output layer without bias; ``softcap`` bounds its logits as Gemma 2 does."""

    def __init__(self, weight: Tensor, softcap: float | None) -> None:
        self.weight = weight
        self.softcap = softcap
        self._rows = min(PRODUCT_ROWS.get(weight.device.type, 256), max(MOST_LOGITS // weight.shape[0], 32))
        self._few = SOFTMAX_ROWS.get(weight.device.type, 256)
        self._memory: dict[torch.dtype, Tensor] = {}

    def score(self, x: Tensor, targets: Tensor, *, gradient: bool) -> Scores:
        """Return the scores of x (targets, width); the vocabulary is never held for more than a chunk of rows."""
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        scores = Scores(
            torch.empty(len(x), dtype=precise, device=x.device),
            torch.empty_like(x) if gradient else None,
            None if gradient else torch.empty(len(x), dtype=torch.bool, device=x.device),
        )
        for start in range(0, len(x), self._rows):
            rows = slice(start, start + self._rows)
            logits = torch.mm(x[rows], self.weight.T, out=self._workspace(x.dtype, len(x[rows])))
            for first in range(0, len(logits), self._few):
                few = slice(first, first + self._few)
                own, likeliest = fused.target_scores(logits[few], targets[rows][few], self.softcap, gradient)
                place = slice(start + first, start + first + len(own))
                scores.log_probability[place] = own
                if scores.likeliest is not None and likeliest is not None:
                    scores.likeliest[place] = likeliest
            if scores.gradient is not None:
                torch.mm(logits, self.weight, out=scores.gradient[rows])
        return scores

    def moments(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ln p of every target, and mean and deviation of ln p under p there, each (targets,)."""
        found = [
            moments(self.logits(x[start : start + self._few]), targets[start : start + self._few])
            for start in range(0, len(x), self._few)
        ]
        own, mean, deviation = (torch.cat(parts) for parts in zip(*found, strict=True))
        return own, mean, deviation

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores of every token after x (rows, width): float32 (rows, vocabulary), for few rows."""
        logits = torch.mm(x, self.weight.T)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def _workspace(self, dtype: torch.dtype, rows: int) -> Tensor:
        """Return memory for a chunk's logits, the same in every call: fresh pages cost more than the sums."""
        if dtype not in self._memory:
            shape = (self._rows, self.weight.shape[0])
            self._memory[dtype] = torch.empty(shape, dtype=dtype, device=self.weight.device)
        return self._memory[dtype][:rows]


def moments(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ln p of every target, and mean and deviation of ln p under p, each (rows,), by logits (rows, V)."""
    scores = logits.log_softmax(-1)
    shares = scores.exp()
    own = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    # Below, p is 0 in any precision, and so is its product with ln p, were that minus infinity.
    known = scores.clamp(min=-1e4)
    mean = torch.linalg.vecdot(shares, known)
    deviation = torch.linalg.vecdot(shares, (known - mean.unsqueeze(1)).square()).sqrt()
    return own, mean, deviation
