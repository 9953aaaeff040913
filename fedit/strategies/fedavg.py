"""FedAvg: federated averaging (McMahan et al., 2017, arXiv:1602.05629).

"Communication-Efficient Learning of Deep Networks from Decentralized Data."

The plain base of all others here, without options. FedIT is the same rule for LoRA factors with a server
learning rate; at its default both give the same bits.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedit.strategies.base import Strategy


@dataclass(frozen=True)
class FedAvg(Strategy):
    """Replace the adapter by the weighted mean of the clients' adapters, and nothing else."""

    takes_any_tensors: ClassVar[bool] = True
