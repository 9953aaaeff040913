"""Client-level differential privacy: what one client did cannot be told from the model (arXiv:1710.06963)."""

from dataclasses import dataclass

from fedit.privacy.base import Level


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
