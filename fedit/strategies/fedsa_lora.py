"""FedSA-LoRA: A is shared, every client keeps its own B (Guo et al., ICLR 2025, arXiv:2410.01463).

A holds what all clients have in common, B what is a client's own. Clients train both and send A alone; B waits
with its client until the next round. The server never sees a B: the adapter that it holds, evaluates and
exports has the first one, zero, and so the base model's answers. What was learnt is in the clients' models.
"""

from dataclasses import dataclass

from fedit.strategies.base import Strategy


@dataclass(frozen=True)
class FedSALoRA(Strategy):
    """Average A and leave B with the clients; one that is new starts from B = 0."""

    def shares(self, name: str) -> bool:
        return name.endswith(".A")
