"""What the arms answered: measured, and to look at, the best and the worst by score, never by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedit.errors import RunFolderError
from fedit.evaluation.answerfiles import Answered as AnswersOf
from fedit.evaluation.answerfiles import read_answers
from fedit.evaluation.rouge import rouge_l
from fedit.reading import parse_json
from fedit.report.document import Block, Section, Text
from fedit.report.numbers import Estimate
from fedit.report.record import BASE, mapping, number, numbers
from fedit.report.sections.results import (
    Answered,
    ComparisonRow,
    Example,
    Metric,
    comparison_section,
    examples_section,
)
from fedit.study.items import Items
from fedit.study.judged import read_judgements
from fedit.study.summary import Seed

EACH = 3
"""Examples of the best and of the worst."""

ANSWERS = (
    Metric("exact_match", "checks passed", ".1%", "highest"),
    Metric("prompt_strict", "all constraints followed", ".1%", "highest"),
    Metric("rouge_l", "ROUGE-L to references", ".3f", "highest"),
    Metric("mean_words", "words an answer", ".1f"),
    Metric("repetition", "repeated 4-grams", ".1%", "lowest"),
)
"""What is measured of answers to a question set."""


def held_out_examples(seed: Seed, roles: Sequence[str]) -> Section | None:
    """Return held-out instructions with all answers: where the federation gains most over the base, and least.

    A gain is the difference of ROUGE-L to the reference answer, of an answer that passes its check one more.
    """
    federated = next((role for role in roles if role.startswith("federated")), None)
    shown = [role for role in roles if role in seed.items and seed.items[role].texts is not None]
    if federated not in shown or BASE not in shown:
        return None
    own, base = seed.items[federated], seed.items[BASE]
    gains = [_score(own, i) - _score(base, i) for i in range(len(own.rows))]
    rows = _rows(seed.folder / "held_out.json")
    examples = []
    for index, what in _extremes(gains):
        row = rows[index]
        answers = {}
        for role in shown:
            items = seed.items[role]
            assert items.texts is not None
            assert items.right is not None
            assert items.rouge is not None
            right = items.right[index] if row["checked"] else None
            answers[role] = Answered(items.texts[index], right, round(items.rouge[index], 2))
        category = f"{row['category'] or 'held-out'}, {what} {gains[index]:+.2f}"
        examples.append(
            Example(str(row["instruction"]), answers, str(row["context"] or ""), str(row["expected"]), category)
        )
    section = examples_section(examples)
    about = (
        f"Chosen by score: the {EACH} held-out rows of seed {seed.seed} where the federation gains most over the "
        f"base model, and the {EACH} where it loses most. The score is ROUGE-L to the reference answer; passing "
        "the row's check counts one more."
    )
    return Section(section.title, section.anchor, (Text(about), *section.blocks))


def _score(items: Items, index: int) -> float:
    assert items.rouge is not None
    assert items.right is not None
    return items.rouge[index] + items.right[index]


def question_examples(folder: Path) -> Section | None:
    """Return questions of the sets with all answers, chosen by the judge's scores, else by ROUGE-L to references.

    Where there is neither, the first question of every category stands for it. None without questions.
    """
    files = sorted((folder / "answers").rglob("*.jsonl"))
    arms = {arm: {one.question_id: one for one in answered} for arm, answered in map(read_answers, files)}
    federated = next((arm for arm in arms if arm.startswith("federated")), None)
    if federated is None or BASE not in arms:
        return None
    questions = list(arms[federated])
    judged = _judged_gains(folder, federated)
    referenced = {
        q: _rouge(arms[federated][q]) - _rouge(arms[BASE][q])
        for q in questions
        if any(arms[federated][q].reference or ()) and q in arms[BASE]
    }
    gains, about = (
        (judged, "Chosen by the judge's scores: where the federation gains most over the base model, and least.")
        if judged
        else (referenced, "Chosen by ROUGE-L to reference answers: where the federation gains most, and least.")
    )
    if gains:
        known = [q for q in questions if q in gains]
        chosen = [(known[i], f"{what} {gains[known[i]]:+.2f}") for i, what in _extremes([gains[q] for q in known])]
    else:
        about = "Nobody judged and there are no references: the first question of every category."
        firsts: dict[str | None, str] = {}
        for q in questions:
            firsts.setdefault(arms[federated][q].category, q)
        chosen = [(q, "") for q in firsts.values()]
    examples = [_question(q, what, arms) for q, what in chosen]
    section = examples_section(examples)
    return Section("Answers to questions", "questions", (Text(about), *section.blocks[1:]))


def _question(question: str, what: str, arms: Mapping[str, Mapping[str, AnswersOf]]) -> Example:
    one = next(own[question] for own in arms.values() if question in own)
    answers = {arm: Answered(_joined(own[question].answers)) for arm, own in arms.items() if question in own}
    category = ", ".join(part for part in (one.category or "", what) if part)
    return Example(_joined(one.turns), answers, "", _joined([r for r in one.reference or () if r]), category)


def _joined(texts: Sequence[str]) -> str:
    return "\n\n---\n\n".join(texts)


def _rouge(one: AnswersOf) -> float:
    pairs = [(a, r) for a, r in zip(one.answers, one.reference or (), strict=False) if r]
    return float(np.mean([rouge_l(a, r) for a, r in pairs])) if pairs else 0.0


def _judged_gains(folder: Path, federated: str) -> dict[str, float]:
    """Return question -> by how much the judge prefers the federation to the base; empty where nobody judged."""
    comparisons = [one for judgement in read_judgements(folder)[:1] for one in judgement["comparisons"]]
    for one in comparisons:
        if {one["a"], one["b"]} != {federated, BASE}:
            continue
        sign = 1 if one["a"] == federated else -1
        found = {}
        for question in one["questions"]:
            a, b = number(question.get("a")), number(question.get("b"))
            preference = number(question.get("preference"))
            if a is not None and b is not None:
                found[str(question["question_id"])] = sign * (a - b)
            elif preference is not None:
                found[str(question["question_id"])] = sign * (preference - 0.5)
        return found
    return {}


def _extremes(gains: Sequence[float]) -> list[tuple[int, str]]:
    """Return (index, what it is) of the highest and the lowest gains, none twice."""
    order = sorted(range(len(gains)), key=lambda i: (-gains[i], i))
    best = order[:EACH]
    worst = [i for i in reversed(order) if i not in best][:EACH]
    return [(i, "gain") for i in best] + [(i, "loss" if gains[i] < 0 else "gain") for i in worst]


def _rows(path: Path) -> list[dict[str, object]]:
    try:
        rows = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(rows, list):
        raise RunFolderError(f"{path} holds no list of rows.")
    return [dict(mapping(row)) for row in rows]


def question_sets_section(sets: Mapping[str, object], arms: Sequence[str]) -> Section | None:
    """Return what is measured of the answers to each question set without a judge; None without any.

    sets: as in ``summary.json``, set -> arm -> measures; arms: in the order they are listed.
    """
    tables: list[Block] = []
    for title, measured in sets.items():
        rows = []
        for arm in (name for name in arms if name in mapping(measured)):
            overall = mapping(mapping(mapping(measured)[arm])["overall"])
            values = {**overall, **mapping(overall.get("constraints"))}
            found = numbers({metric.name: values.get(metric.name) for metric in ANSWERS})
            metrics = {name: Estimate(value) for name, value in found.items() if value is not None}
            rows.append(ComparisonRow(arm, metrics, emphasis=arm.startswith("federated")))
        name = Path(title).name
        tables.append(
            comparison_section(
                rows,
                [m for m in ANSWERS if any(m.name in row.metrics for row in rows)],
                caption=f"Answers to {name}",
            ).blocks[0]
        )
    if not tables:
        return None
    about = (
        "Of the first seed's arms; without a judge, so a text that is like the reference, not one that is good."
    )
    return Section("Question sets", "question-sets", (Text(about), *tables))
