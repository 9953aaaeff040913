"""Rows, templates and what else lies in files beside a job."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedit import clientfiles
from fedit.availability import Trace
from fedit.clock import Listed
from fedit.data.check import refuse_without_rejected
from fedit.data.examples import Example, Message, fingerprint
from fedit.data.manifest import Partition
from fedit.data.partition import read_assignment
from fedit.data.sources import load_rows
from fedit.data.split import clean
from fedit.data.templates import get_template
from fedit.errors import ConfigError, DataError
from fedit.evaluation.answerfiles import read_answers
from fedit.evaluation.extract import as_number, chosen_letter, final_number
from fedit.evaluation.grading import grade, refuse_bad_checks
from fedit.evaluation.questions import load_questions
from fedit.evaluation.votes import append, read_votes, tally
from fedit.files import write_text
from fuzz.target import Target, promise
from fuzz.targets import scratch

ROWS = [
    {"instruction": "Name a colour.", "context": "", "response": "Red.", "category": "open_qa"},
    {"instruction": "2+2?", "input": "", "output": "4", "check": {"kind": "number", "value": 4}},
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "category": 3},
    {"prompt": "Say hi", "chosen": "Hi!", "rejected": "No."},
    {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"question": "How many?", "answer": "She has 2*3=<<2*3=6>>6.\n#### 6"},
    {"prompt": "p", "completion": "c", "check": '{"kind": "exact", "value": "c"}'},
]
QUESTIONS = [
    {"question_id": 1, "turns": ["Hi?", "And?"], "reference": ["a", "b"], "category": "x"},
    {"question": "2+2?", "check": {"kind": "number", "value": "4"}, "reference": 4},
    {
        "instruction": "Do",
        "input": "it",
        "output": "done",
        "constraints": [
            {"id": "keywords:existence", "kwargs": {"keywords": ["a"]}},
            {"id": "length_constraints:number_words", "kwargs": {"relation": "at least", "num_words": 3}},
        ],
    },
]
CHECKS = [
    {"kind": "exact", "value": "a"},
    {"kind": "reference", "value": "a b"},
    {"kind": "number", "value": "1,080.5"},
    {"kind": "bullets", "count": 2, "allowed": ["a", "b"]},
    {"kind": "two_lines", "words": ["red", "blue"]},
    {"kind": "choice", "value": "B"},
    {
        "kind": "constraints",
        "constraints": [
            {"id": "detectable_format:json_format", "kwargs": {}},
            {"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": ["a", "b"]}},
            {
                "id": "change_case:capital_word_frequency",
                "kwargs": {"capital_relation": "at least", "capital_frequency": 1},
            },
            {
                "id": "length_constraints:nth_paragraph_first_word",
                "kwargs": {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
            },
        ],
    },
]


def _lines(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def _rows(suffix: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = scratch.file(f"rows{suffix}", data)
        corpus = load_rows(str(path), columns={}, max_examples=50)
        cleaned, _ = clean(corpus)
        refuse_bad_checks(cleaned.examples)
        fingerprint(cleaned.all())
        refuse_without_rejected(cleaned.all())
        # What was read can be written down, as answers and manifests are.
        write_text(scratch.folder() / "written", "".join(m.content for e in cleaned.examples for m in e.messages))

    return run


def _csv() -> list[bytes]:
    return [b'instruction,response,category\n"Say, hi",Hi,a\nTwo,2,b\n', b'question,answer\nq,"x\n#### 4"\n']


def _parquet() -> list[bytes]:
    import io

    import pyarrow
    import pyarrow.parquet

    found = []
    for rows in (ROWS[:1] * 3, ROWS[2:3], ROWS[4:5]):
        held = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), held)
        found.append(held.getvalue())
    return found


# --- templates ---


@dataclass
class _Tokenizer:
    """What templates need of a tokenizer."""

    chat_template: str
    eos_token: str = "<|im_end|>"

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {"eos_token": self.eos_token, "bos_token": "<s>"}

    def get_chat_template(self) -> str:
        return self.chat_template


_EXAMPLES = (
    Example((Message("user", "Hi"), Message("assistant", "Hello")), context="There."),
    Example(
        (
            Message("system", "Be kind."),
            Message("user", "{{ 7*7 }}"),
            Message("assistant", " a\n"),
            Message("user", "And?"),
            Message("assistant", "b"),
        )
    ),
)
_CHATML = (
    b"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    b"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA = (
    b"{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    b"{% set messages = messages[1:] %}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') "
    b"!= (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{% generation %}[INST] "
    b"{{ message.content | tojson }}{% endgeneration %}{% endfor %}"
)
_JINJA_WORDS = (
    b"{{ ",
    b" }}",
    b"{% for i in range(99999) %}",
    b"{% endfor %}",
    b"{% set x = ",
    b" %}",
    b"'a' * 999999999",
    b"9 ** 9 ** 9",
    b"messages",
    b".__class__.__mro__",
    b"|attr('__globals__')",
    b"()",
    b"|tojson",
    b"|indent(9999)",
    b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    b"{% include 'x' %}",
    b"{% import '/etc/passwd' as p %}",
    b"'%999999999d' % 1",
    b"'{:>999999999}'.format(1)",
    b"|center(999999999)",
    b"|replace('', 'aaaaaaaa')",
    b"cycler",
    b"lipsum(9999)",
    b"namespace()",
    b"|format(1)",
    b"|join(messages)",
    b"|batch(1)",
    b"|map('upper')",
    b"|list",
    b"~",
)


def _template(suffix: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        template = get_template(str(scratch.file(f"template{suffix}", data)), _Tokenizer(""))
        _render(template)

    return run


def _chat_template(data: bytes) -> None:
    """The template that a model's folder brings."""
    _render(get_template("chat", _Tokenizer(data.decode("utf-8", "replace"))))


