"""Shapes of a base model's layers, read from its configuration: no weights are loaded."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedit.model.sources import ModelSource
from fedit.model.targets import choose_targets


def empty_model(source: ModelSource) -> PreTrainedModel:
    """Return the base model without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(source.path, local_files_only=True)
        )
    return model


def adapted_shapes(model: nn.Module, targets: Sequence[str]) -> list[tuple[int, int]]:
    """Return (in, out) of every layer of ``model`` whose name ends in one of ``targets``."""
    return list(adapted_layers(model, targets).values())


def adapted_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return name -> (in, out) of every layer of ``model`` whose name ends in one of ``targets``."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.rpartition(".")[2] in targets and weight is not None and weight.dim() == 2:
            out, width = weight.shape
            found[name] = (out, width) if isinstance(module, Conv1D) else (width, out)
    return found


def largest_rank(shapes: Sequence[tuple[int, int]]) -> int:
    """Return the largest rank that is still lower than every layer's own."""
    return max(min(map(min, shapes)), 1)


def shapes_of(source: ModelSource, targets: str | Sequence[str]) -> list[tuple[int, int]]:
    """Return (in, out) of every layer that ``targets`` (see `choose_targets`) names."""
    model = empty_model(source)
    return adapted_shapes(model, choose_targets(model, targets))
