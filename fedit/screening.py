"""What robust strategies share: who is let in, how clients compare by their effective updates, who refuses.

A rule that chooses or weighs clients has to compare what they do to the model. That is the change of the product,
s (B_k A_k - B A): the same product has many pairs of factors, so distances between factors say little. Norms and
distances of products come from rank x rank matrices; none of a layer's size is formed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import lora, robust, tensors
from fedit.errors import ConfigError, NoUpdates
from fedit.types import ClientUpdate, Tensors
from fedit.updates import Updates


@dataclass(frozen=True, slots=True)
class Members:
    """The updates that a robust rule works on, in the order of their clients' ids.

    weights: (K,) float64, above 0: ones, or what was announced, capped.
    changes: factors of what each update does to the weights, see `fedit.lora.change`.
    inner:   (K, K) float64, inner products of these changes.
    moved:   (K,) float64, Euclidean norms of the deltas of the factors.
    attackers: how many of them may still be hostile.
    """

    updates: list[ClientUpdate]
    weights: Tensor
    changes: list[Tensors]
    inner: Tensor
    moved: Tensor
    attackers: int = 0

    @property
    def squares(self) -> Tensor:
        """Squared distances between the changes, (K, K)."""
        return lora.squared_distances(self.inner)

    @property
    def norms(self) -> Tensor:
        """Norms of the changes, (K,)."""
        return self.inner.diagonal().clamp(min=0).sqrt()

    def __len__(self) -> int:
        return len(self.updates)

    def only(self, kept: list[int]) -> "Members":
        """Return the members at these places."""
        return replace(
            self,
            updates=[self.updates[i] for i in kept],
            weights=self.weights[kept],
            changes=[self.changes[i] for i in kept],
            inner=self.inner[kept][:, kept],
            moved=self.moved[kept],
        )


def admit(
    updates: Updates,
    *,
    attackers: int = 0,
    least: Callable[[int], int] = lambda attackers: 1,
    max_norm: float = 0.0,
    reject_duplicates: bool = False,
    weight_cap: float = 0.0,
) -> Members:
    """Read a cohort, reject what cannot be honest, and return the others; holds all of them in memory.

    attackers:         f, most of the cohort that may be hostile; ``least``: f -> fewest that the rule can work on.
                       Where too few are left for f, the rejected ones are taken for the attackers that they show
                       to be: else one of them could stop every round by sending what has to be rejected.
    max_norm:          an update whose change, of the weights or of the factors, has more than this many times
                       the cohort's median norm is rejected; 0 lets all in. Factors count too because a huge B and
                       a tiny A have an innocent product, and ruin the mean of the factors.
    reject_duplicates: of updates that are equal in every bit, and not zero, only the first client's stays.
    weight_cap:        0: all weigh the same, since a count of examples is only what a client says. Else the
                       announced weights count, up to this many times the cohort's median.

    Raises:
        NoUpdates: too few are left.
        ConfigError: clients have adapters of several ranks.
        SealedUpdates: single updates are hidden.
    """
    members = _without_overflow(_read(updates), updates)
    if max_norm > 0 and len(members):
        members = _without_large(members, updates, max_norm)
    if reject_duplicates:
        members = _without_copies(members, updates)
    members = replace(members, attackers=_still_hostile(members, updates, attackers, least))
    if weight_cap <= 0:
        return members
    announced = torch.tensor([update.weight for update in members.updates], dtype=torch.float64)
    return replace(members, weights=announced.clamp(max=weight_cap * float(robust.median(announced))))


def combine(
    adapter: Tensors, members: Members, weights: Tensor, updates: Updates, *, length: float = 1.0
) -> Tensors:
    """Move the adapter by the weighted mean of the members' deltas, and tell what each member's part in it is.

    Factors are averaged one by one, as FedIT does: the rule has only said whose, and how much of them.

    weights: (K,), at least 0; all zero leaves the adapter as it is.
    length:  that the mean is multiplied by.
    """
    credit(members, weights, updates)
    return tensors.add(adapter, mean_of(members, weights), length) if float(weights.sum()) > 0 else adapter


def mean_of(members: Members, weights: Tensor) -> Tensors:
    """Return the mean of the members' deltas; weights: (K,), at least 0, one of them above."""
    mean = tensors.RunningMean()
    for update, weight in zip(members.updates, weights.tolist(), strict=True):
        if weight > 0:
            mean.add(update.delta, weight)
    return mean.value()


def credit(members: Members, weights: Tensor, updates: Updates) -> None:
    """Tell what part each member has in the aggregate: its share of ``weights``, (K,)."""
    shares = (weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)).tolist()
    updates.credit({update.client_id: share for update, share in zip(members.updates, shares, strict=True)})


def coordinates(members: Members) -> list[Tensor]:
    """Return each member's delta as one vector, for rules on single coordinates."""
    return [tensors.flatten(update.delta).buffer for update in members.updates]


