"""An engine some of whose clients are hostile: their results are changed on the way to the server."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from fedit import seeds
from fedit.attacks import ATTACKS, Sight, attacked
from fedit.engines.base import Engine
from fedit.transforms.base import Transform
from fedit.transforms.chain import receive, send
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate


class HostileClients:
    """Wraps the engine of a simulation; who is honest is not touched.

    attack:     a name in `fedit.attacks.ATTACKS`.
    hostile:    ids of the clients that do it.
    strength:   None: the attack's own.
    transforms: of the engine's clients; a hostile one changes its update before they are applied to it.
    """

    def __init__(
        self,
        engine: Engine,
        attack: str,
        hostile: Collection[str],
        *,
        strength: float | None,
        seed: int,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self._engine = engine
        self._attack = attack
        self._hostile = frozenset(hostile)
        self._strength = strength
        self._seed = seed
        self._transforms = transforms

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id, as they announce themselves: a liar lies from the start."""
        infos = self._engine.clients()
        if self._attack != "lying_counts":
            return infos
        return [
            replace(info, num_examples=self._attacked(_empty(info), Sight((), len(infos), 0)).num_examples)
            if info.client_id in self._hostile
            else info
            for info in infos
        ]

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks; all at the end if the attack sees the others'."""
        hostile = sum(task.client_id in self._hostile for task in tasks)
        results = self._engine.run(tasks)
        honest: list[ClientUpdate] = []
        if hostile and ATTACKS[self._attack].omniscient:
            held = list(results)
            opened = (self._opened(r) for r in held if r.client_id not in self._hostile)
            honest = [r for r in opened if isinstance(r, ClientUpdate)]
            results = iter(held)
        sight = Sight(honest, len(tasks), hostile)
        for result in results:
            if isinstance(result, ClientUpdate) and result.client_id in self._hostile:
                result = self._sent(result, sight)
            yield result

    def _sent(self, update: ClientUpdate, sight: Sight) -> ClientUpdate:
        """Return what a hostile client sends in place of what it would have sent."""
        own = self._opened(update)
        if isinstance(own, ClientFailure):
            return update
        seed = seeds.derive(self._seed, "attack", "transforms", update.round, update.client_id)
        sent, _ = send(self._transforms, self._attacked(own, sight), {}, seed)
        return sent

    def _opened(self, result: ClientUpdate | ClientFailure) -> ClientUpdate | ClientFailure:
        return result if isinstance(result, ClientFailure) else receive(self._transforms, result)

    def _attacked(self, update: ClientUpdate, sight: Sight) -> ClientUpdate:
        return attacked(update, self._attack, sight, self._strength, self._seed)


def _empty(info: ClientInfo) -> ClientUpdate:
    return ClientUpdate(info.client_id, 0, info.num_examples, float(info.num_examples), {})
