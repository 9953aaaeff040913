"""Hostile clients of a simulation: who they are, and what they make of the update that they should have sent.

For testing defences. What poisons rows instead of updates stands in `fedit.data.poison`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from fedit import seeds, tensors
from fedit.types import ClientUpdate, Tensors


@dataclass(frozen=True, slots=True)
class Sight:
    """What an attacker knows of a round; those that need nothing of it may not look.

    honest:  the honest clients' updates; empty unless the attack is omniscient.
    clients: of the cohort; hostile: how many of them are.
    """

    honest: Sequence[ClientUpdate]
    clients: int
    hostile: int


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to be hostile.

    change:     (own honest update, what is known, strength, generator) -> what is sent.
    strength:   where none is set; None: what the paper's formula gives.
    omniscient: whether it needs to see the honest updates, which are then held in memory.
    """

    change: Callable[[ClientUpdate, Sight, float | None, torch.Generator], ClientUpdate]
    strength: float | None
    omniscient: bool
    summary: str


def hostile_clients(
    ids: Iterable[str], attackers: int | float, *, seed: int, spared: Collection[str] = ()
) -> list[str]:
    """Return the ids of the hostile clients, sorted: a whole number of them, or a fraction rounded to the nearest.

    spared: ids that stay honest. Who is hostile is drawn once for the whole run.
    """
    eligible = sorted(set(ids) - set(spared))
    count = attackers if isinstance(attackers, int) else round(attackers * len(eligible))
    draws = zip(seeds.derive_each(seed, "hostile", ends=eligible), eligible, strict=True)
    return sorted(client for _, client in sorted(draws)[:count])


def attacked(update: ClientUpdate, name: str, sight: Sight, strength: float | None, seed: int) -> ClientUpdate:
    """Return what a hostile client sends instead of ``update``."""
    attack = ATTACKS[name]
    strong = attack.strength if strength is None else strength
    generator = torch.Generator().manual_seed(seeds.derive(seed, "attack", update.round, update.client_id))
    return attack.change(update, sight, strong, generator)


def _scaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    return replace(update, delta={name: factor * tensor for name, tensor in update.delta.items()})


def _sign_flip(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    return _scaled(own, -(strength or 0.0))


def _boost(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    return _scaled(own, strength or 0.0)


def _gaussian(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    count = sum(tensor.numel() for tensor in own.delta.values())
    deviation = (strength or 0.0) * tensors.norm(own.delta) / math.sqrt(max(count, 1))
    return replace(own, delta={name: deviation * _draw(tensor, noise) for name, tensor in own.delta.items()})


def _alie(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    """A little is enough (Baruch et al., 2019, arXiv:1902.06156): mean - z deviation, unnoticed among others."""
    mean, deviation = _moments(own, sight)
    z = alie_deviations(sight.clients, sight.hostile) if strength is None else strength
    return _unlike_the_others(own, {n: mean[n] - z * deviation[n] for n in mean}, noise)


def _ipm(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    """Inner product manipulation (Xie et al., 2019, arXiv:1903.03936): -epsilon times the honest mean."""
    mean, _ = _moments(own, sight)
    return _unlike_the_others(own, {n: -(strength or 0.0) * tensor for n, tensor in mean.items()}, noise)


def _replacement(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    """Model replacement (Bagdasaryan et al., 2018, arXiv:1807.00459): boosted, so that the mean is its model."""
    return _scaled(own, sight.clients / max(sight.hostile, 1) if strength is None else strength)


def _nan(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    return _scaled(own, math.nan)


def _wrong_rank(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    grown: Tensors = {}
    for name, tensor in own.delta.items():
        axis = 0 if name.endswith(".A") or tensor.dim() < 2 else 1
        grown[name] = torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
    return replace(own, delta=grown)


def _free_rider(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    return replace(own, delta={n: (strength or 0.0) * _draw(tensor, noise) for n, tensor in own.delta.items()})


def _copycat(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    return replace(own, delta=dict(sight.honest[0].delta)) if sight.honest else own


def _lying_counts(own: ClientUpdate, sight: Sight, strength: float | None, noise: torch.Generator) -> ClientUpdate:
    factor = strength or 0.0
    return replace(own, weight=factor * own.weight, num_examples=int(factor * own.num_examples))


ATTACKS: dict[str, Attack] = {
    "sign_flip": Attack(_sign_flip, 1.0, False, "sends its update times minus the strength"),
    "boost": Attack(_boost, 10.0, False, "sends its update times the strength"),
    "gaussian": Attack(_gaussian, 10.0, False, "sends noise of the strength times its update's size"),
    "alie": Attack(_alie, None, True, "a little is enough: the honest mean minus that many deviations"),
    "ipm": Attack(_ipm, 0.5, True, "inner product manipulation: the honest mean times minus the strength"),
    "replacement": Attack(_replacement, None, False, "boosts its update so that the mean becomes its own model"),
    "nan": Attack(_nan, None, False, "sends NaN"),
    "wrong_rank": Attack(_wrong_rank, None, False, "sends factors of one rank more than asked for"),
    "free_rider": Attack(_free_rider, 0.0, False, "does not train: sends zeros, or noise of that deviation"),
    "copycat": Attack(_copycat, None, True, "does not train: sends another client's update"),
    "lying_counts": Attack(_lying_counts, 1000.0, False, "says that it holds that many times its examples"),
}
"""What a hostile client may do to its update, by name."""


def alie_deviations(clients: int, hostile: int) -> float:
    """Return the z of ALIE: deviations from the mean at which enough honest clients lie further out.

    With s = floor(K / 2 + 1) - f honest clients to win over, z = Phi^-1((K - f - s) / (K - f)); 0 where there is
    no such z (arXiv:1902.06156, algorithm 3).
    """
    honest = clients - hostile
    share = (honest - (clients // 2 + 1 - hostile)) / max(honest, 1)
    return max(NormalDist().inv_cdf(share), 0.0) if 0 < share < 1 else 0.0


def _moments(own: ClientUpdate, sight: Sight) -> tuple[Tensors, Tensors]:
    """Return mean and standard deviation of the honest deltas, entry by entry; of its own where it sees none."""
    seen = [update.delta for update in sight.honest] or [own.delta]
    stacks = {name: torch.stack([delta[name] for delta in seen]) for name in own.delta}
    mean = {name: stack.mean(dim=0) for name, stack in stacks.items()}
    return mean, {name: stack.std(dim=0, correction=0) for name, stack in stacks.items()}


def _unlike_the_others(own: ClientUpdate, delta: Tensors, noise: torch.Generator) -> ClientUpdate:
    # Deviation: in the papers all attackers send the same, which a test for equal bits would find at once.
    size = 1e-3 * tensors.norm(delta) / math.sqrt(max(sum(tensor.numel() for tensor in delta.values()), 1))
    return replace(own, delta={name: tensor + size * _draw(tensor, noise) for name, tensor in delta.items()})


def _draw(like: Tensor, noise: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=noise, dtype=like.dtype)
