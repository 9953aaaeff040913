"""What DP-SGD spends on a client's examples: the charge of a round, and the noise that a budget takes."""

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

from fedit.privacy.accounting import Charge, Epsilon, calibrate, epsilon_of
from fedit.privacy.example import ExampleLevel
from fedit.privacy.ledger import Ledger
from fedit.privacy.steps import sampling_rate, steps_of
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientState, ClientTask, LocalTraining
from fedit.worker import share_of

_LATER = 2
"""A round after the first, in which every phase of a strategy takes place."""


def charge_of(strategy: Strategy, task: ClientTask, num_examples: int) -> Charge:
    """Return what a client's round spends on each of its examples: every step of every phase counts."""
    training = task.training
    phases = strategy.phases(task, ClientState())
    steps = sum(steps_of(share_of(training, phase.share, num_examples), num_examples) for phase in phases)
    return Charge(training.example_noise, steps, "poisson", sampling_rate(training.batch_size, num_examples))


def as_dict(level: ExampleLevel, training: LocalTraining, sizes: Collection[int]) -> dict[str, object]:
    """Return what the guarantee rests on, by name; the rate is that of the client with the fewest examples."""
    return {
        "level": "example",
        "noise_multiplier": training.example_noise,
        "clip_norm": level.clip_norm,
        "delta": level.delta_for(max(sizes)),
        "max_epsilon": None if math.isinf(level.limit) else level.limit,
        "most_rounds": level.most_rounds,
        "sampling": "poisson",
        "rate": sampling_rate(training.batch_size, min(sizes)),
        "neighbours": "one client has an example more in one than in the other",
        "reason": "each example joins a step by a secret coin of its own",
    }


def noise_of(
    level: ExampleLevel, strategy: Strategy, training: LocalTraining, sizes: Collection[int], rounds: int
) -> float:
    """Return the noise multiplier of all clients' steps: the one given, or the least that the epsilon allows.

    It is one for all, so that who has few examples, or many, is no less protected than the epsilon says.

    sizes: examples of every client; rounds: of the job.

    Raises:
        ConfigError: no noise is enough, or dp-accounting is not installed.
    """
    if level.noise_multiplier is not None:
        return level.noise_multiplier
    assert level.epsilon is not None
    task = ClientTask(_LATER, "", Broadcast({}, scale=1.0), replace(training, example_noise=1.0), 0)
    each = {size: charge_of(strategy, task, size) for size in set(sizes)}
    most = level.most_rounds or rounds
    charges = {replace(charge, steps=most * charge.steps) for charge in each.values()}
    return _least_noise(level.epsilon, charges, level.delta_for(max(sizes)))


def _least_noise(epsilon: float, charges: Iterable[Charge], delta: float) -> float:
    """Return the least noise multiplier at which no client's charge spends more than ``epsilon``."""
    waiting = undominated(charges)
    noise = 0.0
    for charge in waiting:
        # Who is safe at the noise that others need needs no search of its own.
        if noise == 0 or epsilon_of((replace(charge, noise_multiplier=noise),), delta).value > epsilon:
            noise = max(noise, calibrate(epsilon, charge.rate, charge.steps, delta))
    return noise


def most_spent(ledger: Ledger) -> Epsilon:
    """Return what was spent on the examples of the client whom the rounds cost most.

    As `Ledger.most`, without asking the accountant about those who are safe since another one is.
    """
    own = [ledger.charges(client) for client in ledger.units()]
    if any(len(charges) != 1 for charges in own) or len({charges[0].noise_multiplier for charges in own}) > 1:
        return ledger.most()
    found = [epsilon_of((charge,), ledger.delta) for charge in undominated(charges[0] for charges in own)]
    return max(found, key=lambda epsilon: epsilon.value, default=Epsilon(0.0, 0.0))


def undominated(charges: Iterable[Charge]) -> list[Charge]:
    """Return the charges of which no other has at least the rate and the steps, those of most signal first."""
    found: list[Charge] = []
    for charge in sorted(set(charges), key=lambda c: (-c.rate, -c.steps)):
        if not found or charge.steps > max(other.steps for other in found):
            found.append(charge)
    return sorted(found, key=lambda c: -c.rate * c.rate * c.steps)


def refuse_more_rounds(level: ExampleLevel, charged: int, charge: Charge) -> str | None:
    """Return why a client that was charged for so many steps takes part in no other round; None: it does."""
    if level.most_rounds is not None and charged + charge.steps > level.most_rounds * charge.steps:
        return f"it has taken part in {charged // charge.steps} rounds, and most_rounds is {level.most_rounds}"
    return None
