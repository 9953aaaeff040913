"""Clients in worker processes, one a core or a GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import cast

from fedit.engines.frames import Header
from fedit.engines.messages import broadcast_sets, read_result, split, task_header
from fedit.engines.pool import Event, Lost, Pool, Reply, Request
from fedit.stacked import stacks
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate, Tensors


class Processes:
    """The engine that shares stacks of clients out over a pool; results do not depend on who trains whom.

    on_step: hears (task, fields of the step) of every optimizer step, while a result is waited for.
    width:   how many clients train in one pass over the base.
    arm:     name of the arm whose clients they are.
    """

    def __init__(
        self,
        pool: Pool,
        clients: Sequence[ClientInfo],
        on_step: Callable[[ClientTask, Event], None] = lambda task, fields: None,
        *,
        width: int = 1,
        arm: str = "federated",
    ) -> None:
        self._pool = pool
        self._clients = clients
        self._on_step = on_step
        self._width = width
        self._arm = arm

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._clients

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks, as soon as it can be had."""
        chosen = [[tasks[i] for i in stack] for stack in stacks(len(tasks), self._width)]

        def tell(index: int, fields: Event) -> None:
            place = cast(int, fields["task"])
            self._on_step(chosen[index][place], {name: v for name, v in fields.items() if name != "task"})

        with closing(self._pool.run([_request(stack, self._arm) for stack in chosen], tell)) as answers:
            for stack, answer in zip(chosen, answers, strict=True):
                yield from _results(stack, answer)


def _request(tasks: Sequence[ClientTask], arm: str) -> Request:
    sets: dict[str, Tensors] = {}
    for index, task in enumerate(tasks):
        sets |= {f"{index}/{part}": held for part, held in broadcast_sets(task.broadcast).items()}
    return Request({"do": "train", "arm": arm, "tasks": [task_header(task) for task in tasks]}, sets)


def _results(tasks: Sequence[ClientTask], answer: Reply | Lost) -> list[ClientUpdate | ClientFailure]:
    if isinstance(answer, Lost):
        together = f" while it trained {len(tasks)} clients at once (see stack_clients)" if len(tasks) > 1 else ""
        return [ClientFailure(t.client_id, t.round, f"{answer.reason}, twice{together}") for t in tasks]
    headers = cast(list[Header], answer.header["results"])
    parts = split(answer.tensors)
    return [read_result(header, parts.get(str(index), {})) for index, header in enumerate(headers)]
