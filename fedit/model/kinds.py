"""What is trained on top of a base: LoRA and its relatives, learnt prefixes, or the base's own weights.

Everything but LoRA runs through transformers and PEFT as they are. A kind says how the base is wrapped, what its
tensors are called outside, and what they are before training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import peft
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedit.errors import ModelError
from fedit.model.targets import choose_targets, stores_transposed

ADAPTER = "default"

PREFIX = "prefix"
"""Canonical name of the virtual tokens' keys and values, (tokens, layers * 2 * width of the keys)."""

_WRAPPER = "base_model.model."

_FEEDFORWARD = frozenset(("down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo"))
"""Layers whose input, not output, IA3 rescales: the second of a feed-forward block."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the base is to be adapted; a kind reads what concerns it.

    seed: of the frozen matrices that VeRA's layers share.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | Sequence[str]
    rslora: bool
    virtual_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of tuning.

    configure: how PEFT is to wrap the base; None: its own weights are trained.
    suffixes:  end of a parameter's name inside PEFT -> what follows the module's name outside.
    factors:   whether it has LoRA's "m.A" and "m.B", at a scale.
    """

    name: str
    configure: Callable[[PreTrainedModel, Options], peft.PeftConfig] | None
    suffixes: Mapping[str, str]
    factors: bool = False

    def wrap(self, model: PreTrainedModel, options: Options) -> tuple[nn.Module, peft.PeftConfig | None]:
        """Return the model with what is trained as the only parameters that need gradients, and PEFT's config.

        Raises:
            ModelError: the model has no layers that could be tuned like this.
        """
        if self.configure is None:
            _free_weights(model, options.targets)
            return model, None
        config = self.configure(model, options)
        try:
            wrapped = peft.get_peft_model(model, config, adapter_name=ADAPTER)
        except (ValueError, KeyError) as error:
            raise ModelError(
                f"tuning={self.name} does not fit this model: {error}. Name its layers with "
                "lora_target_modules, or choose another tuning."
            ) from error
        _in_double(wrapped, model.dtype)
        return wrapped, config

    def canonical(self, name: str) -> str:
        """Return the name outside of a trained parameter.

        Raises:
            ModelError: it is none of this kind's.
        """
        if self.configure is None:
            return name
        for end, short in self.suffixes.items():
            if name.endswith(end):
                module = name.removesuffix(end).removeprefix(_WRAPPER)
                return f"{module}.{short}" if module else short
        raise ModelError(f"'{name}' is no parameter of tuning={self.name}; such adapters cannot be federated")


def _lora(model: PreTrainedModel, options: Options, *, dora: bool = False) -> peft.PeftConfig:
    names = choose_targets(model, options.targets)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is as good as an int
        lora_dropout=options.dropout,
        target_modules=names,
        fan_in_fan_out=stores_transposed(model, names),
        use_rslora=options.rslora,
        bias="none",
        use_dora=dora,
    )


def _dora(model: PreTrainedModel, options: Options) -> peft.PeftConfig:
    return _lora(model, options, dora=True)


def _ia3(model: PreTrainedModel, options: Options) -> peft.PeftConfig:
    if options.targets == "auto":
        # Keys, values and the inner feed-forward activations, as the paper has it, where PEFT knows their names.
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        return peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=transposed)
    names = choose_targets(model, options.targets)
    return peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=names,
        feedforward_modules=[name for name in names if name in _FEEDFORWARD],
        fan_in_fan_out=stores_transposed(model, names),
    )


def _vera(model: PreTrainedModel, options: Options) -> peft.PeftConfig:
    names = choose_targets(model, options.targets)
    return peft.VeraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        target_modules=names,
        fan_in_fan_out=stores_transposed(model, names),
        vera_dropout=options.dropout,
        projection_prng_key=options.seed,
        save_projection=True,
    )


def _prefix(model: PreTrainedModel, options: Options) -> peft.PeftConfig:
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=options.virtual_tokens)


def _free_weights(model: PreTrainedModel, targets: str | Sequence[str]) -> None:
    """Let all weights, or those of the named layers, get gradients."""
    names = None if targets == "auto" else frozenset(choose_targets(model, targets))
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0].rpartition(".")[2]
        parameter.requires_grad_(names is None or layer in names)


def _in_double(wrapped: nn.Module, dtype: torch.dtype) -> None:
    """Bring VeRA's shared matrices, which PEFT draws in float32, into the precision of a float64 base."""
    for name in ("vera_A", "vera_B"):
        matrices = getattr(wrapped.base_model, name, None)
        if matrices is not None and dtype == torch.float64:
            matrices[ADAPTER] = matrices[ADAPTER].double()


_FACTORS = {f".lora_A.{ADAPTER}.weight": "A", f".lora_B.{ADAPTER}.weight": "B"}

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("lora", _lora, _FACTORS, factors=True),
        Kind("dora", _dora, {**_FACTORS, f".lora_magnitude_vector.{ADAPTER}.weight": "magnitude"}, factors=True),
        Kind("ia3", _ia3, {f".ia3_l.{ADAPTER}": "ia3"}),
        Kind("vera", _vera, {f".vera_lambda_b.{ADAPTER}": "lambda_b", f".vera_lambda_d.{ADAPTER}": "lambda_d"}),
        Kind("prefix", _prefix, {f"prompt_encoder.{ADAPTER}.embedding.weight": PREFIX}),
        Kind("full", None, {}),
    )
}
"""By the name of the setting ``tuning``: LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), IA3 (arXiv:2205.05638),
VeRA (arXiv:2310.11454), prefix tuning (arXiv:2101.00190), all weights."""
