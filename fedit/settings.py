"""Reading settings: job files, ``key=value`` arguments and flags become a RunConfig; every error has a place."""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedit.config import SECTIONS, Columns, RunConfig, StudyConfig
from fedit.errors import ConfigError, did_you_mean
from fedit.reading import Unreadable, parse_toml, parse_yaml, read_settings_text, shown

STUDY = "study."
"""What the names of a study's settings begin with, outside their section."""

SWEEP = "sweep."
"""What the names of a sweep's axes begin with, outside their section."""

Axis = Sequence[object] | Mapping[str, Mapping[str, object]]
"""What a sweep goes through: a setting's values, or names, each of which stands for settings."""

Model = TypeVar("Model", bound=BaseModel)

SYNONYMS: dict[str, str] = {
    "base_model": "model",
    "global_model": "model",
    "model_name_or_path": "model",
    "data_path": "dataset",
    "dataset_name": "dataset",
    "num_communication_rounds": "num_rounds",
    "num_server_rounds": "num_rounds",
    "rounds": "num_rounds",
    "clients": "num_clients",
    "num_supernodes": "num_clients",
    "client_selection_frac": "clients_per_round",
    "sample_clients": "clients_per_round",
    "fraction_fit": "clients_per_round",
    "split_strategy": "partitioner",
    "fed_alg": "strategy",
    "local_num_epochs": "local_epochs",
    "num_train_epochs": "local_epochs",
    "num_epochs": "local_epochs",
    "epochs": "local_epochs",
    "max_steps": "local_steps",
    "local_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "local_micro_batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size (examples per step; micro_batch_size is what fits at once)",
    "lr": "learning_rate",
    "local_learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_schedule",
    "cutoff_len": "max_length",
    "seq_length": "max_length",
    "sequence_len": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "peft_lora_r": "lora_r",
    "lora_rank": "lora_r",
    "peft_lora_alpha": "lora_alpha",
    "prompt_template_name": "prompt_template",
    "template": "prompt_template",
    "output_dir": "--out DIR",
    "val_set_size": "held_out",
}
"""What other tools call our settings; used only in error messages."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A valid job, what a study adds to it, and where each value that is not a default came from.

    sweep: the axes that a sweep goes through by name, as they are written.
    """

    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    study: StudyConfig = field(default_factory=StudyConfig)
    sweep: Mapping[str, Axis] = field(default_factory=dict)


def load(
    job: str | Path | None, overrides: Iterable[str] = (), flags: Mapping[str, object] | None = None
) -> Settings:
    """Read a job: defaults < job file or recipe < ``key=value`` < flags.

    Raises:
        ConfigError: all that is wrong, each with its place and what to do.
    """
    values, origins, problems = _gather(job, overrides, flags)
    own = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(STUDY)}
    places = {name.partition(".")[2]: where for name, where in origins.items() if name.startswith(STUDY)}
    study = _validate(StudyConfig, own, places, problems)
    axes = _axes(values, origins, problems)
    rest = {name: value for name, value in values.items() if not name.startswith((STUDY, SWEEP))}
    config = _validate(RunConfig, rest, origins, problems)
    if problems or config is None or study is None:
        raise ConfigError("\n".join(problems))
    return Settings(config, origins, study, axes)