def _render(template: object) -> None:
    for example in _EXAMPLES:
        rendered = template.render(example)
        promise(
            all(0 <= a <= b <= len(rendered.text) for a, b in rendered.spans), "a span lies outside of the text"
        )
        promise(len(rendered.text) < 1 << 24, "a template writes without end")
        template.prompt(example.messages[:-1], example.context)


# --- files beside a job ---


def _manifest() -> list[bytes]:
    own = {
        "scheme": "iid",
        "options": {},
        "seed": 0,
        "clients": {"a": ["0" * 16], "b": ["1" * 16]},
        "validation": [],
        "held_out": ["2" * 16],
        "removed": {"duplicate": 1},
        "data_fingerprint": "f",
    }
    saved = Partition(**own).to_json()
    return [json.dumps(saved).encode(), b'{"clients": {"a": [0, 5], "b": [1]}, "held_out": [2]}']


def _partition(data: bytes) -> None:
    path = scratch.file("partition.json", data)
    try:
        Partition.load(path)
    except DataError:
        read_assignment(path)


def _client_file(data: bytes) -> None:
    path = scratch.file("clients.json", data)
    clientfiles._read.cache_clear()
    found = clientfiles.read("devices_options.file", str(path))
    clientfiles.check(str(path), found, ["a"])
    clientfiles.entry(found, "a")


def _devices(data: bytes) -> None:
    """Files of devices and of who is there when, up to what is said of a client."""
    path = str(scratch.file("devices.json", data))
    clientfiles._read.cache_clear()
    try:
        trace = Trace(path, period=24.0)
        trace.check(["a"])
        trace.wait("a", 0.5, 0)
    except ConfigError:
        devices = Listed(path)
        devices.check(["a"])
        devices.device("a", 0)


def _answers(data: bytes) -> None:
    read_answers(scratch.file("answers.jsonl", data))


def _votes(data: bytes) -> None:
    path = scratch.file("votes.jsonl", data)
    found = read_votes(path)
    tally(found)
    append(path, [{"first": "a", "second": "b", "winner": "tie"}])


def _grade(data: bytes) -> None:
    check, _, answer = data.decode("utf-8", "replace").partition("\n")
    grade(check, answer)


