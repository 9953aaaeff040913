"""HetLoRA: clients of several ranks share one adapter (Cho et al., 2024, arXiv:2401.06432).

A client of rank r is sent the first r directions of the server's factors. What comes back is filled up with
zeros and averaged, weighted by the norm of each client's B A rather than by its rows. Clients prune themselves:
a penalty on the last directions, and where it made them shrink, they are dropped for good.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fedit import lora, lowrank, subspaces
from fedit.errors import ConfigError, NoUpdates
from fedit.strategies.base import Strategy
from fedit.tensors import RunningMean
from fedit.types import Broadcast, ClientInfo, ClientTask, LocalResult, LocalTraining, ServerState, Tensors
from fedit.updates import Updates

_ORDERS = ("trained", "svd")
_RANK = "rank"


@dataclass(frozen=True)
class HetLoRA(Strategy):
    """Cut to every client's rank, fill up with zeros, average by norms.

    gamma:          share of its directions that a client keeps when it prunes; 1 never prunes.
    regularisation: of the penalty |B_tail| |A_tail| on the directions that would go.
    min_rank:       below which no client prunes.
    norm_weights:   weigh clients by the norm of their B A; otherwise by their data.
    norm_cap:       a norm counts up to so many times the cohort's median, which limits what one client can
                    claim; 0 sets no limit.
    order:          of the server's directions. "trained": as averaged, the paper's. "svd": by singular values, so
                    that a cut loses the least.
    """

    gamma: float = 0.99
    regularisation: float = 0.001
    min_rank: int = 2
    norm_weights: bool = True
    norm_cap: float = 0.0
    order: str = "trained"

    # --- server half ---

    @property
    def keeps_basis(self) -> bool:
        return self.order != "svd"

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        full = lora.rank_of(server.adapter)
        rank = min(client.rank or full, full)
        if (pruned := server.memory.get(f"{_RANK}/{client.client_id}")) is not None:
            rank = min(rank, int(pruned))
        scale = server.scale if client.scale is None else client.scale
        adapter = server.adapter if rank == full else lowrank.truncate(server.adapter, rank)
        return Broadcast(lowrank.rescale(adapter, server.scale, scale), server.ledger, scale=scale)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        memory = dict(server.memory)
        clients: list[tuple[Tensors, float]] = []
        norms: list[float] = []
        for update in updates:
            if _RANK in update.extra:
                memory[f"{_RANK}/{update.client_id}"] = update.extra[_RANK]
            # In the server's scale, so that equal products count as equal.
            own = lowrank.rescale(updates.trained(update), update.scale, server.scale)
            clients.append((own, update.weight))
            norms.append(_norm(own))
        if not clients:
            raise NoUpdates("no client of the cohort delivered a usable update")
        mean = RunningMean()
        for (own, weight), norm in zip(clients, self._capped(norms), strict=True):
            if (counts := norm if self.norm_weights and any(norms) else weight) > 0:
                mean.add(_filled(own, server.adapter), counts)
        adapter = dict(mean.value())
        return replace(server, adapter=_sorted(adapter) if self.order == "svd" else adapter, memory=memory)

    def _capped(self, norms: list[float]) -> list[float]:
        limit = self.norm_cap * median(norms) if self.norm_cap else math.inf
        return [min(norm, limit) for norm in norms]

    # --- client half ---

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        kept = self._kept(params)
        if self.regularisation == 0 or kept == lora.rank_of(params):
            return
        with torch.no_grad():
            for module in lora.modules(params):
                a, b = f"{module}.A", f"{module}.B"
                tail_a, tail_b = params[a][kept:], params[b][:, kept:]
                norm_a, norm_b = tail_a.norm(), tail_b.norm()
                # At zero a norm has no gradient; zero is the least of those it could have.
                grads[a][kept:] += self.regularisation * norm_b * tail_a / norm_a.clamp_min(1e-30)
                grads[b][:, kept:] += self.regularisation * norm_a * tail_b / norm_b.clamp_min(1e-30)

    def align(self, start: Mapping[str, Tensor], trained: Tensors, round: int) -> Tensors:
        kept = self._kept(start)
        if kept == lora.rank_of(start) or not _norm(_tail(trained, kept)) < _norm(_tail(start, kept)):
            return trained
        return _filled(lowrank.truncate(trained, kept), trained)

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        start = task.broadcast.adapter
        kept = self._kept(start)
        gone = all(
            torch.equal(-change, _tail(start, kept)[name]) for name, change in _tail(result.delta, kept).items()
        )
        return ({_RANK: torch.tensor(float(kept))} if gone and kept < lora.rank_of(start) else {}), memory

    def _kept(self, adapter: Mapping[str, Tensor]) -> int:
        """Return the rank after pruning."""
        rank = lora.rank_of(adapter)
        return min(rank, max(self.min_rank, int(self.gamma * rank)))

    # --- before the run ---

    def check(self, training: LocalTraining) -> None:
        for name, value, fits, expected in (
            ("gamma", self.gamma, 0 < self.gamma <= 1, "more than 0, at most 1"),
            ("regularisation", self.regularisation, self.regularisation >= 0, "0 or more"),
            ("min_rank", self.min_rank, self.min_rank >= 1, "1 or more"),
            ("norm_cap", self.norm_cap, self.norm_cap >= 0, "0 or more"),
            ("order", self.order, self.order in _ORDERS, " or ".join(_ORDERS)),
        ):
            if not fits:
                raise ConfigError(f"option '{name}' of strategy 'hetlora' is {value!r}; expected {expected}.")
        if training.keep_optimizer and (self.gamma < 1 or self.order == "svd"):
            raise ConfigError(
                "strategy 'hetlora' changes ranks between rounds and moments that are kept would not fit; set "
                "client_optimizer to reset, or gamma to 1 and order to trained."
            )


def _tail(adapter: Mapping[str, Tensor], kept: int) -> Tensors:
    """Return the directions after the first ``kept``."""
    return {n: t[kept:] if n.endswith(".A") else t[:, kept:] for n, t in adapter.items()}


def _filled(adapter: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensors:
    """Return ``adapter`` with zeros up to the shapes of ``wanted``."""
    filled: Tensors = {}
    for name, tensor in adapter.items():
        filled[name] = torch.zeros_like(wanted[name])
        filled[name][: tensor.shape[0], : tensor.shape[1]] = tensor
    return filled


def _norm(adapter: Mapping[str, Tensor]) -> float:
    """Return the Frobenius norm of all modules' B A together."""
    return math.hypot(*(lora.product_norm(adapter[f"{m}.B"], adapter[f"{m}.A"]) for m in lora.modules(adapter)))


def _sorted(adapter: Mapping[str, Tensor]) -> Tensors:
    """Return the same products from orthonormal rows of A, the largest singular value first."""
    found: Tensors = {}
    for module in lora.modules(adapter):
        left, values, right = subspaces.bases(adapter[f"{module}.B"], adapter[f"{module}.A"], 0)
        found[f"{module}.A"], found[f"{module}.B"] = right.contiguous(), left * values
    return found
