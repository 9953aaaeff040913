"""The output head where there is a target: log-probabilities and their gradient, a few rows at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

PRODUCT_ROWS = {"cpu": 256, "cuda": 2048}
"""Device -> targets of one product: enough for it to be fast."""
SOFTMAX_ROWS = {"cpu": 32, "cuda": 2048}
"""Device -> targets of one softmax: on a CPU few enough that their logits stay in its caches."""


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

    def part(self, rows: slice) -> "Scores":
        """Return views of some rows."""
        return Scores(
            self.log_probability[rows],
            None if self.gradient is None else self.gradient[rows],
            None if self.likeliest is None else self.likeliest[rows],
        )


class Head:
    """A frozen output layer without bias; ``softcap`` bounds its logits as Gemma 2 does."""

    def __init__(self, weight: Tensor, softcap: float | None) -> None:
        self.weight = weight
        self.softcap = softcap
        self._rows = PRODUCT_ROWS.get(weight.device.type, 256)
        self._few = SOFTMAX_ROWS.get(weight.device.type, 256)
        self._memory: dict[tuple[torch.dtype, int], Tensor] = {}

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
            logits = torch.mm(x[rows], self.weight.T, out=self._workspace(x.dtype, self._rows, len(x[rows])))
            for first in range(0, len(logits), self._few):
                few = slice(first, first + self._few)
                self._score(logits[few], targets[rows][few], scores.part(slice(start + first, start + few.stop)))
            if scores.gradient is not None:
                torch.mm(logits, self.weight, out=scores.gradient[rows])
        return scores

    def _score(self, logits: Tensor, targets: Tensor, scores: Scores) -> None:
        """Write the scores of a few rows; with a gradient, ``logits`` becomes what the weight is multiplied by."""
        precise = scores.log_probability.dtype
        same = logits.dtype == precise
        values = logits if same else self._workspace(precise, self._few, len(logits)).copy_(logits)
        slope = None
        if self.softcap is not None:
            values.div_(self.softcap).tanh_()
            slope = 1 - values.square() if scores.gradient is not None else None
            values.mul_(self.softcap)
        own = values.gather(1, targets.unsqueeze(1))
        if scores.likeliest is not None:
            torch.eq(values.argmax(-1), targets, out=scores.likeliest)
        highest = values.amax(-1, keepdim=True)
        weights = values.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        scores.log_probability.copy_((own - highest - total.log()).squeeze(1))
        if scores.gradient is None:
            return
        # One-hot minus softmax, in full precision: of a target that is all but certain little remains.
        change = weights.mul_(total.reciprocal_().neg_())
        change.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(total))
        if slope is not None:
            change.mul_(slope)  # how fast capped logits follow the layer's own output
        if not same:
            logits.copy_(change)

    def _workspace(self, dtype: torch.dtype, most: int, rows: int) -> Tensor:
        """Return memory for a chunk's logits, the same in every call: fresh pages cost more than the sums."""
        if (dtype, most) not in self._memory:
            shape = (most, self.weight.shape[0])
            self._memory[dtype, most] = torch.empty(shape, dtype=dtype, device=self.weight.device)
        return self._memory[dtype, most][:rows]
