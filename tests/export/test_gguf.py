"""GGUF files are loaded and asked by llama.cpp: its log-probabilities, tokens and prompts are fedit's."""

import gguf
import numpy as np
import pytest
import torch
from exporting import SPLITS, TEXT, VOCABULARY, llama
from tiny import random_adapter

from fedit.data.examples import Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt
from fedit.errors import ConfigError, ModelError
from fedit.export.formats import Options
from fedit.export.ggufmodel import ARCHITECTURES, permuted
from fedit.export.ggufs import TYPES, write_gguf_adapter, write_gguf_model
from fedit.export.subject import Subject
from fedit.export.write import export
from fedit.model.adapted import AdaptedModel
from fedit.model.gguf import _unpermute
from fedit.model.loading import load_base, load_tokenizer
from fedit.model.sources import resolve_model
from fedit.tuned import Tuned, find_tuned

IDS = list(range(60, 90))
QUESTION = [Message("user", "Name three uses of a brick.")]


def say(text):
    pass


def tuned_model(folder, seed=3):
    """Return a strong random adapter of all layers of a tiny model, and fedit's log-probabilities after `IDS`."""
    base = load_base(resolve_model(str(folder)), device="cpu", dtype="fp32")
    model = AdaptedModel(base, rank=4, alpha=8.0, targets="all-linear", fast_path=False)
    adapter = random_adapter(model, seed)
    model.load(adapter)
    return Subject("tiny", Tuned(adapter, str(folder), "chat", 4, 8.0, dtype="fp32")), own(model, IDS)


def own(model, ids):
    with torch.no_grad():
        logits = model._model(torch.tensor([ids])).logits[0, -1]
    return torch.log_softmax(logits.double(), -1).numpy()


def both(subject, folder, dtype="fp32"):
    """Yield llama.cpp with the merged model, and with the base and the adapter."""
    write_gguf_model(subject, folder / "model.gguf", dtype=dtype, say=say)
    write_gguf_adapter(subject, folder / "adapter.gguf")
    write_gguf_model(Subject("base", subject.tuned.base()), folder / "base.gguf", dtype=dtype, say=say)
    with llama(folder / "model.gguf") as merged:
        yield merged
    with llama(folder / "base.gguf", folder / "adapter.gguf") as adapted:
        yield adapted


# GELU comes from a table of half precision in llama.cpp.
TOLERANCE = {**dict.fromkeys(ARCHITECTURES, 1e-4), "gemma": 1e-2}


def test_llama_cpp_computes_what_fedit_does(bpe, tmp_path):
    pytest.importorskip("xllamacpp")
    subject, expected = tuned_model(bpe("llama"))
    for loaded in both(subject, tmp_path):
        found = loaded.log_probabilities(IDS, VOCABULARY)
        assert np.abs(found - expected).max() < TOLERANCE["llama"]
    with llama(tmp_path / "base.gguf") as base:
        assert np.abs(base.log_probabilities(IDS, VOCABULARY) - expected).max() > 0.5


SCALED = {
    "llama3": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"tie_word_embeddings": kind == "gemma"}) for kind in ARCHITECTURES if kind != "llama"),
        *(("llama", {"rope_parameters": scaled}) for scaled in SCALED.values()),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16}),
        ("llama", {"num_key_value_heads": 4}),
    ],
)
def test_every_architecture_of_the_table_is_computed_alike(bpe, tmp_path, kind, changes):
    subject, expected = tuned_model(bpe(kind, **changes))
    for loaded in both(subject, tmp_path):
        found = loaded.log_probabilities(IDS, VOCABULARY)
        assert np.abs(found - expected).max() < TOLERANCE[kind]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.02), ("bf16", 0.2), ("q8_0", 0.6)])
def test_smaller_types_are_near(bpe, tmp_path, dtype, tolerance):
    """Of random weights whose log-probabilities differ by several units."""
    subject, expected = tuned_model(bpe("qwen2"))
    for loaded in both(subject, tmp_path, dtype):
        assert np.abs(loaded.log_probabilities(IDS, VOCABULARY) - expected).max() < tolerance
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert TYPES[dtype][0] in kinds


def test_rows_are_put_back_by_fedits_own_reader():
    rows = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    assert not np.array_equal(permuted(rows, 2), rows)
    assert np.array_equal(_unpermute(permuted(rows, 2), 2), rows)


def test_fedit_reads_what_it_wrote(bpe, tmp_path, cache):
    subject, _ = tuned_model(bpe("llama"))
    write_gguf_model(Subject("base", subject.tuned.base()), tmp_path / "base.gguf", dtype="fp32", say=say)
    again = load_base(resolve_model(str(tmp_path / "base.gguf")), device="cpu", dtype="fp32").model.state_dict()
    first = load_base(resolve_model(str(bpe("llama"))), device="cpu", dtype="fp32").model.state_dict()
    for name, weight in first.items():
        torch.testing.assert_close(again[name], weight.bfloat16().float(), rtol=0, atol=0)


