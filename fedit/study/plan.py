"""What a study trains: which arms, and at which rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit.config import StudyConfig
from fedit.errors import ConfigError, did_you_mean
from fedit.files import safe_name
from fedit.job import Job

BASE = "base"
KINDS = 3
"""Clients that the paper trains alone."""


@dataclass(frozen=True, slots=True)
class Training:
    """One arm to be trained with one seed at one learning rate."""

    seed: int
    arm: str
    learning_rate: float

    def folder(self, study: Path) -> Path:
        """Return where it is trained, in the study's folder."""
        return study / f"seed-{self.seed}" / "arms" / file_name(self.arm) / f"lr-{self.learning_rate:g}"

    @property
    def label(self) -> str:
        """What progress is said to be about."""
        return f"{self.arm} lr {self.learning_rate:g} seed {self.seed}"


def file_name(arm: str) -> str:
    """Return what an arm's files are called: <kind> or <kind>.<client or strategy>."""
    kind, _, rest = arm.partition(":")
    return f"{kind}.{safe_name(rest)}" if rest else kind


def first_arms(job: Job, study: StudyConfig) -> list[str]:
    """Return the arms whose budget is their own: the federations, and clients that take their own steps."""
    names: list[str] = []
    if "federated" in study.arms:
        names += [f"federated:{name}" for name in study.strategies] or ["federated"]
    if "local" in study.arms:
        names += [f"local:{client}" for client in local_clients(job, study.local_clients)]
    return names


def later_arms(job: Job, study: StudyConfig) -> list[str]:
    """Return the arms that take the tokens that the federation took."""
    names: list[str] = []
    if "local_total" in study.arms:
        names += [f"local_total:{client}" for client in local_clients(job, study.local_clients)]
    return names + ["centralised"] * ("centralised" in study.arms)


def local_clients(job: Job, choice: int | str | Sequence[str]) -> list[str]:
    """Return the clients that train alone.

    choice: the first so many; ids; or "kinds": three, as in the FedIT paper (arXiv:2305.05644) two of one
        category, different ones, and one of two categories, each the client with the most rows. Where there are
        none of a kind, those with the fewest categories take their place.

    Raises:
        ConfigError: an id is not a client's.
    """
    if isinstance(choice, int):
        return list(job.clients)[:choice]
    if choice != "kinds":
        for client in choice:
            if client not in job.clients:
                raise ConfigError(
                    f"study.local_clients: there is no client '{client}'{did_you_mean(client, job.clients)} "
                    f"Clients: {', '.join(list(job.clients)[:5])}, …"
                )
        return list(choice)
    return _kinds(job.category_counts)


def _kinds(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    present = {client: sorted(c for c, n in own.items() if n) for client, own in counts.items()}
    largest = sorted(counts, key=lambda client: (-sum(counts[client].values()), client))
    chosen: list[str] = []
    for client in largest:
        taken = [present[other] for other in chosen]
        if len(present[client]) == 1 and present[client] not in taken and len(taken) < 2:
            chosen.append(client)
    chosen += [client for client in largest if len(present[client]) == 2][:1]
    others = sorted((c for c in largest if c not in chosen), key=lambda client: len(present[client]))
    return [*chosen, *others][:KINDS]


def roles(arms: Sequence[str], study: StudyConfig) -> dict[str, str]:
    """Return the name that each arm has over all seeds.

    Which clients are of the paper's kinds depends on how a seed deals the rows: they are numbered, as it does.
    """
    if study.local_clients != "kinds":
        return {arm: arm for arm in arms}
    found: dict[str, str] = {}
    for arm in arms:
        kind = arm.partition(":")[0]
        number = sum(other.partition(":")[0] == kind for other in found) + 1
        found[arm] = f"{kind}-{number}" if kind.startswith("local") else arm
    return found
