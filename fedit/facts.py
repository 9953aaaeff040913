"""What can be said of every algorithm: found by rehearsing it, never written down by hand."""

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedit.errors import FeditError
from fedit.privacy.rehearsing import rehearse_privately
from fedit.rehearsal import RANK, SHAPES, rehearse
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy
from fedit.types import LEDGER, Tensors

ROUNDS = 3
EXACT = 1e-4
"""Aggregation error below which a strategy is called exact: float32 rounding stays far below it."""
MIXED = (RANK, 2, 3, 4, RANK, 2, 3, 4)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True)
class Facts:
    """An algorithm's properties.

    arxiv:              ids of the papers it follows.
    uploads, downloads: kinds of tensors that travel: factors "A" and "B", what an algorithm has beside them, the
                        ledger; where rounds differ, in their order.
    exact:              whether the new model is the mean of the clients' models.
    mixed_ranks:        whether clients may have ranks of their own.
    central_dp:         whether one clip and noise cover all that is read of the cohort, extras too.
    secure_aggregation: whether the cohort's mean is all that is read.
    """

    name: str
    arxiv: tuple[str, ...]
    uploads: str
    downloads: str
    exact: bool
    mixed_ranks: bool
    central_dp: bool
    secure_aggregation: bool

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return {**asdict(self), "arxiv": list(self.arxiv)}


def facts(name: str, strategy: Strategy | None = None) -> Facts:
    """Return the facts about a strategy of the table, at its default options, or about ``strategy``."""
    strategy = strategy or build_strategy(name, {})
    rounds = rehearse(strategy, rounds=ROUNDS)
    sealed = _works(strategy, sealed=True)
    return Facts(
        name,
        tuple(dict.fromkeys(_ARXIV.findall(inspect.getdoc(sys.modules[type(strategy).__module__]) or ""))),
        _in_order([_kinds(played.update.delta, played.update.extra) for played in rounds]),
        _in_order([_kinds(p.sent.adapter, p.sent.extra, ledger=bool(p.sent.ledger)) for p in rounds]),
        # The first round may only lay the ground, such as finding a basis.
        all(played.error < EXACT for played in rounds[1:]),
        _works(strategy, ranks=MIXED),
        works_privately(strategy),
        sealed,
    )


def works_privately(strategy: Strategy) -> bool:
    """Return whether the server can clip and noise all that the algorithm reads of a cohort."""
    try:
        rehearse_privately(strategy)
    except FeditError:
        return False
    return True


def bytes_of_a_round(
    strategy: Strategy, shapes: Sequence[tuple[int, int]], rank: int, *, cohort: int = 8
) -> tuple[float, float]:
    """Return the bytes that one client sends and receives in a round, the mean over the first rounds.

    shapes: (in, out) of every adapted layer; layers of one shape are rehearsed once.
    """
    distinct, counts = distinct_layers(shapes)
    rounds = rehearse(strategy, rounds=ROUNDS, shapes=distinct, rank=rank, ranks=(None,) * cohort)
    up = sum(bytes_of(p.update.delta, counts) + bytes_of(p.update.extra, counts) for p in rounds)
    down = sum(bytes_of(held, counts) for p in rounds for held in (p.sent.adapter, p.sent.ledger, p.sent.extra))
    return up / ROUNDS, down / ROUNDS


def bytes_in_training(
    strategy: Strategy,
    shapes: Sequence[tuple[int, int]],
    rank: int,
    *,
    moments: int,
    entry: int = 4,
    cohort: int = 8,
) -> int:
    """Return the bytes that a client's adapter takes on its device in training, the most over the first rounds.

    Every tensor of the adapter has its values and a place for gradients, frozen ones too, since both are one
    buffer each; the optimizer has ``moments`` numbers for each entry that is trained in a round. The base,
    activations, ledgers and what a strategy corrects gradients with come on top.

    shapes: (in, out) of every adapted layer; moments: 2 for AdamW, 1 for SGD with momentum, 0 without.
    entry:  bytes of a number.
    """
    distinct, counts = distinct_layers(shapes)
    rounds = rehearse(strategy, rounds=ROUNDS, shapes=distinct, rank=rank, ranks=(None,) * cohort)
    return max(
        entry
        * (
            2 * entries_of(played.start, counts)
            + moments * entries_of({n: played.start[n] for n in played.trained}, counts)
        )
        for played in rounds
    )


def distinct_layers(shapes: Sequence[tuple[int, int]]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return one module a shape, and how many layers have it.

    shapes: (in, out) of every layer.
    """
    counts: dict[str, int] = {}
    distinct: dict[str, tuple[int, int]] = {}
    for width, out in shapes:
        key = f"shape.{width}x{out}"
        distinct[key] = (width, out)
        counts[key] = counts.get(key, 0) + 1
    return distinct, counts


def entries_of(held: Tensors, counts: Mapping[str, int]) -> int:
    """Return the numbers in a set of tensors, each as often as there are layers that its module stands for."""
    return sum(_times(name, counts) * tensor.numel() for name, tensor in held.items())


def tensors_of(held: Tensors, counts: Mapping[str, int]) -> int:
    """Return how many tensors there are in a set, each as often as there are layers that its module stands for."""
    return sum(_times(name, counts) for name in held)


def bytes_of(held: Tensors, counts: Mapping[str, int]) -> int:
    """Return the bytes of a set of tensors, each as often as there are layers that its module stands for."""
    return sum(_times(name, counts) * tensor.numel() * tensor.element_size() for name, tensor in held.items())


def _times(name: str, counts: Mapping[str, int]) -> int:
    """Return how many layers a rehearsed tensor stands for."""
    return next((count for module, count in counts.items() if f"{module}." in f"{name}."), 1)


def _works(strategy: Strategy, *, sealed: bool = False, ranks: Sequence[int | None] | None = None) -> bool:
    try:
        played = rehearse(strategy, rounds=2, sealed=sealed, ranks=ranks or (None,) * len(MIXED))
    except FeditError:
        return False
    # A strategy that sends no factors cannot give anybody another rank.
    return ranks is None or played[-1].ranks == tuple(ranks)


def _kinds(adapter: Tensors, extra: Tensors, *, ledger: bool = False) -> str:
    """Return what a message holds: the last parts of names, then the ledger, then what the algorithm adds."""
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in sorted(adapter, key=_last)))
    kinds += [LEDGER.rstrip("/")] if ledger else []
    modules = "|".join(map(re.escape, SHAPES))
    own = dict.fromkeys(re.sub(rf"({modules})\.?", "", name) for name in sorted(extra))
    said = ", ".join(kinds)
    if own:
        said += f"{' + ' if said else ''}{', '.join(own)} of its own"
    return said or "nothing"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _in_order(rounds: Sequence[str]) -> str:
    return ", then ".join(kind for index, kind in enumerate(rounds) if index == 0 or kind != rounds[index - 1])
