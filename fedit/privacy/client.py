"""Client-level differential privacy: what one client did cannot be told from the model (arXiv:1710.06963)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fedit import tensors
from fedit.errors import ConfigError
from fedit.privacy.accounting import Epsilon
from fedit.privacy.base import Level, Sampling
from fedit.privacy.keystream import Keystream
from fedit.privacy.ledger import Ledger
from fedit.types import ClientUpdate, ServerState, Tensors


@dataclass(frozen=True, kw_only=True)
class ClientLevel(Level):
    """The server clips every client's update as a whole and adds noise to their sum.

    adaptive:            move the clip norm towards a quantile of the clients' norms (arXiv:1905.03871); it
                         starts at clip_norm.
    quantile:            share of the clients that are not to be clipped.
    clip_learning_rate:  how fast the clip norm moves.
    count_noise:         standard deviation of the noise on the number of clients that were not clipped; None: a
                         twentieth of the expected cohort. It is paid for from the same noise_multiplier.
    """

    adaptive: bool = False
    quantile: float = 0.5
    clip_learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile < 1:
            raise self._bad("quantile", self.quantile, "between 0 and 1")
        if self.clip_learning_rate <= 0:
            raise self._bad("clip_learning_rate", self.clip_learning_rate, "more than 0")
        if self.count_noise is not None and self.count_noise <= 0:
            raise self._bad("count_noise", self.count_noise, "more than 0")

    def noises(self, expected: float) -> tuple[float, float]:
        """Return the noise on the sum, in clip norms, and on the number of those who were not clipped.

        Both together protect as noise_multiplier alone: 1/z² = 1/z_sum² + 1/(2 z_count)², since a client moves
        the centred count by a half (arXiv:1905.03871, theorem 1).

        Raises:
            ConfigError: count_noise is so small that nothing is left for the sum.
        """
        z = self.noise_multiplier
        if z is None:
            raise ValueError("the noise is not known yet")
        if not self.adaptive or z == 0:
            return z, 0.0
        count = max(expected / 20, z) if self.count_noise is None else self.count_noise
        if 2 * count <= z:
            raise self._bad("count_noise", self.count_noise, f"more than half of noise_multiplier, {z / 2:g}")
        return (z**-2 - (2 * count) ** -2) ** -0.5, count


class ClientPrivacy:
    """Client-level privacy in a federation: seals its cohorts, and knows what their noised sums have cost.

    level:   with its noise known.
    keystream: where noise comes from; one whose key is known only in tests.

    Raises:
        ConfigError: the options cannot work together.
    """

    def __init__(
        self, level: ClientLevel, sampling: Sampling, ledger: Ledger, keystream: Keystream | None = None
    ) -> None:
        self.level = level
        self.sampling = sampling
        self.ledger = ledger
        self.keystream = keystream or Keystream()
        self.noises = level.noises(sampling.expected)
        self._charge = sampling.charge(cast(float, level.noise_multiplier))

    def as_dict(self) -> dict[str, object]:
        """Return what the guarantee rests on, by name."""
        level, sampling = self.level, self.sampling
        return {
            "level": "client",
            "noise_multiplier": level.noise_multiplier,
            "clip_norm": level.clip_norm,
            "adaptive": level.adaptive,
            "delta": self.ledger.delta,
            "max_epsilon": None if math.isinf(level.limit) else level.limit,
            "sampling": sampling.kind,
            "rate": sampling.rate,
            "expected_cohort": sampling.expected,
            "neighbours": sampling.neighbours,
            "reason": sampling.reason,
        }

    def spent(self) -> Epsilon:
        """Return what all rounds so far have spent."""
        return self.ledger.spent()

    def affords_a_round(self) -> bool:
        """Whether another round stays within the limit."""
        limit = self.level.limit
        return math.isinf(limit) or self.ledger.spent("", self._charge).value <= limit

    def seal(self, server: ServerState, delta: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> "ClientSeal":
        """Return what the next round's updates go into.

        delta, extra: names and shapes of what every client sends.

        Raises:
            RunFolderError: the ledger has lost rounds that the state was reached with.
        """
        self.ledger.refuse_lost(int(server.privacy.get("rounds", torch.tensor(0))))
        clip = float(server.privacy["clip_norm"]) if "clip_norm" in server.privacy else self.level.clip_norm
        return ClientSeal(self, server.round + 1, clip, delta, extra)

    def charge(self) -> None:
        """Write down that a round is about to be released."""
        self.ledger.charge(self._charge)


class ClientSeal:
    """One round's sum, clipped and noised; it shows nothing else.

    mean = (sum of min(1, C / |x_k|) x_k + N(0, (z C)²)) / (q N), where x_k is all that client k sends in one
    vector, its strategy's extras too, every client weighs the same, and the denominator is fixed. A client that
    fails, or sends what is not finite, adds nothing. An empty cohort is noise.
    """

    def __init__(
        self,
        privacy: ClientPrivacy,
        round: int,
        clip_norm: float,
        delta: Mapping[str, Tensor],
        extra: Mapping[str, Tensor],
    ) -> None:
        self.clip_norm = clip_norm
        self._privacy = privacy
        self._round = round
        self._delta = tensors.FixedSum(delta)
        self._extra = tensors.FixedSum(extra)
        self._unclipped = 0.0
        self._noised = False

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on every entry of the sum."""
        return self._privacy.noises[0] * self.clip_norm if self._privacy.noises[0] else 0.0

    @property
    def participation(self) -> float:
        """Share of the federation that the mean stands for: the expected one, not who came."""
        return self._privacy.sampling.expected / self._privacy.sampling.population

    def mean(self, updates: Iterable[ClientUpdate]) -> ClientUpdate:
        """Return the noised mean of ``updates``, which are read once; the round is charged before noise is drawn.

        Raises:
            RunFolderError: the charge cannot be written down.
        """
        for update in updates:
            self._add(update)
        self._privacy.charge()
        expected = self._privacy.sampling.expected
        for part in (self._delta, self._extra):
            if self.noise and not self._noised:
                self._privacy.keystream.add_normal([part.sums], self.noise)
        return ClientUpdate(
            "mean", self._round, 0, expected, self._delta.over(expected), self._extra.over(expected)
        )

    def take(
        self, delta: tensors.Flat, extra: tensors.Flat, unclipped: float, count: int, *, noised: bool
    ) -> None:
        """Add a sum of updates that their clients have clipped, in place of the updates.

        delta, extra: flat; unclipped: how many of ``count`` clients had nothing to clip.
        noised: whether the clients have added all the noise, too.
        """
        self._delta.sums.add_(delta.buffer)
        self._extra.sums.add_(extra.buffer)
        self._unclipped += unclipped - count / 2
        self._noised = noised

    def after(self) -> Tensors:
        """Return what the next state carries: how many rounds were charged, and the next clip norm."""
        return {
            "clip_norm": torch.tensor(self._next_clip_norm(), dtype=torch.float64),
            "rounds": torch.tensor(self._privacy.ledger.steps(), dtype=torch.int64),
        }

    def fits(self, update: ClientUpdate) -> bool:
        """Whether an update's extras are those that every client sends."""
        return tensors.layout_of(update.extra) is self._extra.layout

    def _add(self, update: ClientUpdate) -> None:
        if tensors.layout_of(update.delta) is not self._delta.layout:
            raise ConfigError(
                "privacy=client sums updates of one rank; leave client_ranks empty or take another privacy"
            )
        norm = math.sqrt(tensors.dot(update.delta, update.delta) + tensors.dot(update.extra, update.extra))
        # b - 1/2 of the paper: centred, a client moves the count by a half and not by one.
        self._unclipped += 0.5 if norm <= self.clip_norm else -0.5
        factor = 1.0 if norm <= self.clip_norm else self.clip_norm / norm
        self._delta.add(update.delta, factor)
        self._extra.add(update.extra, factor)

    def _next_clip_norm(self) -> float:
        """Return C exp(-rate (share - quantile)), where share is the noised one of those who were not clipped.

        More unclipped clients than wanted lower the norm. Noise was in proportion to this round's norm, not to
        the next one.
        """
        level = self._privacy.level
        if not level.adaptive:
            return self.clip_norm
        noise = self._privacy.noises[1] * float(self._privacy.keystream.normal(1))
        share = min(max((self._unclipped + noise) / self._privacy.sampling.expected + 0.5, 0.0), 1.0)
        return self.clip_norm * math.exp(-level.clip_learning_rate * (share - level.quantile))
