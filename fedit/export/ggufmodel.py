"""What llama.cpp has to know of an architecture: its names, the order of its rows, its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from fedit.errors import ModelError

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture as llama.cpp computes it.

    permuted:  whether the rows of q and k stand in llama.cpp's own order of rotary pairs.
    norm_plus: what llama.cpp adds to the weights of norms beforehand (Gemma multiplies by 1 + weight).
    """

    arch: gguf.MODEL_ARCH
    permuted: bool = False
    norm_plus: float = 0.0

    @property
    def name(self) -> str:
        """llama.cpp's name."""
        return gguf.MODEL_ARCH_NAMES[self.arch]


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3),
    "gemma": Architecture(gguf.MODEL_ARCH.GEMMA, norm_plus=1.0),
}
"""transformers' ``model_type`` -> how llama.cpp computes it: those whose logits a test compares."""


class Names:
    """llama.cpp's names and rows of the tensors of one model."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        kind = config.get("model_type")
        if kind not in ARCHITECTURES:
            raise ModelError(
                f"model '{source}' is of type {kind}; GGUF files were compared with the model itself only for "
                f"{', '.join(ARCHITECTURES)}. Export --to merged and use llama.cpp's own converter on that folder."
            )
        self.architecture = ARCHITECTURES[str(kind)]
        self.config = config
        self._map = gguf.get_tensor_name_map(self.architecture.arch, int(config["num_hidden_layers"]))

    def of(self, name: str) -> str:
        """Return llama.cpp's name of a weight or bias by transformers' name.

        Raises:
            ModelError: it has none.
        """
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"llama.cpp has no tensor for '{name}' in its architecture {self.architecture.name}.")
        return found

    def rows(self, name: str, values: Array) -> Array:
        """Return a tensor (or a LoRA B) with its rows in llama.cpp's order, norms as it multiplies by them."""
        if self.architecture.permuted and (".q_proj." in name or ".k_proj." in name):
            heads = int(self.config["num_attention_heads"])
            if ".k_proj." in name:
                heads = int(self.config.get("num_key_value_heads") or heads)
            return permuted(values, heads)
        if self.architecture.norm_plus and name.endswith("norm.weight"):
            return values + np.float32(self.architecture.norm_plus)
        return values


def permuted(values: Array, heads: int) -> Array:
    """Return rows in llama.cpp's order of rotary pairs: (i, i + half) become neighbours."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def add_numbers(writer: gguf.GGUFWriter, config: Mapping[str, Any], source: str) -> None:
    """Write sizes, positions and constants of a model.

    Raises:
        ModelError: its positions are stretched in a way that is not known here.
    """
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(_context(config))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    _add_rope(writer, config, head_dim, source)


def _context(config: Mapping[str, Any]) -> int:
    """Return how many tokens the model reads; where attention slides, as far as the window reaches.

    llama.cpp's llama architecture attends to everything, which within the window is the same.
    """
    longest = int(config["max_position_embeddings"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return min(longest, int(window)) if window else longest


def _add_rope(writer: gguf.GGUFWriter, config: Mapping[str, Any], head_dim: int, source: str) -> None:
    rope = dict(config.get("rope_parameters") or {})
    kind, theta = rope.get("rope_type", "default"), float(rope.get("rope_theta", 10_000.0))
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"model '{source}' turns only a part of each head, which is not exported to GGUF.")
    writer.add_rope_freq_base(theta)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, theta, head_dim))
    elif kind != "default":
        raise ModelError(
            f"model '{source}' stretches its positions by '{kind}', which is not exported to GGUF; "
            "export --to merged and use llama.cpp's own converter on that folder."
        )


def _llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> Array:
    """Return what Llama 3.1 divides each frequency by."""
    low, high, factor = float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), float(rope["factor"])
    context = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
