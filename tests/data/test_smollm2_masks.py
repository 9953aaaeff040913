"""Loss masks with SmolLM2's own tokenizer and chat template."""

import pytest

from fedit.data.examples import Example, Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt, stop_ids, tokenize

pytestmark = pytest.mark.slow

ROWS = [
    Example((Message("user", "Capital of France?"), Message("assistant", "Paris"))),
    Example((Message("user", "Sum it up."), Message("assistant", "naïve 😀\n- a")), context="A long text."),
    Example((Message("user", "What is <|im_end|>?"), Message("assistant", "<|im_end|> ends a turn."))),
    Example(
        (
            Message("system", "Be brief."),
            Message("user", "One?"),
            Message("assistant", "Uno."),
            Message("user", "Two?"),
            Message("assistant", "Dos."),
        )
    ),
]
LEARNT = {
    "chat": [
        "Paris<|im_end|>",
        "naïve 😀\n- a<|im_end|>",
        "<|im_end|> ends a turn.<|im_end|>",
        "Uno.<|im_end|>Dos.<|im_end|>",
    ],
    "vicuna": [
        " Paris<|im_end|>",
        " naïve 😀\n- a<|im_end|>",
        " <|im_end|> ends a turn.<|im_end|>",
        " Uno.<|im_end|> Dos.<|im_end|>",
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from fedit.model.sources import resolve_model

    return AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct").path)


@pytest.mark.parametrize("name", LEARNT)
def test_the_answers_and_their_ends_are_learnt(name, tokenizer):
    table = tokenize(ROWS, tokenizer, get_template(name, tokenizer), max_length=512)
    rows = [table.row(index) for index in range(len(table))]
    assert [tokenizer.decode(row.ids[row.supervised].tolist()) for row in rows] == LEARNT[name]
    assert all(row.ids[-1] == tokenizer.eos_token_id and row.supervised[-1] for row in rows)


def test_a_chat_is_tokenized_as_transformers_does(tokenizer):
    template = get_template("auto", tokenizer)
    assert template.name == "chat"
    for example in (ROWS[0], ROWS[3]):
        turns = [{"role": message.role, "content": message.content} for message in example.messages]
        expected = tokenizer.apply_chat_template(turns, return_dict=False)
        ids = tokenize([example], tokenizer, template, max_length=512).row(0).ids.tolist()
        assert ids == expected[: len(ids)]
        assert tokenizer.decode(expected[len(ids) :]).strip() == ""
        prompt = encode_prompt(example.messages[:-1], "", tokenizer, template, max_length=512)
        assert prompt == tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt


def test_control_tokens_in_a_row_stay_text(tokenizer):
    template = get_template("chat", tokenizer)
    table = tokenize(ROWS, tokenizer, template, max_length=512)
    ends = [(table.row(index).ids == tokenizer.eos_token_id).sum() for index in range(3)]
    assert ends == [3, 3, 3]  # the system turn that the template adds, the question and the answer
    assert stop_ids(tokenizer, template) == {tokenizer.eos_token_id}
