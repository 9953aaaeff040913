"""What a job's privacy comes to before anything is trained: epsilon, how loud the noise is, what would help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from fedit.config import RunConfig
from fedit.errors import ConfigError, FeditError
from fedit.facts import bytes_of_a_round
from fedit.privacy import build_privacy
from fedit.privacy.accounting import Charge, Epsilon, calibrate, epsilon_of, finite, steps_within
from fedit.privacy.client import ClientPrivacy
from fedit.privacy.example import ExampleLevel
from fedit.privacy.exampleplan import LOUD, WEAK, ExamplePlan, excludes_little, plan_examples
from fedit.privacy.setup import client_privacy, planned
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy

FEWER = ("ffa_lora", "fedsvd", "fed_sb")
"""Algorithms that send fewer numbers, and whose noise is no product of two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job's client-level privacy comes to.

    parameters:      numbers that a client sends in a round, all of which get noise.
    noise_std:       of every entry of the mean; noise_norm: of the mean's whole noise.
    noise_to_signal: noise_norm over the clip norm, the most that the mean of the updates can be: what a round can
                     learn at best. Clients that disagree make it worse.
    affords:         rounds within the limit; None: all.
    advice:          what would help, a sentence each.
    """

    privacy: dict[str, object]
    rounds: int
    epsilon: Epsilon
    parameters: int
    noise_std: float
    noise_norm: float
    noise_to_signal: float
    affords: int | None
    advice: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return it by name; an infinite epsilon is None."""
        return {
            **self.privacy,
            "epsilon": finite(self.epsilon.value),
            "epsilon_rdp": finite(self.epsilon.rdp),
            "rounds": self.rounds,
            "parameters": self.parameters,
            "noise_std": self.noise_std,
            "noise_norm": self.noise_norm,
            "noise_to_signal": self.noise_to_signal,
            "rounds_afforded": self.affords,
            "advice": list(self.advice),
        }

    def lines(self) -> list[str]:
        """Return it in words."""
        own = self.privacy
        ends = "" if self.affords is None else f"; the limit {own['max_epsilon']} ends them after {self.affords}"
        return [
            f"{self.rounds} rounds spend epsilon {self.epsilon.shown} at delta {own['delta']:.3g}{ends}",
            f"  {self.epsilon.shown_rdp} by the looser accountant (RDP)",
            f"  neighbours: {own['neighbours']}; {own['reason']}",
            f"noise of {own['noise_multiplier']:.4g} clip norms on the sum of {own['expected_cohort']:.4g} "
            "expected clients",
            f"  on each of {self.parameters:,} numbers of the mean: standard deviation {self.noise_std:.3g}",
            f"  all together {self.noise_norm:.3g}: {self.noise_to_signal:.3g} times the largest signal",
            *(f"- {line}" for line in self.advice),
        ]


def plan(config: RunConfig) -> Plan | ExamplePlan:
    """Return what a job comes to; reads rows and the model's shapes, loads no weights.

    Raises:
        ConfigError: the job asks for no privacy.
        UserError: it cannot be prepared.
    """
    from fedit.model.shapes import adapted_shapes, empty_model
    from fedit.model.targets import choose_targets
    from fedit.prepare import prepare

    if config.privacy == "none":
        raise ConfigError("privacy is none; a plan needs privacy=client or privacy=example, and privacy_options.")
    # A limit that not even one round keeps to is what a plan has to say, not what keeps it from being made.
    limit = (
        {} if "epsilon" in config.privacy_options else {"max_epsilon": config.privacy_options.get("max_epsilon")}
    )
    free = {name: value for name, value in config.privacy_options.items() if name not in limit}
    job = prepare(config.model_copy(update={"privacy_options": free}))
    model = empty_model(job.source)
    shapes = adapted_shapes(model, choose_targets(model, job.config.lora_target_modules))
    if job.example_level is not None:
        level = build_privacy(config.privacy, config.privacy_options)
        assert isinstance(level, ExampleLevel)
        return plan_examples(job, level, shapes)
    given = {name: value for name, value in limit.items() if value is not None}
    config = job.config.model_copy(update={"privacy_options": {**job.config.privacy_options, **given}})
    return plan_of(config, job.strategy, len(job.seen), shapes, config.rank)


