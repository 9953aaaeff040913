"""Which learning rate an arm takes: the best on validation rows at the first seed, the same at the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit.events import EventLog
from fedit.files import read_json
from fedit.study.personal import read_personal
from fedit.study.plan import Training


def best_of(study: Path, trainings: Sequence[Training]) -> Training:
    """Return the training at the rate with the lowest validation loss, the lowest rate where there are several."""

    def choice(training: Training) -> tuple[float, float]:
        loss = validation_loss(study, training)
        # A diverged arm logs no finite loss and is never chosen before one that has one.
        return (float("inf") if loss is None else loss, training.learning_rate)

    return min(trainings, key=choice)


def validation_loss(study: Path, training: Training) -> float | None:
    """Return the loss of what the arm is judged by: the server's model, or where it is not whole, the clients'."""
    personal = read_personal(training.folder(study))
    if personal is not None and personal.partial:
        return personal.validation
    events = EventLog(training.folder(study)).history()
    loss = [event for event in events if event["event"] == "evaluation"][-1].get("validation_loss")
    return float(loss) if isinstance(loss, int | float) else None


def chosen_rates(study: Path, first_seed: int) -> dict[str, float]:
    """Return arm -> the rate that it chose at the first seed."""
    content = read_json(study / f"seed-{first_seed}" / "seed.json")
    rates = content["learning_rates"]
    assert isinstance(rates, dict)
    return rates


def rate_for(chosen: Mapping[str, float], name: str) -> float:
    """Return the rate that an arm, or at another seed's other client one of its kind, chose at the first seed."""
    if name in chosen:
        return chosen[name]
    alike = sorted(rate for other, rate in chosen.items() if other.partition(":")[0] == name.partition(":")[0])
    return alike[len(alike) // 2]
