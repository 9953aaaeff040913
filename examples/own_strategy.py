"""FedProx in one file, run without touching fedit (Li et al., 2020, arXiv:1812.06127)."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

import fedit
from fedit.types import Tensors


@dataclass(frozen=True)
class FedProx(fedit.Strategy):
    """Pull every client towards the adapter it was sent.

    mu: strength of the pull; 0 is federated averaging.
    """

    mu: float = 0.01

    def correct_gradients(
        self,
        task: fedit.ClientTask,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        memory: Tensors,
    ) -> None:
        """Add the gradient of mu/2 |adapter - received|^2."""
        for name, grad in grads.items():
            received = task.broadcast.adapter[name].to(grad.device)
            grad.add_(params[name].detach() - received, alpha=self.mu)


def main(out: str) -> None:
    """Train one round with the strategy above."""
    config = fedit.load_config(
        "demo", num_rounds=1, local_steps=1, exact_match=False, strategy=f"{__file__}:FedProx"
    )
    print(fedit.run(config, out).summary["strategy"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/fedprox")
