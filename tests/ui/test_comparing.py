"""Comparisons: an order of chance, one vote, and lines that tell all of it."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from fedit.data.examples import Message
from fedit.errors import ConfigError
from fedit.evaluation.questions import load_questions
from fedit.evaluation.votes import tally
from fedit.resident import Sampling
from fedit.ui.comparing import Ballot
from fedit.ui.questions import Question, first_turns, shuffled
from fedit.ui.speaker import Spoken

ARMS = ["base", "local:a", "centralised", "federated"]
GREEDY = Sampling(8)


@pytest.fixture
def ballot(tmp_path):
    return Ballot(tmp_path / "votes.jsonl", {name: f"id of {name}" for name in ARMS}, seed=1)


def draw(ballot, arms=2, *, blind=True, sampling=GREEDY, answered=True):
    made = ballot.draw(
        Question("7", "why?", "open"), ARMS[:arms], system="Be brief.", blind=blind, sampling=sampling
    )
    if answered:
        made.answers += [Spoken(f"by {name}", 3, 5, 1.0, "stop", f"prompt of {name}") for name in made.arms]
    return made


def lines(ballot):
    import json

    return [json.loads(line) for line in ballot.path.read_text().splitlines()]


def test_every_order_comes_and_a_seed_repeats_them(ballot, tmp_path):
    orders = [tuple(draw(ballot, 3).arms) for _ in range(120)]
    counts = Counter(orders)
    assert len(counts) == 6
    assert min(counts.values()) > 5
    again = Ballot(tmp_path / "other.jsonl", {}, seed=1)
    assert [tuple(draw(again, 3).arms) for _ in range(120)] == orders
    other = Ballot(tmp_path / "other.jsonl", {}, seed=2)
    assert [tuple(draw(other, 3).arms) for _ in range(120)] != orders


def test_open_comparisons_keep_the_order_that_was_asked_for(ballot):
    assert all(draw(ballot, 4, blind=False).arms == ARMS for _ in range(5))


@pytest.mark.parametrize("choice", ["A", "B", "tie", "both_bad"])
def test_a_vote_on_two_is_one_line_with_all_that_it_is_about(ballot, choice):
    made = draw(ballot)
    ballot.vote(made.id, choice)
    [record] = lines(ballot)
    first, second = made.arms
    assert record["winner"] == {"A": "first", "B": "second"}.get(choice, choice)
    assert (record["first"], record["second"], record["arms"]) == (first, second, [first, second])
    assert record["answers"] == {"first": f"by {first}", "second": f"by {second}"}
    assert record["prompts"] == {"first": f"prompt of {first}", "second": f"prompt of {second}"}
    assert record["identities"] == {"first": f"id of {first}", "second": f"id of {second}"}
    assert (record["question_id"], record["question"], record["category"]) == ("7", "why?", "open")
    assert (record["system"], record["blind"]) == ("Be brief.", True)
    assert record["settings"] == {"max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "seed": None}
    assert record["time"].endswith("Z")


@pytest.mark.parametrize(("choice", "verdicts"), [("B", 3), ("tie", 6), ("both_bad", 6)])
def test_a_vote_among_four_decides_only_what_it_says(ballot, choice, verdicts):
    made = draw(ballot, 4)
    ballot.vote(made.id, choice)
    records = lines(ballot)
    assert len(records) == verdicts
    assert {record["vote"] for record in records} == {made.id}
    if choice == "B":
        chosen = made.names["B"]
        assert all(record[record["winner"]] == chosen for record in records)
    assert tally(ballot.read()).votes == 1


def test_a_comparison_has_one_vote(ballot):
    made = draw(ballot)
    ballot.vote(made.id, "A")
    with pytest.raises(ConfigError, match="voted on already"):
        ballot.vote(made.id, "B")
    assert len(lines(ballot)) == 1


def test_votes_that_cannot_be_are_refused_and_write_nothing(ballot):
    made = draw(ballot)
    with pytest.raises(ConfigError, match="choice is 'C'; expected one of A, B, tie, both_bad"):
        ballot.vote(made.id, "C")
    with pytest.raises(ConfigError, match="not known here"):
        ballot.vote("nothing", "A")
    with pytest.raises(ConfigError, match="not all of its answers"):
        ballot.vote(draw(ballot, answered=False).id, "A")
    assert not ballot.path.exists()


def test_a_vote_that_could_not_be_written_can_be_given_again(ballot):
    made = draw(ballot)
    ballot.path.mkdir()
    with pytest.raises(Exception, match="cannot write"):
        ballot.vote(made.id, "A")
    ballot.path.rmdir()
    ballot.vote(made.id, "A")
    assert len(lines(ballot)) == 1


def test_drawn_answers_are_repeatable_from_their_line(ballot):
    assert draw(ballot).sampling.seed is None
    drawn = draw(ballot, sampling=Sampling(8, temperature=1.0))
    assert drawn.sampling.seed is not None
    assert draw(ballot, sampling=Sampling(8, temperature=1.0, seed=5)).sampling.seed == 5


def test_old_comparisons_are_forgotten(ballot):
    first = draw(ballot)
    for _ in range(256):
        last = draw(ballot)
    ballot.vote(last.id, "A")
    with pytest.raises(ConfigError):
        ballot.vote(first.id, "A")


def test_the_prompt_s_hash_is_of_its_tokens(service):
    [*_, spoken] = service.speaker.ask("base", [Message("user", "copy: red 1")], Sampling(4)).pieces()
    prompt = service.speaker.resident.prompt("base", [Message("user", "copy: red 1")], 4)
    assert spoken.prompt == hashlib.sha256(np.array(prompt, dtype="<i4").tobytes()).hexdigest()
    assert spoken.prompt_tokens == len(prompt)


# --- questions ---


def test_the_first_turns_of_a_set_are_asked(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"question_id": 81, "category": "writing", "turns": ["First?", "Then?"]}\n'
        '{"question": " Why? "}\n'
        '{"instruction": "Sum up.", "input": "A text.", "question_id": "x"}\n'
    )
    assert first_turns(load_questions(str(path))) == [
        Question("81", "First?", "writing"), Question("2", "Why?"), Question("x", "Sum up.\n\nA text."),
    ]  # fmt: skip


def test_a_seed_decides_the_order_of_questions():
    questions = [Question(str(n), "?") for n in range(50)]
    one, other = shuffled(questions, 1), shuffled(questions, 2)
    assert one == shuffled(questions, 1) != other
    assert sorted(one, key=lambda q: int(q.id)) == questions
