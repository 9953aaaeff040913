"""What a judge found about a study's answers, in the study's report."""

import pytest

from fedit.evaluation.answerfiles import Answered, write_answers
from fedit.evaluation.votes import append
from fedit.judging import judge, read_arms
from fedit.judging.base import Reply, Request
from fedit.report.document import Table
from fedit.study.examples import question_examples
from fedit.study.judged import judged_section, votes_section


class Weighing:
    """A judge that weighs verdicts and likes an answer the more, the longer it is."""

    name, explains, concurrency, sampling = "long", False, 1, {}

    def describe(self):
        return {"kind": "scripted", "model": self.name}

    def ask(self, request: Request) -> Reply:
        text = request.messages[-1].content
        first, second = (text.count(mark) for mark in ("AAAA", "BBBB"))
        if text.find("BBBB") != -1 and text.find("BBBB") < text.find("AAAA"):
            first, second = second, first
        best = f"{9 if first >= second else 4} {9 if second >= first else 4}"
        return Reply(None, {c: 0.0 if c == best else -100.0 for c in request.choices}, 1, 1)


@pytest.fixture
def folder(tmp_path):
    def answered(texts):
        return [Answered(f"q{i}", "generic", (f"Why {i}?",), (text,)) for i, text in enumerate(texts)]

    write_answers(tmp_path / "answers/base.jsonl", "base", answered(["AAAA", "AAAA AAAA AAAA", "AAAA"] * 3))
    write_answers(tmp_path / "answers/federated.jsonl", "federated", answered(["BBBB BBBB"] * 9))
    return tmp_path


def test_nobody_judged(folder):
    assert judged_section(folder) is None
    section = question_examples(folder)
    assert "Nobody judged" in section.blocks[0].text
    assert [block.question for block in section.blocks[1:]] == ["Why 0?"]


def test_wins_sums_and_the_best_and_worst_answers(folder):
    judgement = judge(read_arms([folder]), Weighing(), out=folder / "judgement-score", mode="score", resamples=100)
    found = judgement.as_dict()["comparisons"][0]
    section = judged_section(folder)
    tables = [block for block in section.blocks if isinstance(block, Table)]
    wins, sums, biases = tables
    assert wins.rows[0].cells[:6] == ("federated", "base", 9, 6, 0, 3)
    assert sums.rows[0].cells[:4] == ("federated", "base", found["sum_a"], found["sum_b"])
    assert (found["sum_a"], found["sum_b"]) == pytest.approx((6 * 9 + 3 * 4, 6 * 4 + 3 * 9))
    assert biases.rows[0].cells[2].value == found["length_controlled_win_rate"]
    assert biases.rows[0].cells[3:] == (
        found["longer_wins"],
        found["position_consistency"],
        found["first_position_wins"],
    )
    assert sums.rows[0].cells[4].value == pytest.approx(found["relative"])
    shown = question_examples(folder)
    assert "judge's scores" in shown.blocks[0].text
    categories = [block.category for block in shown.blocks[1:]]
    assert categories[:3] == ["generic, gain +5.00"] * 3
    assert categories[3:] == ["generic, loss -5.00"] * 3


def test_a_ranking_canaries_and_agreement_are_shown(folder):
    write_answers(
        folder / "answers/other.jsonl",
        "other",
        [Answered(f"q{i}", "generic", (f"Why {i}?",), ("AAAA BBBB",)) for i in range(9)],
    )
    arms = read_arms([folder])
    judge(arms, Weighing(), out=folder / "judgement-pairwise", mode="score", resamples=50)
    judgement = judge(
        arms,
        Weighing(),
        out=folder / "judgement-score",
        mode="score",
        resamples=50,
        with_canaries=True,
        agree_with=folder / "judgement-pairwise/verdicts.jsonl",
    )
    (folder / "judgement-pairwise/judgement.json").unlink()
    tables = {block.caption: block for block in judged_section(folder).blocks if isinstance(block, Table)}
    ranking = next(table for caption, table in tables.items() if caption.startswith("Ranking"))
    assert [row.cells[0] for row in ranking.rows] == [strength.arm for strength in judgement.ranking]
    canaries = tables["Verdicts whose right outcome is known"]
    assert [row.cells[1:] for row in canaries.rows] == [
        (one.name, one.tried, one.passed, one.missing) for one in judgement.canaries
    ]
    agreed = tables["Agreement with the other judge"]
    assert [row.cells[2] for row in agreed.rows] == [9, 9]
    assert all(row.cells[5] == 1.0 for row in agreed.rows)


def test_votes_of_people_are_shown(folder):
    assert votes_section(folder) is None
    lines = [
        {"first": "base", "second": "federated", "winner": winner, "vote": str(number), "blind": number != 3}
        for number, winner in enumerate(("second", "second", "tie", "first"))
    ]
    append(folder / "votes.jsonl", lines)
    section = votes_section(folder)
    assert "3 blind votes" in section.blocks[0].text
    (row,) = section.blocks[1].rows
    assert row.cells[:7] == ("federated", "base", 3, 2, 0, 1, 0)
    assert row.cells[7].value == pytest.approx(2.5 / 3)