def load_axes(job: str | Path | None, overrides: Iterable[str] = ()) -> Mapping[str, Axis]:
    """Return the axes of a job's sweep; its other settings are read, but not yet asked whether they can work.

    Raises:
        ConfigError: a file, a name or an axis is wrong.
    """
    values, origins, problems = _gather(job, overrides, None)
    axes = _axes(values, origins, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return axes


def _gather(
    job: str | Path | None, overrides: Iterable[str], flags: Mapping[str, object] | None
) -> tuple[dict[str, object], dict[str, str], list[str]]:
    """Return the values of all layers, where each comes from, and which names are wrong."""
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    if job is not None:
        path = find_job(str(job))
        _merge(_read_file(path), values, origins, problems)
    _merge([_parse_override(text) for text in overrides], values, origins, problems)
    given = [(name, value, f"--{name}") for name, value in (flags or {}).items() if value is not None]
    _merge(given, values, origins, problems)
    return values, origins, problems


def load_config(job: str | Path | None = None, **changes: object) -> RunConfig:
    """Return the settings of a job file or recipe with ``changes``; the Python twin of the command line.

    >>> load_config("demo", num_rounds=2).num_rounds
    2

    Raises:
        ConfigError: all that is wrong.
    """
    return load(job, flags=changes).config


def from_values(values: Mapping[str, object], where: str) -> RunConfig:
    """Return the config of plain values; used for run folders.

    Raises:
        ConfigError: all that is wrong.
    """
    flat: dict[str, object] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    _merge([(name, value, where) for name, value in values.items()], flat, origins, problems)
    config = _validate(RunConfig, flat, origins, problems)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with fedit."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def recipes() -> dict[str, Path]:
    """Return the recipes that come with fedit, by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_job(name: str) -> Path:
    """Return the file behind a path, a path without its suffix, or a recipe's name.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in (".yaml", ".yml", ".toml"))):
        if candidate.is_file():
            return candidate
    known = recipes()
    short = name.removeprefix("recipes/")
    if short in known:
        return known[short]
    raise ConfigError(
        f"there is no job file or recipe '{name}'{did_you_mean(name, known)} Recipes: {', '.join(known)}."
    )


def _read_file(path: Path) -> list[tuple[str, object, str]]:
    try:
        text = read_settings_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".toml":
        try:
            return _flatten(parse_toml(text), lambda keys: str(path))
        except Unreadable as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        values, node = parse_yaml(text)
    except Unreadable as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.reason}") from error
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as 'name: value', found {type(values).__name__}")
    lines = _lines(node, path)
    return _flatten(values, lambda keys: f"{path}:{lines.get(keys, '?')}")


