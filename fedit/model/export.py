"""Adapters on disk: PEFT folders that load without fedit, with a card that says what they are."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
from torch import Tensor
from transformers import PreTrainedModel

from fedit.errors import ModelError
from fedit.files import new_folder
from fedit.lora import joined, rank_of
from fedit.model.adapted import AdaptedModel, canonical_name
from fedit.model.sources import DEFAULT_MODEL, ModelSource
from fedit.reading import parse_json, shown
from fedit.scaling import lora_scale
from fedit.types import Tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LARGEST_RANK = 1 << 16
"""Of an adapter that somebody else made; no layer has more inputs or outputs."""
TRANSPOSED = frozenset({"gpt2", "openai-gpt", "gpt_bigcode"})
"""Model types whose layers store weights the other way round (`Conv1D`), as PEFT wants to know."""
_PER_LAYER = ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias")
"""Settings of PEFT that change what B A is multiplied by, or add to it: plain LoRA would be another model."""

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [federated-learning, lora, peft, instruction-tuning]
---

# LoRA adapter, trained by federated instruction tuning

Made by fedit. Load it with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "path/to/this/folder")
```

| | |
|---|---|
| base model | {base} |
{rows}

This folder holds LoRA factors and settings; no training text, no base weights.

## Settings

```yaml
{settings}```
"""


OTHER_CARD = """---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags: [federated-learning, {kind}, instruction-tuning]
---

# {title}, trained by federated instruction tuning

Made by fedit with tuning={kind}. {how}

| | |
|---|---|
| base model | {base} |
{rows}

## Settings

```yaml
{settings}```
"""

_WHOLE = "This folder is a whole model: `AutoModelForCausalLM.from_pretrained` loads it, and fedit as `model`."
_ADAPTER = 'Load it with `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), folder)`.'


def save_adapter(
    model: AdaptedModel,
    adapter: Mapping[str, Tensor],
    folder: Path,
    *,
    facts: Mapping[str, str],
    settings_yaml: str,
) -> None:
    """Write ``adapter`` as a PEFT folder, or all weights as the folder of a model, whole or not at all.

    Other kinds than LoRA are loaded into ``model`` for it.

    adapter: factors, and maybe a ledger's under "ledger/m.A", which are written as more ranks of one adapter.
    facts: rows of the card's table.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    base = public_name(model.base.source)
    if model.kind.name != "lora":
        _save_other(model, adapter, folder, base, facts, settings_yaml)
        return
    scale = model.scale_of(adapter)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    assert model.config is not None  # LoRA has one
    config = {**model.config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    with new_folder(folder) as temporary:
        write_adapter_files(temporary, joined(adapter, scale), config, scale)
        (temporary / "README.md").write_text(
            CARD.format(base=base, rows=rows, settings=settings_yaml), encoding="utf-8"
        )


def write_adapter_files(
    folder: Path, adapter: Mapping[str, Tensor], config: Mapping[str, object], scale: float
) -> None:
    """Write an adapter's weights and config into ``folder``; config: of any adapter for these layers."""
    rank = rank_of(adapter)
    own = dict(config)
    if own["r"] != rank or scale_in_config(own, folder) != scale:
        own |= {"r": rank, "lora_alpha": scale / lora_scale(1.0, rank, rslora=bool(config.get("use_rslora")))}
    if not isinstance(own["target_modules"], str):
        # PEFT keeps targets in a set: sorted, so that equal adapters are equal files.
        own["target_modules"] = sorted(cast("list[str]", own["target_modules"]))
    weights = {peft_name(name): tensor.contiguous() for name, tensor in adapter.items()}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(own, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def scale_in_config(config: Mapping[str, object], folder: Path) -> float:
    """Return what an adapter's config multiplies B A by; folder: where it is from, for messages.

    Raises:
        ModelError: rank or alpha are no numbers.
    """
    rank, alpha = rank_and_alpha(config, folder)
    return lora_scale(alpha, rank, rslora=bool(config.get("use_rslora")))


def rank_and_alpha(config: Mapping[str, object], folder: Path) -> tuple[int, float]:
    """Return rank and alpha in an adapter's config; folder: where it is from, for messages.

    Raises:
        ModelError: they are no numbers.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        not isinstance(rank, int)
        or not isinstance(alpha, int | float)
        or isinstance(rank, bool)
        or isinstance(alpha, bool)
        or not (0 < rank <= LARGEST_RANK and math.isfinite(alpha) and 0 < alpha <= sys.maxsize)
    ):
        raise ModelError(
            f"{folder / CONFIG} has r {shown(rank)} and lora_alpha {shown(alpha)}; expected numbers above 0."
        )
    return rank, float(alpha)


def plain_config(
    factors: Mapping[str, Tensor], base: ModelSource, model_type: str, rank: int, alpha: float, *, rslora: bool
) -> dict[str, object]:
    """Return PEFT's config of a LoRA adapter of these factors, whoever trained it."""
    import peft

    layers = {name.rpartition(".")[0].rpartition(".")[2] for name in factors}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is as good as an int
        target_modules=sorted(layers),
        fan_in_fan_out=model_type in TRANSPOSED,
        use_rslora=rslora,
        bias="none",
    )
    return {**config.to_dict(), "base_model_name_or_path": public_name(base), "inference_mode": True}


