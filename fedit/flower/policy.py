"""What a site allows: its operator's ``policy.toml``, and the reasons for which a job is not done here."""

import math
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self, TypeGuard, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedit.config import PositiveInt, RunConfig
from fedit.data.rounds import ROUND_TEMPLATES
from fedit.errors import ConfigError, UnknownName, did_you_mean
from fedit.reading import Unreadable, parse_toml, read_settings_text, shown
from fedit.strategies import STRATEGIES
from fedit.types import LocalTraining

DEFAULT_POLICY = files("fedit.flower").joinpath("templates", "node", "policy.toml").read_text(encoding="utf-8")
"""A ``policy.toml`` with all settings at their defaults, explained."""

_LONGEST_VALUE = 80


class Policy(BaseModel):
    """The settings of ``policy.toml``, which `DEFAULT_POLICY` explains."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    models: list[str] = []
    tunings: list[str] = ["lora", "dora", "ia3", "vera", "prefix"]
    objectives: list[str] = []
    max_rank: PositiveInt = 256
    strategies: list[str] = []
    allow_custom_code: bool = False
    max_rounds: PositiveInt = 1000
    max_steps: PositiveInt = 10_000
    max_message_megabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2500
    allow_statistics: list[str] = [
        "num_examples",
        "rows",
        "steps",
        "tokens",
        "supervised_tokens",
        "loss",
        "personal_loss",
        "local_loss",
        "reward_margin",
        "preference_accuracy",
    ]
    require_secure_aggregation: bool = False
    min_noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the policy in a TOML file.

        Raises:
            ConfigError: there is no such file, or all that is wrong in it.
        """
        try:
            text = read_settings_text(path)
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {path}; take the one of the site's bundle. An empty file stands for the defaults."
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str = "policy.toml") -> Self:
        """Return the policy that a TOML text states.

        Raises:
            ConfigError: all that is wrong, each with ``where``.
        """
        try:
            values = parse_toml(text)
        except Unreadable as error:
            raise ConfigError(f"{where}: not valid TOML: {error}") from error
        return cls.of(values, where)

    @classmethod
    def of(cls, values: object, where: str = "policy.toml") -> Self:
        """Return the policy of plain values by name.

        Raises:
            ConfigError: all that is wrong, each with ``where``.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected settings by name, found {type(values).__name__}")
        known = cls.model_fields
        problems = [
            f"{where}: unknown setting {_short(name)}{did_you_mean(str(name), known).rstrip('.')}"
            for name in values
            if name not in known
        ]
        try:
            policy = cls(**{name: value for name, value in values.items() if name in known})
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            problems += [_problem(where, values, item["loc"], item["msg"]) for item in found]
        except UnicodeError as error:  # half of a pair of surrogates, which JSON may hold
            problems.append(f"{where}: a text is no text: {error}")
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return policy

    @field_validator("tunings")
    @classmethod
    def _known_tunings(cls, value: list[str]) -> list[str]:
        return _all_known("tuning", value, _choices("tuning"))

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, value: list[str]) -> list[str]:
        return _all_known("objective", value, _choices("objective"))

    @field_validator("strategies")
    @classmethod
    def _known_strategies(cls, value: list[str]) -> list[str]:
        _all_known("strategy", [name for name in value if not _is_file(name)], STRATEGIES)
        return value

    def refusal(
        self,
        config: RunConfig,
        training: LocalTraining | None = None,
        num_rows: int | None = None,
        num_tokens: int | None = None,
    ) -> str | None:
        """Return why this site does not do a job, as one sentence; None: it does.

        The sentence names the rule, what the job has and what is allowed.

        training:   what a task asks for, where there is one: it is judged as well as the job's own settings.
        num_rows, num_tokens: of the client; see `most_steps`, which turns epochs and tokens into steps with them.
        """
        return next(self._refusals(config, training, num_rows, num_tokens), None)

    def oversized(self, num_bytes: int) -> str | None:
        """Return why a message of so many bytes is neither taken nor sent; None: it is."""
        if num_bytes <= 1e6 * self.max_message_megabytes:
            return None
        return _sentence(
            "max_message_megabytes",
            f"a message has {num_bytes / 1e6:.6g} million bytes",
            f"{self.max_message_megabytes:.6g}",
        )

    def metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that may leave, in their order."""
        return {name: value for name, value in metrics.items() if self.reports(name)}

    def reports(self, name: str) -> bool:
        """Return whether a statistic may leave."""
        return name in self.allow_statistics

    def _refusals(
        self, config: RunConfig, training: LocalTraining | None, num_rows: int | None, num_tokens: int | None
    ) -> Iterator[str]:
        """Yield all reasons, those first that concern the whole job."""
        if config.attack:
            yield _sentence("attack", f"the job has attack={_short(config.attack)}", "none outside a simulation")
        for name in ("canaries", "keep_uploads"):
            if getattr(config, name):
                asked = f"the job has {name}={_short(getattr(config, name))}"
                yield _sentence(name, asked, "none outside a simulation")
        yield from self._custom_code(config)
        yield from _not_among("models", self.models, "model", config.model)
        yield from _not_among("tunings", self.tunings, "tuning", config.tuning)
        yield from _not_among("strategies", self.strategies, "strategy", config.strategy)
        yield from _not_among("objectives", self.objectives, "objective", config.objective)
        yield from self._ranks(config)
        yield from self._hidden_weights(config)
        if self.require_secure_aggregation and not config.secure_aggregation:
            yield _sentence(
                "require_secure_aggregation",
                "the job has secure_aggregation=False, so that its server would see this site's updates",
                "secure_aggregation=true",
            )
        yield from self._noise(config, training)
        yield from _above("max_rounds", self.max_rounds, "num_rounds", config.num_rounds)
        yield from _above("max_steps", self.max_steps, "personal_steps", config.personal_steps)
        yield from self._steps(config, _training_of(config), num_rows, num_tokens)
        if training is not None:
            yield from self._task(config, training, num_rows, num_tokens)

    def _custom_code(self, config: RunConfig) -> Iterator[str]:
        if self.allow_custom_code:
            return
        rule, allowed = "allow_custom_code", "no files, only names that `fedit list` shows"
        for setting, value in config.model_dump().items():
            for text in _texts(value):
                if _is_file(text):
                    yield _sentence(rule, f"the job has {setting}={_short(text)}", allowed)
        if config.prompt_template not in ("auto", "chat", *ROUND_TEMPLATES):
            yield _sentence(rule, f"the job has prompt_template={_short(config.prompt_template)}", allowed)

    def _ranks(self, config: RunConfig) -> Iterator[str]:
        if config.tuning not in ("lora", "dora", "vera"):  # the others have no rank
            return
        if config.lora_r == "auto":
            yield _sentence(
                "max_rank", "the job has lora_r='auto', which is no number", f"at most {self.max_rank}"
            )
        else:
            yield from _above("max_rank", self.max_rank, "lora_r", config.lora_r)
        yield from _above("max_rank", self.max_rank, "client_ranks", max(config.own_ranks(), default=0))

    def _hidden_weights(self, config: RunConfig) -> Iterator[str]:
        """Yield whether an update's weight, or an accountant, would be told a number that may not leave."""
        told = {"examples": "num_examples", "tokens": "supervised_tokens", "uniform": None}[config.weighting]
        if config.privacy == "example" and not self.reports("num_examples"):
            found = "the job has privacy='example', whose accountant needs num_examples"
            yield _sentence("allow_statistics", found, "none that needs it")
        if told is not None and not self.reports(told):
            yield _sentence(
                "allow_statistics",
                f"the job has weighting={_short(config.weighting)}, which tells {told}",
                "weighting='uniform'",
            )

    def _noise(self, config: RunConfig, training: LocalTraining | None) -> Iterator[str]:
        """Yield whether training would be less private than this site wants, or than the job says it is."""
        noise: object = config.privacy_options.get("noise_multiplier")
        if config.privacy == "example" and training is not None:
            # What came over a network was given no types.
            noise, clip = training.example_noise, training.example_clip
            if not _is_number(clip) or not _is_number(noise) or clip <= 0 or noise < 0:
                found = f"the task has example_clip={_short(clip)} and example_noise={_short(noise)}"
                yield _sentence("privacy", found, "numbers, since the job has privacy='example'")
                return
        least = self.min_noise_multiplier
        told_later = config.privacy == "example" and training is None and noise is None  # by every task
        if least == 0 or told_later or (_is_number(noise) and noise >= least):
            return
        found = "the job adds no noise to what clients send"
        if config.privacy != "none":
            found = f"the job has noise_multiplier={_short(noise)}"
            if noise is None:
                found = "the job states an epsilon and not its noise_multiplier"
        yield _sentence("min_noise_multiplier", found, f"at least {least:g}")

    def _task(
        self, config: RunConfig, training: LocalTraining, num_rows: int | None, num_tokens: int | None
    ) -> Iterator[str]:
        # What came over a network was given no types.
        counts = {name: getattr(training, name) for name in ("num_rounds", "batch_size")}
        budgets = {name: getattr(training, name) for name in ("steps", "epochs", "tokens")}
        given = counts | {name: value for name, value in budgets.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                yield _sentence("training", f"the task has {name}={_short(value)}", "whole numbers from 1")
                return
        yield from _above("max_rounds", self.max_rounds, "num_rounds", training.num_rounds, "task")
        yield from _not_among("objectives", self.objectives, "objective", training.objective, "task")
        yield from self._steps(config, training, num_rows, num_tokens, "task")

    def _steps(
        self,
        config: RunConfig,
        training: LocalTraining,
        num_rows: int | None,
        num_tokens: int | None,
        what: str = "job",
    ) -> Iterator[str]:
        steps: float = most_steps(training, num_rows, num_tokens)
        # An adapter of the client's own may be trained for several times the steps of the round.
        share = config.strategy_options.get("personal_share", 1)
        share = share if isinstance(share, int | float) else 1
        if steps <= self.max_steps:
            steps *= max(1, share)
        if steps <= self.max_steps:
            return
        budgets = {name: getattr(training, name) for name in ("tokens", "steps", "epochs")}
        name = next((name for name, value in budgets.items() if value is not None), "epochs")
        told = f"local_{name}={_short(budgets[name])}"
        if share > 1:
            told += f" and personal_share={_short(share)}"
        if share > 1 or name != "steps":
            told += f", which may be {_count(steps)} steps"
        yield _sentence("max_steps", f"the {what} has {told}", f"at most {self.max_steps}")


def most_steps(training: LocalTraining, num_rows: int | None = None, num_tokens: int | None = None) -> int:
    """Return the most optimizer steps that a client of so many rows and tokens takes in one round.

    num_rows:   None: not known yet; epochs and tokens count as the fewest steps that they can be.
    num_tokens: of all its rows; None: unknown; every step might see a single one.
    """
    if training.tokens is None and training.steps is not None:
        return training.steps
    if num_rows is None:
        return 1 if training.tokens is not None else training.epochs or 1
    per_epoch = -(-num_rows // training.batch_size)
    if training.tokens is None:
        return (training.epochs or 1) * per_epoch
    if not num_tokens:
        return training.tokens
    # A round begins anywhere in an epoch, so that one more passes before as many were seen whole.
    return min(training.tokens, (-(-training.tokens // num_tokens) + 1) * per_epoch)


def _training_of(config: RunConfig) -> LocalTraining:
    """Return what a job's settings say of a client's steps."""
    return LocalTraining(
        config.learning_rate,
        config.num_rounds,
        steps=config.local_steps,
        epochs=config.epochs,
        tokens=config.local_tokens,
        batch_size=config.batch_size,
    )


def _sentence(rule: str, found: str, allowed: str) -> str:
    return f"{rule}: {found}; this site allows {allowed}."


def _not_among(rule: str, allowed: list[str], name: str, value: str, what: str = "job") -> Iterator[str]:
    if allowed and value not in allowed:
        yield _sentence(rule, f"the {what} has {name}={_short(value)}", f"only {', '.join(allowed)}")


def _above(rule: str, most: int, name: str, value: int, what: str = "job") -> Iterator[str]:
    if value > most:
        yield _sentence(rule, f"the {what} has {name}={_short(value)}", f"at most {most}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _texts(value: object) -> Iterator[str]:
    """Yield all texts within a setting, names of options among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _is_file(name: str) -> bool:
    """Return whether `fedit.registry` would load a name from a file."""
    return ".py:" in name


def _short(value: object) -> str:
    """Return a value on one line, cut where it is long: it may come from another organisation."""
    return shown(value, _LONGEST_VALUE)


def _count(steps: float) -> str:
    return str(math.ceil(steps)) if steps < 1e15 else "more than 1e15"


def _choices(setting: str) -> tuple[str, ...]:
    """Return the values that a setting of a job may have."""
    return get_args(RunConfig.model_fields[setting].annotation)


def _all_known(kind: str, names: list[str], known: Iterable[str]) -> list[str]:
    """Return ``names``; a misspelt one would refuse every job without anybody knowing why."""
    for name in names:
        if name not in known:
            raise ValueError(str(UnknownName(kind, name, known)))
    return names


def _problem(where: str, values: Mapping[str, object], place: tuple[int | str, ...], message: str) -> str:
    """Return what pydantic found wrong with one setting."""
    name = str(place[0])
    text = message.removeprefix("Value error, ")
    return f"{where}: {name} is {_short(values.get(name))}: {text[:1].lower()}{text[1:]}"
