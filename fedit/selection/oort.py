"""Oort: clients that have much to learn and are fast (Lai et al., 2021, arXiv:2010.06081)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedit.errors import ConfigError
from fedit.selection.base import Known, Pool, Selection, race, uniforms


@dataclass(frozen=True)
class Oort(Selection):
    """Take clients of high utility, some at random that were never heard, and those long not heard.

    Utility is clipped, scaled to [0, 1], raised by a bonus for the rounds since it was heard, and lowered for
    clients slower than the preferred duration.

    exploration: share of the first cohort that was never heard.
    decay: factor of that share from round to round.
    min_exploration: what it does not fall below.
    penalty: exponent of preferred over own duration for slow clients; 0 ignores speed.
    preferred: quantile of known durations that is still fast enough.
    clip: quantile of utilities above which all count as equal.
    cutoff: share of the last taken utility from which clients are drawn too, in proportion to utility.
    """

    # Deviation: utility is examples x mean token loss: clients send their mean, not their rows' squared losses.
    # Deviation: no pacer, which would move ``preferred`` by the utility of past rounds, and no blacklist.
    # Deviation: who was never heard is drawn uniformly; speeds are not known before.
    exploration: float = 0.9
    decay: float = 0.98
    min_exploration: float = 0.2
    penalty: float = 2.0
    preferred: float = 0.5
    clip: float = 0.95
    cutoff: float = 0.95

    def __post_init__(self) -> None:
        for name in ("exploration", "decay", "min_exploration", "preferred", "clip", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"option '{name}' of selection 'oort' is {getattr(self, name)}; expected 0 to 1."
                )
        if self.penalty < 0:
            raise ConfigError(f"option 'penalty' of selection 'oort' is {self.penalty}; expected 0 or more.")

    def choose(self, pool: Pool) -> list[str]:
        """Return the known clients of highest score and some new ones."""
        heard = {c.client_id: pool.of(c.client_id) for c in pool.clients if pool.of(c.client_id).loss is not None}
        new = [client.client_id for client in pool.clients if client.client_id not in heard]
        share = max(self.min_exploration, self.exploration * self.decay ** (pool.round - 1))
        exploring = min(math.ceil(round(share * pool.size, 9)), len(new))
        exploiting = min(pool.size - exploring, len(heard))
        exploring = min(pool.size - exploiting, len(new))
        scores = self.scores({c.client_id: c.num_examples for c in pool.clients}, heard, pool.round)
        return sorted([*self._best(pool, scores, exploiting), *_newest(pool, new, exploring)])

    def scores(self, examples: Mapping[str, int], heard: Mapping[str, Known], round: int) -> dict[str, float]:
        """Return client id -> score of those who were heard; larger is better."""
        if not heard:
            return {}
        utility = {c: examples[c] * (known.loss or 0.0) for c, known in heard.items()}
        lowest, highest = min(utility.values()), max(utility.values())
        most, spread = _quantile(list(utility.values()), self.clip), max(highest - lowest, 1e-12)
        durations = [known.seconds for known in heard.values() if known.seconds is not None]
        enough = _quantile(durations, self.preferred) if durations else math.inf
        scores = {}
        for client, known in heard.items():
            bonus = math.sqrt(0.1 * math.log(max(round, 1)) / known.heard)
            score = (min(utility[client], most) - lowest) / spread + bonus
            if known.seconds is not None and known.seconds > enough:
                score *= (enough / known.seconds) ** self.penalty
            scores[client] = score
        return scores

    def _best(self, pool: Pool, scores: Mapping[str, float], count: int) -> list[str]:
        if count == 0:
            return []
        ranked = sorted(scores, key=lambda client: (-scores[client], client))
        bar = self.cutoff * scores[ranked[count - 1]]
        near = {client: scores[client] for client in ranked if scores[client] >= bar}
        return race(pool.seed, "cohort", pool.round, "known", weights=near)[:count]

    @property
    def needs_losses(self) -> bool:
        """Whether it chooses by single clients' losses: it does."""
        return True

    @property
    def remembers(self) -> bool:
        """Whether it looks at the past: at losses and durations."""
        return True


def _newest(pool: Pool, new: Sequence[str], count: int) -> list[str]:
    draws = uniforms(pool.seed, "cohort", pool.round, "new", ids=new)
    return [client for _, client in sorted(zip(draws, new, strict=True))[:count]]


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the value at ``share`` of the sorted ones, as the paper's code takes it: no interpolation."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
