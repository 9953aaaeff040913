"""A judgement as Markdown."""

from collections.abc import Iterable, Sequence

from fedit.evaluation.intervals import Interval
from fedit.judging.agreement import Agreement
from fedit.judging.comparison import Comparison
from fedit.judging.judgement import Judgement

_NOTHING = "-"


def render(judgement: Judgement) -> str:
    """Return headings, warnings and tables."""
    judge = judgement.judge
    lines = [
        f"# Judgement: {judgement.mode}",
        "",
        f"Judge `{judge.get('model')}` ({judge.get('kind')}), {len(judgement.arms)} arms, baseline "
        f"`{judgement.baseline}`, {judgement.repeats} repeat{'s' if judgement.repeats > 1 else ''}"
        f"{'' if judgement.mode == 'single' else ' in both orders'}. Brackets hold 95 % bootstrap intervals over "
        "questions.",
    ]
    lines += ["", *(f"- **{warning}**" for warning in judgement.warnings())]
    lines += comparison_tables(judgement.comparisons)
    lines += _arms(judgement)
    if judgement.ranking:
        rows = [[f"`{s.arm}`", f"{s.elo:.0f} [{s.low:.0f}, {s.high:.0f}]"] for s in judgement.ranking]
        lines += ["", "## Ranking", "", *_table(["arm", "Bradley-Terry, Elo scale, baseline at 1000"], rows)]
    if judgement.canaries:
        rows = [[c.name, str(c.tried), str(c.passed), str(c.missing)] for c in judgement.canaries]
        lines += ["", "## Canaries", "", *_table(["canary", "tried", "passed", "no verdict"], rows)]
    lines += agreement_table(judgement.agreement)
    lines += _origin(judgement)
    return "\n".join(lines) + "\n"


def comparison_tables(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the lines of three tables: results, what may bend them, how sure they are."""
    results = [
        [
            _pair(c),
            str(len(c.questions)),
            f"{c.scores.sum_a:.1f} / {c.scores.sum_b:.1f}" if c.scores else _NOTHING,
            interval(c.scores.relative) if c.scores else _NOTHING,
            f"{c.tally.win} / {c.tally.tie} / {c.tally.loss}",
            interval(c.win_rate, percent=True) if c.win_rate else _NOTHING,
        ]
        for c in comparisons
    ]
    biases = [
        [
            _pair(c),
            f"{c.lengths.mean_a:.0f} / {c.lengths.mean_b:.0f}" if c.lengths else _NOTHING,
            _percent(c.lengths.longer_wins) if c.lengths else _NOTHING,
            interval(c.lengths.controlled, percent=True) if c.lengths else _NOTHING,
            _percent(c.order.consistency) if c.order else _NOTHING,
            _percent(c.order.first_wins) if c.order else _NOTHING,
        ]
        for c in comparisons
    ]
    doubts = [
        [
            _pair(c),
            f"{c.sign_p:.3g}",
            f"{c.scores.permutation_p:.3g}" if c.scores else _NOTHING,
            _number(c.detectable),
            str(c.invalid),
            str(c.left_out),
        ]
        for c in comparisons
    ]
    lines = ["", "## Comparisons", ""]
    lines += _table(["arms", "questions", "sums", "relative", "won / tied / lost", "win rate"], results)
    heads = ["characters", "longer wins", "win rate at equal length", "same in both orders", "first shown wins"]
    lines += ["", *_table(["arms", *heads], biases)]
    heads = [
        "sign test p",
        "permutation test p",
        "detectable difference",
        "invalid verdicts",
        "questions left out",
    ]
    return [*lines, "", *_table(["arms", *heads], doubts)]


def agreement_table(agreement: Sequence[Agreement]) -> list[str]:
    """Return the lines of the table of agreement with another judge; none without any."""
    if not agreement:
        return []
    rows = [[_pair(g), str(g.n), _number(g.spearman), _number(g.kappa), _percent(g.same)] for g in agreement]
    heads = ["arms", "questions", "Spearman", "Cohen's kappa", "same outcome"]
    return ["", "## Agreement with the other judge", "", *_table(heads, rows)]


def interval(value: Interval, *, percent: bool = False) -> str:
    """Return an estimate with its interval in brackets."""
    form = ".1%" if percent else ".3f"
    return f"{value.estimate:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _pair(comparison: Comparison | Agreement) -> str:
    return f"`{comparison.a}` / `{comparison.b}`"


def _arms(judgement: Judgement) -> list[str]:
    rows = [
        [
            f"`{arm.name}`",
            str(arm.questions),
            interval(arm.rating) if arm.rating else _NOTHING,
            f"{arm.length:.0f}",
            *(str(count) for count in (arm.empty, arm.verdict_like, arm.neutralised, arm.cut)),
        ]
        for arm in judgement.arms
    ]
    heads = ["arm", "questions", "mean rating", "mean characters", "empty", "verdict-like", "neutralised", "cut"]
    return ["", "## Answers", "", *_table(heads, rows)]


def _origin(judgement: Judgement) -> list[str]:
    verdicts, spending = judgement.verdicts, judgement.spending
    cost = f", cost {spending.cost:.4g}" if spending.cost is not None else ""
    templates = [f"`{t['name']}` version {t['version']} (`{str(t['sha256'])[:12]}`)" for t in judgement.templates]
    return [
        "",
        "## Origin",
        "",
        f"{verdicts.valid} valid, {sum(verdicts.invalid.values())} invalid ({verdicts.invalid_share:.1%}) and "
        f"{verdicts.missing} missing of {verdicts.wanted} verdicts; {verdicts.cached} requests answered from the "
        f"file, {verdicts.again} asked once more. This call: {spending.requests} requests, {spending.tokens_in:,} "
        f"tokens in, {spending.tokens_out:,} out{cost}.",
        "",
        f"Templates: {', '.join(templates)}.",
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|".join("---" if index == 0 else "---:" for index in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"
