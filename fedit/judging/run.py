"""Judge arms: ask for every verdict, add them up, write the result."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedit.errors import ConfigError, DataError
from fedit.evaluation.answerfiles import Answered
from fedit.evaluation.intervals import RESAMPLES, bootstrap
from fedit.judging.agreement import agreement, read_opinions
from fedit.judging.answers import choose_baseline, common_questions
from fedit.judging.asking import Asked, Asking, Wanted
from fedit.judging.base import Judge
from fedit.judging.cache import open_replies
from fedit.judging.comparison import Comparison, Order, Question, compare
from fedit.judging.judgement import Arm, Judgement, Verdicts
from fedit.judging.plan import Asker, canaries, comparisons, pairs_of, ratings, score_canaries
from fedit.judging.prompts import Mode
from fedit.judging.shielding import LONGEST, shield
from fedit.judging.spending import Limits, Pace, Spending
from fedit.judging.statistics import Strength, first_position_wins, position_consistency, rank
from fedit.judging.verdicts import Verdict, outcome_of

Found = Mapping[tuple[str, tuple[str, ...]], Sequence[Verdict]]
"""(question, arms in the order they were shown) -> the verdicts of all repeats, invalid ones too."""


def judge(
    arms: Mapping[str, Sequence[Answered]],
    judge: Judge,
    *,
    out: Path,
    mode: Mode = "score",
    baseline: str | None = None,
    repeats: int = 1,
    all_pairs: bool = False,
    with_canaries: bool = False,
    agree_with: Path | None = None,
    limits: Limits | None = None,
    requests_per_minute: float | None = None,
    longest: int = LONGEST,
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Judgement:
    """Return what ``judge`` finds about ``arms``, and write it to ``out``.

    Every reply is kept in ``out/verdicts.jsonl`` before it counts; judging again into the same folder asks only
    for what is not there. An interruption (KeyboardInterrupt passes through) loses what is in flight.

    Args:
        arms: the answers of each arm, in the order they are reported.
        judge: an `Endpoint`, a `LocalModel`, or anything of that kind.
        out: folder of verdicts.jsonl, judgement.json and judgement.md.
        mode: score (two answers, a score from 1 to 10 each), pairwise (which is better) or single (one rating).
        baseline: the arm that the others are compared with; None: "base" if there is one, else the first.
        repeats: how often each question is asked, in each order.
        all_pairs: also compare the other arms with each other.
        with_canaries: also ask for verdicts whose right outcome is known.
        agree_with: another judge's verdicts.jsonl, recorded reviews of two arms, or people's votes.jsonl.
        limits: what this call may spend.
        requests_per_minute: None: as fast as the judge is.
        longest: characters of a text that the judge is shown.
        seed: of bootstraps and of the choice of canaries; the judge's own sampling is not seeded.
        resamples: replicates of each bootstrap.
        on_progress: called with the number of verdicts that are there, and of all.

    Raises:
        ConfigError: the settings cannot work, or the judge refuses.
        DataError: the arms have no question in common, or other questions under the same id.
        JudgeError: the judge stopped answering.
        RunFolderError: ``out`` cannot be written, or another process judges into it.
    """
    _check(arms, judge, mode, repeats, limits)
    chosen = choose_baseline(arms, baseline)
    pairs = pairs_of(list(arms), chosen, all_pairs=all_pairs)
    opinions = read_opinions(agree_with, list(arms), pairs) if agree_with is not None else {}
    asker = Asker(mode, judge.explains, repeats, longest)
    wanted = ratings(arms, asker) if mode == "single" else comparisons(arms, pairs, asker)
    extra = canaries(chosen, arms[chosen], asker, seed) if with_canaries else []
    if not wanted:
        raise DataError(f"the arms {', '.join(arms)} have no question_id in common; there is nothing to compare.")
    spending = Spending(limits or Limits())
    with open_replies(out) as replies:
        asking = Asking(judge, mode, replies, spending, Pace(requests_per_minute))
        # Canaries first: a judge that fails them is known before the budget is spent.
        asked = asking.ask([*extra, *wanted], on_progress)
        verdicts = asked.verdicts[len(extra) :]
        found = _found(wanted, verdicts)
        results = [_compared(arms, a, b, found, mode, resamples, seed) for a, b in pairs]
        judgement = Judgement(
            mode,
            judge.describe(),
            chosen,
            repeats,
            seed,
            _templates([*extra, *wanted]),
            [
                _arm(name, items, found if mode == "single" else None, longest, resamples, seed)
                for name, items in arms.items()
            ],
            results,
            _counted(verdicts, asked, replies.broken),
            spending,
            ranking=_ranking(list(arms), results, chosen, resamples, seed),
            canaries=score_canaries(extra, asked.verdicts[: len(extra)]),
            agreement=agreement(results, opinions),
            stopped=asked.stopped,
        )
        judgement.write(out)
    return judgement


def _check(
    arms: Mapping[str, Sequence[Answered]], judge: Judge, mode: Mode, repeats: int, limits: Limits | None
) -> None:
    if not arms or (mode != "single" and len(arms) < 2):
        raise ConfigError(f"{len(arms)} arms are given; mode {mode} needs {1 if mode == 'single' else 2} or more.")
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; expected at least 1.")
    if repeats > 1 and not judge.explains:
        raise ConfigError("a judge whose verdicts are weighed says the same every time; leave repeats at 1.")
    if limits is not None and limits.max_cost is not None and limits.cost(0, 0) is None:
        raise ConfigError("a limit on the cost needs the prices of a million tokens in and out.")


def _found(wanted: Sequence[Wanted], verdicts: Sequence[Verdict | None]) -> Found:
    found: dict[tuple[str, tuple[str, ...]], list[Verdict]] = {}
    for want, verdict in zip(wanted, verdicts, strict=True):
        if verdict is not None:
            found.setdefault((want.question_id, want.shown), []).append(verdict)
    return found


def _compared(
    arms: Mapping[str, Sequence[Answered]], a: str, b: str, found: Found, mode: Mode, resamples: int, seed: int
) -> Comparison:
    questions: list[Question] = []
    unmatched = len({item.question_id for item in arms[a]} ^ {item.question_id for item in arms[b]})
    left_out = invalid = 0
    of_first: list[float] = []
    both: list[tuple[float, float]] = []
    pairs = common_questions(arms[a], arms[b])
    for item_a, item_b in pairs:
        id = item_a.question_id
        shown = ((a,), (b,)) if mode == "single" else ((a, b), (b, a))
        everything = [found.get((id, order), ()) for order in shown]
        invalid += sum(bool(verdict.invalid) for verdicts in everything for verdict in verdicts)
        forwards, backwards = ([v for v in verdicts if not v.invalid] for verdicts in everything)
        if not forwards or not backwards:
            left_out += 1
            continue
        judged = _ratings_of(forwards, backwards) if mode == "single" else _both_orders(forwards, backwards)
        lengths = (item_a.length, item_b.length)
        questions.append(Question(id, item_a.category, *judged, lengths))
        if mode != "single":
            of_first += [outcome_of(v.preference or 0.0) for v in (*forwards, *backwards)]
            both += [
                (outcome_of(one.preference or 0.0), 1 - outcome_of(other.preference or 0.0))
                for one, other in zip(*everything, strict=False)
                if not one.invalid and not other.invalid
            ]
    order = None if mode == "single" else Order(position_consistency(both), first_position_wins(of_first))
    return compare(
        a,
        b,
        questions,
        unmatched=unmatched,
        left_out=left_out,
        invalid=invalid,
        order=order,
        resamples=resamples,
        seed=seed,
    )


def _both_orders(
    forwards: Sequence[Verdict], backwards: Sequence[Verdict]
) -> tuple[tuple[float, float] | None, float | None]:
    """Return scores or preference for a: the mean of the two orders' means, so that neither order weighs more."""
    if forwards[0].scores:
        a = (_mean([v.scores[0] for v in forwards]) + _mean([v.scores[1] for v in backwards])) / 2
        b = (_mean([v.scores[1] for v in forwards]) + _mean([v.scores[0] for v in backwards])) / 2
        return (a, b), None
    first = _mean([v.preference or 0.0 for v in forwards])
    second = _mean([1 - (v.preference or 0.0) for v in backwards])
    return None, (first + second) / 2


