"""The tuned model as one ordinary model folder: its base with what was learnt added to the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from fedit.data.templates import get_template
from fedit.data.tokens import stop_ids
from fedit.errors import ModelError
from fedit.export.prompts import chat_template
from fedit.export.subject import Subject, config_of, source_of
from fedit.files import read_json
from fedit.model.export import merged_by_peft
from fedit.model.loading import load_base, load_tokenizer
from fedit.model.sources import resolve_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


def merge(subject: Subject, dtype: str = "auto") -> tuple[PreTrainedModel, str]:
    """Return the model with what was learnt in its weights, and the name of its dtype.

    The sum of each weight is rounded once. A base that was trained over in 8 or 4 bits is dequantised first, so
    that what is merged is what was trained.

    dtype: a name of `DTYPES`; "auto": the base's own.

    Raises:
        ModelError: what was trained cannot be part of weights, or it does not fit the base.
    """
    if subject.kind == "prefix":
        raise ModelError("a learnt prefix is keys and values, not weights, so it cannot be merged; use --to peft.")
    source = resolve_model(str(subject.folder)) if subject.kind == "full" else source_of(subject)
    stored = _STORED.get(str(config_of(subject).dtype).removeprefix("torch."), "fp32")
    chosen = stored if dtype == "auto" else dtype
    precision = "fp32" if stored == "fp16" else stored  # fp16 fits into fp32 and into nothing else
    bits = 16 if subject.kind == "full" else subject.tuned.bits
    model = load_base(source, device="cpu", dtype=precision, bits=bits).model
    if bits != 16:
        model = _dequantised(model)
    if subject.kind == "lora":
        _add_factors(model, subject)
    elif subject.kind != "full":
        assert subject.folder is not None  # of every kind that has no factors there is one
        model = merged_by_peft(model.float(), subject.folder)
    return _cast(model, DTYPES[chosen]), chosen


def write_model(subject: Subject, folder: Path, *, dtype: str = "auto", say: Callable[[str], None]) -> str:
    """Write the merged model into the empty ``folder``, with tokenizer and chat template; return its dtype."""
    say("adding what was learnt to the weights")
    model, chosen = merge(subject, dtype)
    tokenizer, stops = tokenizer_of(subject)
    model.generation_config = generation_config(tokenizer, stops)
    model.save_pretrained(folder)
    _tell_older_readers(folder / "config.json")
    tokenizer.save_pretrained(folder)
    return chosen


def _tell_older_readers(path: Path) -> None:
    """Write the rotary base also where it stood before transformers 5.

    Programs that look only there (mlx-lm 0.32 for Llama) take a default instead, and answer a little wrong.
    """
    config = read_json(path)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def tokenizer_of(subject: Subject) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return the tokenizer with the run's template as its chat template, and the ids that end an answer.

    Raises:
        ModelError: the template cannot be written as a chat template.
    """
    tokenizer = load_tokenizer(source_of(subject))
    template = get_template(subject.tuned.template, tokenizer)
    stops = sorted(stop_ids(tokenizer, template))
    tokenizer.chat_template = chat_template(template, tokenizer)
    return tokenizer, stops


def generation_config(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> GenerationConfig:
    """Return what makes other programs end answers where fedit does, and take the likeliest token."""
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=pad if pad is not None else stops[0],
    )


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Return a quantised model with ordinary weights: the numbers that it computed with."""
    dtype = model.dtype
    plain: PreTrainedModel = model.dequantize()
    return _cast(plain, dtype)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model.to(dtype=dtype)  # type: ignore[call-arg]  # the decorated method hides its signature
    return model


def _add_factors(model: PreTrainedModel, subject: Subject) -> None:
    """Add scale B A to the weights of every adapted layer, in float32.

    Raises:
        ModelError: there is no such layer, or its shape is another.
    """
    factors, scale = subject.tuned.adapter, subject.tuned.scale
    layers = dict(model.named_modules())
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    for name in sorted({factor.rpartition(".")[0] for factor in factors}):
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise ModelError(f"the adapter has factors of '{name}', which is no linear layer of the base model.")
        if tied and layer is model.get_output_embeddings():
            raise ModelError(
                f"'{name}' shares its weight with the embeddings: merging would change both; use --to peft."
            )
        change = scale * (factors[f"{name}.B"].float() @ factors[f"{name}.A"].float())
        if isinstance(layer, Conv1D):
            change = change.T
        if layer.weight.shape != change.shape:
            raise ModelError(
                f"the factors of '{name}' make a weight of {tuple(change.shape)}, the base model has "
                f"{tuple(layer.weight.shape)}; was it trained on another base?"
            )
        layer.weight = nn.Parameter(layer.weight.float() + change, requires_grad=False)
