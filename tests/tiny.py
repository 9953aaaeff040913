"""Tiny random models, a byte-level tokenizer and rows that tests share."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.types import Tensors

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCABULARY = 256 + len(SPECIAL)

# Weights this large make attention far from uniform, so that a leak between rows shows.
_WIDE = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 259}
_LLAMA_LIKE = {
    **_WIDE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": None, "head_dim": 8},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma2": {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8},
    "gemma": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma3_text": {
        **_LLAMA_LIKE,
        "head_dim": 8,
        "sliding_window": 32,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "smollm3": {**_LLAMA_LIKE, "no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2},
    "phi3": _LLAMA_LIKE,
    "gpt2": {**_WIDE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2},
    "opt": {
        **_WIDE,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "init_std": 0.2,
    },
    "bloom": {**_WIDE, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
}
"""One tiny model a way of knowing positions, of fusing projections and of shaping attention."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Tokenizer(models.BPE(vocab={char: id for id, char in enumerate(alphabet)}, merges=[]))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_model(kind: str, folder: Path, seed: int = 0, **changes: object) -> None:
    """Write a tiny random model with its tokenizer, as any model folder is."""
    config: PretrainedConfig = AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start at 1 and 0, which would hide mistakes
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
            assert name
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Write rows of three categories that a tiny model can learn something from."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon"]
    lines = []
    for index in range(count):
        category = ("copy", "upper", "count")[index % 3]
        picked = [words[i] for i in rng.integers(len(words), size=int(rng.integers(1, 4)))]
        text = " ".join([*picked, str(index)])
        answer = {"copy": text, "upper": text.upper(), "count": str(len(picked))}[category]
        lines.append(json.dumps({"instruction": f"{category}: {text}", "output": answer, "category": category}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_rows(lengths: list[int], seed: int = 0, prompt: float = 0.5) -> list[TokenRow]:
    """Return random rows of the given lengths whose first part is prompt and the rest supervised."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        supervised = np.zeros(length, dtype=np.bool_)
        supervised[max(1, int(prompt * length)) :] = True
        rows.append(TokenRow(rng.integers(0, 256, size=length).astype(np.int32), supervised))
    return rows


def random_adapter(model: AdaptedModel, seed: int = 0, size: float = 0.1) -> Tensors:
    """Return an adapter whose A and B are both far from zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in model.initial(seed).items()
    }
