"""A job's transforms, one after the other: what is sent in place of updates and broadcasts, and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from fedit import seeds, tensors
from fedit.errors import DamagedPayload
from fedit.strategies.base import Strategy
from fedit.transforms import wire
from fedit.transforms.base import Transform
from fedit.types import Broadcast, ClientFailure, ClientUpdate, Tensors

_PARTS = ("adapter", "ledger", "extra")


def check(transforms: Sequence[Transform], strategy: Strategy) -> None:
    """Raise `ConfigError` if an option cannot work, or not with this strategy."""
    for transform in transforms:
        transform.check(strategy)


def send(
    transforms: Sequence[Transform], update: ClientUpdate, memory: Tensors, seed: int
) -> tuple[ClientUpdate, Tensors]:
    """Return what a client sends in place of ``update``, and what its transforms remember.

    memory: what this returned in the client's last round.
    seed:   of the client and the round.
    """
    if not transforms:
        return update, {}
    kept: Tensors = {}
    for place, transform in enumerate(transforms):
        mark = f"{place}."
        own = {name.removeprefix(mark): tensor for name, tensor in memory.items() if name.startswith(mark)}
        update, own = transform.on_client(update, own, seeds.derive(seed, place))
        kept |= {f"{mark}{name}": tensor for name, tensor in own.items()}
    return replace(update, delta=wire.sealed(update.delta), extra=wire.sealed(update.extra)), kept


def receive(transforms: Sequence[Transform], update: ClientUpdate) -> ClientUpdate | ClientFailure:
    """Return the update that a client sent as ``update``; a failure of the client's where it cannot be read."""
    if not transforms:
        return update
    try:
        update = replace(update, delta=wire.opened(update.delta), extra=wire.opened(update.extra))
        for transform in reversed(transforms):
            update = transform.on_receive(update)
    except DamagedPayload as error:
        return ClientFailure(update.client_id, update.round, f"its update cannot be read: {error}")
    return update


@dataclass
class Downlink:
    """Broadcasts on their way down; a set that many clients are sent is transformed once.

    Sets are known by their identity, so they must live as long as this does: make one for every round.
    """

    transforms: Sequence[Transform]
    _done: dict[tuple[str, str, int], tuple[Tensors, Tensors]] = field(default_factory=dict)

    @property
    def _changes(self) -> bool:
        return any(type(own).on_broadcast is not Transform.on_broadcast for own in self.transforms)

    def sent(self, broadcast: Broadcast) -> Broadcast:
        """Return what is sent in place of ``broadcast``."""
        return self._mapped("sent", broadcast) if self._changes else broadcast

    def arrived(self, broadcast: Broadcast) -> Broadcast:
        """Return the broadcast that was sent as ``broadcast``.

        Raises:
            DamagedPayload: it cannot be read.
        """
        return self._mapped("arrived", broadcast) if self._changes else broadcast

    def start(self, broadcast: Broadcast) -> Tensors:
        """Return the adapter that a client has which is sent ``broadcast``: that one itself if nothing is lost."""
        if not self._changes:
            return broadcast.adapter
        found = self.arrived(self.sent(broadcast)).adapter
        same = all(torch.equal(tensor, broadcast.adapter[name]) for name, tensor in found.items())
        return broadcast.adapter if same else found

    def _mapped(self, what: str, broadcast: Broadcast) -> Broadcast:
        adapter, ledger, extra = (self._once(what, part, getattr(broadcast, part)) for part in _PARTS)
        return replace(broadcast, adapter=adapter, ledger=ledger, extra=extra)

    def _once(self, what: str, part: str, held: Tensors) -> Tensors:
        if not held:
            return held
        key = (what, part, id(held))
        if key not in self._done:
            # The set is kept too: its identity is its own only while it lives.
            self._done[key] = held, self._encode(part, held) if what == "sent" else self._decode(part, held)
        return self._done[key][1]

    def _encode(self, part: str, held: Tensors) -> Tensors:
        for transform in self.transforms:
            held = transform.on_broadcast(part, held)
        return wire.sealed(held)

    def _decode(self, part: str, held: Tensors) -> Tensors:
        held = wire.opened(held)
        for transform in reversed(self.transforms):
            held = transform.on_arrival(part, held)
        return tensors.flatten(held) if tensors.can_flatten(held) else held
