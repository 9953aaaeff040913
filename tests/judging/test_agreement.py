import json

import pytest
from judge_server import by_quality, first_is_better

from fedit.errors import ConfigError, DataError
from fedit.evaluation.votes import append
from fedit.judging import judge
from fedit.judging.agreement import agreement, read_opinions
from fedit.judging.comparison import Question, compare


def compared(scores, a="new", b="base"):
    questions = [Question(str(n), None, pair, None, None) for n, pair in enumerate(scores)]
    return compare(a, b, questions, resamples=10)


def agreed(ours, path, arms):
    return agreement([ours], read_opinions(path, arms, [(ours.a, ours.b)]))


@pytest.fixture
def reviews(tmp_path):
    def write(*scores):
        path = tmp_path / "reviews.jsonl"
        rows = [{"question_id": n, "score": score, "text": ""} for n, score in enumerate(scores)]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    return write


def test_reviews_are_of_the_two_arms_in_their_order(reviews):
    path = reviews([2, 8], [5, 5], [9, 1], [3, 4])
    ours = compared([(8, 2), (5, 5), (1, 9), (6, 4)])  # new beside base
    [found] = agreed(ours, path, ["base", "new"])
    assert (found.n, found.same, found.kappa, found.spearman) == (4, 1.0, 1.0, pytest.approx(1.0))
    [turned] = agreed(ours, path, ["new", "base"])
    assert turned.same == 0.25
    assert turned.spearman == pytest.approx(-1)


def test_only_questions_of_both_count(reviews):
    [found] = agreed(compared([(8, 2), (5, 5), (1, 9)]), reviews([2, 8], [7, 3]), ["base", "new"])
    assert (found.n, found.same) == (2, 0.5)


def test_reviews_do_not_name_arms_so_there_must_be_two(reviews):
    with pytest.raises(ConfigError, match="there are 3 arms here"):
        agreed(compared([(8, 2)]), reviews([2, 8]), ["base", "new", "third"])


def test_a_file_without_a_common_verdict_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_opinions(tmp_path / "nothing", ["a", "b"], [("b", "a")])
    (tmp_path / "other").write_text('{"x": 1}\n')
    with pytest.raises(DataError, match="no valid verdict on a pair"):
        read_opinions(tmp_path / "other", ["base", "new"], [("new", "base")])


@pytest.mark.parametrize("mode", ["score", "pairwise", "single"])
def test_a_judge_agrees_with_itself_and_not_with_another(server, endpoint, questions, tmp_path, mode):
    arms = {"base": questions("good", "x", "x", "good"), "new": questions("good good", "good", "x", "x")}

    def sensible(call):
        scores = by_quality(call).split("\n")[0].split()
        if mode == "score":
            return " ".join(scores)
        if mode == "single":
            return f"[[{scores[0]}]]"
        first, second = map(int, scores)
        return "[[C]]" if first == second else "[[A]]" if first > second else "[[B]]"

    server.script = sensible
    first = judge(arms, endpoint(), out=tmp_path / "one", mode=mode, with_canaries=True, resamples=10)
    other = endpoint()
    other.name = "other"
    kept = tmp_path / "one" / "verdicts.jsonl"
    second = judge(arms, other, out=tmp_path / "two", mode=mode, agree_with=kept, resamples=10)
    [found] = second.agreement
    assert (found.a, found.b, found.n, found.same, found.kappa) == ("new", "base", 4, 1.0, 1.0)
    assert found.spearman == pytest.approx(1)
    assert second.as_dict()["agreement"] == [found.as_dict()]
    assert "Agreement with the other judge" in second.markdown()
    assert first.agreement == []


def test_a_judge_with_a_bias_disagrees(server, endpoint, questions, tmp_path):
    arms = {"base": questions("good", "x", "x"), "new": questions("good good", "good", "x")}
    server.script = by_quality
    judge(arms, endpoint(), out=tmp_path / "one", resamples=10)
    server.script = first_is_better
    second = judge(
        arms, endpoint(), out=tmp_path / "two", agree_with=tmp_path / "one" / "verdicts.jsonl", resamples=10
    )
    [found] = second.agreement
    assert (found.n, found.spearman, found.kappa) == (3, None, 0.0)
    assert found.same == pytest.approx(1 / 3)


def test_a_file_of_two_judges_is_no_judge(server, endpoint, questions, tmp_path):
    arms = {"base": questions("x"), "new": questions("y")}
    other = endpoint()
    other.name = "other"
    for one in (endpoint(), other):
        judge(arms, one, out=tmp_path, resamples=10)
    with pytest.raises(DataError, match=r"several judges or modes, m \(score\), other \(score\)"):
        read_opinions(tmp_path / "verdicts.jsonl", ["base", "new"], [("new", "base")])


def test_a_judge_is_compared_with_people(server, endpoint, questions, tmp_path):
    arms = {"base": questions("good", "x", "x", "x"), "new": questions("good good", "good", "x", "good")}
    server.script = by_quality  # new wins on q0, q1 and q3, q2 is a tie
    path = tmp_path / "votes.jsonl"

    def vote(question, first, second, winner, **more):
        return {"question_id": question, "first": first, "second": second, "winner": winner, **more}

    append(
        path,
        [
            vote("q0", "base", "new", "second"),
            vote("q1", "new", "base", "first"),
            vote("q1", "base", "new", "tie"),
            vote("q2", "new", "base", "both_bad"),
            vote("q3", "base", "new", "first"),
            vote("q3", "base", "new", "second", blind=False),  # the names were seen
            vote(None, "base", "new", "first"),  # of no question set
            vote("q0", "other", "new", "first"),
        ],
    )
    [found] = judge(arms, endpoint(), out=tmp_path / "out", agree_with=path, resamples=10).agreement
    assert (found.a, found.b, found.n, found.same) == ("new", "base", 4, 0.75)
    assert found.spearman > 0


def test_a_file_that_cannot_be_used_is_noticed_before_anything_is_asked(server, endpoint, questions, tmp_path):
    arms = {"base": questions("x"), "new": questions("y")}
    with pytest.raises(DataError, match="there is no file"):
        judge(arms, endpoint(), out=tmp_path / "out", agree_with=tmp_path / "nothing")
    assert server.calls == []