# --- tokens and prompts ---


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_text_becomes_the_same_tokens(bpe, tmp_path, split):
    folder = bpe("llama", split)
    subject, _ = tuned_model(folder)
    write_gguf_model(subject, tmp_path / "model.gguf", dtype="fp32", say=say)
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    with llama(tmp_path / "model.gguf") as loaded:
        for text in (*TEXT, "<|im_start|>user\n2025's  été\t\n\n", "x" * 40, "  7 77 777 7777"):
            found = loaded.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
            assert found["tokens"] == tokenizer(text)["input_ids"], text


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chat", "alpaca", "vicuna"])
def test_llama_cpp_asks_in_the_words_of_the_training(finished, tmp_path, template):
    run = finished(prompt_template=template)
    export(run, "gguf", tmp_path / "out")
    tuned = find_tuned(run)
    tokenizer = load_tokenizer(resolve_model(tuned.model))
    conversation = [
        Message("system", "Be brief."),
        *QUESTION,
        Message("assistant", "No."),
        Message("user", "Why?"),
    ]
    for asked in (QUESTION, conversation):
        turns = [{"role": turn.role, "content": turn.content} for turn in asked]
        ids = encode_prompt(asked, "", tokenizer, get_template(template, tokenizer), max_length=512)
        with llama(tmp_path / "out" / "model.gguf") as loaded:
            prompt = loaded.post("/apply-template", {"messages": turns})["prompt"]
            found = loaded.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
            assert found["tokens"] == ids
            answer = loaded.answer(turns, max_tokens=4)
        assert answer["usage"]["prompt_tokens"] == len(ids)


# --- what is refused ---


def test_architectures_that_were_not_compared_are_refused(bpe, tmp_path, finished):
    base = load_base(resolve_model(str(bpe("phi3"))), device="cpu", dtype="fp32")
    model = AdaptedModel(base, rank=2, alpha=4.0, fast_path=False)
    subject = Subject("phi", Tuned(random_adapter(model), str(bpe("phi3")), "chat", 2, 4.0))
    for write in (lambda: write_gguf_model(subject, tmp_path / "m.gguf", say=say),
                  lambda: write_gguf_adapter(subject, tmp_path / "a.gguf")):  # fmt: skip
        with pytest.raises(ModelError, match="type phi3; GGUF files were compared"):
            write()
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_kind_is_refused_and_the_adapter_is_not(bpe, tmp_path):
    folder = bpe("llama", rms_norm_eps=1e-4)
    text = (folder / "tokenizer.json").read_text()
    try:
        (folder / "tokenizer.json").write_text(
            text.replace('"individual_digits": true', '"individual_digits": false')
        )
        subject, _ = tuned_model(folder)
        with pytest.raises(ModelError, match=r"splits text by rules of its own.*--adapter-only"):
            write_gguf_model(subject, tmp_path / "model.gguf", say=say)
        write_gguf_adapter(subject, tmp_path / "adapter.gguf")
    finally:
        (folder / "tokenizer.json").write_text(text)
    fields = gguf.GGUFReader(tmp_path / "adapter.gguf").fields
    assert fields["adapter.type"].contents() == "lora"
    assert fields["adapter.lora.alpha"].contents() == 8.0


def test_a_vocabulary_without_merges_is_refused(tiny, tmp_path):
    subject = Subject("bytes", Tuned({}, str(tiny), "chat", 4, 8.0))
    with pytest.raises(ModelError, match="merges nothing"):
        write_gguf_model(subject, tmp_path / "model.gguf", say=say)


def test_stretched_positions_that_are_not_known_are_refused(bpe, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    subject, _ = tuned_model(bpe("llama", rope_parameters=rope))
    with pytest.raises(ModelError, match="stretches its positions by 'dynamic'"):
        write_gguf_model(subject, tmp_path / "model.gguf", say=say)


def test_numbers_beyond_half_precision_are_refused(bpe, tmp_path):
    subject, _ = tuned_model(bpe("llama"))
    large = {name: tensor * 1e4 for name, tensor in subject.tuned.adapter.items()}
    loud = Subject("loud", Tuned(large, subject.tuned.model, "chat", 4, 8.0))
    with pytest.raises(ModelError, match="fp16 cannot hold; export with --dtype bf16"):
        write_gguf_model(loud, tmp_path / "model.gguf", say=say)


def test_an_adapter_alone_is_small_and_only_lora_has_one(finished, tmp_path):
    done = export(finished(), "gguf", tmp_path / "a", options=Options(adapter_only=True))
    assert set(done.files) == {"README.md", "adapter.gguf", "chat_template.jinja", "export.json"}
    with pytest.raises(ConfigError, match="full has no GGUF adapter"):
        export(finished(tuning="full"), "gguf", tmp_path / "b", options=Options(adapter_only=True))
    assert "adapter.gguf" not in export(finished(tuning="full"), "gguf", tmp_path / "c").files


def test_ollamas_folder_names_its_model_and_its_prompt(finished, tmp_path):
    done = export(finished(prompt_template="alpaca"), "ollama", tmp_path / "out", options=Options("q8_0"))
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert "### Instruction:\n{{ .Content }}\n\n### Response:\n" in text
    assert done.record["dtype"] == "q8_0"
    assert done.files["model.gguf"] > 10_000


# --- the real model ---


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_in_llama_cpp(tmp_path):
    """Merged in half precision, and asked as a chat."""
    source = resolve_model()
    base = load_base(source, device="cpu", dtype="fp32")
    model = AdaptedModel(base, rank=8, alpha=16.0, fast_path=False)
    adapter = random_adapter(model, 1, size=0.03)
    model.load(adapter)
    subject = Subject("smollm2", Tuned(adapter, source.name, "chat", 8, 16.0, dtype="fp32"))
    ids = encode_prompt(QUESTION, "", base.tokenizer, get_template("chat", base.tokenizer), max_length=512)
    expected = own(model, ids)
    model.load({name: torch.zeros_like(tensor) for name, tensor in adapter.items()})
    untuned = own(model, ids)
    likely = np.argsort(-expected)[:50]
    write_gguf_model(subject, tmp_path / "model.gguf", say=say)
    with llama(tmp_path / "model.gguf") as loaded:
        found = loaded.log_probabilities(ids, len(expected))
        answer = loaded.answer([{"role": "user", "content": QUESTION[0].content}], max_tokens=8)
    assert np.abs(found - expected)[likely].max() < 0.05
    assert np.abs(untuned - expected)[likely].max() > 0.5
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"]
