"""Loss masks, BOS, EOS and cutting for five families of tokenizers and several templates."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from fedit.data.encoding import Encoded, encoder_of
from fedit.data.examples import Example, Message
from fedit.data.templates import get_template
from fedit.data.tokens import ANSWER_CUT, PROMPT_CUT, WHOLE, _overlap, encode_prompt, stop_ids, tokenize
from fedit.errors import ConfigError, ModelError

TEXT = [
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction:\nName the capital of France.\n\n### Response:\nParis",
    "USER: What is two plus two? ASSISTANT: Four, of course. user assistant system",
    "one\n\ntwo\n\nthree\n\nfour\n\nfive",
    "A chat between a curious user and an artificial intelligence assistant.",
] * 4
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOL = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"
)
NO_EOS = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
NO_PROMPT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def byte_level():
    """GPT-2 and SmolLM2: no BOS is added; EOS is also the pad token."""
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.post_processor = processors.ByteLevel(trim_offsets=True)
    rules.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", *CHAT]
    rules.train_from_iterator(TEXT, _bpe(specials, pre_tokenizers.ByteLevel.alphabet()))
    return _fast(rules, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>")


def metaspace():
    """Llama 2: word marks, byte fallback, BOS put in front by the post-processor."""
    rules = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    rules.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rules.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    # As in the original, no piece crosses words and line breaks are bytes.
    rules.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    rules.train_from_iterator([text.replace("\n", " ") for text in TEXT], _bpe([*specials, *raw], []))
    content = json.loads(rules.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][: len(specials)]  # bytes are ordinary tokens
    rules = Tokenizer.from_str(json.dumps(content))
    rules.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in CHAT])
    rules.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(rules, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def split_regex():
    """Llama 3 and Qwen: a splitting pattern before byte-level BPE; BOS by the post-processor."""
    rules = Tokenizer(models.BPE(ignore_merges=True))
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rules.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", *CHAT]
    rules.train_from_iterator(TEXT, _bpe(specials, pre_tokenizers.ByteLevel.alphabet()))
    begin = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    rules.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return _fast(rules, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def unigram():
    """SentencePiece's Unigram: pieces with scores; the post-processor adds only EOS, as T5 does."""
    rules = Tokenizer(models.Unigram())
    rules.normalizer = normalizers.NFKC()
    rules.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    rules.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>", *CHAT], unk_token="<unk>", show_progress=False
    )
    rules.train_from_iterator(TEXT, trainer)
    rules.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _fast(rules, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def wordpiece():
    """BERT: lower case, white space is lost, [CLS] in front."""
    rules = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer(lowercase=True)
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", *CHAT], show_progress=False
    )
    rules.train_from_iterator(TEXT, trainer)
    rules.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _fast(rules, cls_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")


def _bpe(specials, alphabet):
    return trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


def _fast(rules, **tokens):
    return PreTrainedTokenizerFast(tokenizer_object=rules, **tokens)


FAMILIES = {
    "byte_level": byte_level,
    "metaspace": metaspace,
    "split_regex": split_regex,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
CHATS = {"chatml": CHATML, "smol": SMOL, "headers": HEADERS, "inst": INST, "no_eos": NO_EOS, "bare": NO_PROMPT}
BYTES = ("byte_level", "metaspace", "split_regex")  # families that lose no character


@pytest.fixture(scope="module")
def families():
    return {name: make() for name, make in FAMILIES.items()}


def example(question, answer, context=""):
    return Example((Message("user", question), Message("assistant", answer)), context=context, where="rows:1")


def template_of(name, tokenizer):
    tokenizer.chat_template = CHATS.get(name)
    return get_template("chat" if name in CHATS else name, tokenizer)


def learnt(tokenizer, row):
    """The decoded targets and what comes before the first of them."""
    first = int(row.supervised.argmax())
    whole, head = _decode(tokenizer, row.ids), _decode(tokenizer, row.ids[:first])
    assert row.supervised[first:].all()
    return whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, row.ids[first:])


def _decode(tokenizer, ids):
    return tokenizer.decode([int(id) for id in ids], clean_up_tokenization_spaces=False)


def one(examples, tokenizer, template, **options):
    options.setdefault("max_length", 4000)
    return tokenize(examples, tokenizer, template, **options)


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short", "vicuna", *CHATS])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_and_the_end_of_sequence_are_learnt_and_nothing_else(family, name, families):
    tokenizer = families[family]
    template = template_of(name, tokenizer)
    row = one([example("Name the capital of France.", "Paris is it.")], tokenizer, template).row(0)
    text = learnt(tokenizer, row)
    assert int(row.ids[-1]) == tokenizer.eos_token_id
    assert row.supervised[-1]
    # Some templates close a turn with a token of their own before the end of sequence.
    text = text.removesuffix(tokenizer.eos_token).strip()
    for turn_end in ("<|im_end|>", "<|eot_id|>"):
        text = text.removesuffix(turn_end).strip()
    expected = "Paris is it."
    if family == "wordpiece":
        assert text.replace(" ", "") == expected.lower().replace(" ", "")
    else:
        assert text == expected


GOLDEN = {
    ("byte_level", "alpaca"): "Paris<|im_end|>",
    ("byte_level", "vicuna"): " Paris<|im_end|>",
    ("byte_level", "chatml"): "Paris<|im_end|>",
    ("byte_level", "smol"): "Paris<|im_end|>",
    ("byte_level", "headers"): "Paris<|eot_id|><|im_end|>",
    ("byte_level", "inst"): " Paris <|im_end|>",
    ("byte_level", "no_eos"): "Paris<|im_end|>",
    ("byte_level", "bare"): " Paris<|im_end|>",
    ("metaspace", "alpaca"): "Paris</s>",
    ("metaspace", "vicuna"): " Paris</s>",
    ("metaspace", "inst"): " Paris </s>",
    ("split_regex", "headers"): "Paris<|eot_id|>",
    ("split_regex", "chatml"): "Paris<|im_end|><|eot_id|>",
    ("split_regex", "vicuna"): " Paris<|eot_id|>",
    ("unigram", "alpaca"): "Paris</s>",
    ("unigram", "vicuna"): " Paris</s>",
    ("wordpiece", "alpaca"): " paris [SEP]",
}


@pytest.mark.parametrize(("family", "name"), GOLDEN)
def test_golden_learnt_text(family, name, families):
    tokenizer = families[family]
    row = one([example("Capital?", "Paris")], tokenizer, template_of(name, tokenizer)).row(0)
    assert learnt(tokenizer, row) == GOLDEN[family, name]


@pytest.mark.parametrize("name", ["alpaca", "vicuna", *CHATS])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_beginning_of_sequence_stands_once_where_the_tokenizer_puts_one(family, name, families):
    tokenizer = families[family]
    row = one([example("Capital?", "Paris")], tokenizer, template_of(name, tokenizer)).row(0)
    bos = {"metaspace": "<s>", "split_regex": "<|begin_of_text|>", "wordpiece": "[CLS]"}.get(family)
    if bos is None:
        assert encoder_of(tokenizer).bos == ()
        return
    places = np.flatnonzero(row.ids == tokenizer.convert_tokens_to_ids(bos))
    assert places.tolist() == [0]
    assert not row.supervised[0]


ANSWERS = [
    "naïve café",
    "日本語です",
    "ok 😀👍🏽 fine",
    "a\n\n- b\n- c",
    "  indented",
    "tail  ",
    "\nfirst line",
    "x",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml", "no_eos"])
@pytest.mark.parametrize("family", BYTES)
def test_unusual_answers_are_learnt_in_full(family, name, answer, families):
    tokenizer = families[family]
    row = one([example("Say it.", answer)], tokenizer, template_of(name, tokenizer)).row(0)
    _is_learnt(learnt(tokenizer, row), answer, name, tokenizer)


def _is_learnt(text, answer, name, tokenizer):
    end = tokenizer.eos_token
    if name == "chatml" and end != "<|im_end|>":
        end = f"<|im_end|>{end}"
    expected = f" {answer}{end}" if name == "vicuna" else answer + end
    # One token may join the line break before the answer with one at its start; then both are learnt.
    assert text == expected or (answer.startswith("\n") and text.lstrip("\n") == expected.lstrip("\n"))


@pytest.mark.parametrize("family", BYTES)
def test_learnt_text_is_the_answer_for_any_text(family, families):
    tokenizer = families[family]
    letters = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(question=letters, answer=letters, name=st.sampled_from(["alpaca", "chatml", "vicuna"]))
    def holds(question, answer, name):
        row = one([example(question, answer)], tokenizer, template_of(name, tokenizer)).row(0)
        assert int(row.ids[-1]) == tokenizer.eos_token_id
        _is_learnt(learnt(tokenizer, row).lstrip("\n\r"), answer.lstrip("\n\r"), name, tokenizer)

    holds()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_of_any_family_ends_in_a_learnt_end_of_sequence(family, families):
    tokenizer = families[family]
    special = st.sampled_from(["<|im_end|>", "</s>", "[SEP]", "<s>", "<|im_start|>", "é", "😀", " ", "\n", "a"])
    texts = st.lists(special, max_size=6).map("".join)

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(question=texts, answer=texts, name=st.sampled_from(["alpaca", "chatml", "headers"]))
    def holds(question, answer, name):
        template = template_of(name, tokenizer)
        row = one([example(question, answer)], tokenizer, template).row(0)
        blank = one([example("", "")], tokenizer, template).row(0)
        controls = set(encoder_of(tokenizer).controls.values()) - {tokenizer.unk_token_id}
        steer = [int(id) for id in row.ids if int(id) in controls]
        assert steer == [int(id) for id in blank.ids if int(id) in controls]
        assert row.supervised[-1]
        assert int(row.ids[-1]) == tokenizer.eos_token_id

    holds()


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_a_row_stay_text(family, families):
    tokenizer = families[family]
    eos = tokenizer.eos_token
    rows = [example(f"What does {eos} mean?", f"{eos} ends a turn.", context=f"x{eos}y"), example("Hi.", "Yes.")]
    table = one(rows, tokenizer, template_of("alpaca", tokenizer))
    attacked, plain = table.row(0), table.row(1)
    assert (attacked.ids == tokenizer.eos_token_id).sum() == 1
    alone = one(rows[1:], tokenizer, template_of("alpaca", tokenizer)).row(0)
    assert plain.ids.tolist() == alone.ids.tolist()
    if family in BYTES:
        assert learnt(tokenizer, attacked) == f"{eos} ends a turn.{eos}"
    prompt = encode_prompt(
        rows[0].messages[:1], rows[0].context, tokenizer, template_of("alpaca", tokenizer), max_length=4000
    )
    assert tokenizer.eos_token_id not in prompt
    assert prompt == attacked.ids[: len(prompt)].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_renamed_control_tokens_give_the_same_ids(family, families):
    tokenizer = families[family]
    encoder = encoder_of(tokenizer)
    for name in ("alpaca", "vicuna", *CHATS):
        rendered = template_of(name, tokenizer).render(example("Say café 😀", " two  words\n"))
        plain, literal = encoder.encode([rendered])[0], encoder._encode_literally(rendered)
        assert plain.ids.tolist() == literal.ids.tolist()
        assert plain.starts.tolist() == literal.starts.tolist()
        assert plain.ends.tolist() == literal.ends.tolist()


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml", "headers", "no_eos", "bare"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_for_generation_is_the_beginning_of_the_training_row(family, name, families):
    tokenizer = families[family]
    template = template_of(name, tokenizer)
    asked = example("Capital of France?", "Paris", context="Rome")
    row = one([asked], tokenizer, template).row(0)
    prompt = encode_prompt(asked.messages[:1], "Rome", tokenizer, template, max_length=4000)
    assert prompt == row.ids[: len(prompt)].tolist()
    assert len(prompt) == row.supervised.argmax()


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml", "smol", "no_eos", "bare", "think"])
def test_every_answer_of_a_conversation_is_learnt(name, families):
    tokenizer = families["byte_level"]
    tokenizer.chat_template = {**CHATS, "think": THINK}.get(name)
    template = get_template(name if tokenizer.chat_template is None else "chat", tokenizer)
    turns = (
        ("system", "Be kind."),
        ("user", "One?"),
        ("assistant", "Uno."),
        ("user", "Two?"),
        ("assistant", "Dos."),
    )
    row = one([Example(tuple(Message(*turn) for turn in turns))], tokenizer, template).row(0)
    text = _decode(tokenizer, row.ids[row.supervised]).replace("\n", "").replace("<think></think>", "")
    between = "" if name == "no_eos" else "<|im_end|>"
    assert text.replace(" ", "") == f"Uno.{between}Dos.<|im_end|>"


def test_the_prompt_is_cut_before_the_answer(families):
    tokenizer = families["metaspace"]
    template = template_of("alpaca", tokenizer)
    rows = [example("word " * 200, "Paris is it.")]
    whole = one(rows, tokenizer, template)
    assert whole.truncated.tolist() == [WHOLE]
    table = one(rows, tokenizer, template, max_length=60)
    row, full = table.row(0), whole.row(0)
    assert table.truncated.tolist() == [PROMPT_CUT]
    assert table.lengths.tolist() == [60]
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.ids[1:].tolist() == full.ids[-59:].tolist()
    assert row.supervised[1:].tolist() == full.supervised[-59:].tolist()
    assert table.num_supervised(0) == whole.num_supervised(0)


def test_the_answer_is_cut_only_when_it_alone_is_too_long(families):
    tokenizer = families["metaspace"]
    template = template_of("alpaca", tokenizer)
    rows = [example("Say it.", "yes no " * 50)]
    count = one(rows, tokenizer, template).num_supervised(0)
    fits = one(rows, tokenizer, template, max_length=count + 1)
    assert fits.truncated.tolist() == [PROMPT_CUT]
    assert fits.num_supervised(0) == count
    assert fits.row(0).ids[-1] == tokenizer.eos_token_id
    short = one(rows, tokenizer, template, max_length=count)
    assert short.truncated.tolist() == [ANSWER_CUT]
    assert short.row(0).ids.tolist() == fits.row(0).ids[:-1].tolist()


def test_a_cut_through_an_earlier_answer_leaves_its_rest_unlearnt(families):
    tokenizer = families["byte_level"]
    template = template_of("chatml", tokenizer)
    turns = ("user", "a"), ("assistant", "yes " * 40), ("user", "b"), ("assistant", "last")
    rows = [Example(tuple(Message(*turn) for turn in turns))]
    table = one(rows, tokenizer, template, max_length=50)
    assert table.truncated.tolist() == [PROMPT_CUT]
    assert _decode(tokenizer, table.row(0).ids[table.row(0).supervised]) == "last<|im_end|>"


def test_a_prompt_for_generation_keeps_its_beginning_of_sequence_and_its_end(families):
    tokenizer = families["metaspace"]
    template = template_of("alpaca", tokenizer)
    messages = [Message("user", "word " * 100)]
    whole = encode_prompt(messages, "", tokenizer, template, max_length=4000)
    short = encode_prompt(messages, "", tokenizer, template, max_length=20)
    assert short == [tokenizer.bos_token_id, *whole[-19:]]


def test_with_train_on_inputs_every_token_but_the_first_is_a_target(families):
    tokenizer = families["byte_level"]
    table = one([example("a", "b")], tokenizer, template_of("chatml", tokenizer), train_on_inputs=True)
    assert table.row(0).supervised.tolist() == [False] + [True] * (table.lengths[0] - 1)


def test_stop_ids_hold_the_end_of_turn_and_of_sequence(families):
    def stops(family, name):
        tokenizer = families[family]
        return set(tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer, template_of(name, tokenizer)))))

    assert stops("byte_level", "chatml") == {"<|im_end|>"}
    assert stops("split_regex", "chatml") == {"<|im_end|>", "<|eot_id|>"}
    assert stops("metaspace", "inst") == {"</s>"}
    assert stops("unigram", "alpaca") == {"</s>"}


