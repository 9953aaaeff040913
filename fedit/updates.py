"""The only view a strategy has of a cohort: its updates, once, or their mean."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from fedit import tensors
from fedit.errors import NoUpdates, UpdatesConsumed
from fedit.types import ClientFailure, ClientUpdate


class Updates:
    """A cohort's updates, streamed in task order; memory does not grow with the cohort.

    Unusable updates (NaN, wrong shapes, no weight) are screened out on the way and become
    entries of ``failures``. ``observe`` sees every accepted update, and the Euclidean norm of
    its delta, as it passes. Deltas are flat (`fedit.tensors.Flat`) from here on.

    deltas: the running mean of the accepted deltas by their weights; one for all who need it.
    """

    def __init__(
        self,
        results: Iterable[ClientUpdate | ClientFailure],
        expected: Mapping[str, Tensor],
        observe: Callable[[ClientUpdate, float], None] = lambda update, norm: None,
    ) -> None:
        self._results = results
        self._expected = expected
        self._layout = tensors.layout_of(expected)
        self._observe = observe
        self._consumed = False
        self.deltas = tensors.RunningMean()
        self.failures: list[ClientFailure] = []

    def __iter__(self) -> Iterator[ClientUpdate]:
        """Yield accepted updates.

        Raises:
            UpdatesConsumed: they were read before.
        """
        if self._consumed:
            raise UpdatesConsumed("a cohort's updates stream once; keep what you need while reading them")
        self._consumed = True
        for result in self._results:
            if isinstance(result, ClientFailure):
                self.failures.append(result)
            elif problem := self._problem(result):
                self.failures.append(ClientFailure(result.client_id, result.round, problem))
            elif result.weight > 0:
                yield self._accept(result)

    def mean(self) -> ClientUpdate:
        """Return the mean of deltas and extras, weighted by ``weight``, as one update.

        Raises:
            NoUpdates: nobody delivered.
        """
        extra = tensors.RunningMean()
        count, examples, round_ = 0, 0, 0
        for update in self:
            extra.add(update.extra, update.weight)
            count, examples, round_ = count + 1, examples + update.num_examples, update.round
        if count == 0:
            raise NoUpdates("no client of the cohort delivered a usable update")
        return ClientUpdate("mean", round_, examples, self.deltas.weight, self.deltas.value(), extra.value())

    def _accept(self, update: ClientUpdate) -> ClientUpdate:
        if tensors.can_flatten(update.delta):
            update = replace(update, delta=tensors.flatten(update.delta))
        self._observe(update, math.sqrt(self.deltas.add(update.delta, update.weight)))
        return update

    def _problem(self, update: ClientUpdate) -> str | None:
        if tensors.layout_of(update.delta) is not self._layout:
            unknown = sorted(set(update.delta) - set(self._expected))
            if unknown:
                return f"update has tensors that the adapter does not have: {', '.join(unknown[:3])}"
            for name, tensor in update.delta.items():
                if tensor.shape != self._expected[name].shape:
                    expected = tuple(self._expected[name].shape)
                    return f"tensor {name} has shape {tuple(tensor.shape)}; expected {expected}"
        if not (tensors.is_finite(update.delta) and tensors.is_finite(update.extra)):
            return "update is not finite (NaN or infinity)"
        if not (0 <= update.weight < float("inf")):
            return f"weight is {update.weight}"
        return None