def _ratings_of(
    of_a: Sequence[Verdict], of_b: Sequence[Verdict]
) -> tuple[tuple[float, float] | None, float | None]:
    return (_mean([v.scores[0] for v in of_a]), _mean([v.scores[0] for v in of_b])), None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _arm(
    name: str, items: Sequence[Answered], found: Found | None, longest: int, resamples: int, seed: int
) -> Arm:
    shielded = [[shield(text, longest) for text in item.answers] for item in items]
    rated = [
        _mean(scores)
        for item in items
        if (scores := [v.scores[0] for v in (found or {}).get((item.question_id, (name,)), ()) if not v.invalid])
    ]
    return Arm(
        name,
        len(items),
        float(np.mean([item.length for item in items])),
        empty=sum(not any(text.strip() for text in item.answers) for item in items),
        verdict_like=sum(any(text.verdict_like for text in texts) for texts in shielded),
        neutralised=sum(any(text.neutralised or text.removed for text in texts) for texts in shielded),
        cut=sum(any(text.cut for text in texts) for texts in shielded),
        rating=bootstrap(rated, resamples=resamples, seed=seed) if rated else None,
    )


def _counted(verdicts: Sequence[Verdict | None], asked: Asked, broken: int) -> Verdicts:
    had = [verdict for verdict in verdicts if verdict is not None]
    return Verdicts(
        wanted=len(verdicts),
        valid=sum(not verdict.invalid for verdict in had),
        invalid=dict(Counter(verdict.invalid for verdict in had if verdict.invalid)),
        missing=len(verdicts) - len(had),
        cached=asked.cached,
        again=asked.again,
        failures=asked.failures,
        broken=broken,
    )


def _ranking(
    arms: Sequence[str], results: Sequence[Comparison], baseline: str, resamples: int, seed: int
) -> list[Strength]:
    games: dict[str, dict[tuple[str, str], float]] = {}
    for result in results:
        for question in result.questions:
            games.setdefault(question.question_id, {})[result.a, result.b] = question.outcome
    if len(arms) < 3 or not games:
        return []
    return rank(arms, list(games.values()), baseline, resamples=resamples, seed=seed)


def _templates(wanted: Sequence[Wanted]) -> list[dict[str, object]]:
    by_name = {want.template.name: want.template.describe() for want in wanted}
    return [by_name[name] for name in sorted(by_name)]
