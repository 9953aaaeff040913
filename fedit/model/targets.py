"""Which linear layers carry an adapter."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedit.errors import ModelError, did_you_mean

ATTENTION = frozenset(
    # separate projections (Llama, Qwen, Mistral, Gemma, OPT, ...) and fused ones (GPT-NeoX, Phi-3, Falcon, GPT-2)
    ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query_key_value", "qkv_proj", "c_attn", "Wqkv", "dense")
)


def choose_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """Return the sorted names of layers that get an adapter.

    targets: "all-linear" (all but the output head), "attention" (its projections), "auto"
        (the same as "attention" where they are known, else "all-linear"), or names.

    Raises:
        ModelError: no linear layer has such a name.
    """
    names = _linear_names(model)
    if isinstance(targets, str) and targets in ("auto", "attention", "all-linear"):
        attention = sorted(names & ATTENTION)
        if targets == "attention" and not attention:
            raise ModelError(f"no attention projection is known in this model; its linear layers: {sorted(names)}")
        return attention if attention and targets != "all-linear" else sorted(names)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    for name in wanted:
        if name not in names:
            raise ModelError(
                f"lora_target_modules: no linear layer is called '{name}'{did_you_mean(name, names)} "
                f"This model has {', '.join(sorted(names))}."
            )
    return sorted(set(wanted))


def stores_transposed(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """Whether the adapted layers keep their weights as (in, out), as GPT-2's do."""
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
    return any(isinstance(module, Conv1D) for module in layers)


def _linear_names(model: PreTrainedModel) -> set[str]:
    """Return the last parts of the names of all linear layers but the output head."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name
    }
