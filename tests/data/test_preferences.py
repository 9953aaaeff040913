"""Preferences: which rows are pairs, what is compared, and the generated set."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from fedit import inspection
from fedit.data.examples import Example, Message, prompt_id, row_id
from fedit.data.pairs import tokenize_pairs
from fedit.data.schemas import choose_schema
from fedit.data.skills import load_skills
from fedit.data.skills.preferences import with_rejected
from fedit.data.templates import get_template
from fedit.data.tokens import ANSWER_CUT, PROMPT_CUT, WHOLE, tokenize
from fedit.errors import DataError
from fedit.prepare import prepare

TOKENIZER = make_tokenizer()
TEMPLATE = get_template("chat", TOKENIZER)


def read(row, data_format="auto", **columns):
    return choose_schema(row, data_format, columns, "f:1").read(row, "f:1")


def pair(prompt, chosen, rejected, **fields):
    turns = (Message("user", prompt), Message("assistant", chosen))
    return Example(turns, rejected=rejected, where="f:1", **fields)


def turn(role, content):
    return {"role": role, "content": content}


def decoded(table, index):
    row = table.row(index)
    return TOKENIZER.decode(row.ids[row.supervised]), TOKENIZER.decode(row.ids[~row.supervised])


# --- rows ---

Q, A, B = turn("user", "q"), turn("assistant", "a"), turn("assistant", "b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": "q", "chosen": [A], "rejected": [B]},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "q", "prompt_id": "1", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A]},
        {"prompt": "q", "chosen": "a", "rejected": [B]},
        {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": [Q, B]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_the_hubs_ways_to_write_a_preference_are_one(row):
    assert choose_schema(row, "auto", {}, "f:1").name == "preference"
    assert read(row) == pair("q", "a", "b")


def test_a_preference_may_follow_several_turns_and_a_system_turn():
    before = [turn("system", "s"), Q, A, turn("user", "r")]
    expected = (*(Message(t["role"], t["content"]) for t in before), Message("assistant", "x"))
    found = read({"prompt": before, "chosen": "x", "rejected": "y", "category": "c"})
    assert (found.messages, found.rejected, found.category) == (expected, "y", "c")
    whole = {"chosen": [*before, turn("assistant", "x")], "rejected": [*before, turn("assistant", "y")]}
    assert read(whole).messages == expected


def test_columns_name_the_parts_of_a_pair():
    row = {"question": "q", "good": "a", "bad": "b", "text": "c"}
    columns = {"instruction": "question", "response": "good", "rejected": "bad", "context": "text"}
    assert read(row, **columns) == pair("q", "a", "b", context="c")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "a", "rejected": "b"}, "the answer has no prompt"),
        ({"prompt": [A], "chosen": "a", "rejected": "b"}, "the last is the user's"),
        ({"chosen": [Q, A], "rejected": [turn("user", "other"), B]}, "differ before their last answer"),
        ({"prompt": "q", "chosen": [Q], "rejected": [Q, B]}, "no assistant turn"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "expected a list of turns"),
    ],
)
def test_a_row_that_compares_nothing_is_refused(row, words):
    with pytest.raises(DataError, match=words):
        read(row)


def test_rows_of_other_formats_stay_what_they_were():
    assert choose_schema({"prompt": "q", "completion": "a", "rejected": "b"}, "auto", {}, "f").name != "preference"
    assert read({"instruction": "q", "output": "a"}).rejected is None


def test_the_rejected_answer_is_part_of_a_rows_identity():
    one, two = pair("q", "a", "b"), pair("q", "a", "c")
    assert row_id(one) != row_id(two)
    assert prompt_id(one) == prompt_id(two)
    assert row_id(one) != row_id(Example(one.messages))


# --- tokens ---


def test_only_the_last_answers_are_compared():
    turns = tuple(Message(role, text) for role, text in (("user", "q"), ("assistant", "a"), ("user", "r")))
    example = Example((*turns, Message("assistant", "yes")), rejected="no")
    chosen, rejected = tokenize_pairs([example], TOKENIZER, TEMPLATE, max_length=200)
    assert decoded(chosen, 0)[0].startswith("yes")
    assert decoded(rejected, 0)[0].startswith("no")
    assert decoded(chosen, 0)[1] == decoded(rejected, 0)[1]
    whole = tokenize([example], TOKENIZER, TEMPLATE, max_length=200)
    assert chosen.row(0).ids.tolist() == whole.row(0).ids.tolist()


@settings(max_examples=40)
@given(
    prompt=st.integers(1, 60), answers=st.tuples(st.integers(0, 60), st.integers(0, 60)), room=st.integers(8, 120)
)
def test_both_answers_of_a_cut_pair_answer_one_prompt(prompt, answers, room):
    example = pair("".join(chr(97 + i % 26) for i in range(prompt)), "x" * answers[0], "y" * answers[1])
    whole = tokenize_pairs([example], TOKENIZER, TEMPLATE, max_length=10_000)
    cut = tokenize_pairs([example], TOKENIZER, TEMPLATE, max_length=room)
    prompts = []
    for full, short in zip(whole, cut, strict=True):
        before, after = full.row(0), short.row(0)
        assert len(after.ids) <= room
        assert after.supervised.any()
        prompts.append(after.ids[~after.supervised].tolist())
        targets = before.ids[before.supervised]
        kept = after.ids[after.supervised]
        assert (targets[: len(kept)] == kept).all()
        assert not after.supervised[0]
        flag = int(short.truncated[0])
        assert flag in (WHOLE, PROMPT_CUT, ANSWER_CUT)
        assert (flag == WHOLE) == (len(after.ids) == len(before.ids))
    assert prompts[0] == prompts[1]


# --- the generated set ---


def test_generated_preferences_reject_something_else_and_keep_the_skills_answers():
    skills = load_skills(per_category=12, seed=3)
    pairs = with_rejected(skills, 3)
    assert [e.messages for e in pairs.all()] == [e.messages for e in skills.all()]
    assert all(e.rejected and e.rejected != e.answer for e in pairs.all())
    assert with_rejected(skills, 3) == pairs
    assert with_rejected(skills, 4) != pairs
    held_out = {e.answer for e in skills.held_out}
    assert not any(e.rejected in held_out for e in pairs.examples)


# --- a job ---


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def rows(count):
    return [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def test_a_job_compares_the_rows_and_leaves_out_equal_answers(make_config, tmp_path):
    data = [*rows(20), {"prompt": "same", "chosen": "x", "rejected": "x"}]
    job = prepare(make_config(dataset=write(tmp_path / "p.jsonl", data), objective="dpo"))
    assert job.partition.removed["same_answers"] == 1
    (first, *_), *_ = job.clients.values()
    (found,) = job.learnt([first])
    chosen, rejected = found.rows
    assert TOKENIZER.decode(chosen.ids[chosen.supervised]).startswith(first.answer)
    assert TOKENIZER.decode(rejected.ids[rejected.supervised]).startswith(first.rejected)


def test_supervised_tuning_on_preferences_learns_the_chosen_answers(make_config, tmp_path):
    data = [*rows(20), {"prompt": "question 0", "chosen": "yes 0", "rejected": "never"}]
    job = prepare(make_config(dataset=write(tmp_path / "p.jsonl", data)))
    assert job.rejected is None
    assert job.partition.removed["duplicate"] == 1
    assert all(example.rejected is None for example in job.corpus.all())


def test_rows_without_a_rejected_answer_are_refused_by_place(make_config):
    with pytest.raises(DataError, match=r"60 of 60 rows have no rejected one \(.*rows.jsonl:1"):
        prepare(make_config(objective="dpo"))


def test_the_audit_counts_pairs_and_equal_answers(make_config, tmp_path):
    data = [*rows(9), {"prompt": "same", "chosen": "x", "rejected": "x"}]
    config = make_config(dataset=write(tmp_path / "p.jsonl", data), objective="dpo")
    audit = inspection.inspect(config, examples=1).audit
    assert (audit.pairs, audit.same_answers.count) == (10, 1)
    assert np.all(np.array(audit.supervised_lengths) > 0)
