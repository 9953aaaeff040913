"""Top-k sparsification with error feedback (Karimireddy et al., 2019, arXiv:1901.09847).

A client sends C(v) of v = delta + e and keeps e = v - C(v) for its next round: what was sent and what is kept add
up to all that was learnt, so nothing is lost for good.
"""

from dataclasses import dataclass, replace

import torch

from fedit import tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.transforms.base import Stage, Transform
from fedit.transforms.sparse import densify, sparsify
from fedit.types import ClientUpdate, Tensors

_ROUND = "round"
_UNSENT = "unsent."


@dataclass(frozen=True)
class TopK(Transform):
    """Send the largest entries of an update; the client adds what it did not send to its next one.

    fraction: of entries that are sent, over all tensors together.
    feedback: whether what was not sent is remembered; without it, it is lost.
    decay: factor on what is remembered for every round that the client missed, in which it went stale.
    value_bits: 16 (bfloat16) or 32.
    """

    fraction: float = 0.1
    feedback: bool = True
    decay: float = 0.9
    value_bits: int = 16

    stage = Stage.ENTRIES

    # Deviation: the paper's clients take part in every round, where decay has nothing to act on.

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        if not self.feedback:
            return replace(update, delta=sparsify(update.delta, self.fraction, self.value_bits)), {}
        unsent = self._remembered(update, memory)
        whole = {
            name: tensor + unsent[name] if name in unsent else tensor for name, tensor in update.delta.items()
        }
        sent = sparsify(whole, self.fraction, self.value_bits)
        # Tensors that do not leave in this round keep what they had.
        kept = {**unsent, **tensors.sub(whole, densify(sent))}
        told = {_ROUND: torch.tensor(update.round), **{f"{_UNSENT}{name}": t for name, t in kept.items()}}
        return replace(update, delta=sent), told

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        return replace(update, delta=densify(update.delta)) if update.delta else update

    def check(self, strategy: Strategy) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"option 'fraction' of transform 'top_k' is {self.fraction}; expected more than 0, at most 1."
            )
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"option 'decay' of transform 'top_k' is {self.decay}; expected 0 to 1.")
        if self.value_bits not in (16, 32):
            raise ConfigError(f"option 'value_bits' of transform 'top_k' is {self.value_bits}; expected 16 or 32.")
        if self.feedback and not strategy.keeps_basis:
            raise ConfigError(
                "transform 'top_k' remembers what a client did not send, but after a round of strategy "
                f"{type(strategy).__name__} the entries of an adapter mean something else, so that it could not "
                "be sent later. Set feedback to false, or take quantize."
            )

    def _remembered(self, update: ClientUpdate, memory: Tensors) -> Tensors:
        """Return what was not sent, by name, as it counts now; not that of tensors whose shape has changed."""
        if not memory:
            return {}
        missed = update.round - int(memory[_ROUND]) - 1
        fading = self.decay**missed
        found = {n.removeprefix(_UNSENT): t for n, t in memory.items() if n.startswith(_UNSENT)}
        return {
            name: tensor * fading
            for name, tensor in found.items()
            if name not in update.delta or update.delta[name].shape == tensor.shape
        }