def merged_by_peft(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return ``model`` with the adapter in ``folder``, of any kind that PEFT can merge, in its weights.

    Raises:
        ModelError: PEFT cannot.
    """
    import peft

    wrapped = peft.PeftModel.from_pretrained(model, str(folder))
    try:
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(f"PEFT cannot merge the adapter in {folder}: {error}; use --to peft.") from error
    return merged


def _write_peft(model: AdaptedModel, weights: Tensors, folder: Path, base: str) -> None:
    """Write PEFT's two files; weights: under PEFT's names."""
    assert model.config is not None  # all weights have none
    config = {**model.config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    # PEFT keeps names in sets: sorted, so that equal adapters are equal files.
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )


def _save_other(
    model: AdaptedModel,
    adapter: Mapping[str, Tensor],
    folder: Path,
    base: str,
    facts: Mapping[str, str],
    settings_yaml: str,
) -> None:
    model.load(adapter)
    whole = model.config is None
    card = OTHER_CARD.format(
        base=base,
        library="transformers" if whole else "peft",
        kind=model.kind.name,
        title="Language model" if whole else "Adapter",
        how=_WHOLE if whole else _ADAPTER.format(base=base),
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        settings=settings_yaml,
    )
    with new_folder(folder) as temporary:
        if whole:
            model.base.model.save_pretrained(temporary)
            model.base.tokenizer.save_pretrained(temporary)
        else:
            _write_peft(model, model.peft_state(), temporary, base)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def is_exported(folder: Path) -> bool:
    """Return whether ``folder`` holds what `save_adapter` writes."""
    return (folder / CONFIG).is_file() or (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, object]:
    """Return the content of ``adapter_config.json``.

    Raises:
        ModelError: the folder holds no PEFT adapter, or one that is not plain LoRA of one rank and one scale.
    """
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} is no adapter: it lacks {CONFIG} or {WEIGHTS}.")
    config = lora_settings(path)
    for name in _PER_LAYER:
        if config.get(name):
            raise ModelError(
                f"{path} sets {name} to {config[name]}; expected plain LoRA, one rank and one alpha for all."
            )
    return config


def lora_settings(path: Path) -> dict[str, object]:
    """Return what a file of PEFT's says of a LoRA adapter, whatever kind of LoRA it is.

    Raises:
        ModelError: it cannot be read, or is about something else.
    """
    try:
        config = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{path} does not describe a LoRA adapter.")
    return config


def read_adapter(folder: Path) -> Tensors:
    """Return the factors in a PEFT folder under their canonical names, float32.

    Raises:
        ModelError: the file is damaged or holds something else than LoRA factors of linear layers.
    """
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    adapter: Tensors = {}
    for name, tensor in weights.items():
        module, factor = canonical_name(name)
        adapter[f"{module}.{factor}"] = tensor if tensor.dtype.itemsize == 8 else tensor.float()
    return adapter


def peft_name(name: str) -> str:
    """Return PEFT's name on disk of a canonical one.

    >>> peft_name("model.layers.0.self_attn.q_proj.A")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    module, _, factor = name.rpartition(".")
    return f"base_model.model.{module}.lora_{factor}.weight"


def public_name(source: ModelSource) -> str:
    """Return a base model's name that means the same elsewhere; a local path would tell about this machine."""
    if source.name.lower() == DEFAULT_MODEL:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    return source.name if source.origin == "hub" else Path(source.name).name
