"""All clients in this process, one after the other, over one resident model."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fedit.training import Progress
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate
from fedit.worker import Worker


class InProcess:
    """The engine of simulations on one device. ``on_step`` hears of every optimizer step."""

    def __init__(
        self, worker: Worker, on_step: Callable[[ClientTask, Progress], None] = lambda task, progress: None
    ) -> None:
        self._worker = worker
        self._on_step = on_step

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._worker.clients()

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, trained when it is asked for."""
        for task in tasks:
            yield self._worker.train(task, partial(self._on_step, task))