def moved_by(adapter: Mapping[str, Tensor], delta: Mapping[str, Tensor], vector: Tensor) -> Tensors:
    """Return the adapter moved by a vector that has the layout of ``delta``."""
    return tensors.add(adapter, tensors.Flat(tensors.layout_of(delta), vector))


def refuse_small_cohort(strategy: str, cohort: int, attackers: int, least: int) -> None:
    """Raise ConfigError where a cohort is too small for so many attackers, or their number makes no sense."""
    if attackers < 0:
        raise ConfigError(f"option 'max_attackers' of strategy '{strategy}' is {attackers}; expected 0 or more.")
    if cohort < least:
        raise ConfigError(
            f"strategy '{strategy}' with max_attackers={attackers} needs at least {least} clients a round, and a "
            f"round has {cohort}; raise clients_per_round (or num_clients), or lower max_attackers."
        )


def refuse_two_factors(strategy: str, factor: str) -> None:
    """Raise ConfigError unless a rule on single coordinates is to work on B alone."""
    if factor == "both":
        raise ConfigError(
            f"option 'factor' of strategy '{strategy}' is 'both': a rule on single coordinates would take an "
            "entry of B from one client and one of A from another, whose product nobody trained. Use factor=B, "
            "which freezes A, or a rule that chooses whole clients (krum, multi_krum, geometric_median)."
        )
    if factor == "A":
        raise ConfigError(
            f"option 'factor' of strategy '{strategy}' is 'A': B is zero at the start, so that A alone learns "
            "nothing. Use factor=B."
        )
    if factor != "B":
        raise ConfigError(f"option 'factor' of strategy '{strategy}' is '{factor}'; expected B.")


def refuse_bad_screen(strategy: str, max_norm: float, weight_cap: float = 0.0) -> None:
    """Raise ConfigError where the options of the screen cannot work."""
    if max_norm != 0 and max_norm < 1:
        raise ConfigError(
            f"option 'max_norm' of strategy '{strategy}' is {max_norm}; expected 0 (lets all in) or at least 1 "
            "times the median norm."
        )
    if weight_cap != 0 and weight_cap < 1:
        raise ConfigError(
            f"option 'weight_cap' of strategy '{strategy}' is {weight_cap}; expected 0 (all weigh the same) or at "
            "least 1 times the median weight."
        )


def _read(updates: Updates) -> Members:
    found = sorted(updates, key=lambda update: update.client_id)
    if not updates.alike:
        raise ConfigError(
            "adapters of several ranks have no mean factor by factor; use a strategy for mixed ranks"
        )
    changes = [lora.change(updates.start(u), updates.trained(u), u.scale) for u in found]
    moved = torch.tensor([tensors.norm(update.delta) for update in found], dtype=torch.float64)
    return Members(found, torch.ones(len(found), dtype=torch.float64), changes, lora.gram(changes), moved)


def _still_hostile(members: Members, updates: Updates, attackers: int, least: Callable[[int], int]) -> int:
    found = min(len(updates.rejected), attackers)
    for left in range(attackers, attackers - found - 1, -1):
        if len(members) >= max(least(left), 1):
            return left
    raise NoUpdates(
        f"{len(members)} usable updates; with {attackers - found} attackers among them the rule needs at least "
        f"{max(least(attackers - found), 1)}"
    )


def _without_overflow(members: Members, updates: Updates) -> Members:
    # Entries near float32's largest are finite, and their products are not: they would make every distance NaN.
    whole = torch.isfinite(members.inner.diagonal()) & torch.isfinite(members.moved)
    reason = "the update's effect on the weights is not finite"
    return _without(members, updates, {i: reason for i, fine in enumerate(whole.tolist()) if not fine})


def _without_large(members: Members, updates: Updates, max_norm: float) -> Members:
    large: dict[int, str] = {}
    for what, norms in (("the factors", members.moved), ("the weights", members.norms)):
        middle = float(robust.median(norms))
        for index, norm in enumerate(norms.tolist()):
            if middle > 0 and norm > max_norm * middle:
                large[index] = (
                    f"the update changes {what} by {norm:.3g}, more than {max_norm:g} times the cohort's "
                    f"median {middle:.3g}"
                )
    return _without(members, updates, large)


def _without_copies(members: Members, updates: Updates) -> Members:
    copies: dict[int, str] = {}
    first: dict[float, list[int]] = {}
    for index, norm in enumerate(members.moved.tolist()):
        same = first.setdefault(norm, [])
        delta = members.updates[index].delta
        original = next((i for i in same if norm > 0 and _equal(members.updates[i].delta, delta)), None)
        if original is None:
            same.append(index)
        else:
            copies[index] = f"the update is a copy of that of {members.updates[original].client_id}"
    return _without(members, updates, copies)


def _equal(one: Tensors, two: Tensors) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def _without(members: Members, updates: Updates, reasons: Mapping[int, str]) -> Members:
    for index, why in reasons.items():
        updates.reject(members.updates[index], why)
    return members.only([i for i in range(len(members)) if i not in reasons]) if reasons else members
