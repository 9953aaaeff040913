"""The row formats in use: which fields make a row's instruction, context, answer and category."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedit.data.checks import check_of_field, gsm8k_check
from fedit.data.examples import Example, Message
from fedit.errors import DataError, UnknownName, did_you_mean

Row = Mapping[str, object]

COLUMNS = ("instruction", "context", "response", "rejected", "category", "check")
_SOME_CHECK = '{"kind": "number", "value": 18}'
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """One row format.

    columns:  which field holds which of `COLUMNS`; of a conversation, only the category and the check.
    turns:    for conversations, the fields that may hold the list of turns; () for single turns.
    turn:     for conversations, the fields of a turn: its role and its text.
    solution: answers end with "#### " and a number, which is how a row without a check is checked.

    With a column "rejected" the rows are preferences.
    """

    name: str
    columns: Mapping[str, str]
    turns: tuple[str, ...] = ()
    turn: tuple[str, str] = ("", "")
    solution: bool = False

    @property
    def prefers(self) -> bool:
        """Whether a row holds two answers, one of which was preferred."""
        return "rejected" in self.columns

    @property
    def shape(self) -> str:
        """The fields a row needs, for messages to the user."""
        if self.prefers:
            return f"{self.columns['response']}, {self.columns['rejected']}, {self.columns['instruction']} or not"
        if self.turns:
            return f"{' or '.join(self.turns)}: a list of {{{self.turn[0]}, {self.turn[1]}}}"
        fields = f"{self.columns['instruction']}, {self.columns['response']}"
        return f"{fields} that ends with '#### number'" if self.solution else fields

    def fits(self, row: Row) -> bool:
        """Return whether ``row`` has the fields of this format."""
        if self.prefers:
            return self.columns["response"] in row and self.columns["rejected"] in row
        if not self.turns:
            if self.columns["instruction"] not in row or self.columns["response"] not in row:
                return False
            return not self.solution or gsm8k_check(str(row[self.columns["response"]])) is not None
        turns = next((row[field] for field in self.turns if field in row), None)
        return isinstance(turns, list) and all(
            isinstance(turn, Mapping) and self.turn[0] in turn for turn in turns[:1]
        )

    def read(self, row: Row, where: str) -> Example:
        """Return the example that ``row`` holds.

        Raises:
            DataError: a field is missing or has the wrong type.
        """
        if self.prefers:
            return self._preference(row, where)
        if self.turns:
            field = next((field for field in self.turns if field in row), self.turns[0])
            messages = _conversation(_field(row, field, where), self.turn, where)
            category, check = _category(row, self.columns, where), _check(row, self.columns, where)
            return Example(messages, category=category, check=check, where=where)
        instruction = _text(row, self.columns["instruction"], where, optional=False)
        context = _text(row, self.columns["context"], where) if "context" in self.columns else ""
        answer = _answer(row, self.columns["response"], where)
        return Example(
            (Message("user", instruction), Message("assistant", answer)),
            context=context,
            category=_category(row, self.columns, where),
            check=_check(row, self.columns, where) or (gsm8k_check(answer) if self.solution else None),
            where=where,
        )

    def _preference(self, row: Row, where: str) -> Example:
        """Return the preferred conversation, with the answer that was not preferred in place of its last."""
        prompt = row.get(self.columns["instruction"])
        sides = [
            _side(prompt, _field(row, self.columns[column], where), f"{where}, '{self.columns[column]}'")
            for column in ("response", "rejected")
        ]
        if sides[0][:-1] != sides[1][:-1]:
            raise DataError(
                f"{where}: the chosen and the rejected conversation differ before their last answer; a preference "
                "compares two answers to one prompt."
            )
        return Example(
            sides[0],
            context=_text(row, self.columns["context"], where) if "context" in self.columns else "",
            category=_category(row, self.columns, where),
            check=_check(row, self.columns, where),
            where=where,
            rejected=sides[1][-1].content,
        )


def _single(name: str, instruction: str, response: str, context: str | None) -> Schema:
    columns = {"instruction": instruction, "response": response, "category": "category"}
    return Schema(name, columns | ({"context": context} if context else {}))


SCHEMAS: Mapping[str, Schema] = {
    schema.name: schema
    for schema in (
        # First: such rows may also hold the preferred conversation on its own.
        Schema(
            "preference",
            {"instruction": "prompt", "response": "chosen", "rejected": "rejected", "category": "category"},
        ),
        Schema("messages", {"category": "category"}, ("messages",), ("role", "content")),
        Schema("sharegpt", {"category": "category"}, ("conversations", "conversation"), ("from", "value")),
        _single("dolly", "instruction", "response", "context"),
        _single("alpaca", "instruction", "output", "input"),
        _single("prompt_completion", "prompt", "completion", None),
        replace(_single("gsm8k", "question", "answer", None), solution=True),
    )
}


def choose_schema(row: Row, data_format: str, columns: Mapping[str, str], where: str) -> Schema:
    """Return the format of ``row``: the one named, or the first whose fields it has.

    Args:
        row: the first row of a data set.
        data_format: "auto" or a name of `SCHEMAS`.
        columns: the user's own field names by entry of `COLUMNS`; they go before the format's.
        where: place of the row, for messages.

    Raises:
        UnknownName: the format or a column is not known.
        DataError: the row has not the fields that are needed.
    """
    for column in columns:
        if column not in COLUMNS:
            raise UnknownName("column", column, COLUMNS)
    if data_format not in ("auto", *SCHEMAS):
        raise UnknownName("data_format", data_format, ("auto", *SCHEMAS))
    for column, field in columns.items():
        if field not in row:
            raise DataError(
                f"{where}: no field '{field}', which columns.{column} names{did_you_mean(field, row)} "
                f"Fields found: {_names(row)}."
            )
    candidates = SCHEMAS.values() if data_format == "auto" else [SCHEMAS[data_format]]
    renamed = [schema for schema in (_rename(s, columns) for s in candidates) if schema is not None]
    for schema in renamed:
        if schema.fits(row):
            return schema
    raise DataError(_misfit(row, data_format, where))


def _rename(schema: Schema, columns: Mapping[str, str]) -> Schema | None:
    """Return ``schema`` with the user's field names; None where a conversation cannot take them."""
    if not schema.prefers and "rejected" in columns:
        return None
    if schema.turns and set(columns) - {"category", "check"}:
        return None
    return replace(schema, columns={**schema.columns, **columns})


