"""An engine whose clients' examples are protected: nobody trains before it was paid for in the ledger."""

import math
from collections.abc import Iterator, Sequence

from fedit.engines.base import Engine
from fedit.privacy.accounting import Charge
from fedit.privacy.example import ExampleLevel
from fedit.privacy.ledger import Ledger
from fedit.privacy.spending import charge_of, refuse_more_rounds
from fedit.strategies.base import Strategy
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate


class PrivateClients:
    """Charges every client for the steps of its round before it is asked, and does not ask whose budget is spent.

    ledger: has an entry a client; a round that is done again after an interruption is charged again, since its
            noise is new.
    """

    def __init__(self, engine: Engine, strategy: Strategy, level: ExampleLevel, ledger: Ledger) -> None:
        self._engine, self._strategy, self._level, self._ledger = engine, strategy, level, ledger

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._engine.clients()

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks.

        Raises:
            RunFolderError: a charge cannot be written down.
        """
        sizes = {client.client_id: client.num_examples for client in self.clients()}
        refused: dict[int, ClientFailure] = {}
        for index, task in enumerate(tasks):
            charge = charge_of(self._strategy, task, sizes[task.client_id])
            if (reason := self._refusal(task.client_id, charge)) is not None:
                refused[index] = ClientFailure(task.client_id, task.round, f"its examples are protected: {reason}")
            else:
                self._ledger.charge(charge, task.client_id)
        results = iter(self._engine.run([task for i, task in enumerate(tasks) if i not in refused]))
        for index in range(len(tasks)):
            yield refused[index] if index in refused else next(results)

    def _refusal(self, client: str, charge: Charge) -> str | None:
        """Return why a client is not asked; None: it is."""
        if (reason := refuse_more_rounds(self._level, self._ledger.steps(client), charge)) is not None:
            return reason
        if math.isinf(self._level.limit):
            return None
        spent = self._ledger.spent(client, charge).value
        if spent <= self._level.limit:
            return None
        return f"another round would spend epsilon {spent:.3g} of at most {self._level.limit:g}"
