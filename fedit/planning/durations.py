"""How long each part of a run takes, from what was measured of it."""

from collections.abc import Iterable, Sequence

from fedit import arms
from fedit.estimate import rows_per_step, tokens_of_client
from fedit.job import Job
from fedit.objectives import num_tokens
from fedit.planning.amounts import Amounts, Range
from fedit.planning.measuring import Measured
from fedit.planning.played import Task
from fedit.stacked import stacks

_SPREAD = 1.5
_ANSWERED = 0.5
"""Share of the longest answer that one has on average: models end most of theirs."""
_REPORTING = Range(4.0, 1.0, 12.0)


def durations(
    job: Job, amounts: Amounts, found: Measured, *, starting: float, preparing: float
) -> dict[str, Range]:
    """Return part of a run -> seconds, in their order; parts that take none are left out.

    starting: until data and settings were ready, in this process; preparing: of that, what workers do too.
    """
    config, played = job.config, amounts.played
    # Workers start while this process prepares; the first thing a run does is to time a little training.
    loading = found.loading - preparing if found.workers > 1 else found.loading
    loading = max(loading, 0.0) + 500 * found.token
    rounds = played.total(lambda one: found.round + found.token * busiest(one.tasks, found.stack, found.workers))
    evaluation = found.evaluation * amounts.evaluated
    each = _answers(job, found)
    parts = {
        "starting": Range.within(starting, _SPREAD),
        "loading": Range.within(loading, _SPREAD),
        "rounds": Range.within(rounds, _SPREAD),
        "evaluations": Range.within(
            evaluation * _evaluations(job, amounts) + _reference(job, amounts, found), _SPREAD
        ),
        "tuning afterwards": Range.within(found.token * config.defence_steps * _step_tokens(job), _SPREAD),
        "answers": each.times(2),
        "baselines": _baselines(job, amounts, found, each),
        "personal models": _personal(job, found),
        "reporting": _REPORTING,
    }
    return {name: span for name, span in parts.items() if span.high > 0}


def busiest(tasks: Sequence[Task], stack: int, workers: int) -> float:
    """Return the tokens of the process with most of them, where stacks of clients go to whoever is free.

    >>> busiest([Task("a", 1, 100, 0, 0, 0), Task("b", 1, 100, 0, 0, 0), Task("c", 1, 100, 0, 0, 0)], 1, 2)
    200
    """
    return _longest([sum(tasks[i].tokens for i in own) for own in stacks(len(tasks), stack)], workers)


def _longest(pieces: Iterable[float], workers: int) -> float:
    loads = [0.0] * workers
    for piece in pieces:
        loads[loads.index(min(loads))] += piece
    return max(loads)


def _evaluations(job: Job, amounts: Amounts) -> int:
    """Return how often held-out rows are measured; of preferences once more, under the reference."""
    return amounts.evaluations + (job.config.objective == "dpo")


def _reference(job: Job, amounts: Amounts, found: Measured) -> float:
    """Return the seconds in which clients ask the reference about their preferences, each once."""
    return found.evaluation * reference_tokens(job, amounts)


def reference_tokens(job: Job, amounts: Amounts) -> int:
    """Return the tokens that clients ask the reference about, before they learn preferences."""
    if job.config.objective != "dpo":
        return 0
    asked = {task.client for one in amounts.played.rounds for task in one.tasks}
    return sum(num_tokens(job.learnt(job.clients[client])) for client in asked)


def _answers(job: Job, found: Measured) -> Range:
    """Return the seconds of one arm's answers to the held-out instructions."""
    longest = found.answer * len(job.held_out)
    return Range(_ANSWERED * longest, 0.15 * longest, 1.2 * longest)


def _baselines(job: Job, amounts: Amounts, found: Measured, answers: Range) -> Range:
    """Return the seconds of baselines, trained and graded side by side, each in one process."""
    names = arms.baseline_names(job)
    if not names:
        return Range.exactly(0.0)
    whole = amounts.tokens.expected
    own = [
        job.config.num_rounds * tokens_of_client(job, name.partition(":")[2])
        if name.startswith("local:")
        else whole
        for name in names
    ]
    evaluation = found.evaluation * amounts.evaluated * found.workers * _evaluations(job, amounts)
    seconds = sorted((found.token * tokens + evaluation for tokens in own), reverse=True)
    training = Range.within(_longest(seconds, found.workers), _SPREAD)
    return training + answers.times(len(names))


def _personal(job: Job, found: Measured) -> Range:
    """Return the seconds in which every client's own model is measured, and fine-tuned."""
    config = job.config
    if not config.personal_evaluation:
        return Range.exactly(0.0)
    held_out = num_tokens(job.learnt(job.held_out)) * found.evaluation
    times = 1 + len(job.clients) * (2 if config.personal_steps else 1)
    tuned = found.token / found.workers * len(job.clients) * config.personal_steps * _step_tokens(job)
    return Range(held_out * times + tuned, held_out + tuned / _SPREAD, (held_out * times + tuned) * _SPREAD)


def _step_tokens(job: Job) -> float:
    """Return the tokens of a step, on average over clients."""
    training = job.training(example_noise=0.0)
    each = [
        rows_per_step(training, size) * num_tokens(job.learnt(job.clients[client])) / size
        for client, size in job.sizes.items()
        if size
    ]
    return sum(each) / max(len(each), 1)
