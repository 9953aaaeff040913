"""Every arm through every task of the harness: what is there already is read, the rest is asked for."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedit.errors import ConfigError, UnknownName
from fedit.files import safe_name, write_json
from fedit.harness.library import SEED, installed_version, quiet
from fedit.harness.results import Result, difference, from_harness, metric_names
from fedit.resident import Resident
from fedit.tuned import Tuned

Progress = Callable[[str, str, int, int], None]
"""Hears (arm, task, requests that are done, of all); of a result that was there already (arm, task, 0, 0)."""

BASE, FEDERATED = "base", "federated"
BOOTSTRAPS = 10_000
"""Resamples of the harness's own standard errors, where it has no formula for one."""


def bench(
    arms: Mapping[str, Tuned],
    tasks: Sequence[str],
    *,
    out: Path,
    include: Sequence[Path] = (),
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = False,
    reference: str | None = None,
    on_progress: Progress = lambda arm, task, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, object]:
    """Run ``tasks`` on every arm, one resident base for all; return what ``bench.json`` in ``out`` holds.

    Each arm's result of each task is kept in ``out`` as it comes, by the hash of all that decides it, so that the
    same call goes on where an earlier one ended, and asks nothing twice.

    Args:
        arms: name -> what is measured; all of one base model.
        tasks: task files, or names of the harness's tasks and groups.
        out: folder of the results.
        include: folders of task files whose names ``tasks`` may use.
        limit: the first so many documents of each task.
        fewshot: examples before each question, where a task does not say 0; None: as it says.
        chat: put questions into each arm's own prompt template, instead of asking plain text.
        reference: the arm that others are compared with; None: the federated one, or the first that is not base.
        on_progress: see `Progress`.
        say: hears what the user should know about how the base was found.

    Raises:
        ConfigError: the harness is not installed, or a task, an arm or a base cannot be used.
        RunFolderError: ``out`` cannot be written, or holds a damaged result.
    """
    installed_version()
    if not tasks:
        raise ConfigError("there is no task to run; name a task file (.yaml) or one of lm-eval's tasks.")
    chosen = _reference(arms, reference)
    from fedit.harness.tasks import fingerprint, load_tasks

    quiet()
    loaded = load_tasks(tasks, include, fewshot)
    resident = Resident(arms, say=say, fast_path=True)
    results: dict[str, dict[str, Result]] = {}
    for name, task in loaded.single.items():
        asked = fingerprint(task, loaded.code, limit)
        results[name] = {}
        for arm in arms:
            key = _key(resident, arm, asked, chat)
            path = out / "results" / safe_name(arm) / f"{safe_name(name)}.json"
            kept = Result.read(path, key)
            if kept is None:
                kept = _measured(resident, arm, name, task, key, limit, chat, on_progress)
                kept.write(path)
            else:
                on_progress(arm, name, 0, 0)
            results[name][arm] = kept
    summary: dict[str, object] = {
        "harness": {"name": "lm-eval", "version": installed_version()},
        "fedit": version("fedit"),
        "model": resident.source.name,
        "limit": limit,
        "chat": chat,
        "reference": chosen,
        "arms": list(arms),
        "tasks": {name: _task(own, chosen) for name, own in results.items()},
        "groups": {name: _group(group, results, list(arms)) for name, group in loaded.groups.items()},
    }
    write_json(out / "bench.json", summary)
    return summary


def choose_arms(found: Mapping[str, Tuned], wanted: Sequence[str]) -> dict[str, Tuned]:
    """Return the wanted ones of the arms that were found, the base first; all where none are named.

    A name stands for all arms of its kind too: "local" for every "local:<client>".

    Raises:
        UnknownName: there is no such arm.
    """
    order = sorted(found, key=lambda name: name != BASE)
    for name in wanted:
        if not any(name in (arm, arm.partition(":")[0]) for arm in order):
            raise UnknownName("arm", name, order)
    return {arm: found[arm] for arm in order if not wanted or {arm, arm.partition(":")[0]} & {*wanted}}


