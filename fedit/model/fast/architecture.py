"""Reads the parts of a Llama-like model; a model that has others is left to the general path, with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fedit.model.fast.attention import Heads
from fedit.model.fast.frozen import Group
from fedit.model.fast.head import Head
from fedit.model.fast.layer import ACTIVATIONS, LayerSpec, Norm

Part = Any
"""A module of a transformers model; its attributes depend on its class, and a missing one is an AttributeError."""

FAMILIES = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"))
"""Model types whose layers are those of `LayerSpec`; each is checked against its own code when it is loaded."""

ONE_PLUS_WEIGHT = frozenset(("gemma", "gemma2", "gemma3_text"))
"""Families whose norms multiply by 1 + weight."""


class Unsupported(Exception):
    """The model has a part that the fast path does not know."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as the fast path runs it; ``embed`` and ``rotary`` are the model's own modules."""

    embed: nn.Module
    rotary: nn.Module
    layers: tuple[LayerSpec, ...]
    norm: Norm
    head: Head

    def rotations(self) -> list[str]:
        """Return the names of the rotary positions that some layer uses."""
        return sorted({spec.rotary for spec in self.layers if spec.rotary is not None})


def read(model: PreTrainedModel, adapted: Sequence[str]) -> Architecture:
    """Return the parts of ``model``, whose layers ``adapted`` (canonical names) carry LoRA factors.

    Layers that read the same input are joined: their weights become views of one tensor.

    Raises:
        Unsupported: the model is not one of `FAMILIES`, or is quantised, or differs in a part.
    """
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise Unsupported(f"models of type {config.model_type} are not known to it")
    if getattr(model, "quantization_method", None) is not None and not getattr(model, "is_loaded_in_4bit", False):
        raise Unsupported("of quantised bases it knows those of 4 bits")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise Unsupported("the output head is not a linear layer without bias")
    body: Part = model.model
    names = {module: name for name, module in model.named_modules()}
    try:
        layers = tuple(
            _layer(layer, config, index, _Namer(names, adapted, head.weight.dtype))
            for index, layer in enumerate(body.layers)
        )
        norm = _norm(body.norm, config)
        rotary = body.rotary_emb
        embed = body.embed_tokens
    except (AttributeError, TypeError, KeyError) as error:
        raise Unsupported(f"a part differs from what is known: {error}") from error
    known = {name for spec in layers for group in spec.groups() for name, _, _ in group.adapted}
    if unknown := sorted(set(adapted) - known):
        raise Unsupported(f"layer {unknown[0]} is adapted, which it does not know")
    return Architecture(
        embed, rotary, layers, norm, Head(head.weight.data, _number(config, "final_logit_softcapping"))
    )


@dataclass(frozen=True, slots=True)
class _Namer:
    names: Mapping[nn.Module, str]
    adapted: Sequence[str]
    dtype: torch.dtype

    def group(self, *layers: nn.Module) -> Group:
        # PEFT puts its own layer in the place, and under the name, of the adapted one.
        named = [(self.names[layer].removesuffix(".base_layer"), layer) for layer in layers]
        return Group.of(named, self.adapted, self.dtype)


def _layer(layer: Part, config: PretrainedConfig, index: int, namer: _Namer) -> LayerSpec:
    attention, mlp = layer.self_attn, layer.mlp
    separate = hasattr(attention, "q_proj")
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj) if separate else (attention.qkv_proj,)
    gate_up = (mlp.gate_proj, mlp.up_proj) if hasattr(mlp, "gate_proj") else (mlp.gate_up_proj,)
    around = hasattr(layer, "pre_feedforward_layernorm")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    head_norms = None
    if hasattr(attention, "q_norm"):
        head_norms = (_norm(attention.q_norm, config), _norm(attention.k_norm, config))
    return LayerSpec(
        index=index,
        attention_norm=_norm(layer.input_layernorm, config),
        qkv=namer.group(*qkv),
        heads=_heads(attention, config),
        rotary=_rotary(attention, config, index),
        head_norms=head_norms,
        o=namer.group(attention.o_proj),
        attention_after=_norm(layer.post_attention_layernorm, config) if around else None,
        mlp_norm=_norm(layer.pre_feedforward_layernorm if around else layer.post_attention_layernorm, config),
        gate_up=namer.group(*gate_up),
        down=namer.group(mlp.down_proj),
        gate=ACTIVATIONS[activation],
        mlp_after=_norm(layer.post_feedforward_layernorm, config) if around else None,
    )


def _heads(attention: Part, config: PretrainedConfig) -> Heads:
    # Mistral and Phi-3 slide in every layer, the others where the layer says so.
    own = hasattr(attention, "sliding_window")
    window = attention.sliding_window if own else _number(config, "sliding_window") if _slides(config) else None
    return Heads(
        queries=config.num_attention_heads,
        keys=config.num_key_value_heads,
        dim=attention.head_dim,
        scale=float(attention.scaling),
        window=None if window is None else int(window),
        softcap=_number(config, "attn_logit_softcapping"),
    )


def _slides(config: PretrainedConfig) -> bool:
    return config.model_type in ("mistral", "phi3")


def _rotary(attention: Part, config: PretrainedConfig, index: int) -> str | None:
    if not getattr(attention, "use_rope", True):
        return None
    return str(config.layer_types[index]) if config.model_type == "gemma3_text" else "default"


def _norm(module: Part, config: PretrainedConfig) -> Norm:
    weight: Tensor = module.weight.data
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if config.model_type in ONE_PLUS_WEIGHT:
        precise = precise + 1
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return Norm(precise, float(eps))


def _number(config: PretrainedConfig, name: str) -> float | None:
    value = getattr(config, name, None)
    return None if value is None else float(value)