def plan_of(
    config: RunConfig, strategy: Strategy, population: int, shapes: Sequence[tuple[int, int]], rank: int
) -> Plan:
    """Return the plan of a job over so many clients; shapes: (in, out) of every adapted layer."""
    privacy = client_privacy(config, strategy, population, None)
    level, sampling, delta = privacy.level, privacy.sampling, privacy.ledger.delta
    charge = planned(privacy, config.num_rounds)
    spent = epsilon_of((charge,), delta)
    parameters = _sent(strategy, shapes, rank)
    clip = level.clip_norm if math.isfinite(level.clip_norm) else 0.0
    deviation = privacy.noises[0] * clip / sampling.expected
    ratio = privacy.noises[0] * math.sqrt(parameters) / sampling.expected
    return Plan(
        privacy.as_dict(),
        config.num_rounds,
        spent,
        parameters,
        deviation,
        deviation * math.sqrt(parameters),
        ratio,
        steps_within(charge, charge.steps, level.limit, delta) if spent.value > level.limit else None,
        tuple(_advice(config, privacy, spent, ratio, parameters, shapes, rank)),
    )


def _sent(strategy: Strategy, shapes: Sequence[tuple[int, int]], rank: int) -> int:
    up, _ = bytes_of_a_round(strategy, shapes, rank)
    return round(up / 4)


def _advice(
    config: RunConfig,
    privacy: ClientPrivacy,
    spent: Epsilon,
    ratio: float,
    parameters: int,
    shapes: Sequence[tuple[int, int]],
    rank: int,
) -> list[str]:
    found = []
    sampling = privacy.sampling
    if spent.value > WEAK:
        found.append(excludes_little(spent))
    if sampling.kind != "poisson" or sampling.changes > 1:
        noise = cast(float, privacy.level.noise_multiplier)
        rate = min(1.0, sampling.expected / sampling.population)
        coins = epsilon_of((Charge(noise, config.num_rounds, "poisson", rate),), privacy.ledger.delta)
        found.append(f"selection=poisson with the same noise spends epsilon {coins.value:.3g}.")
    if ratio > LOUD:
        noise = privacy.noises[0]
        found.append(
            f"noise is {ratio:.3g} times the largest signal: a cohort of {_count(noise * math.sqrt(parameters))} "
            "brings it to 1 (more clients, or a larger clients_per_round)."
        )
        found += _smaller(config, parameters, ratio, shapes, rank)
    return found


def _smaller(
    config: RunConfig, parameters: int, ratio: float, shapes: Sequence[tuple[int, int]], rank: int
) -> list[str]:
    """Return what sending fewer numbers would give: noise grows with their root."""
    found = []
    for name in FEWER:
        try:
            sent = _sent(build_strategy(name, {}), shapes, rank)
        except FeditError:
            continue
        if name != config.strategy and sent < parameters:
            found.append(
                f"strategy={name} sends {sent:,} numbers: {ratio * math.sqrt(sent / parameters):.3g} times."
            )
    if rank > 1:
        found.append(f"lora_r={max(rank // 4, 1)} gives {ratio * math.sqrt(max(rank // 4, 1) / rank):.3g} times.")
    return found


def noise_for(target: float, rate: float, steps: int, delta: float) -> tuple[float, Epsilon]:
    """Return the least noise that spends at most ``target``, and what that spends."""
    noise = calibrate(target, rate, steps, delta)
    return noise, epsilon_of((Charge(noise, steps, "poisson", rate),), delta)


def _count(value: float) -> str:
    return f"{math.ceil(value):,}"
