"""A resolved source becomes a frozen base model in memory, quantised where asked."""

import logging
import platform
from dataclasses import dataclass
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedit.errors import ConfigError, ModelError
from fedit.model.hardware import choose_device, choose_dtype, is_out_of_memory
from fedit.model.sources import ModelSource
from fedit.reading import parse_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen base model with its tokenizer."""

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the tokenizer that belongs to ``source``.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of model '{source.name}' cannot be read: {error}") from error


def context_length(source: ModelSource) -> int | None:
    """Return the longest sequence, in tokens, that the model was made for; None where its config does not say."""
    try:
        config = parse_json((source.path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the config of model '{source.name}' cannot be read: {error}") from error
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if type(value := config.get(name)) is int:
            return value
    return None


def load_base(
    source: ModelSource,
    *,
    device: str = "auto",
    dtype: str = "auto",
    bits: int = 16,
    attention: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Base:
    """Load the base model once, frozen, in evaluation mode.

    bits:      16 keeps ``dtype``; 8 and 4 quantise the linear layers through bitsandbytes (4: NF4).
    attention: transformers' name of an implementation; None: its own choice.

    Raises:
        ModelError: the folder holds no causal language model.
        ConfigError: the quantisation is not to be had on this device.
    """
    target = choose_device(device)
    precision = choose_dtype(dtype, target)
    transformers_logging.disable_progress_bar()
    options: dict[str, object] = {"dtype": precision, "local_files_only": True, "use_safetensors": True}
    if bits != 16:
        options["quantization_config"] = _quantization(bits, precision, target)
        options["device_map"] = {"": target}
    try:
        config = _without_dropout(AutoConfig.from_pretrained(source.path, local_files_only=True))
        options |= {"config": config, "attn_implementation": attention or _attention(config)}
        loaded = AutoModelForCausalLM.from_pretrained(source.path, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model '{source.name}' cannot be loaded as a causal language model: {error}") from error
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    if missing := sorted(report["missing_keys"]):
        # transformers would make them up, differently on every machine.
        raise ModelError(
            f"model '{source.name}' lacks {len(missing)} weights, among them {missing[0]}; "
            "its files are not complete."
        )
    if bits == 16:
        model.to(device=target)  # type: ignore[call-arg]  # the decorated method hides its signature
    model.requires_grad_(False)
    model.eval()
    if bits == 16 and target.type == "cpu":
        # Out of the mapped file into memory of our own, which may lie in huge pages: products are faster, and what
        # the fast path joins is not held twice.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights at the first evaluation on such a CPU; its product over the repacked
        # weights has no backward, so that gradients below would silently be lost.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a flag of its layers
    # What a base's makers like in a chat (sampling, penalties) must not change greedy answers that are graded.
    model.generation_config = GenerationConfig()
    return Base(source, model, tokenizer or load_tokenizer(source), target, precision)


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Switch the base's own dropout off: it is frozen, so ``lora_dropout`` is the only one that regularises."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith(("_pdrop", "layerdrop"))):
            setattr(config, name, 0.0)
    return config


def _attention(config: PretrainedConfig) -> str | None:
    """Return the attention that transformers must not choose itself; None: it may.

    Its version 5.17 gives models whose scores have a cap (Gemma 2) a kernel that leaves the cap out.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _quantization(bits: int, dtype: torch.dtype, device: torch.device) -> object:
    from transformers import BitsAndBytesConfig

    if device.type == "mps" or (platform.system() == "Darwin" and platform.machine() != "arm64"):
        raise ConfigError(
            f"load_in_{bits}bit needs bitsandbytes, which does not support device '{device.type}' here; "
            "use dtype=bf16 or fp32."
        )
    try:
        import bitsandbytes  # noqa: F401  (only to learn whether it is installed)
    except ImportError as error:
        raise ConfigError(
            f"load_in_{bits}bit needs bitsandbytes; install it with: pip install 'fedit[quant]'"
        ) from error
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
