import json
import socket

import pytest
from judge_server import JudgeServer, by_quality, failing, in_turn

from fedit.cli.judge import _FOR_ENDPOINTS
from fedit.judging.shielding import LONGEST

KEY = "sk-secret-0123456789"


@pytest.fixture
def server():
    with JudgeServer(by_quality) as running:
        yield running


@pytest.fixture
def answers(tmp_path):
    """Two arms' files in a folder of their own."""
    folder = tmp_path / "study" / "answers"
    folder.mkdir(parents=True)
    for arm, texts in {"base": ["good", "x", "good"], "tuned": ["good good", "good", "x"]}.items():
        rows = [
            {"question_id": str(n), "category": "c", "turns": [f"{n}?"], "answers": [text], "reference": None}
            for n, text in enumerate(texts)
        ]
        (folder / f"{arm}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture
def run(fedit, server, answers, tmp_path, monkeypatch):
    """Call ``fedit judge`` on the two arms with the server as the judge."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)

    def call(*options):
        files = [answers / "base.jsonl", answers / "tuned.jsonl"]
        at = ("--judge", "m", "--base-url", server.url, "--out", tmp_path / "out")
        return fedit("judge", *files, *at, *options)

    return call


def test_arms_are_compared_and_the_result_is_shown_and_kept(run, tmp_path):
    outcome = run()
    assert outcome.code == 0
    assert "tuned / base" in outcome.out
    assert "verdicts 6/6" in outcome.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "verdicts.jsonl",
        "judgement.json",
        "judgement.md",
    }


def test_json_is_all_there_is_on_standard_output(run, tmp_path):
    outcome = run("--json", "--canaries")
    found = json.loads(outcome.out)
    assert found == json.loads((tmp_path / "out" / "judgement.json").read_text())
    [comparison] = found["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["n"]) == ("tuned", "base", 3)
    assert comparison["relative"] == pytest.approx((7 + 5 + 3) / (5 + 3 + 5))
    assert comparison["ci"][0] <= comparison["relative"] <= comparison["ci"][1]
    assert {canary["name"] for canary in found["canaries"]} == {"empty", "identical"}
    assert not found["partial"]


def test_a_folder_is_a_study_and_keeps_its_judgement(fedit, server, answers):
    study = answers.parent
    outcome = fedit("judge", study, "--judge", "m", "--base-url", server.url, "--mode", "score", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["baseline"] == "base"
    assert (study / "judgement-score" / "judgement.md").is_file()


def test_the_second_time_nothing_is_asked(run, server):
    first = run("--json")
    asked = len(server.calls)
    second = run("--json")
    assert len(server.calls) == asked
    assert json.loads(first.out)["comparisons"] == json.loads(second.out)["comparisons"]


def test_a_spent_budget_ends_with_what_there_is_and_the_next_call_goes_on(run, server, tmp_path):
    outcome = run("--max-tokens-budget", "240", "--concurrency", "1", "--json")
    assert outcome.code == 1
    assert "partial" in outcome.err
    assert "budget of 240 tokens is spent" in outcome.err
    assert "Run the same command again to go on" in outcome.err
    found = json.loads(outcome.out)
    assert (found["partial"], found["verdicts"]["valid"], found["comparisons"][0]["n"]) == (True, 2, 1)
    assert run("--json").code == 0
    assert len(server.calls) == 6


def test_a_budget_in_money_needs_prices(run, server):
    outcome = run("--max-cost", "1")
    assert outcome.code == 2
    assert "--price-in and --price-out" in outcome.err
    assert run("--max-cost", "0.0002", "--price-in", "1", "--price-out", "1").code == 1
    assert len(server.calls) == 2


def test_ctrl_c_keeps_what_was_judged(run, server, monkeypatch):
    def interrupting(screen):
        def tell(done, total):
            if done == 2:
                raise KeyboardInterrupt

        return tell

    with monkeypatch.context() as patch:
        patch.setattr("fedit.cli.judge._tenths", interrupting)
        outcome = run("--concurrency", "1")
    assert outcome.code == 130
    assert "the same command goes on" in outcome.err
    run()
    assert len(server.calls) == 6


def test_the_key_is_sent_and_written_nowhere(run, server, tmp_path):
    server.script = in_turn(failing(429, f"slow down, {KEY}"), f"8 7\nYour key is {KEY}.")
    outcome = run("--json", "--canaries")
    assert outcome.code == 0
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in outcome.out + outcome.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_a_refused_key_is_not_shown(run, server):
    server.script = lambda call: failing(401, f"invalid key {KEY}")
    outcome = run()
    assert outcome.code == 2
    assert "invalid key [key removed]" in outcome.err
    assert KEY not in outcome.err


def test_another_variable_may_hold_the_key(run, server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "another-0123456789")
    assert run("--api-key-env", "JUDGE_KEY").code == 0
    assert server.calls[0].headers["authorization"] == "Bearer another-0123456789"
    outcome = run("--api-key-env", "NO_SUCH_KEY")
    assert outcome.code == 2
    assert "NO_SUCH_KEY is not set" in outcome.err


def test_nothing_is_sent_elsewhere_without_a_word(fedit, answers, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: asked.append(arguments))
    for where in ((), ("--base-url", "https://judge.example.com/v1")):
        outcome = fedit("judge", answers, "--judge", "m", *where, "--out", tmp_path / "out")
        assert outcome.code == 2
        assert "--allow-remote" in outcome.err
        assert "clients' data" in outcome.err
    assert asked == []
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_does_not_answer_is_a_failure(run, server):
    server.script = lambda call: failing(503, "loading")
    outcome = run("--retries", "0", "--concurrency", "1")
    assert outcome.code == 1
    assert "5 requests in a row got no reply from m, the last one: HTTP 503: loading" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the answers and the judge"),
        (("A",), "name the answers and the judge"),
        (("A", "--judge", "m", "--mode", "pairwize"), "unknown mode 'pairwize'; did you mean 'pairwise'?"),
        (("A", "--judge", "m", "--temperature", "hot"), "expected a number from 0 to 2, or none"),
        (("A", "--judge", "m", "--reparse"), "--reparse means nothing with asking a judge"),
        (("A", "--judge", "local:x", "--concurrency", "2"), "--concurrency means nothing with a local model"),
        (("--recorded", "R", "--judge", "m", "--out", "o"), "--judge, --out mean nothing with --recorded"),
        (("A", "--judge", "m", "--base-url", "http://127.0.0.1:1", "--baseline", "bse"), "did you mean 'base'?"),
        (("missing.jsonl", "--judge", "m"), "there is no file missing.jsonl"),
    ],
)
def test_mistakes_are_explained(fedit, answers, arguments, words):
    paths = {"A": answers, "R": answers / "base.jsonl"}
    outcome = fedit("judge", *(paths.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert words in outcome.err


def test_every_option_of_endpoints_is_one():
    import inspect

    from fedit.cli.judge import judge

    parameters = inspect.signature(judge).parameters
    assert set(_FOR_ENDPOINTS) <= set(parameters)
    assert parameters["max_answer_chars"].default == LONGEST


# --- recorded reviews ---


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.jsonl"
    rows = [([8, 9], "8 9\nWell."), ([7, 7], "7 7"), ([2, 9], "Hm.\nOutput: (2, 9)"), ([1, 3], "One and three.")]
    lines = [json.dumps({"question_id": n, "score": score, "text": text}) for n, (score, text) in enumerate(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_recorded_reviews_are_added_up(fedit, reviews, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outcome = fedit("judge", "--recorded", reviews, "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert (found["sum_a"], found["sum_b"], found["invalid"], found["n"]) == (18, 28, 0, 4)
    assert found["relative"] == pytest.approx(18 / 28)
    assert found["ci"][0] < found["relative"] < found["ci"][1]
    assert sorted(tmp_path.rglob("*")) == before


def test_recorded_texts_can_be_read_again(fedit, reviews):
    outcome = fedit("judge", "--recorded", reviews, "--reparse", "--json")
    found = json.loads(outcome.out)
    assert (found["sum_a"], found["sum_b"], found["n"]) == (17, 25, 3)
    assert (found["invalid"], found["invalid_reasons"]) == (1, {"no line with a verdict": 1})
    assert "more than 5 % of the reviews are invalid" in outcome.err


def test_people_see_a_table_of_reviews(fedit, reviews, answers):
    outcome = fedit("judge", "--recorded", reviews, "--agree-with", reviews)
    assert outcome.code == 0
    assert "18.0 / 28.0" in outcome.out
    assert "4 reviews, 0 invalid" in outcome.out
    assert "same outcome" in outcome.out
    outcome = fedit("judge", "--recorded", reviews, answers / "base.jsonl")
    assert outcome.code == 2
    assert "1 files of answers are given with --recorded" in outcome.err


def test_lengths_of_recorded_answers_are_reported(fedit, reviews, answers):
    files = (answers / "base.jsonl", answers / "tuned.jsonl")
    found = json.loads(fedit("judge", *files, "--recorded", reviews, "--json").out)
    assert found["mean_length_a"] == pytest.approx(3)
    assert found["longer_wins"] == 0.5
