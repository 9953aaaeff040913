"""Rounds that begin together: a cohort is selected, asked, and waited for as the policy for stragglers says."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedit.availability import Always, Availability
from fedit.clock import Clock
from fedit.errors import RoundError
from fedit.pace.base import Asked, Pace, Plan, Standing, Traffic, Training, decode, encode
from fedit.pace.stragglers import Stragglers, WaitAll
from fedit.selection.base import Pool, Selection
from fedit.types import ClientInfo, ServerState, Tensors


@dataclass(frozen=True)
class Synchronous(Pace):
    """Selects a cohort a round.

    size:  updates that a round wants.
    clock: None: durations are not simulated, and availability counts rounds.
    secret: what cohorts are drawn by in place of the seed, where nobody may foresee them.
    """

    selection: Selection
    size: int
    seed: int
    clock: Clock | None = None
    stragglers: Stragglers = field(default_factory=WaitAll)
    availability: Availability = field(default_factory=Always)
    secret: int | None = None

    def plan(
        self, server: ServerState, clients: Sequence[ClientInfo], training: Training, traffic: Traffic
    ) -> Plan:
        """Return the plan of a round.

        Raises:
            RoundError: nobody is available any more.
        """
        number, standing = server.round + 1, decode(server.schedule, clients)
        begun = standing.now
        present, now = self._present(clients, number, standing.now)
        contacts = min(self.stragglers.contacts(self.size), len(clients))
        seed = self.seed if self.secret is None else self.secret
        drawn = Counter(self.selection.choose(Pool(present, contacts, len(clients), number, seed, standing.known)))
        how = training(number)
        cohort = []
        for client in present:
            if client.client_id in drawn:
                weight = float(drawn[client.client_id]) if self.selection.averages_draws else None
                duration = self.clock.duration(client, how, *traffic(server, client)) if self.clock else None
                cohort.append(Asked(client, number, server, how, duration, weight))
        if self.selection.remembers:
            standing = standing.ask(sorted(drawn))
        if self.clock is None:
            return Plan(cohort, standing=standing)
        kept, dropped, seconds = self.stragglers.sort(cohort, self.size)
        standing = replace(standing, now=now + seconds)
        return Plan(kept, dropped, standing.now - begun, standing)

    def after(
        self,
        server: ServerState,
        clients: Sequence[ClientInfo],
        plan: Plan,
        heard: Sequence[Mapping[str, float | str]],
    ) -> Tensors:
        """Return the time and what is known of clients, as far as anything asks for it."""
        standing = plan.standing
        if self.selection.remembers:
            standing = standing.hear(server.round + 1, heard)
        return encode(standing, clients) if standing != Standing() else {}

    def _present(self, clients: Sequence[ClientInfo], number: int, now: float) -> tuple[list[ClientInfo], float]:
        """Return who can be asked, and when: at once, or as soon as the first of all can."""
        if isinstance(self.availability, Always):
            return list(clients), now
        at = now if self.clock is not None else float(number - 1)
        waits = {c.client_id: self.availability.wait(c.client_id, at, self.seed) for c in clients}
        # Rounds cannot be waited for as seconds can: without a clock a round may find nobody.
        pause = min(waits.values()) if self.clock is not None else 0.0
        if math.isinf(pause):
            raise RoundError(f"round {number}: no client is available after {at:.3f} simulated seconds.")
        return [client for client in clients if waits[client.client_id] <= pause], now + pause