def _reference(arms: Mapping[str, object], named: str | None) -> str:
    if not arms:
        raise ConfigError("there are no arms to measure.")
    if named is not None:
        if named not in arms:
            raise UnknownName("arm", named, arms)
        return named
    return FEDERATED if FEDERATED in arms else next((name for name in arms if name != BASE), BASE)


def _key(resident: Resident, arm: str, task: str, chat: bool) -> str:
    """Return the hash of all that decides an arm's result in a task, libraries included."""
    model, _ = resident.speaker(arm)
    parts = [
        resident.identity(arm),
        str(model.base.dtype),
        resident.voices[arm].bits,
        task,
        chat,
        *(f"{name} {version(name)}" for name in ("lm-eval", "fedit", "transformers", "torch")),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _measured(
    resident: Resident,
    arm: str,
    name: str,
    task: Any,  # noqa: ANN401  (the harness has no types)
    key: str,
    limit: int | None,
    chat: bool,
    on_progress: Progress,
) -> Result:
    from lm_eval.evaluator import evaluate

    from fedit.harness.model import Voice

    done = 0

    def on_done(count: int) -> None:
        nonlocal done
        done += count
        on_progress(arm, name, done, len(task.instances))

    task.set_fewshot_seed(SEED)  # every arm sees the same examples
    found = evaluate(
        lm=Voice(resident, arm, on_done),
        task_dict={"tasks": {name: task}, "groups": {}},
        limit=limit,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    return from_harness(found, name, arm, key)


def _task(results: Mapping[str, Result], reference: str) -> dict[str, object]:
    """Return a task's part of the summary: every metric, of every arm, and differences to the reference."""
    first = next(iter(results.values()))
    metrics: dict[str, object] = {}
    for metric in metric_names(list(results.values())):
        having = {arm: own for arm, own in results.items() if metric in own.metrics}
        numbers = {
            arm: {"value": own.metrics[metric].value, "stderr": own.metrics[metric].stderr}
            for arm, own in having.items()
        }
        differences = {}
        for arm, own in having.items():
            found = None if arm == reference else difference(results[reference], own, metric)
            if found is not None and all(map(math.isfinite, (found.estimate, found.low, found.high))):
                differences[arm] = {"estimate": found.estimate, "low": found.low, "high": found.high}
        better = next(iter(having.values())).metrics[metric].higher_is_better
        metrics[metric] = {"higher_is_better": better, "arms": numbers, "reference_minus": differences}
    return {
        "version": first.version,
        "fewshot": first.fewshot,
        "documents": first.documents,
        "of": first.of,
        "keys": {arm: own.key for arm, own in results.items()},
        "metrics": metrics,
    }


def _group(
    group: Any,  # noqa: ANN401
    results: Mapping[str, Mapping[str, Result]],
    arms: Sequence[str],
) -> dict[str, object]:
    """Return a group's part of the summary: what the harness makes of its tasks' numbers, for every arm."""
    metrics: dict[str, dict[str, object]] = {}
    for arm in arms:
        numbers = {name: _as_harness_has_it(own[arm]) for name, own in results.items()}
        found = group.aggregate(numbers)
        for name, value in found.items():
            if "," in name and "_stderr," not in name:
                stderr = found.get(name.replace(",", "_stderr,", 1))
                number = {"value": float(value), "stderr": float(stderr) if isinstance(stderr, float) else None}
                metrics.setdefault(name, {})[arm] = number
    return {"tasks": group.child_names, "metrics": {name: {"arms": own} for name, own in metrics.items()}}


def _as_harness_has_it(result: Result) -> dict[str, object]:
    numbers: dict[str, object] = {"name": result.task, "alias": result.task, "sample_len": result.documents}
    for name, metric in result.metrics.items():
        numbers[name] = metric.value
        numbers[name.replace(",", "_stderr,", 1)] = "N/A" if metric.stderr is None else metric.stderr
    return numbers