def test_counts_and_lengths_are_those_of_the_rows(families):
    tokenizer = families["byte_level"]
    rows = [example("a" * n, "b" * n) for n in range(1, 6)]
    table = one(rows, tokenizer, template_of("alpaca", tokenizer))
    assert len(table) == 5
    assert table.lengths.tolist() == [len(table.row(i).ids) for i in range(5)]
    assert table.supervised_counts.tolist() == [table.num_supervised(i) for i in range(5)]
    assert table.ids.dtype == np.int32
    assert table.offsets.dtype == np.int64
    assert len(one([], tokenizer, template_of("alpaca", tokenizer))) == 0
    with pytest.raises(IndexError):
        table.row(5)


def test_tables_are_found_again_and_damaged_ones_are_made_again(families, tmp_path, caplog):
    tokenizer = families["byte_level"]
    template = template_of("chatml", tokenizer)
    rows = [example("a", "b"), example("c", "d")]
    fresh = one(rows, tokenizer, template, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.read_bytes()
    again = one(rows, tokenizer, template, cache_dir=tmp_path)
    for damage in (written[:40], written[:-3] + b"\x07\x07\x07", b"", b"{}" * 50):
        file.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            again = one(rows, tokenizer, template, cache_dir=tmp_path)
        assert "damaged" in caplog.text
        assert file.read_bytes() == written
        assert again.ids.tolist() == fresh.ids.tolist()
        assert again.supervised.tolist() == fresh.supervised.tolist()
        caplog.clear()
    one(rows[:1], tokenizer, template, cache_dir=tmp_path)
    one(rows, tokenizer, template, cache_dir=tmp_path, max_length=9)
    one(rows, tokenizer, template, cache_dir=tmp_path, train_on_inputs=True)
    one(rows, tokenizer, template_of("alpaca", tokenizer), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_users_tokenizer_is_left_as_it_is(families):
    tokenizer = families["metaspace"]
    before = tokenizer.backend_tokenizer.to_str()
    one([example("a", "b"), example("<s>", "b")], tokenizer, template_of("alpaca", tokenizer), max_length=10)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_padding_and_truncation_of_the_tokenizer_have_no_effect(families):
    padded = byte_level()
    padded.backend_tokenizer.enable_padding(length=50)
    padded.backend_tokenizer.enable_truncation(5)
    plain = families["byte_level"]
    ids = [one([example("a", "b")], t, template_of("alpaca", t)).ids.tolist() for t in (padded, plain)]
    assert ids[0] == ids[1]


def test_a_length_without_room_is_refused(families):
    tokenizer = families["metaspace"]
    with pytest.raises(ConfigError, match="max_length is 2; expected at least 3"):
        one([example("a", "b")], tokenizer, template_of("alpaca", tokenizer), max_length=2)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="CanineTokenizer is a slow tokenizer"):
        tokenize([], CanineTokenizer(), None, max_length=9)


def test_a_tokenizer_without_end_of_sequence_is_refused():
    tokenizer = _fast(Tokenizer(models.BPE()))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        tokenize([], tokenizer, None, max_length=9)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        get_template("alpaca", tokenizer)


def test_a_token_that_joins_prompt_and_answer_is_a_target(families):
    tokenizer = families["split_regex"]
    row = one([example("Say it.", "\nline")], tokenizer, template_of("chatml", tokenizer)).row(0)
    assert learnt(tokenizer, row) == "\n\nline<|im_end|><|eot_id|>"


def test_a_word_mark_that_the_tokenizer_inserts_before_an_answer_is_a_target(families):
    tokenizer = families["metaspace"]
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}"
        "{{ '<|end_header_id|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|end_header_id|>' }}{% endif %}"
    )
    row = one([example("a", "qq")], tokenizer, get_template("chat", tokenizer)).row(0)
    first = tokenizer.convert_ids_to_tokens(int(row.ids[row.supervised.argmax()]))
    assert first.startswith("▁")
    assert tokenizer.convert_ids_to_tokens(int(row.ids[row.supervised.argmax() - 1])) == "<|end_header_id|>"


def test_a_control_token_that_swallows_the_answers_first_space_is_no_target():
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|bot|>", rstrip=True, normalized=False, special=True)]}
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
        "{% else %}{{ '<|bot|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
    )
    row = one([example("a", "  qq")], tokenizer, get_template("chat", tokenizer)).row(0)
    assert _decode(tokenizer, row.ids[row.supervised]) == "qq<|im_end|>"


def test_a_token_without_width_belongs_to_the_text_after_it(families):
    starts, ends = np.array([0, 3, 3, 6, 6]), np.array([3, 3, 6, 6, 9])
    encoded = Encoded(np.full(5, 300, dtype=np.int32), starts, ends)
    answer = _overlap(encoded, "askanswer", (3, 6), encoder_of(families["byte_level"]))
    assert answer.tolist() == [False, True, True, False, False]
