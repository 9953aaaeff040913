"""What a job's example-level privacy comes to before anything is trained, for the client whom it costs most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedit.facts import bytes_in_training
from fedit.job import Job
from fedit.privacy.accounting import Charge, Epsilon, epsilon_of, finite, steps_within
from fedit.privacy.example import ExampleLevel
from fedit.privacy.spending import as_dict, charge_of, undominated
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientTask

LOUD = 1.0
"""Noise over signal above which a round teaches less than it blurs."""
WEAK = 10.0
"""Epsilon above which the bound itself excludes little."""
_LATER = 2
"""A round after the first, in which every phase of a strategy takes place."""


@dataclass(frozen=True, slots=True)
class ExamplePlan:
    """What a job's example-level privacy comes to.

    examples:        of the client whose examples the rounds cost most.
    rounds:          that it takes part in at most; likely: that it is asked in on average, rounded up.
    steps:           that it takes in a round.
    epsilon:         of ``rounds``; likely_epsilon: of ``likely``.
    parameters:      numbers that a step trains, all of which get noise.
    noise_to_signal: norm of a step's noise over the clip norm, the most that the mean gradient can be, for the
                     client with the fewest examples in a step.
    round_noise:     the same of a round's mean over steps and clients that agree, which noise does not.
    affords:         rounds within the limit; None: all.
    advice:          what would help, a sentence each.
    """

    privacy: dict[str, object]
    examples: int
    rounds: int
    likely: int
    steps: int
    epsilon: Epsilon
    likely_epsilon: Epsilon
    parameters: int
    noise_to_signal: float
    round_noise: float
    affords: int | None
    advice: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return it by name; an infinite epsilon is None."""
        return {
            **self.privacy,
            "epsilon": finite(self.epsilon.value),
            "epsilon_rdp": finite(self.epsilon.rdp),
            "likely_epsilon": finite(self.likely_epsilon.value),
            "rounds": self.rounds,
            "likely_rounds": self.likely,
            "steps_a_round": self.steps,
            "examples": self.examples,
            "parameters": self.parameters,
            "noise_to_signal": self.noise_to_signal,
            "noise_to_signal_of_a_round": self.round_noise,
            "rounds_afforded": self.affords,
            "advice": list(self.advice),
        }

    def lines(self) -> list[str]:
        """Return it in words."""
        own = self.privacy
        ends = "" if self.affords is None else f"; the limit {own['max_epsilon']} ends them after {self.affords}"
        return [
            f"a client that takes part in {self.rounds} rounds spends epsilon {self.epsilon.shown} on each of its "
            f"examples, at delta {own['delta']:.3g}{ends}",
            f"  {self.epsilon.shown_rdp} by the looser accountant (RDP)",
            f"  {self.likely_epsilon.shown} in {self.likely} rounds, in which it is asked on average",
            f"  counted for the client whom it costs most, of {self.examples:,} examples; {self.steps} steps "
            "a round",
            f"  neighbours: {own['neighbours']}; {own['reason']}",
            f"noise of {own['noise_multiplier']:.4g} clip norms on the sum of a step's gradients",
            f"  on {self.parameters:,} numbers, all together {self.noise_to_signal:.3g} times the largest signal "
            "of a step",
            f"  {self.round_noise:.3g} times in a round's mean, where steps and clients agree",
            *(f"- {line}" for line in self.advice),
        ]


def plan_examples(job: Job, level: ExampleLevel, shapes: Sequence[tuple[int, int]]) -> ExamplePlan:
    """Return the plan of a prepared job; shapes: (in, out) of every adapted layer."""
    config, strategy = job.config, job.strategy
    noise = job.example_noise
    training = job.training(example_noise=noise)
    sizes = job.sizes.values()
    task = ClientTask(_LATER, "", Broadcast({}, scale=1.0), training, 0)
    of_a_round = {charge_of(strategy, task, size): size for size in sorted(set(sizes), reverse=True)}
    rounds = min(config.num_rounds, level.most_rounds or config.num_rounds)
    likely = min(rounds, math.ceil(config.num_rounds * min(1.0, job.cohort_size / len(job.sizes))))
    delta = level.delta_for(max(sizes))
    costs = {charge: epsilon_of((_times(charge, rounds),), delta) for charge in undominated(of_a_round)}
    worst = max(costs, key=lambda charge: costs[charge].value)
    # The adapter's own entries are the same in every round, so that only those that are trained are left.
    parameters = _in_training(strategy, shapes, config.rank, 1) - _in_training(strategy, shapes, config.rank, 0)
    batch = min(config.batch_size, *sizes)
    ratio = noise * math.sqrt(parameters) / batch
    together = ratio / math.sqrt(worst.steps * job.cohort_size)
    return ExamplePlan(
        as_dict(level, training, sizes),
        of_a_round[worst],
        rounds,
        likely,
        worst.steps,
        costs[worst],
        epsilon_of((_times(worst, likely),), delta),
        parameters,
        ratio,
        together,
        (
            steps_within(worst, rounds * worst.steps, level.limit, delta) // worst.steps
            if costs[worst].value > level.limit
            else None
        ),
        tuple(_advice(costs[worst], level, together, noise, parameters, worst.steps * job.cohort_size)),
    )


def _in_training(strategy: Strategy, shapes: Sequence[tuple[int, int]], rank: int, moments: int) -> int:
    return bytes_in_training(strategy, shapes, rank, moments=moments, entry=1)


def _times(charge: Charge, rounds: int) -> Charge:
    return replace(charge, steps=rounds * charge.steps)


def excludes_little(spent: Epsilon) -> str:
    """Return what to do about an epsilon that is too large to promise much."""
    return (
        f"epsilon {spent.value:.3g} excludes little: raise noise_multiplier, or give epsilon (8 or less) and "
        "let the noise be found."
    )


def _advice(
    spent: Epsilon, level: ExampleLevel, together: float, noise: float, parameters: int, averaged: int
) -> list[str]:
    found = []
    if spent.value > WEAK:
        found.append(excludes_little(spent))
    if level.most_rounds is None:
        found.append("most_rounds says how often a client takes part at most; an epsilon then needs less noise.")
    if together > LOUD:
        batch = math.ceil(noise * math.sqrt(parameters / averaged))
        found.append(
            f"a batch_size of {batch:,} brings the noise of a round to the signal's size, for clients with so "
            "many examples; a smaller lora_r and strategies that train one factor (ffa_lora) help, too."
        )
    return found
