"""Power-of-Choice: of some candidates those with the highest loss (Cho et al., 2020, arXiv:2010.01243)."""

import math
from dataclasses import dataclass

from fedit.errors import ConfigError
from fedit.selection.base import Known, Pool, Selection, race


@dataclass(frozen=True)
class PowerOfChoice(Selection):
    """Draw candidates in proportion to their examples and take those with the highest loss.

    candidates: drawn a round; more means a stronger pull to high losses, as many as the cohort none;
        0: twice the cohort.
    """

    # Deviation: candidates are not asked for their present loss; the server uses the training loss of their last
    # update (the paper's rpow-d), and those that it never heard of come first.
    candidates: int = 0

    def __post_init__(self) -> None:
        if self.candidates < 0:
            raise ConfigError(
                f"option 'candidates' of selection 'power_of_choice' is {self.candidates}; expected 0 or more."
            )

    def choose(self, pool: Pool) -> list[str]:
        """Return the candidates with the highest losses.

        Raises:
            ConfigError: fewer candidates than the cohort has clients.
        """
        if 0 < self.candidates < pool.size:
            raise ConfigError(
                f"option 'candidates' of selection 'power_of_choice' is {self.candidates}, but a cohort has "
                f"{pool.size} clients; raise it or lower clients_per_round."
            )
        weights = {client.client_id: float(client.num_examples) for client in pool.clients}
        drawn = race(pool.seed, "cohort", pool.round, weights=weights)[: self.candidates or 2 * pool.size]
        # Stable: equal losses stay in the order in which they were drawn.
        drawn.sort(key=lambda client: -_loss(pool.of(client)))
        return sorted(drawn[: pool.size])

    @property
    def needs_losses(self) -> bool:
        """Whether it chooses by single clients' losses: it does."""
        return True

    @property
    def remembers(self) -> bool:
        """Whether it looks at the past: at losses."""
        return True

    @property
    def averages_draws(self) -> bool:
        """Whether an update weighs as often as it was drawn: candidates are drawn by their size already."""
        return True


def _loss(known: Known) -> float:
    return math.inf if known.loss is None else known.loss
