"""Policies that look at nothing but hashes, sizes and turns."""

from dataclasses import dataclass

from fedit import cohort, seeds
from fedit.errors import ConfigError
from fedit.selection.base import Pool, Selection, race, uniforms


@dataclass(frozen=True)
class Uniform(Selection):
    """Draw so many clients without replacement, all alike."""

    def choose(self, pool: Pool) -> list[str]:
        """Return the clients with the smallest hashes."""
        return cohort.uniform(pool.clients, min(pool.size, len(pool.clients)), seed=pool.seed, round=pool.round)


@dataclass(frozen=True)
class Poisson(Selection):
    """Let every client take part by its own coin; cohorts differ in size and may be empty.

    probability: of taking part; 0: clients_per_round over all clients.
    """

    probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(
                f"option 'probability' of selection 'poisson' is {self.probability}; expected 0 to 1."
            )

    def choose(self, pool: Pool) -> list[str]:
        """Return those whose coin fell."""
        ids = [client.client_id for client in pool.clients]
        probability = self.probability or pool.size / pool.population
        draws = uniforms(pool.seed, "cohort", pool.round, ids=ids)
        return sorted(client_id for client_id, u in zip(ids, draws, strict=True) if u < probability)

    @property
    def fixed_size(self) -> bool:
        """Whether the cohort has the size that is wanted: only on average."""
        return False


@dataclass(frozen=True)
class Weighted(Selection):
    """Draw clients in proportion to their examples and average what they send plainly.

    replacement: draw with replacement: the mean is then unbiased, and a client drawn twice weighs twice; without
        replacement a cohort is of distinct clients, which favours small ones a little.
    """

    replacement: bool = True

    def choose(self, pool: Pool) -> list[str]:
        """Return one id a draw."""
        weights = {client.client_id: float(client.num_examples) for client in pool.clients}
        if not self.replacement:
            return sorted(race(pool.seed, "cohort", pool.round, weights=weights)[: pool.size])
        draws = range(pool.size if weights else 0)
        return sorted(race(pool.seed, "cohort", pool.round, draw, weights=weights)[0] for draw in draws)

    @property
    def averages_draws(self) -> bool:
        """Whether an update weighs as often as it was drawn."""
        return True

    @property
    def fixed_size(self) -> bool:
        """Whether the cohort has the size that is wanted: not where one client is drawn twice."""
        return not self.replacement


@dataclass(frozen=True)
class RoundRobin(Selection):
    """Ask everybody once before anybody twice, each turn in a new random order."""

    def choose(self, pool: Pool) -> list[str]:
        """Return those who were asked least often; ties in the order of that turn's hashes."""
        turns = {client.client_id: pool.of(client.client_id).asked for client in pool.clients}
        order = sorted(turns, key=lambda c: (turns[c], seeds.derive(pool.seed, "turn", turns[c], c)))
        return sorted(order[: pool.size])

    @property
    def remembers(self) -> bool:
        """Whether it looks at the past: whose turn it is."""
        return True
