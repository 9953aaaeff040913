"""Which points a sweep has, and whether each of them can work."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from fedit import settings
from fedit.config import RunConfig
from fedit.errors import ConfigError, UserError
from fedit.prepare import prepare
from fedit.settings import Axis, Settings, parse_value
from fedit.study.run import check_study

MOST_POINTS = 10_000
_UNUSUAL = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination.

    values: axis -> the value, or the name of the settings, that it has here, in the order of the axes.
    """

    values: Mapping[str, object]
    settings: Settings

    @property
    def name(self) -> str:
        """What it is called: "lora_r=4 strategy=fedavg"."""
        return name_of(self.values)

    @property
    def file_name(self) -> str:
        """Its folder's name; never that of another point."""
        plain = "_".join(f"{name}-{_text(value)}" for name, value in self.values.items())
        slug = _UNUSUAL.sub("-", plain)[:100]
        return slug if slug == plain else f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All points of a sweep, in the order of its axes' values: the last axis changes fastest.

    axes: name -> its values; of an axis of named settings the names.
    """

    axes: Mapping[str, Sequence[object]]
    points: Sequence[Point]


def split_axes(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[object]]]:
    """Return the arguments that hold one value, and the axes: those that hold several, "lora_r=4,8".

    Commas within brackets separate nothing: "lora_target_modules=[q_proj],[q_proj,v_proj]" has two values. What
    belongs to a study is never an axis.
    """
    plain: list[str] = []
    axes: dict[str, list[object]] = {}
    for text in overrides:
        name, equals, raw = text.partition("=")
        values = parse_value(f"[{raw}]") if equals and not name.startswith(settings.STUDY) else None
        if isinstance(values, list) and len(values) > 1:
            axes[name.strip().replace("-", "_")] = values
        else:
            plain.append(text)
    return plain, axes


def plan(
    job: str | None,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    *,
    seeds: int | Sequence[int] | None = None,
) -> Plan:
    """Return every combination of a job's axes: those of its section sweep, and those among the arguments.

    seeds: how many, or which; None: as the job's study says.

    Raises:
        ConfigError: there is no axis, or there are combinations that cannot work; all that is wrong is named.
    """
    plain, given = split_axes(overrides)
    if job is not None and "=" in job:
        more, own = split_axes([job])
        job, plain, given = None, [*more, *plain], own | given
    asked = {**flags, **({"study.seeds": seeds} if seeds is not None else {})}
    axes = settings.load_axes(
        job, [*plain, *(f"sweep.{name}={json.dumps(values)}" for name, values in given.items())]
    )
    if not axes:
        raise ConfigError(
            "there is nothing to sweep: give a setting several values, such as lora_r=4,8, or write them into the "
            "job's section sweep."
        )
    own_names = {setting for name, axis in axes.items() for setting in _settings_of(name, axis)}
    if twice := [name for name in flags if name in own_names]:
        raise ConfigError(
            f"--{twice[0]} gives {twice[0]} one value, and the sweep several; leave one of them out."
        )
    count = math.prod(map(len, axes.values()))
    if count > MOST_POINTS:
        raise ConfigError(f"the sweep has {count:,} combinations; expected at most {MOST_POINTS:,}.")
    points, problems = [], _Problems(count)
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        try:
            loaded = settings.load(job, [*plain, *_overrides(axes, chosen)], asked)
        except ConfigError as error:
            problems.add(name_of(chosen), str(error).split("\n"))
        else:
            points.append(Point(chosen, _swept(loaded)))
    problems.refuse()
    return Plan({name: list(values) for name, values in axes.items()}, points)


def _settings_of(name: str, axis: Axis) -> set[str]:
    """Return the settings that an axis gives."""
    return {setting for group in axis.values() for setting in group} if isinstance(axis, Mapping) else {name}


def _overrides(axes: Mapping[str, Axis], chosen: Mapping[str, object]) -> list[str]:
    """Return the arguments that a point adds to the job's.

    Raises:
        ConfigError: two axes give one setting.
    """
    found: dict[str, tuple[str, object]] = {}
    for name, value in chosen.items():
        axis = axes[name]
        given = axis[str(value)] if isinstance(axis, Mapping) else {name: value}
        for setting, own in given.items():
            if setting in found:
                raise ConfigError(f"sweep: {found[setting][0]} and {name} both give {setting}")
            found[setting] = (name, own)
    return [f"{setting}={json.dumps(own)}" for setting, (_, own) in found.items()]


def _swept(loaded: Settings) -> Settings:
    """Return settings with a sweep's own defaults: the federation alone, answers only where they are graded."""
    own = loaded.study
    if "study.arms" not in loaded.origins:
        own = own.model_copy(update={"arms": ["federated"]})
    if "study.generate" not in loaded.origins:
        own = own.model_copy(update={"generate": loaded.config.exact_match})
    return replace(loaded, study=own)


def check(points: Sequence[Point]) -> None:
    """Make sure that every point can work, with its rows and its model's shapes, before any of them begins.

    Raises:
        ConfigError: some cannot; all of them are named, each with what is wrong.
    """
    problems = _Problems(len(points))
    for point in points:
        config, study = point.settings.config, point.settings.study
        try:
            check_study(config, study)
            with closing(prepare(_at(config, study.seeds_from(config.seed)[0]))):
                pass
        except UserError as error:
            problems.add(point.name, str(error).split("\n"))
    problems.refuse()


class _Problems:
    """What is wrong with which points; what is wrong with all of them is said once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[str, list[str]] = {}

    def add(self, point: str, problems: Sequence[str]) -> None:
        for problem in problems:
            self._found.setdefault(problem, []).append(point)

    def refuse(self) -> None:
        if self._found:
            lines = [
                problem if len(names) == self._count else f"{', '.join(names)}: {problem}"
                for problem, names in self._found.items()
            ]
            raise ConfigError("\n".join(lines))


def name_of(values: Mapping[str, object]) -> str:
    """Return what a point is called."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _at(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"seed": seed})


def point_folder(sweep: Path, point: Point) -> Path:
    """Return where a point's study is."""
    return sweep / "points" / point.file_name
