"""A connection to sites without Flower: envelopes go straight to workers in this process, or get into trouble."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fedit.flower.link import Node, Parcel, Trouble
from fedit.flower.wire import Envelope

Answer = Callable[[dict[str, object], dict[str, bytes]], Envelope | Trouble]


@dataclass
class LoopLink:
    """answers: site -> what answers its envelopes; hold: ids that are not answered yet; offline: sites."""

    sites: dict[str, Answer]
    offline: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    sent: list[Parcel] = field(default_factory=list)
    time: float = 0.0
    _waiting: dict[str, Parcel] = field(default_factory=dict)

    def clock(self) -> float:
        return self.time

    def nodes(self) -> Sequence[Node]:
        return [Node(i, name, name not in self.offline) for i, name in enumerate(self.sites)]

    def send(self, parcels: Sequence[Parcel]) -> list[str | Trouble]:
        ids: list[str | Trouble] = []
        for parcel in parcels:
            self.sent.append(parcel)
            ids.append(f"m{len(self.sent)}")
            self._waiting[f"m{len(self.sent)}"] = parcel
        return ids

    def answers(self, ids: Sequence[str]) -> Iterator[tuple[str, Envelope | Trouble]]:
        self.time += 1.0
        for one in ids:
            parcel = self._waiting[one]
            name = list(self.sites)[parcel.node_id]
            if name in self.silent:
                continue
            del self._waiting[one]
            yield one, self.sites[name](dict(parcel.header), dict(parcel.pieces))

    def trained(self) -> list[Parcel]:
        return [parcel for parcel in self.sent if parcel.kind == "train"]
