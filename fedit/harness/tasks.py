"""Tasks by name or file, as the harness builds them, and what decides their results."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from fedit.errors import ConfigError, did_you_mean
from fedit.harness.library import seeded
from fedit.harness.model import refuse_draws

_FILES = ("data_files", "data_dir")


@dataclass(frozen=True, slots=True)
class Tasks:
    """Single tasks, and groups that were asked for by name.

    single: name -> the harness's task; groups: name -> the harness's group of some of them.
    code:   hash of the Python files beside task files, whose functions a task may use.
    """

    single: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    code: str = ""


def load_tasks(specs: Sequence[str], include: Sequence[Path] = (), fewshot: int | None = None) -> Tasks:
    """Return the tasks that are named: task files, names in ``include``, or names of the harness's own.

    A file's relative ``data_files`` and ``data_dir`` start in the file's folder, in ``include`` where the harness
    starts them: in the working directory. Its own tasks are only searched where a name is in none of these.

    fewshot: examples before each question; None: as each task says.

    Raises:
        ConfigError: there is no such task, its data cannot be had, or it asks for what is not done here.
    """
    for folder in include:
        if not folder.is_dir():
            raise ConfigError(f"--include names {folder}, which is no folder.")
    files = [Path(spec) for spec in specs if _is_file(spec)]
    found = Tasks(code=_code([*(f for p in files for f in p.parent.glob("*.py")), *_below(include)]))
    manager = TaskManager(include_path=list(include), include_defaults=False)
    for spec in dict.fromkeys(specs):
        if not _is_file(spec) and spec not in manager.all_tasks:
            manager = TaskManager(include_path=list(include))
            if spec not in manager.all_tasks:
                near = did_you_mean(spec, manager.all_tasks)
                raise ConfigError(
                    f"there is no task '{spec}'{near} Name a task file (.yaml) or one of lm-eval's tasks; "
                    "lm-eval ls tasks lists these."
                )
        with seeded():
            loaded = _loaded(manager, spec)
        found.single.update(loaded["tasks"])
        if spec in loaded["groups"]:
            found.groups[spec] = loaded["groups"][spec]
    for name, task in found.single.items():
        _prepare(name, task, fewshot)
    return found


def fingerprint(task: Any, code: str, limit: int | None) -> str:  # noqa: ANN401  (the harness has no types)
    """Return the SHA-256 of all that decides what a task asks and how it counts; not of where its data lie."""
    config = task.dump_config()
    config.pop("dataset_kwargs", None)
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    docs = list(islice(task.eval_docs, limit))
    examples = list(task.fewshot_docs()) if task.config.num_fewshot else []
    text = json.dumps([config, docs, examples, code, limit], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_file(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml"))


def _loaded(manager: TaskManager, spec: str) -> Mapping[str, Any]:
    """Return what the harness makes of a name or a file.

    Raises:
        ConfigError: it cannot.
    """
    try:
        loaded: Mapping[str, Any] = manager.load([_config(Path(spec)) if _is_file(spec) else spec])
    except ConfigError:
        raise
    except ConnectionError as error:
        raise ConfigError(
            f"the data of task '{spec}' are not on this machine and cannot be fetched: {error}. A task file over "
            "local data needs no network: docs/benchmarks.md."
        ) from error
    except Exception as error:  # the harness and datasets raise whatever goes wrong first
        raise ConfigError(f"task '{spec}' cannot be loaded: {type(error).__name__}: {error}") from error
    return loaded


def _config(path: Path) -> dict[str, Any]:
    """Return a task file's content, with its data's places made absolute.

    Raises:
        ConfigError: it is no task file, or its data are not there.
    """
    if not path.is_file():
        raise ConfigError(f"there is no task file {path}.")
    try:
        config: dict[str, Any] = load_yaml(path)
    except (ValueError, yaml.YAMLError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(f"{path} is no task file that can be read: {error}") from error
    if not isinstance(config.get("task"), str):
        raise ConfigError(
            f"{path} has no single 'task'; of a group name the tasks' files, or the group itself with --include."
        )
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict):
        for name in _FILES:
            if name in kwargs:
                kwargs[name] = _placed(kwargs[name], path)
    return config


def _placed(value: Any, path: Path) -> Any:  # noqa: ANN401  (as YAML has it: a text, a list or a mapping of splits)
    if isinstance(value, dict):
        return {split: _placed(own, path) for split, own in value.items()}
    if isinstance(value, list):
        return [_placed(own, path) for own in value]
    if not isinstance(value, str) or "://" in value:
        return value
    place = (path.parent / value).resolve()
    if not any(character in value for character in "*?[") and not place.exists():
        raise ConfigError(f"{path} names the data {value}, and there is no {place}.")
    return str(place)


def _prepare(name: str, task: Any, fewshot: int | None) -> None:  # noqa: ANN401
    """Set the number of examples as the harness would, and refuse what is not done here.

    Raises:
        ConfigError: the task runs code that the model writes, or draws its answers.
    """
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task '{name}' runs programs that the model writes, which fedit does not do.")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task '{name}' has pictures or sounds, and the model reads text alone.")
    own = task.get_config("num_fewshot")
    if fewshot is not None and own != 0:
        task.set_config("num_fewshot", fewshot)
    elif own is None:
        task.set_config("num_fewshot", 0)
    if task.OUTPUT_TYPE == "generate_until":
        from lm_eval.models.utils import normalize_gen_kwargs

        refuse_draws(name, dict(normalize_gen_kwargs(task.config.generation_kwargs or {})))


def _below(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.py")]


def _code(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
