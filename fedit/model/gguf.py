"""Turn a GGUF file (llama.cpp's format) into an ordinary Hugging Face model folder."""

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file

from fedit.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# llama.cpp's name of a weight in block N ("blk.N.<left>") and transformers' ("model.layers.N.<right>").
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MOST_CHANNELS = 1 << 20
# Frequency factors of Llama 3.1 and later: a fact of the rotary table, not a weight.
_ROPE_FACTORS = "rope_freqs.weight"

# Vocabularies whose merges were learned with every digit on its own, then split like GPT-2.
_DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
# Vocabularies that are split like GPT-2 and nothing else.
_PLAIN_SPLITS = frozenset({"", "default", "gpt-2", "mpt", "olmo", "jais"})


def convert(path: Path, folder: Path, progress: Callable[[str], None] | None = None) -> None:
    """Write the model in the GGUF file ``path`` into the existing ``folder``.

    The folder then holds config.json, generation_config.json, model.safetensors (bfloat16) and a fast
    tokenizer with its chat template. Llama models are read here; other architectures go through
    transformers' own GGUF loader.

    Raises:
        ModelError: the file is no GGUF file, is cut off, or holds a model that cannot be rebuilt.
    """
    say = progress or (lambda _: None)
    say(f"reading {path.name}")
    reader = open_gguf(path)
    if _text(reader, "general.architecture") == "llama":
        config = llama_config(reader)
        say(f"dequantising {len(reader.tensors)} tensors of {path.name}")
        _save_llama(reader, config, folder)
    else:
        say(f"loading {path.name} through transformers")
        _save_with_transformers(path, folder)
    say(f"building the tokenizer of {path.name}")
    load_tokenizer(path, reader).save_pretrained(folder)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Map the file and read its metadata and its table of tensors.

    Raises:
        ModelError: the file is missing, no GGUF file, or cut off.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(
            f"{path} is not a readable GGUF file ({error}); it may be cut off: download it again"
        ) from error
    if _text(reader, "general.architecture") is None:
        raise ModelError(f"{path} does not say which model it holds: 'general.architecture' is missing")
    return reader