def _misfit(row: Row, data_format: str, where: str) -> str:
    found = f"{where}: fields found: {_names(row)}"
    advice = "name your own fields with columns.instruction=FIELD and columns.response=FIELD"
    if data_format != "auto":
        schema = SCHEMAS[data_format]
        if schema.turns:
            takes = "and takes only columns.category and columns.check"
            return f"{found}; data_format '{data_format}' needs {schema.shape} ({takes})."
        return f"{found}; data_format '{data_format}' needs {schema.shape}; {advice}."
    shapes = "; ".join(f"{schema.name} ({schema.shape})" for schema in SCHEMAS.values())
    return f"{found}; they fit none of the known formats: {shapes}. To read them, {advice}."


def _field(row: Row, name: str, where: str) -> object:
    if name not in row:
        raise DataError(f"{where}: the field '{name}' is missing; fields found: {_names(row)}.")
    return row[name]


def _text(row: Row, name: str, where: str, *, optional: bool = True) -> str:
    """Return a text field; an optional one may be absent or null."""
    value = row.get(name) if optional else _field(row, name, where)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' is {_kind(value)}, expected text.")
    return value


def _answer(row: Row, name: str, where: str) -> str:
    value = _field(row, name, where)
    # An absent answer is kept as an empty one: the audit counts them and says where they are.
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: '{name}' is {_kind(value)}, expected text or a number.")
    return str(value)


def _category(row: Row, columns: Mapping[str, str], where: str) -> str | None:
    value = row.get(columns["category"])
    if value is not None and not isinstance(value, str | int | float):
        raise DataError(f"{where}: '{columns['category']}' is {_kind(value)}, expected a label.")
    return None if value is None else str(value)


def _check(row: Row, columns: Mapping[str, str], where: str) -> str | None:
    """Return the row's own check; a field that only happens to be called "check" is left alone."""
    value = row.get(columns.get("check", "check"))
    try:
        check = check_of_field(value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if check is None and "check" in columns and value not in (None, ""):
        raise DataError(
            f"{where}: '{columns['check']}' is {_kind(value)}, expected a check such as {_SOME_CHECK}."
        )
    return check


def _conversation(turns: object, fields: tuple[str, str], where: str) -> tuple[Message, ...]:
    """Return the turns up to the last answer: what follows it has nothing to learn from."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f"{where}: the conversation is {_kind(turns)}, expected a list of turns.")
    messages = [_turn(turn, number, fields, where) for number, turn in enumerate(turns, 1)]
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{where}: the conversation has no assistant turn, so there is nothing to learn.")
    return tuple(messages)


def _side(prompt: object, answer: object, where: str) -> tuple[Message, ...]:
    """Return one side of a preference as a conversation.

    An answer may be text after a prompt (text or turns), a transcript "Human: ... Assistant: ...", turns that go
    on after a prompt of turns, or a whole conversation.
    """
    if isinstance(answer, str):
        if prompt is None and (turns := _transcript(answer)):
            return _conversation(turns, ("role", "content"), where)
        before = _before(prompt, where)
        return (*before, Message("assistant", answer))
    own = _conversation(answer, _fields_of(answer), where)
    if own[0].role == "assistant":
        return (*_before(prompt, where), *own)
    return own


def _before(prompt: object, where: str) -> tuple[Message, ...]:
    """Return the turns before an answer."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, Sequence) and prompt:
        turns = tuple(_turn(turn, n, _fields_of(prompt), where) for n, turn in enumerate(prompt, 1))
        if turns[-1].role == "user":
            return turns
    raise DataError(
        f"{where}: the answer has no prompt; expected text, or turns of which the last is the user's, in the "
        "prompt's field (columns.instruction=FIELD), or whole conversations as answers."
    )


def _fields_of(turns: object) -> tuple[str, str]:
    """Return which fields of a turn hold its role and its text."""
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    return ("from", "value") if isinstance(first, Mapping) and "from" in first else ("role", "content")


_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[dict[str, str]]:
    """Return the turns of a text that says by turns "Human:" and "Assistant:"; [] if it does not."""
    pieces = _SPEAKER.split(text.lstrip("\n") if text.lstrip().startswith(("Human:", "Assistant:")) else text)
    if pieces[0].strip() or len(pieces) < 3:
        return []
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _turn(turn: object, number: int, fields: tuple[str, str], where: str) -> Message:
    place = f"{where}, turn {number}"
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: found {_kind(turn)}, expected {{{fields[0]}, {fields[1]}}}.")
    name = _text(turn, fields[0], place, optional=False)
    role = _ROLES.get(name.lower())
    if role is None:
        raise DataError(f"{place}: role '{name}' is not known; expected one of {_names(_ROLES)}.")
    if role == "system" and number > 1:
        raise DataError(f"{place}: a system turn can only come first.")
    text = (_answer if role == "assistant" else _text)(turn, fields[1], place)
    return Message(role, text)


def _names(names: Iterable[str]) -> str:
    return ", ".join(str(name) for name in names) or "none"


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")