def _lines(node: yaml.Node | None, path: Path, keys: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Return the line of every key; refuse keys that stand twice, which YAML itself lets pass."""
    found: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*keys, str(key.value))
            line = key.start_mark.line + 1
            if name in found:
                raise ConfigError(f"{path}:{line}: setting '{name[-1]}' stands here and in line {found[name]}")
            found[name] = line
            found.update(_lines(value, path, name))
    return found


def _flatten(
    values: Mapping[str, object], where: Callable[[tuple[str, ...]], str]
) -> list[tuple[str, object, str]]:
    found: list[tuple[str, object, str]] = []
    for key, value in values.items():
        # "model" is a section and a setting: it is the section when it holds settings.
        if key in (*SECTIONS, "study", "sweep") and isinstance(value, dict):
            prefix = {"study": STUDY, "sweep": SWEEP}.get(str(key), "")
            found += [(f"{prefix}{k}", v, where((str(key), str(k)))) for k, v in value.items()]
        else:
            found.append((str(key), value, where((str(key),))))
    return found


def _parse_override(text: str) -> tuple[str, object, str]:
    name, equals, raw = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"argument '{text}' is not of the form key=value")
    return name.strip().replace("-", "_"), parse_value(raw), f"argument {name}"


def parse_value(raw: str) -> object:
    """Return the value that a command-line text stands for, read as YAML reads it."""
    try:
        return parse_yaml(raw)[0] if raw.strip() else ""
    except Unreadable:
        return raw


def _merge(
    found: Iterable[tuple[str, object, str]],
    values: dict[str, object],
    origins: dict[str, str],
    problems: list[str],
) -> None:
    for name, value, where in found:
        head, _, tail = name.partition(".")
        if head in SECTIONS and tail.partition(".")[0] in RunConfig.model_fields:
            head, _, tail = tail.partition(".")
        if head == STUDY.rstrip("."):
            if tail not in StudyConfig.model_fields:
                guess = did_you_mean(tail, StudyConfig.model_fields).rstrip(".")
                problems.append(f"{where}: unknown setting '{name}' of a study{guess}")
            else:
                values[name] = value
                origins[name] = where
        elif head == SWEEP.rstrip("."):
            # Named settings have a name of their own.
            if not isinstance(value, dict) and tail.partition(".")[0] not in RunConfig.model_fields:
                problems.append(f"{where}: unknown setting '{tail}'{_suggest(tail)}")
            else:
                values[name] = value
                origins[name] = where
        elif head not in RunConfig.model_fields:
            problems.append(f"{where}: unknown setting '{name}'{_suggest(head)}")
        elif tail:
            inner = values.get(head)
            values[head] = {**(inner if isinstance(inner, dict) else {}), tail: value}
            origins[head] = where
        else:
            values[head] = value
            origins[head] = where


def _axes(values: Mapping[str, object], origins: Mapping[str, str], problems: list[str]) -> dict[str, Axis]:
    """Return a sweep's axes by name; what is wrong with them goes among ``problems``."""
    axes: dict[str, Axis] = {}
    for name, value in values.items():
        setting = name.removeprefix(SWEEP)
        if setting == name:
            continue
        if isinstance(value, dict) and value and all(isinstance(group, dict) for group in value.values()):
            axes[setting] = {str(label): group for label, group in value.items()}
            given = [own for group in value.values() for own in group]
            if never := [own for own in given if own == "seed" or own.startswith((STUDY, SWEEP))]:
                problems.append(f"{origins[name]}: {name} gives {never[0]}, which is the same at every point")
        elif not isinstance(value, list) or not value:
            problems.append(
                f"{origins[name]}: {name} is {shown(value)}; expected a list of values of {setting}, or names "
                "with settings each"
            )
        elif any(one in value[:place] for place, one in enumerate(value)):
            problems.append(f"{origins[name]}: {name} names a value twice")
        elif setting == "seed":
            problems.append(f"{origins[name]}: seed is no axis; set study.seeds, over which intervals are taken")
        else:
            axes[setting] = value
    return axes


def _suggest(name: str) -> str:
    if name in SYNONYMS:
        return f"; here it is called '{SYNONYMS[name]}'"
    return did_you_mean(name, RunConfig.model_fields).rstrip(".")


def _validate(
    model: type[Model], values: Mapping[str, object], origins: Mapping[str, str], problems: list[str]
) -> Model | None:
    """Return the settings of ``model``; None, and what is wrong among ``problems``, where they are not valid."""
    repaired = {name: _repair(model, name, value) for name, value in values.items()}
    try:
        return model(**repaired)
    except ValidationError as error:
        for text in _problems(model, error.errors(), origins):
            if text not in problems:
                problems.append(text)
    except UnicodeError as error:  # half of a pair of surrogates, which YAML and JSON may hold
        problems.append(f"a setting's text is no text: {error}")
    return None


def _problems(model: type[BaseModel], items: Sequence[ErrorDetails], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield what pydantic found wrong; of a value that fits none of several types, all that was expected."""
    alternatives: dict[str, list[ErrorDetails]] = {}
    for item in items:
        several = (
            len(item["loc"]) == 2 and item["loc"][0] in model.model_fields and item["type"] != "extra_forbidden"
        )
        key = f"{item['loc'][0]} {item['input']!r}" if several else str(id(item))
        alternatives.setdefault(key, []).append(item)
    for own in alternatives.values():
        text = _problem(model, own[0], origins)
        yield "; or ".join([text, *(f"{one['msg'][:1].lower()}{one['msg'][1:]}" for one in own[1:])])


def _problem(model: type[BaseModel], item: ErrorDetails, origins: Mapping[str, str]) -> str:
    """Return what pydantic found wrong, with its place."""
    parts = [str(part) for part in item["loc"] if isinstance(part, str) and not part.startswith("function")]
    # Where several types are possible, what follows names one of them.
    name = ".".join(parts if parts[:1] == ["columns"] else parts[:1])
    head = name.split(".")[0]
    message = item["msg"].removeprefix("Value error, ")
    if head not in model.model_fields:
        return message
    if item["type"] == "extra_forbidden" and head == "columns":
        message = f"unknown column role{did_you_mean(name.split('.')[-1], Columns.model_fields)}"
    return f"{origins.get(head, 'default')}: {name} is {shown(item['input'])}: {message[:1].lower()}{message[1:]}"


def _repair(model: type[BaseModel], name: str, value: object) -> object:
    """Undo what YAML does to numbers such as 3e-4 (text) and to single names where a list is wanted."""
    annotation = model.model_fields[name].annotation
    if isinstance(value, str) and float in _members(annotation):
        try:
            return float(value)
        except ValueError:
            return value
    lists = [own for own in (annotation, *get_args(annotation)) if get_origin(own) is list]
    if lists and isinstance(value, str) and ("," in value or get_origin(annotation) is list):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif get_origin(annotation) is list and isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if lists and isinstance(value, list) and get_args(lists[0]) == (float,):
        return [_number(item) for item in value]
    return value


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _members(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return (get_args(annotation)[0],) if hasattr(annotation, "__metadata__") else (annotation,)