def _extract(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    final_number(text), as_number(text), chosen_letter(text)


def _questions(data: bytes) -> None:
    from fedit.evaluation.questions import questions_sha256

    questions_sha256(load_questions(str(scratch.file("questions.jsonl", data))))


def _token_cache(data: bytes) -> None:
    from fedit.data import tokencache

    found = tokencache.read(scratch.file("tokens.safetensors", data), 2)
    promise(found is None or len(found[3]) == 2, "a damaged table is taken for a whole one")


def _token_caches() -> list[bytes]:
    import numpy as np

    from fedit.data import tokencache

    path = Path(scratch.folder() / "tokens.safetensors")
    tokencache.write(
        path,
        (np.arange(5, dtype=np.int32), np.ones(5, dtype=np.bool_), np.array([2, 5]), np.zeros(2, dtype=np.uint8)),
    )
    return [path.read_bytes()]


_DATA = (DataError, ConfigError)
TARGETS = (
    Target(
        "rows_jsonl",
        ("fedit.data.rowfiles", "fedit.data.schemas", "fedit.data.checks"),
        _rows(".jsonl"),
        lambda: [_lines([row] * 2) for row in ROWS],
        _DATA,
        "jsonl",
    ),
    Target(
        "rows_json",
        ("fedit.data.rowfiles",),
        _rows(".json"),
        lambda: [json.dumps(ROWS[:1]).encode(), json.dumps({"data": ROWS[4:6]}).encode()],
        _DATA,
        "json",
    ),
    Target(
        "rows_csv", ("fedit.data.rowfiles",), _rows(".csv"), _csv, _DATA, "text", (b'"', b'""', b",", b"\n", b"\r")
    ),
    Target("rows_parquet", ("fedit.data.rowfiles",), _rows(".parquet"), _parquet, _DATA),
    Target(
        "template_jinja",
        ("fedit.data.chat", "fedit.data.templates"),
        _template(".jinja"),
        lambda: [_CHATML, _LLAMA, b"{{ instruction }}{{ context }}\n### {{ messages[-1].content }}"],
        _DATA,
        "text",
        _JINJA_WORDS,
    ),
    Target(
        "template_of_model",
        ("fedit.data.chat",),
        _chat_template,
        lambda: [_CHATML, _LLAMA],
        _DATA,
        "text",
        _JINJA_WORDS,
    ),
    Target(
        "template_json",
        ("fedit.data.rounds",),
        _template(".json"),
        lambda: [b'{"prompt_input": "{instruction} {input}:", "prompt_no_input": "{instruction}:"}'],
        _DATA,
        "json",
        (b"{instruction}", b"{input}", b"{{", b"{instruction:>99999}", b"{instruction.__class__}", b"{0}", b"!r"),
    ),
    Target("partition", ("fedit.data.manifest", "fedit.data.partition"), _partition, _manifest, _DATA, "json"),
    Target("client_file", ("fedit.clientfiles",), _client_file, lambda: [b'{"a": 1, "*": [1, 2]}'], _DATA, "json"),
    Target(
        "devices",
        ("fedit.clock", "fedit.availability"),
        _devices,
        lambda: [b'{"a": [[0, 5], [7.5, 9]]}', b'{"a": {"speed": 1.5, "up": 2, "down": 3, "latency": 0.1}}'],
        _DATA,
        "json",
    ),
    Target(
        "questions",
        ("fedit.evaluation.questions",),
        _questions,
        lambda: [_lines([q]) for q in QUESTIONS],
        _DATA,
        "jsonl",
    ),
    Target(
        "answers",
        ("fedit.evaluation.answerfiles",),
        _answers,
        lambda: [
            _lines(
                [
                    {
                        "question_id": "1",
                        "category": None,
                        "turns": ["a"],
                        "answers": ["b"],
                        "reference": ["c"],
                        "arm": "base",
                    }
                ]
            )
        ],
        _DATA,
        "jsonl",
    ),
    Target(
        "votes",
        ("fedit.evaluation.votes",),
        _votes,
        lambda: [
            _lines(
                [
                    {
                        "first": "a",
                        "second": "b",
                        "winner": "first",
                        "blind": True,
                        "vote": "x",
                        "identities": {"first": "1", "second": "2"},
                    }
                ]
                * 2
            )
            + b"\n"
        ],
        _DATA,
        "jsonl",
    ),
    Target(
        "checks",
        ("fedit.evaluation.grading", "fedit.evaluation.constraints"),
        _grade,
        lambda: [json.dumps(check).encode() + b"\n- a\n- b #### 3 B)" for check in CHECKS],
        _DATA,
        "jsonl",
    ),
    Target(
        "final_answers",
        ("fedit.evaluation.extract",),
        _extract,
        lambda: [b"3 + 4 = 7 #### 1,080.5", b"The answer is (B). A) x\nB) y", b"-$5.20"],
        (),
        "text",
        (b"#### ", b"answer is ", b"(A)", b"1,000", b"\xe2\x88\x92", b"    "),
    ),
    Target("token_cache", ("fedit.data.tokencache",), _token_cache, _token_caches, ()),
)
