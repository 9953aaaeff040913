"""Arms beside the federation: baselines, trained side by side where there are workers, and what all arms score."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit import arms
from fedit.compute import ArmWork, Compute, Workers
from fedit.engines.pool import Event
from fedit.errors import RunFolderError
from fedit.events import EventLog, Listener
from fedit.federation import Trained, read_trained, train
from fedit.files import safe_name
from fedit.job import Job
from fedit.report.summary import ArmResult
from fedit.scoring import answer_held_out


def compare(
    job: Job, compute: Compute, federated: Trained, folder: Path, listener: Listener | None
) -> list[ArmResult]:
    """Train and score the baselines that the job asks for; those that are done already are only read."""
    names = arms.baseline_names(job)
    tokens = arms.tokens_by_round(federated.events)
    waiting = [name for name in names if not (arm_folder(folder, name) / "answers.json").is_file()]
    # The long ones first, so that no worker is left with one at the end.
    waiting.sort(key=lambda name: name.startswith("local:"))
    train_arms(job, compute, [ArmWork(name, arm_folder(folder, name), tokens) for name in waiting], listener)
    return [_read_arm(job, name, tokens, arm_folder(folder, name)) for name in names]


def train_arms(job: Job, compute: Compute, work: Sequence[ArmWork], listener: Listener | None) -> None:
    """Train whole arms, side by side where there are workers, from where each of them is to its end."""
    if isinstance(compute, Workers):
        compute.train_arms(work, listener or _ignore)
    else:
        for one in work:
            train_arm(job, compute, one, listener)


def train_arm(job: Job, compute: Compute, work: ArmWork, listener: Listener | None) -> None:
    """Train one arm from where it is to its end; let it answer the held-out prompts if it is to be graded."""
    arm = arms.named(job, work.name, work.tokens, learning_rate=work.learning_rate)
    log = EventLog(work.folder, listener, arm=work.label or work.name)
    trained = train(job, compute, arm, work.folder, log)
    compute.export(trained.adapter, trained.round, work.folder / "adapter")
    if work.graded:
        score_arm(job, compute, arm.name, trained, work.folder, log)


def score_base(job: Job, compute: Compute, federated: Trained, folder: Path, log: EventLog) -> ArmResult:
    """Return the base model's scores: those of round 0, whose adapter changes nothing."""
    start = Trained(compute.initial(), 0, federated.events[:2])
    return score_arm(job, compute, "base", start, arm_folder(folder, "base"), log)


def score_arm(job: Job, compute: Compute, name: str, trained: Trained, folder: Path, log: EventLog) -> ArmResult:
    """Return an arm's scores; answers that were generated before are read, not generated again."""
    path = folder / "answers.json"
    if not (job.config.exact_match or job.config.compare):
        return ArmResult(name, trained, None)
    stored = ArmResult.read(name, trained, path)
    if stored is not None:
        return stored

    def tell(done: int) -> None:
        log.tell("answering", trained.round, subject=name, done=done, total=len(job.held_out))

    tell(0)
    answers = answer_held_out(job, compute, trained.adapter, tell)
    result = ArmResult(name, trained, answers)
    result.write(path)
    return result


def arm_folder(folder: Path, name: str) -> Path:
    """Return the folder of the arm ``name``: arms/<kind> or arms/<kind>.<client>."""
    kind, _, client = name.partition(":")
    return folder / "arms" / (f"{kind}.{safe_name(client)}" if client else kind)


def _read_arm(job: Job, name: str, tokens: Mapping[int, int], folder: Path) -> ArmResult:
    """Return what a baseline that is done left in its folder."""
    arm = arms.named(job, name, tokens)
    trained = read_trained(job, arm, folder, EventLog(folder, arm=name))
    result = ArmResult.read(name, trained, folder / "answers.json")
    if result is None:
        raise RunFolderError(f"{folder} holds no answers although its arm is done; start a new run.")
    return result


def _ignore(event: Event) -> None:
    """Listen to nothing."""
