"""All clients in this process over one resident model, one stack after the other."""

from collections.abc import Callable, Iterator, Sequence

from fedit.stacked import stacks
from fedit.training import Progress
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate
from fedit.worker import Worker


class InProcess:
    """The engine of simulations on one device. ``on_step`` hears of every optimizer step.

    width: how many clients train in one pass over the base.
    """

    def __init__(
        self,
        worker: Worker,
        on_step: Callable[[ClientTask, Progress], None] = lambda task, progress: None,
        *,
        width: int = 1,
    ) -> None:
        self._worker = worker
        self._on_step = on_step
        self._width = width

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._worker.clients()

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, trained when it is asked for."""
        for stack in stacks(len(tasks), self._width):
            chosen = [tasks[i] for i in stack]
            yield from self._worker.train_together(chosen, self._teller(chosen))

    def _teller(self, tasks: Sequence[ClientTask]) -> Callable[[int, Progress], None]:
        return lambda index, progress: self._on_step(tasks[index], progress)
