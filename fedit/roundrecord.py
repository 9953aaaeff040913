"""What is told of a round; of a private one nothing but what follows from its noised sum."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedit import tensors
from fedit.privacy.client import ClientPrivacy, ClientSeal
from fedit.privacy.secagg.sealing import SecureSeal
from fedit.types import ClientFailure

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round.

    cohort: those who were asked, whether their update was waited for or not; in rounds of arrivals, who arrived.
    clients: those whose updates were used; failures: those who delivered none that could be; dropped: those who
             were not waited for, as they were late or more had been asked than were wanted.
    bytes_up, bytes_down: of the tensors as they were carried, the updates that were then refused among them.
    raw_bytes_up, raw_bytes_down: of the same before transforms.
    seconds: wall-clock.
    reason: why the strategy could not aggregate; None where it did.
    simulated_seconds: that it took on the virtual clock; None: there is none.
    flushed: whether its buffer was not full and could not fill any more.
    members: whose updates are in the sum, where nothing else is known of any of them; ``clients`` is empty then.
    withheld: whether all is left out that would tell of single clients: who took part, what they sent, how many
              they were. Bytes are then those that are expected.
    """

    round: int
    cohort: list[str]
    clients: list[dict[str, float | str]]
    failures: list[ClientFailure]
    dropped: list[ClientFailure]
    aggregated: bool
    loss: float | None
    tokens: int
    bytes_up: int
    bytes_down: int
    raw_bytes_up: int
    raw_bytes_down: int
    seconds: float
    diagnostics: dict[str, float]
    reason: str | None = None
    simulated_seconds: float | None = None
    flushed: bool = False
    members: Sequence[str] = ()
    withheld: bool = False

    @property
    def delivered(self) -> int:
        """How many updates were used."""
        return len(self.members or self.clients)


def summed(record: RoundRecord, seal: SecureSeal) -> RoundRecord:
    """Return of a round whose updates nobody has seen what their sum tells."""
    up, down = seal.bytes
    norm = {"mean_update_norm": tensors.norm(seal.mean_delta)} if seal.mean_delta else {}
    return replace(
        record,
        failures=seal.failures,
        loss=seal.loss,
        tokens=seal.tokens,
        bytes_up=up,
        bytes_down=down,
        raw_bytes_up=seal.raw_bytes,
        diagnostics={**record.diagnostics, **norm},
        members=seal.clients,
    )


def withheld(
    record: RoundRecord,
    privacy: ClientPrivacy,
    seal: ClientSeal,
    traffic: tuple[int, int],
    metrics: Mapping[str, float],
) -> RoundRecord:
    """Return of a private round what follows from its noised sum, or was known before; the log hears of failures.

    traffic: bytes that a client is sent, and those that it sends.
    """
    failed = [*record.failures, *record.dropped]
    if failed:
        log.warning(
            "round %d: %d of %d clients failed, which is kept out of the run's records; first of them: %s: %s",
            *(record.round, len(failed), len(record.cohort), failed[0].client_id, failed[0].reason),
        )
    expected = privacy.sampling.expected
    down, up = (round(expected * amount) for amount in traffic)
    spent = privacy.spent()
    return replace(
        record,
        cohort=[],
        clients=[],
        failures=[],
        dropped=[],
        members=(),
        aggregated=True,
        loss=None,
        tokens=0,
        bytes_up=up,
        bytes_down=down,
        raw_bytes_up=up,
        raw_bytes_down=down,
        diagnostics={
            "epsilon": spent.value,
            "epsilon_rdp": spent.rdp,
            "delta": privacy.ledger.delta,
            "clip_norm": seal.clip_norm,
            **metrics,
        },
        withheld=True,
    )
