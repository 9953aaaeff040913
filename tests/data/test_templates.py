"""Texts and answer ranges of the templates."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fedit.data.examples import Example, Message
from fedit.data.templates import get_template
from fedit.errors import ConfigError, DataError, UnknownName

CHATML = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(chat_template=None, end="</s>"):
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=end)
    made.chat_template = chat_template
    return made


def conversation(*turns, context=""):
    return Example(tuple(Message(*turn) for turn in turns), context=context, where="rows.jsonl:7")


QUESTION = conversation(("user", "Capital?"), ("assistant", "Paris"))
ABOUT = conversation(("user", "Capital?"), ("assistant", "Paris"), context="France.")
CHAT = conversation(
    ("system", "Be kind."), ("user", "One?"), ("assistant", "Uno"), ("user", "Two?"), ("assistant", "Dos")
)


def answers(rendered):
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_alpaca_is_the_format_of_stanford_alpaca():
    template = get_template("alpaca", tokenizer())
    assert template.render(ABOUT).text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nCapital?\n\n### Input:\nFrance.\n\n### Response:\nParis</s>"
    )
    assert template.render(QUESTION).text == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nCapital?\n\n### Response:\nParis</s>"
    )


def test_alpaca_short_has_no_preamble():
    text = get_template("alpaca_short", tokenizer()).render(ABOUT).text
    assert text == "### Instruction:\nCapital?\n\n### Input:\nFrance.\n\n### Response:\nParis</s>"


def test_vicuna_writes_rounds_in_one_line_and_takes_a_system_turn():
    template = get_template("vicuna", tokenizer())
    assert template.render(CHAT).text == "Be kind. USER: One? ASSISTANT: Uno</s>USER: Two? ASSISTANT: Dos</s>"
    assert template.render(QUESTION).text.startswith("A chat between a curious user and an artificial")
    assert answers(template.render(CHAT)) == [" Uno</s>", " Dos</s>"]


def test_rounds_follow_each_other_in_alpaca_formats():
    rendered = get_template("alpaca_short", tokenizer()).render(CHAT)
    assert rendered.text == (
        "Be kind.\n\n### Instruction:\nOne?\n\n### Response:\nUno</s>"
        "### Instruction:\nTwo?\n\n### Response:\nDos</s>"
    )
    assert answers(rendered) == ["Uno</s>", "Dos</s>"]


def test_braces_in_rows_are_text():
    row = conversation(("user", "{instruction} {0} {{x}}"), ("assistant", "{input}"), context="{y}")
    text = get_template("alpaca_short", tokenizer()).render(row).text
    expected = "### Instruction:\n{instruction} {0} {{x}}\n\n### Input:\n{y}\n\n### Response:\n{input}</s>"
    assert text == expected


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short", "vicuna", "chat"])
@pytest.mark.parametrize("row", [QUESTION, ABOUT, CHAT])
def test_a_prompt_ends_where_the_answer_starts(name, row):
    template = get_template(name, tokenizer(CHATML))
    rendered = template.render(row)
    assert rendered.text[: rendered.spans[-1][0]] == template.prompt(row.messages[:-1], row.context)
    assert rendered.spans[-1][1] == len(rendered.text)


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_a_prompt_needs_a_question(name):
    template = get_template(name, tokenizer(CHATML))
    with pytest.raises(DataError, match="must end with a user turn"):
        template.prompt(QUESTION.messages)


def test_auto_takes_the_chat_template_if_there_is_one():
    assert get_template("auto", tokenizer(CHATML)).name == "chat"
    assert get_template("auto", tokenizer()).name == "alpaca"


def test_chat_puts_the_context_after_the_instruction():
    rendered = get_template("chat", tokenizer(CHATML, "<|im_end|>")).render(ABOUT)
    assert rendered.text == (
        "<|im_start|>user\nCapital?\n\nFrance.<|im_end|>\n<|im_start|>assistant\nParis<|im_end|>"
    )
    assert answers(rendered) == ["Paris<|im_end|>"]


def test_chat_ends_with_the_end_of_sequence_after_another_end_of_turn():
    rendered = get_template("chat", tokenizer(CHATML)).render(CHAT)
    assert answers(rendered) == ["Uno<|im_end|>", "Dos<|im_end|></s>"]


def test_an_answer_that_ends_in_white_space_keeps_it_without_an_end_of_turn():
    template = get_template(
        "chat", tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    )
    row = conversation(("user", "a"), ("assistant", "code\n"), ("user", "b"), ("assistant", "more "))
    rendered = template.render(row)
    assert answers(rendered) == [" code\n", " more </s>"]
    assert template.prompt(row.messages[:-1]) == "user: a\nassistant: code\n\nuser: b\nassistant:"


def test_a_template_that_drops_earlier_reasoning_is_followed():
    template = get_template(
        "chat",
        tokenizer(
            "{% for m in messages %}{{ '<' + m.role + '>' }}{% if loop.last %}{{ m.content }}{% else %}"
            "{{ m.content.split('</think>')[-1] }}{% endif %}{{ eos_token }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        ),
    )
    row = conversation(
        ("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "<think>y</think>d")
    )
    rendered = template.render(row)
    assert rendered.text == "<user>a</s>\n<assistant>b</s>\n<user>c</s>\n<assistant><think>y</think>d</s>"
    assert answers(rendered) == ["b</s>", "<think>y</think>d</s>"]


def test_a_chat_that_starts_with_the_assistant_is_rendered():
    rendered = get_template("chat", tokenizer(CHATML)).render(
        conversation(("assistant", "Hello"), ("user", "a"), ("assistant", "b"))
    )
    assert answers(rendered) == ["Hello<|im_end|>", "b<|im_end|></s>"]


def test_a_template_whose_answers_cannot_be_located_is_refused():
    template = get_template(
        "chat", tokenizer("{{ messages[-1].content | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    )
    with pytest.raises(ConfigError, match=r"rows.jsonl:7: .* changes the text around an answer"):
        template.render(conversation(("user", "a"), ("assistant", "a long answer")))


def test_what_a_template_refuses_names_the_row():
    template = get_template("chat", tokenizer("{{ raise_exception('System role not supported') }}"))
    with pytest.raises(DataError, match=r"rows.jsonl:7: .*System role not supported.*another template"):
        template.render(CHAT)


def test_templates_run_in_a_sandbox():
    template = get_template("chat", tokenizer("{{ messages.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(DataError, match="unsafe"):
        template.render(QUESTION)


def test_generation_blocks_and_the_date_are_as_chat_templates_expect():
    source = (
        "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% continue %}{% endif %}{{ m.content }}{% endfor %}"
    )
    template = get_template("chat", tokenizer(source))
    assert template.render(QUESTION).text == "2024-07-26 Capital?Paris</s>"
    template = get_template("chat", tokenizer("{{ '<é>' | tojson }}{{ messages[-1].content }}"))
    assert template.render(QUESTION).text == '"<é>"Paris</s>'


def test_a_jinja_file_gets_instruction_and_context(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(
        "Q: {{ instruction }}{% if context %} ({{ context }}){% endif %}{{ '\\n' }}A: "
        "{% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}"
    )
    template = get_template(str(path), tokenizer())
    assert template.name == "mine.jinja"
    rendered = template.render(ABOUT)
    assert rendered.text == "Q: Capital? (France.)\nA: Paris</s>"
    assert answers(rendered) == [" Paris</s>"]
    assert template.prompt(ABOUT.messages[:1], "France.") == "Q: Capital? (France.)\nA:"


def test_a_jinja_file_that_ignores_the_context_still_gets_it(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("{{ instruction }} => {% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}")
    text = get_template(str(path), tokenizer()).render(ABOUT).text
    assert text == "Capital?\n\nFrance. => Paris</s>"


def test_a_broken_jinja_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("ok\n{% if %}\n")
    with pytest.raises(ConfigError, match=r"mine\.jinja:2: "):
        get_template(str(path), tokenizer())


@pytest.mark.parametrize(
    ("source", "what"),
    [("{{ instructoin }} {{ messages[-1].content }}", "instruction"), ("{{ instruction }}", "answer")],
)
def test_a_jinja_file_that_leaves_something_out_is_refused(source, what, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=f"leaves out the {what}"):
        get_template(str(path), tokenizer())


def test_a_file_in_shepherds_layout_is_read(tmp_path):
    path = tmp_path / "shepherd.json"
    layout = {
        "prompt_input": "{instruction}|{input}|",
        "prompt_no_input": "{instruction}: ",
        "response_split": "|",
    }
    path.write_text(json.dumps({"description": "mine", **layout}))
    template = get_template(str(path), tokenizer())
    assert template.render(ABOUT).text == "Capital?|France.|Paris</s>"
    rendered = template.render(QUESTION)
    assert rendered.text == "Capital?: Paris</s>"
    assert answers(rendered) == [" Paris</s>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "shepherd.json:1: broken JSON"),
        ("[]", "'prompt_input' is missing"),
        ('{"prompt_input": "{instruction}"}', r"'prompt_input' has no \{input\}"),
        ('{"prompt_input": "{instruction}{input}{x}"}', "no other braces"),
    ],
)
def test_a_wrong_json_template_is_refused(content, message, tmp_path):
    path = tmp_path / "shepherd.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        get_template(str(path), tokenizer())


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'vicuna'"):
        get_template("vicunna", tokenizer())
    with pytest.raises(ConfigError, match=r"no template file .*x\.json"):
        get_template("x.json", tokenizer())
    with pytest.raises(ConfigError, match="has no chat template; use 'alpaca'"):
        get_template("chat", tokenizer())


def test_fingerprints_tell_templates_apart():
    chosen = [
        ("alpaca", "</s>"),
        ("alpaca", "<e>"),
        ("alpaca_short", "</s>"),
        ("vicuna", "</s>"),
        ("chat", "</s>"),
    ]
    made = [get_template(name, tokenizer(CHATML, end)).fingerprint for name, end in chosen]
    again = [get_template(name, tokenizer(CHATML, end)).fingerprint for name, end in chosen]
    assert made == again
    assert len(set(made)) == len(made)
