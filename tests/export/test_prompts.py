"""Chat templates of exports: another program asks in exactly the words of the training."""

import pytest
from exporting import bpe_tokenizer
from transformers import AutoTokenizer

from fedit.data.examples import Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt
from fedit.errors import ModelError
from fedit.export.ollama import modelfile, turns_of
from fedit.export.prompts import chat_template

CONVERSATIONS = [
    [Message("user", "Name a colour.")],
    [Message("user", " {{ 7 }} 'quoted' \\n \"x\"  ")],
    [Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?\n")],
    [Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "Hm?")],
]
FILES = {
    "own.json": '{"prompt_input": "{instruction} {input}", "prompt_no_input": "{{1}}\'{instruction}\' \\\\ A:  "}',
    "bare.json": '{"prompt_input": "{instruction} {input}", "prompt_no_input": "{instruction}  "}',
    "silent.jinja": "User: {{ instruction }}\n{% if context %}{{ context }}{% endif %}Bot: "
    "{{ messages[-1].content }}{{ eos_token }}",
    "dated.jinja": "{{ strftime_now('%d %b %Y') }} {% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer()


def place(name, tmp_path):
    if name not in FILES:
        return name
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ["chat", "alpaca", "alpaca_short", "vicuna", *FILES])
def test_a_saved_tokenizer_gives_the_tokens_of_the_training(tokenizer, tmp_path, name):
    template = get_template(place(name, tmp_path), tokenizer)
    saved = bpe_tokenizer()
    saved.chat_template = chat_template(template, tokenizer)
    saved.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for conversation in CONVERSATIONS:
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
        theirs = loaded.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert theirs == encode_prompt(conversation, "", tokenizer, template, max_length=4096)


def test_a_token_at_the_beginning_is_written_by_the_template(tmp_path):
    """Programs that apply a chat template add no such token themselves."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = bpe_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    template = get_template("alpaca", tokenizer)
    text = chat_template(template, tokenizer)
    turns = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(turns, chat_template=text, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt([Message("user", "Hi")], "", tokenizer, template, max_length=512)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_template_that_cannot_be_said_in_jinja_is_refused(tokenizer, tmp_path):
    path = tmp_path / "twice.json"
    path.write_text(
        '{"prompt_input": "{instruction} {input}", "prompt_no_input": "{instruction}! {instruction}:"}'
    )
    with pytest.raises(ModelError, match="does not show its instruction once"):
        chat_template(get_template(str(path), tokenizer), tokenizer)


def go(source, messages):
    """Render what the Modelfile's template may hold, as Go's text/template does."""
    import re

    system = "\n\n".join(message.content for message in messages if message.role == "system")
    text = source.split('TEMPLATE """')[1].rsplit('"""', 1)[0]
    first = re.match(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}(?=\{\{ range)", text, re.DOTALL)
    out = "" if system or not first else first[1]
    body, last = (
        text[first.end() if first else 0 :].removeprefix("{{ range .Messages }}").split("{{ end }}{{ end }}")
    )
    turns = dict(re.findall(r'eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', body, re.DOTALL))
    for message in messages:
        out += turns[message.role].replace("{{ .Content }}", message.content)
    return (out + last).replace('{{ "{{" }}', "{{")


@pytest.mark.parametrize("name", ["chat", "alpaca", "alpaca_short", "vicuna", "own.json", "dated.jinja"])
def test_a_modelfile_writes_the_same_prompts(tokenizer, tmp_path, name):
    template = get_template(place(name, tmp_path), tokenizer)
    text = modelfile(turns_of(template, tokenizer), ["<|im_end|>"])
    assert text.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    for conversation in CONVERSATIONS:
        if "{{" in conversation[0].content:
            continue  # messages are never part of the template
        assert go(text, conversation) == template.prompt(conversation)


def test_a_template_of_another_form_gets_no_modelfile(tokenizer, tmp_path):
    path = tmp_path / "counting.jinja"
    path.write_text(
        "{% for m in messages %}{{ loop.index }}. {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    with pytest.raises(ModelError, match="one after the other"):
        turns_of(get_template(str(path), tokenizer), tokenizer)
