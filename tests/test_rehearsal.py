"""Facts about algorithms come from their own code: what is sent, what is refused, how exact the aggregate is."""

import math
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fedit import tensors
from fedit.errors import ConfigError, SealedUpdates
from fedit.facts import bytes_of_a_round, facts
from fedit.rehearsal import RANK, SHAPES, effective, rehearse
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.types import Broadcast


@dataclass(frozen=True)
class Peeks(Strategy):
    """Looks at every update."""

    def aggregate(self, server, updates):
        trained = [(updates.trained(update), update.weight) for update in updates]
        return replace(server, adapter=tensors.mean(trained))


@dataclass(frozen=True)
class Cuts(Strategy):
    """Gives everybody its own rank, and the mean of the dense products to nobody."""

    def broadcast(self, server, client):
        rank = client.rank or RANK
        cut = {n: t[:rank] if n.endswith(".A") else t[:, :rank] for n, t in server.adapter.items()}
        return Broadcast(cut, server.ledger, scale=client.scale or server.scale)

    def aggregate(self, server, updates):
        ledger = {}
        total = 0.0
        for update in updates:
            total += update.weight
            trained = updates.trained(update)
            for module in SHAPES:
                b = ledger.setdefault(f"{module}.B", [])
                b.append(update.weight * update.scale * trained[f"{module}.B"])
                ledger.setdefault(f"{module}.A", []).append(trained[f"{module}.A"])
        old = {m: server.ledger.get(f"{m}.B") for m in SHAPES}
        stacked = {}
        for module in SHAPES:
            b, a = torch.cat(ledger[f"{module}.B"], 1) / total, torch.cat(ledger[f"{module}.A"])
            if old[module] is not None:
                b, a = torch.cat([old[module], b], 1), torch.cat([server.ledger[f"{module}.A"], a])
            stacked |= {f"{module}.A": a, f"{module}.B": b}
        nothing = {n: torch.zeros_like(t) if n.endswith(".B") else t for n, t in server.adapter.items()}
        return replace(server, adapter=nothing, ledger=stacked)


@dataclass(frozen=True)
class OnlyB(Strategy):
    """FFA-LoRA's client."""

    def trains(self, name, round):
        return name.endswith(".B")

    def broadcast(self, server, client):
        return Broadcast({n: t for n, t in server.adapter.items() if n.endswith(".B")}, scale=server.scale)


def test_averaging_factors_is_not_exact_and_needs_the_mean_alone():
    found = facts("fedit")
    assert (found.uploads, found.downloads) == ("A, B", "A, B")
    assert (found.exact, found.mixed_ranks) == (False, False)
    assert (found.secure_aggregation, found.central_dp) == (True, True)
    assert found.arxiv == ("2305.05644",)


def test_a_strategy_that_looks_at_single_updates_is_known_by_it():
    found = facts("peeks", Peeks())
    assert not found.secure_aggregation
    assert not found.central_dp
    with pytest.raises(SealedUpdates):
        rehearse(Peeks(), rounds=1, sealed=True)


def test_one_trained_factor_makes_averaging_exact():
    found = facts("only_b", OnlyB())
    assert (found.uploads, found.downloads) == ("B", "B")
    assert found.exact


def test_mixed_ranks_and_scales_are_what_a_strategy_can_serve():
    found = facts("cuts", Cuts())
    assert found.exact
    assert found.mixed_ranks
    assert found.downloads == "A, B, then A, B, ledger"
    mixed = rehearse(Cuts(), rounds=2, ranks=(2, 3, None, 6))
    assert mixed[0].ranks == (2, 3, 6, 6)
    assert all(played.error < 1e-5 for played in mixed)


def test_a_rank_that_cannot_be_served_is_refused_with_the_client():
    with pytest.raises(ConfigError, match=r"'FedIT' has one rank for all.*'c1' of rank 3 an adapter of rank 6"):
        rehearse(FedIT(), rounds=1, ranks=(None, 3))


def test_the_error_is_that_of_a_dense_oracle():
    """Two clients whose factors are known: mean of products against product of means, in float64."""
    (played,) = rehearse(FedIT(), rounds=1, ranks=(None, None))
    assert 0.1 < played.error < 1
    alone = rehearse(FedIT(), rounds=3, ranks=(None,))
    assert all(one.error < 1e-6 for one in alone)


def test_effective_weights_add_scale_and_ledger():
    model = {
        "m.A": torch.tensor([[1.0, 2.0]]),
        "m.B": torch.tensor([[3.0], [4.0]]),
        "ledger/m.A": torch.tensor([[1.0, 0.0]]),
        "ledger/m.B": torch.tensor([[10.0], [20.0]]),
    }
    assert effective(model, 0.5)["m"].tolist() == [[11.5, 3.0], [22.0, 4.0]]


def test_bytes_count_every_layer_of_a_shape():
    up, down = bytes_of_a_round(FedIT(), [(10, 20)] * 3 + [(20, 5)], rank=4)
    assert up == down == 4 * 4 * (3 * 30 + 25)
    up, down = bytes_of_a_round(OnlyB(), [(10, 20)] * 3 + [(20, 5)], rank=4)
    assert up == down == 4 * 4 * (3 * 20 + 5)
    assert math.isfinite(up)


def test_the_worked_example_is_an_algorithm_in_one_short_file():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 60
    module = types.ModuleType("power_mean")
    sys.modules["power_mean"] = module
    try:
        exec(compile(code, "power_mean.py", "exec"), module.__dict__)
        found = facts("power_mean", module.PowerMean())
        alike = [p.error for p in rehearse(module.PowerMean(power=1.0), rounds=2)]
    finally:
        del sys.modules["power_mean"]
    assert found.arxiv == ("1602.05629",)
    assert not found.secure_aggregation  # it looks at single updates
    assert alike == pytest.approx([p.error for p in rehearse(FedIT(), rounds=2)], rel=1e-6)