def llama_config(reader: gguf.GGUFReader) -> "LlamaConfig":
    """Rebuild the configuration of a llama model from the file's metadata.

    Raises:
        ModelError: a needed value is missing, or the positions are stretched in an unknown way.
    """
    names = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in names:
        raise ModelError("the GGUF file holds no 'token_embd.weight': it is not a complete language model")
    hidden = _integer(reader, "embedding_length")
    heads = _integer(reader, "attention.head_count")
    head_dim = _integer(reader, "attention.key_length", hidden // max(heads, 1))
    if min(hidden, heads, head_dim) < 1 or max(hidden, heads, head_dim) > _MOST_CHANNELS:
        raise ModelError(f"the GGUF file's sizes are impossible: {hidden} channels, {heads} heads of {head_dim}")
    try:
        return _config(reader, names, hidden, heads, head_dim)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:  # it checks its own values
        raise ModelError(f"the GGUF file's metadata describe no model: {error}") from error


def _config(
    reader: gguf.GGUFReader, names: Mapping[str, gguf.ReaderTensor], hidden: int, heads: int, head_dim: int
) -> "LlamaConfig":
    from transformers import LlamaConfig

    config = LlamaConfig(
        # A GGUF shape is listed from the fastest axis: (channels, tokens).
        vocab_size=int(names["token_embd.weight"].shape[1]),
        hidden_size=hidden,
        intermediate_size=_integer(reader, "feed_forward_length"),
        num_hidden_layers=_integer(reader, "block_count"),
        num_attention_heads=heads,
        num_key_value_heads=_integer(reader, "attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=_integer(reader, "context_length"),
        rms_norm_eps=_decimal(reader, "attention.layer_norm_rms_epsilon"),
        rope_parameters=_rope(reader, head_dim),
        attention_bias="blk.0.attn_q.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=_token(reader, "bos"),
        eos_token_id=_token(reader, "eos"),
        pad_token_id=_token(reader, "padding"),
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def llama_tensors(reader: gguf.GGUFReader, config: "LlamaConfig") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (transformers' name, float32 weight) for every tensor of a llama model, one at a time.

    Raises:
        ModelError: a tensor that llama models do not have, or a quantisation gguf cannot undo.
    """
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue
        name = _llama_name(tensor.name)
        try:
            weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ModelError(
                f"tensor '{tensor.name}' is stored as {tensor.tensor_type.name}, which the gguf package "
                "cannot turn back into numbers; use another quantisation, for example Q8_0 or Q4_K_M"
            ) from error
        if ".q_proj." in name:
            weight = _unpermute(weight, config.num_attention_heads)
        elif ".k_proj." in name:
            weight = _unpermute(weight, config.num_key_value_heads or config.num_attention_heads)
        yield name, torch.from_numpy(weight)


def load_tokenizer(path: Path, reader: gguf.GGUFReader) -> "PreTrainedTokenizerFast":
    """Build the fast tokenizer that a GGUF file describes, with its chat template.

    Raises:
        ModelError: the file holds a kind of vocabulary that transformers cannot build.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    try:
        with _alone(path) as folder:
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
                folder, gguf_file=path.name
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the tokenizer inside {path} cannot be rebuilt: {error}") from error
    split = _text(reader, "tokenizer.ggml.pre") or ""
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, ByteLevel):
        # transformers 5.23 splits these like GPT-2, so "  7" would give tokens the model never saw.
        if split in _DIGIT_SPLITS:
            backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
        elif split not in _PLAIN_SPLITS:
            logger.warning(
                "%s splits text by the rules of '%s', which are not known here: text may be cut into "
                "other tokens than in training; prefer the model's own folder", path.name, split
            )  # fmt: skip
    tokenizer.model_max_length = _integer(reader, "context_length", 8192)
    for key in ("is_local", "local_files_only", "vocab_file"):
        tokenizer.init_kwargs.pop(key, None)  # facts about this load, not about the tokenizer
    return tokenizer


def _llama_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match name.split("."):
        case ["blk", block, part, ("weight" | "bias") as kind] if block.isdecimal() and part in _BLOCK_NAMES:
            return f"model.layers.{block}.{_BLOCK_NAMES[part]}.{kind}"
    raise ModelError(
        f"the GGUF file says it is a llama model but holds '{name}', which llama models do not have "
        "(mixtures of experts are not supported); use the model's Hugging Face folder"
    )


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary pairs: (2i, 2i+1) neighbours become (i, i + half) again."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _save_llama(reader: gguf.GGUFReader, config: "LlamaConfig", folder: Path) -> None:
    from transformers import GenerationConfig, LlamaForCausalLM

    weights = {name: weight.to(torch.bfloat16) for name, weight in llama_tensors(reader, config)}
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    found = {name: weight.shape for name, weight in weights.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ModelError(
            f"the GGUF file's weights do not fit its own metadata: {len(wrong)} tensors are missing, "
            f"too many or of another shape, for example {wrong[0]}: found {_shape(found.get(wrong[0]))}, "
            f"expected {_shape(expected.get(wrong[0]))}"
        )
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    # safetensors writes files that only their owner may read; a cache can be shared.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig.from_dict(tokens).save_pretrained(folder)


def _save_with_transformers(path: Path, folder: Path) -> None:
    import transformers

    options = {"gguf_file": path.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Some of its progress bars have no switch in transformers 5.23.
    with _alone(path) as alone, contextlib.redirect_stderr(io.StringIO()):
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(alone, **options)
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ModelError(
                f"transformers {transformers.__version__} cannot read the model in {path}: {error}; "
                "use the model's Hugging Face folder or hub id"
            ) from error
        # A model from a GGUF file stays marked as quantised, and then refuses to be saved or trained.
        marks = [(model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")]
        for owner, mark in marks:
            if hasattr(owner, mark):
                delattr(owner, mark)
        model.save_pretrained(folder)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Yield a folder that holds only this file: transformers also reads any tokenizer that lies beside it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            (Path(folder) / path.name).symlink_to(path.resolve())
        except OSError:  # systems where a link needs a privilege
            shutil.copyfile(path, Path(folder) / path.name)
        yield Path(folder)


def _rope(reader: gguf.GGUFReader, head_dim: int) -> dict[str, float | str]:
    """Return transformers' description of the rotary positions."""
    theta = _decimal(reader, "rope.freq_base", 10_000.0)
    scaling = _text(reader, "llama.rope.scaling.type") or "none"
    factors = [tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS]
    if factors:
        return _llama3_rope(theta, np.array(factors[0].data, dtype=np.float64), head_dim)
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _decimal(reader, "rope.scaling.factor")}
    if scaling != "none":
        raise ModelError(
            f"the GGUF file stretches positions by '{scaling}', which cannot be rebuilt exactly; "
            "use the model's Hugging Face folder or hub id"
        )
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rope(theta: float, factors: np.ndarray, head_dim: int) -> dict[str, float | str]:
    """Recover Llama 3's four numbers from the table of factors that llama.cpp computed from them.

    Every released model has low and high factors 1 and 4 and was trained at 8,192 positions first; the
    largest factor is the fourth number. The table is computed again and must agree.
    """
    factor, low, high, context = float(factors.max()), 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            "the GGUF file's rope_freqs are not those of Llama 3: its positions cannot be rebuilt exactly; "
            "use the model's Hugging Face folder or hub id"
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _value(reader: gguf.GGUFReader, key: str) -> object:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _text(reader: gguf.GGUFReader, key: str) -> str | None:
    value = _value(reader, key)
    return value if isinstance(value, str) else None


def _integer(reader: gguf.GGUFReader, key: str, default: int | None = None) -> int:
    """Read the whole number ``<architecture>.<key>``."""
    value = _value(reader, f"{_text(reader, 'general.architecture')}.{key}")
    if isinstance(value, int):
        return value
    if value is None and default is not None:
        return default
    raise ModelError(f"the GGUF file's '{key}' is {value!r}; a whole number was expected")


def _decimal(reader: gguf.GGUFReader, key: str, default: float | None = None) -> float:
    """Read the number ``<architecture>.<key>`` in its shortest float32 spelling: 1e-05, not 9.9999997e-06."""
    value = _value(reader, f"{_text(reader, 'general.architecture')}.{key}")
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if value is None and default is not None:
        return default
    raise ModelError(f"the GGUF file's '{key}' is {value!r}; a number was expected")


def _token(reader: gguf.GGUFReader, kind: str) -> int | None:
    value = _value(reader, f"tokenizer.ggml.{kind}_token_id")
    return value if isinstance(value, int) else None


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))
