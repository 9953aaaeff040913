"""The only view a strategy has of a cohort: its updates, once, or their mean."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from fedit import tensors
from fedit.errors import ConfigError, NoUpdates, SealedUpdates, UpdatesConsumed
from fedit.outliers import without_outliers
from fedit.types import ClientFailure, ClientUpdate, Tensors


class Seal(Protocol):
    """What the updates of a sealed cohort go into, and all that comes out of it."""

    @property
    def participation(self) -> float:
        """Share of the whole federation that the mean stands for, whoever delivered."""

    def fits(self, update: ClientUpdate) -> bool:
        """Whether an update has the tensors that every client sends."""

    def mean(self, updates: Iterable[ClientUpdate]) -> ClientUpdate:
        """Return the mean that may be seen; ``updates`` are those that are usable, none maybe."""


class Updates:
    """A cohort's updates, streamed in task order; memory does not grow with the cohort.

    Unusable updates (NaN, wrong shapes, no weight) are screened out on the way and become
    entries of ``failures``. ``observe`` sees every accepted update, and the Euclidean norm of
    its delta, as it passes. Deltas are flat (`fedit.tensors.Flat`) from here on.

    A sealed cohort shows its mean alone: under secure aggregation and central differential privacy nobody
    may see one client's update. Where there is a seal, the mean is made by it, nothing passes by it (neither
    ``observe`` nor ``deltas``), and a cohort of nobody has a mean, too.

    adapter: what the clients started from; starts: by client id, what those started from that did not.
    uploads: which of its tensors a client sends.
    weights: what every client of the federation weighs, in this cohort or not, as far as that is known before
             training; None: this cohort is the federation.
    announced: examples by client id; who claims to have trained on more is screened out.
    heaviest: the most that a client's update may weigh, by client id; scales: what it was told to multiply B A by.
    most_norm: see `fedit.outliers`; 0 compares nobody with others.
    deltas:  the running mean of the accepted deltas by their weights; one for all who need it.
    alike:   whether the accepted deltas have one layout; only then have they a mean.
    """

    def __init__(
        self,
        results: Iterable[ClientUpdate | ClientFailure],
        adapter: Mapping[str, Tensor],
        observe: Callable[[ClientUpdate, float], None] = lambda update, norm: None,
        *,
        starts: Mapping[str, Mapping[str, Tensor]] | None = None,
        uploads: Callable[[str], bool] = lambda name: True,
        weights: Mapping[str, float] | None = None,
        announced: Mapping[str, int] | None = None,
        heaviest: Mapping[str, float] | None = None,
        scales: Mapping[str, float] | None = None,
        most_norm: float = 0.0,
        sealed: bool = False,
        seal: Seal | None = None,
    ) -> None:
        self._results = results
        self._adapter = adapter
        self._starts = starts or {}
        self._uploads = uploads
        self._announced = announced or {}
        self._heaviest = heaviest or {}
        self._scales = scales or {}
        self._most_norm = most_norm
        self._layout = self._layout_from(adapter)
        self._observe = observe
        self._weights = weights
        self._delivered = 0.0
        self._consumed = False
        self.sealed = sealed or seal is not None
        self._seal = seal
        self.alike = True
        self.deltas = tensors.RunningMean()
        self.failures: list[ClientFailure] = []
        self.rejected: set[str] = set()
        self.shares: dict[str, float] = {}

    def __iter__(self) -> Iterator[ClientUpdate]:
        """Yield accepted updates.

        Raises:
            SealedUpdates: only their mean may be seen.
            UpdatesConsumed: they were read before.
        """
        if self.sealed:
            raise SealedUpdates("single updates are hidden; only the cohort's mean may be seen")
        return self._accepted()

    @property
    def participation(self) -> float:
        """Share of the whole federation, by weight, that the updates read so far come from.

        A sum over clients of which only a cohort delivered is this times the cohort's mean.
        """
        if self._seal is not None:
            return self._seal.participation
        return 1.0 if self._weights is None else self._delivered / sum(self._weights.values())

    def trained(self, update: ClientUpdate) -> Tensors:
        """Return the adapter that ``update``'s client ended with: what it started from plus its delta."""
        return tensors.add(self.start(update), update.delta)

    def start(self, update: ClientUpdate) -> Mapping[str, Tensor]:
        """Return the adapter that ``update``'s client started from."""
        return self._starts.get(update.client_id, self._adapter)

    def reject(self, update: ClientUpdate, reason: str) -> None:
        """Leave out an update as not usable: it becomes a failure, and its client one of ``rejected``.

        Where a strategy says so, observers have seen it by then, and ``deltas`` holds it: what is unusual shows
        beside the others only.
        """
        self.failures.append(ClientFailure(update.client_id, update.round, reason))
        self.rejected.add(update.client_id)

    def credit(self, shares: Mapping[str, float]) -> None:
        """Say what part each client has in the aggregate, where the strategy and not the weights decide that."""
        self.shares = dict(shares)

    def _accepted(self) -> Iterator[ClientUpdate]:
        if self._consumed:
            raise UpdatesConsumed("a cohort's updates stream once; keep what you need while reading them")
        self._consumed = True
        usable = self._usable()
        # Single updates of a sealed cohort may not be compared either.
        if self._most_norm > 0 and not self.sealed:
            usable = without_outliers(usable, self._most_norm, self.reject)
        for update in usable:
            yield self._accept(update) if self._seal is None else _flat(update)

    def _usable(self) -> Iterator[ClientUpdate]:
        for result in self._results:
            if isinstance(result, ClientFailure):
                self.failures.append(result)
            elif problem := self._problem(result):
                self.reject(result, problem)
            elif result.weight > 0:
                yield result

    def mean(self) -> ClientUpdate:
        """Return the mean of deltas and extras, weighted by ``weight``, as one update.

        Raises:
            NoUpdates: nobody delivered.
            ConfigError: clients have adapters of several ranks.
        """
        if self._seal is not None:
            return self._seal.mean(self._accepted())
        extra = tensors.RunningMean()
        count, examples, round_ = 0, 0, 0
        for update in self._accepted():
            extra.add(update.extra, update.weight)
            count, examples, round_ = count + 1, examples + update.num_examples, update.round
        if count == 0:
            raise NoUpdates("no client of the cohort delivered a usable update")
        if not self.alike:
            raise ConfigError(
                "adapters of several ranks have no mean factor by factor; use a strategy for mixed ranks"
            )
        return ClientUpdate("mean", round_, examples, self.deltas.weight, self.deltas.value(), extra.value())

    def _accept(self, update: ClientUpdate) -> ClientUpdate:
        update = _flat(update)
        if self._weights is not None:
            self._delivered += self._weights[update.client_id]
        self.alike = self.alike and tensors.layout_of(update.delta) is self._layout
        squares = (
            self.deltas.add(update.delta, update.weight) if self.alike else tensors.dot(update.delta, update.delta)
        )
        self._observe(update, math.sqrt(squares))
        return update

    def _layout_from(self, start: Mapping[str, Tensor]) -> tensors.Layout:
        """Return the layout of what a client sends that started from ``start``."""
        if all(map(self._uploads, start)):
            return tensors.layout_of(start)
        return tensors.layout_of({name: tensor for name, tensor in start.items() if self._uploads(name)})

    def _problem(self, update: ClientUpdate) -> str | None:
        own = self._starts.get(update.client_id)
        expected = self._layout if own is None else self._layout_from(own)
        if not expected.fits(update.delta):
            shapes = dict(zip(expected.names, expected.shapes, strict=True))
            if unknown := sorted(set(update.delta) - set(shapes)):
                return f"update has tensors that were not asked for: {', '.join(unknown[:3])}"
            if missing := sorted(set(shapes) - set(update.delta)):
                return f"update lacks tensors: {', '.join(missing[:3])}"
            name = next(name for name, tensor in update.delta.items() if tensor.shape != shapes[name])
            return f"tensor {name} has shape {tuple(update.delta[name].shape)}; expected {tuple(shapes[name])}"
        if not (tensors.is_finite(update.delta) and tensors.is_finite(update.extra)):
            return "update is not finite (NaN or infinity)"
        if not (0 <= update.weight < float("inf")):
            return f"weight is {update.weight}"
        if update.weight > (heaviest := self._heaviest.get(update.client_id, math.inf)):
            return f"weight is {update.weight:g}; it can be {heaviest:g} at most"
        told = self._scales.get(update.client_id, update.scale)
        if not math.isclose(update.scale, told, rel_tol=1e-6):
            return f"its adapter is scaled by {update.scale:g}; expected {told:g}"
        most = self._announced.get(update.client_id, update.num_examples)
        if update.num_examples > most:
            return f"it claims {update.num_examples} examples and has announced {most}"
        if self._seal is not None and not self._seal.fits(update):
            return "it sends other tensors beside its change than those of its strategy"
        return None


def _flat(update: ClientUpdate) -> ClientUpdate:
    """Return the update with a flat delta, where that can be."""
    if tensors.can_flatten(update.delta):
        return replace(update, delta=tensors.flatten(update.delta))
    return update
