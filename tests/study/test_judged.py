"""What a judge found about a study's answers, in the study's report."""

import pytest

from fedit.evaluation.answerfiles import Answered, write_answers
from fedit.judging import judge, read_arms
from fedit.judging.base import Reply, Request
from fedit.report.document import Table
from fedit.study.examples import question_examples
from fedit.study.judged import judged_section


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
    wins, sums = tables
    assert wins.rows[0].cells[:6] == ("federated", "base", 9, 6, 0, 3)
    assert sums.rows[0].cells[:4] == ("federated", "base", found["sum_a"], found["sum_b"])
    assert (found["sum_a"], found["sum_b"]) == pytest.approx((6 * 9 + 3 * 4, 6 * 4 + 3 * 9))
    assert sums.rows[0].cells[4].value == pytest.approx(found["relative"])
    shown = question_examples(folder)
    assert "judge's scores" in shown.blocks[0].text
    categories = [block.category for block in shown.blocks[1:]]
    assert categories[:3] == ["generic, gain +5.00"] * 3
    assert categories[3:] == ["generic, loss -5.00"] * 3
