"""The output head where there is a target: log-probabilities and their gradient, a few rows at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_PER_CHUNK = {"cpu": 256, "cuda": 2048}


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
        self._rows = ROWS_PER_CHUNK.get(weight.device.type, 256)
        self._memory: dict[torch.dtype, Tensor] = {}

    def score(self, x: Tensor, targets: Tensor, *, gradient: bool) -> Scores:
        """Return the scores of x (targets, width); the vocabulary is never held for more than a chunk of rows."""
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        scores = torch.empty(len(x), dtype=precise, device=x.device)
        gradients = torch.empty_like(x) if gradient else None
        likeliest = None if gradient else torch.empty(len(x), dtype=torch.bool, device=x.device)
        for start in range(0, len(x), self._rows):
            rows = slice(start, start + self._rows)
            logits, slope = self._logits(x[rows], precise, sloped=gradient)
            own = logits.gather(1, targets[rows].unsqueeze(1))
            if likeliest is not None:
                likeliest[rows] = logits.argmax(-1) == targets[rows]
            highest = logits.amax(-1, keepdim=True)
            weights = logits.sub_(highest).exp_()
            total = weights.sum(-1, keepdim=True)
            scores[rows] = (own - highest - total.log()).squeeze(1)
            if gradients is not None:
                self._gradient(weights, total, targets[rows], slope, gradients[rows])
        return Scores(scores, gradients, likeliest)

    def _logits(self, x: Tensor, precise: torch.dtype, *, sloped: bool) -> tuple[Tensor, Tensor | None]:
        """Return logits (rows, vocabulary) and, with a cap, how fast they follow the layer's own output."""
        raw = torch.mm(x, self.weight.T, out=self._workspace(x.dtype, len(x)))
        logits = raw if raw.dtype == precise else self._workspace(precise, len(x)).copy_(raw)
        if self.softcap is None:
            return logits, None
        logits.div_(self.softcap).tanh_()
        slope = 1 - logits.square() if sloped else None
        return logits.mul_(self.softcap), slope

    def _gradient(
        self, weights: Tensor, total: Tensor, targets: Tensor, slope: Tensor | None, out: Tensor
    ) -> None:
        """Write (one-hot - softmax) times the layer's weight into ``out``; weights: softmax times ``total``."""
        if slope is not None:
            change = weights.div_(total).neg_()
            change.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(total))
            torch.mm(change.mul_(slope).to(out.dtype), self.weight, out=out)
            return
        # Divided after the product, on rows as wide as the model instead of the vocabulary.
        same = weights.dtype == out.dtype
        factor = weights if same else self._workspace(out.dtype, len(weights)).copy_(weights)
        torch.mm(factor, self.weight, out=out)
        out.div_(total).neg_().add_(self.weight[targets])

    def _workspace(self, dtype: torch.dtype, rows: int) -> Tensor:
        """Return memory for a chunk's logits, the same in every call: fresh pages cost more than the sums."""
        if dtype not in self._memory:
            shape = (self._rows, self.weight.shape[0])
            self._memory[dtype] = torch.empty(shape, dtype=dtype, device=self.weight.device)
        return self._memory[dtype][:rows]
