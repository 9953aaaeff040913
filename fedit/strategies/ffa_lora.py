"""FFA-LoRA: A stays as drawn, B alone is trained and averaged (Sun et al., 2024, arXiv:2403.12313).

With one A for everybody the product of the mean B with it is the mean of the products, and noise that privacy
adds to B is not multiplied by noise in A. Half as much is sent: A follows from the run's seed.
"""

from dataclasses import dataclass

from fedit import lora, subspaces
from fedit.strategies.base import Strategy
from fedit.types import ServerState, Tensors


@dataclass(frozen=True)
class FFALoRA(Strategy):
    """Freeze A; move B to the weighted mean of the clients'.

    orthonormal: give the frozen A orthonormal rows, which span the same space as those drawn.
    """

    orthonormal: bool = False

    def init(self, adapter: Tensors) -> ServerState:
        if not self.orthonormal:
            return ServerState(0, adapter)
        factors: Tensors = {}
        for module in lora.modules(adapter):
            a, b = f"{module}.A", f"{module}.B"
            factors[b], factors[a] = subspaces.orthonormal_rows(adapter[b], adapter[a])
        return ServerState(0, factors)

    def sends(self, name: str, server: ServerState) -> bool:
        return name.endswith(".B")  # A stays as the run's seed drew it

    def trains(self, name: str, round: int) -> bool:
        return name.endswith(".B")
