"""Row formats: what is recognised, how it is read, and what is refused."""

import pytest

from fedit.data.examples import Example, Message
from fedit.data.schemas import SCHEMAS, choose_schema
from fedit.errors import DataError, UnknownName


def read(row, data_format="auto", **columns):
    return choose_schema(row, data_format, columns, "f:1").read(row, "f:1")


def pair(question, answer, **fields):
    return Example((Message("user", question), Message("assistant", answer)), where="f:1", **fields)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "q", "input": "c", "output": "a"}, pair("q", "a", context="c")),
        ("alpaca", {"instruction": "q", "output": "a"}, pair("q", "a")),
        (
            "dolly",
            {"instruction": "q", "context": "c", "response": "a", "category": "qa"},
            pair("q", "a", context="c", category="qa"),
        ),
        ("dolly", {"instruction": "q", "context": None, "response": "a"}, pair("q", "a")),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, pair("q", "a")),
        (
            "messages",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "category": 3},
            pair("q", "a", category="3"),
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            pair("q", "a"),
        ),
        (
            "sharegpt",
            {"conversation": [{"from": "User", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
            pair("q", "a"),
        ),
    ],
)
def test_a_format_is_recognised_by_its_fields(name, row, expected):
    assert choose_schema(row, "auto", {}, "f:1").name == name
    assert read(row) == expected
    assert read(row, name) == expected


def test_the_users_field_names_go_first():
    row = {"question": "q", "text": "c", "reply": "a", "kind": "k"}
    example = read(row, instruction="question", context="text", response="reply", category="kind")
    assert example == pair("q", "a", context="c", category="k")
    assert read({"instruction": "q", "reply": "a"}, response="reply") == pair("q", "a")


def test_a_category_can_be_named_for_a_conversation():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read({"messages": turns, "topic": "t"}, category="topic").category == "t"


CHECK = {"kind": "exact", "value": "4"}
CHECK_TEXT = '{"kind":"exact","value":"4"}'


@pytest.mark.parametrize("value", [CHECK, CHECK_TEXT, {**CHECK, "count": None}])
def test_a_row_brings_its_check_as_an_object_or_as_json_text(value):
    row = {"instruction": "2+2?", "output": "4"}
    assert read({**row, "check": value}).check == CHECK_TEXT
    assert read({**row, "grader": value}, check="grader").check == CHECK_TEXT
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert read({"messages": turns, "check": value}).check == CHECK_TEXT
    assert read({"messages": turns, "grader": value}, check="grader").check == CHECK_TEXT


@pytest.mark.parametrize("value", [None, "", "ok", "{name}", True, 3, ["x"], {"at": 3}])
def test_a_field_that_only_happens_to_be_called_check_is_left_alone(value):
    assert read({"instruction": "q", "output": "a", "check": value}).check is None


def test_a_named_check_must_be_one():
    row = {"instruction": "q", "output": "a"}
    assert read({**row, "grader": None}, check="grader").check is None
    with pytest.raises(DataError, match=r"f:1: 'grader' is text, expected a check such as"):
        read({**row, "grader": "exact"}, check="grader")
    with pytest.raises(DataError, match=r"f:1: the check .* is broken JSON"):
        read({**row, "check": '{"kind": exact}'})


def test_gsm8k_rows_are_checked_by_their_final_number():
    row = {"question": "How many?", "answer": "2*540=<<2*540=1080>>1080\n#### 1,080"}
    example = read(row)
    assert choose_schema(row, "auto", {}, "f:1").name == "gsm8k"
    assert example == pair("How many?", row["answer"], check='{"kind":"number","value":"1,080"}')
    assert read({**row, "check": CHECK}).check == CHECK_TEXT
    with pytest.raises(DataError, match="needs question, answer that ends with '#### number'"):
        read({"question": "How many?", "answer": "4"}, "gsm8k")
    with pytest.raises(DataError, match="fit none of the known formats"):
        read({"question": "How many?", "answer": "4"})


def test_conversations_keep_system_and_later_turns_and_end_with_an_answer():
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    turns = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    messages = read({"messages": turns}).messages
    assert [(message.role, message.content) for message in messages] == [
        (role, str(number)) for number, role in enumerate(roles[:-1])
    ]


@pytest.mark.parametrize(("value", "text"), [(None, ""), (42, "42"), (0.5, "0.5"), (True, "True"), ("", "")])
def test_answers_that_are_no_text_become_text(value, text):
    assert read({"instruction": "q", "response": value}).answer == text


def turns(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": ["q"], "response": "a"}, "f:1: 'instruction' is a list, expected text"),
        ({"instruction": None, "response": "a"}, "f:1: 'instruction' is null, expected text"),
        ({"instruction": "q", "response": {"a": 1}}, "f:1: 'response' is an object"),
        ({"instruction": "q", "context": 3, "response": "a"}, "f:1: 'context' is a number"),
        ({"instruction": "q", "response": "a", "category": []}, "f:1: 'category' is a list"),
        (turns(("user", "q")), "f:1: the conversation has no assistant turn"),
        ({"messages": []}, "f:1: the conversation has no assistant turn"),
        (turns(("user", "q"), ("tool", "x"), ("assistant", "a")), "f:1, turn 2: role 'tool' is not known"),
        (turns(("user", "q"), ("system", "x"), ("assistant", "a")), "f:1, turn 2: a system turn can only"),
        (turns(("user", 1), ("assistant", "a")), "f:1, turn 1: 'content' is a number"),
        ({"messages": [{"role": "user", "content": "q"}, "a"]}, "f:1, turn 2: found text"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"content": "a"}]},
            "turn 2: the field 'role' is missing",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(row, message):
    with pytest.raises(DataError, match=message):
        read(row)


def test_a_later_row_without_the_field_is_named():
    schema = choose_schema({"instruction": "q", "response": "a"}, "auto", {}, "f:1")
    with pytest.raises(DataError, match="f:9: the field 'response' is missing; fields found: instruction, answer"):
        schema.read({"instruction": "q", "answer": "a"}, "f:9")


def test_unknown_fields_are_listed_with_what_to_set():
    with pytest.raises(DataError, match=r"fields found: q, a;.*columns\.instruction=FIELD"):
        read({"q": "x", "a": "y"})
    with pytest.raises(DataError, match=r"data_format 'alpaca' needs instruction, output;.*columns\.response"):
        read({"instruction": "x", "response": "y"}, "alpaca")
    with pytest.raises(DataError, match=r"'messages' needs messages: a list of \{role, content\}"):
        read({"messages": "hello"}, "messages")


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'alpaca'"):
        read({"instruction": "q", "output": "a"}, "alpacca")
    with pytest.raises(UnknownName, match="unknown column 'answer'"):
        read({"instruction": "q", "output": "a"}, answer="output")
    with pytest.raises(
        DataError, match=r"no field 'respons', which columns.response names; did you mean 'response'"
    ):
        read({"instruction": "q", "response": "a"}, response="respons")


def test_every_format_is_found_by_its_own_name():
    assert all(name == schema.name for name, schema in SCHEMAS.items())
