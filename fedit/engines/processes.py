"""Clients in worker processes, one a core or a GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from fedit.engines.messages import read_result, task_header
from fedit.engines.pool import Event, Lost, Pool, Reply, Request
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate


class Processes:
    """The engine that shares clients out over a pool; results do not depend on who trains whom.

    on_step: hears (task, fields of the step) of every optimizer step, while a result is waited for.
    """

    def __init__(
        self,
        pool: Pool,
        clients: Sequence[ClientInfo],
        on_step: Callable[[ClientTask, Event], None] = lambda task, fields: None,
    ) -> None:
        self._pool = pool
        self._clients = clients
        self._on_step = on_step

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._clients

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks, as soon as it can be had."""
        requests = [_request(task) for task in tasks]
        answers = self._pool.run(requests, lambda index, fields: self._on_step(tasks[index], fields))
        with closing(answers):
            for task, answer in zip(tasks, answers, strict=True):
                yield _result(task, answer)


def _request(task: ClientTask) -> Request:
    sets = {"adapter": task.broadcast.adapter, "extra": task.broadcast.extra}
    return Request({"do": "train", **task_header(task)}, {role: s for role, s in sets.items() if s})


def _result(task: ClientTask, answer: Reply | Lost) -> ClientUpdate | ClientFailure:
    if isinstance(answer, Lost):
        return ClientFailure(task.client_id, task.round, f"{answer.reason}, twice")
    return read_result(answer.header, answer.tensors)
