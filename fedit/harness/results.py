"""What an arm reached in a task, as it is kept on disk, and how arms differ item by item."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fedit.errors import RunFolderError
from fedit.evaluation.intervals import Array, Interval, bootstrap
from fedit.files import read_json, write_json

Value = float | Sequence[bool]
"""What one item scores: a number, or marks that are pooled over all items, as IFEval's by instruction."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The harness's number of a task and its own standard error; None: it gives none."""

    value: float | None
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class Result:
    """One arm in one task.

    key:     hash of all that decides the result.
    metrics: "acc,none" (metric, filter) -> its number.
    items:   metric -> document -> what it scores there.
    answers: document -> what was answered or, of choices, their log-likelihoods.
    """

    key: str
    arm: str
    task: str
    version: str | None
    fewshot: int
    documents: int
    of: int
    metrics: dict[str, Metric]
    items: dict[str, dict[int, Value]]
    answers: dict[int, object]

    def write(self, path: Path) -> None:
        """Write it as one JSON file."""
        write_json(path, _finite(asdict(self)))

    @classmethod
    def read(cls, path: Path, key: str) -> "Result | None":
        """Return what an earlier call left, if that asked for the same; None otherwise.

        Raises:
            RunFolderError: the file is damaged.
        """
        if not path.is_file():
            return None
        fields = read_json(path)
        if fields.get("key") != key:
            return None
        try:
            metrics = {name: Metric(**own) for name, own in fields.pop("metrics").items()}
            items = {m: {int(doc): v for doc, v in own.items()} for m, own in fields.pop("items").items()}
            answers = {int(doc): answer for doc, answer in fields.pop("answers").items()}
            return cls(metrics=metrics, items=items, answers=answers, **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(f"{path} is damaged; remove it and run the same command again.") from error


def from_harness(found: Mapping[str, Any], task: str, arm: str, key: str) -> Result:
    """Return what the harness's ``evaluate`` found in one task."""
    numbers, better = found["results"][task], found["higher_is_better"].get(task, {})
    names = [name for name in numbers if "," in name and "_stderr," not in name]
    samples = found["samples"][task]
    items: dict[str, dict[int, Value]] = {name: {} for name in names}
    answers: dict[int, object] = {}
    for sample in samples:
        answers.setdefault(int(sample["doc_id"]), _answer(sample["filtered_resps"]))
        for metric in sample["metrics"]:
            value = _value(sample[metric])
            if value is not None:
                items.setdefault(f"{metric},{sample['filter']}", {})[int(sample["doc_id"])] = value
    metrics = {}
    for name in names:
        metric, _, filter = name.partition(",")
        stderr = _number(numbers.get(f"{metric}_stderr,{filter}"))
        metrics[name] = Metric(_number(numbers[name]), stderr, better.get(metric))
    counts = found["n-samples"][task]
    version = found["versions"].get(task)
    return Result(
        key,
        arm,
        task,
        None if version is None else str(version),
        int(found["n-shot"].get(task, 0)),
        int(counts["effective"]),
        int(counts["original"]),
        metrics,
        {name: own for name, own in items.items() if name in metrics and _adds_up(own, metrics[name].value)},
        answers,
    )


def difference(one: Result, other: Result, metric: str) -> Interval | None:
    """Return by how much ``one`` exceeds ``other``, and the paired bootstrap interval over items.

    None where either has no number for every item, or where the harness's number is no mean of these.
    """
    mine, theirs = one.items.get(metric, {}), other.items.get(metric, {})
    documents = sorted(mine.keys() & theirs.keys())
    if not documents or mine.keys() != theirs.keys():
        return None
    columns = [[*_counted(mine[doc]), *_counted(theirs[doc])] for doc in documents]
    return bootstrap(columns, _difference_of_ratios)


def _difference_of_ratios(samples: Array) -> Array:
    """Return Σ0/Σ1 - Σ2/Σ3 of (resamples, items, 4): of plain numbers the denominators are items."""
    sums = samples.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])


def _counted(value: Value) -> tuple[float, float]:
    """Return (sum, count) of what an item scores."""
    return (float(sum(value)), float(len(value))) if isinstance(value, Sequence) else (float(value), 1.0)


def _adds_up(items: Mapping[int, Value], value: float | None) -> bool:
    """Return whether the harness's number is the mean over items, or over their marks."""
    if value is None or not items:
        return False
    sums = [_counted(own) for own in items.values()]
    total = sum(count for _, count in sums)
    return total > 0 and math.isclose(sum(s for s, _ in sums) / total, value, rel_tol=1e-9, abs_tol=1e-12)


def _value(value: object) -> Value | None:
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        return float(value)
    if isinstance(value, list) and value and all(isinstance(mark, bool | np.bool_) for mark in value):
        return [bool(mark) for mark in value]
    return None


def _number(value: object) -> float | None:
    found = _value(value)
    return found if isinstance(found, float) and math.isfinite(found) else None


def _answer(responses: Sequence[Any]) -> object:
    """Return an answer's text, or the log-likelihood of each choice."""
    if responses and isinstance(responses[0], tuple | list):
        return [float(one[0]) for one in responses]
    return responses[0] if len(responses) == 1 and isinstance(responses[0], str) else [str(r) for r in responses]


def _finite(value: Any) -> Any:  # noqa: ANN401  (anything that JSON knows)
    """Return ``value`` as strict JSON can hold it: no numbers that are none."""
    if isinstance(value, dict):
        return {str(name): _finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metric_names(results: Sequence[Result]) -> list[str]:
    """Return all metrics of some results, in the order in which they come."""
    return list(dict.fromkeys(chain.from_iterable(result.metrics for result in results)))
