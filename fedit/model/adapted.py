"""A frozen base with one trainable LoRA adapter; clients take turns by loading theirs into it."""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence

import peft
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from fedit import seeds
from fedit.errors import ModelError
from fedit.model.batch import Batch
from fedit.model.loading import Base
from fedit.model.targets import choose_targets, stores_transposed
from fedit.types import Tensors

log = logging.getLogger(__name__)

ADAPTER = "default"


class AdaptedModel:
    """One resident base and the LoRA factors that are trained on top of it.

    Everything outside sees the adapter as `Tensors`: float32 on the CPU under canonical
    names, "m.A" of shape (rank, in) and "m.B" of shape (out, rank) for module m.
    """

    def __init__(
        self,
        base: Base,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        targets: str | Sequence[str] = "auto",
        rslora: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.base = base
        self.device = base.device
        self.rank = rank
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout = dropout
        names = choose_targets(base.model, targets)
        self.config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is as good as an int
            lora_dropout=dropout,
            target_modules=names,
            fan_in_fan_out=stores_transposed(base.model, names),
            use_rslora=rslora,
            bias="none",
        )
        with torch.random.fork_rng():  # PEFT draws factors that `initial` replaces
            self._model = peft.get_peft_model(base.model, self.config, adapter_name=ADAPTER)
        self.parameters = self._find_parameters()
        if gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.model.forward).parameters
        self.packs = self._can_pack()

    # --- the adapter as tensors ---

    def initial(self, seed: int) -> Tensors:
        """Return a fresh adapter: A uniform in ±1/sqrt(in) as PEFT draws it, B zero; no global generator moves."""
        fresh: Tensors = {}
        for name, parameter in self.parameters.items():
            value = torch.zeros(parameter.shape, dtype=self._dtype(parameter))
            if name.endswith(".A"):
                generator = torch.Generator().manual_seed(seeds.derive(seed, "init", name))
                bound = 1 / math.sqrt(parameter.shape[1])
                value.uniform_(-bound, bound, generator=generator)
            fresh[name] = value
        return fresh

    def read(self) -> Tensors:
        """Return a copy of the adapter."""
        return {n: p.detach().to("cpu", self._dtype(p), copy=True) for n, p in self.parameters.items()}

    def load(self, adapter: Mapping[str, Tensor]) -> None:
        """Put ``adapter`` in place of the present one.

        Raises:
            ModelError: a factor is missing, unknown or of another shape.
        """
        if set(adapter) != set(self.parameters):
            missing = sorted(set(self.parameters) - set(adapter))[:2]
            unknown = sorted(set(adapter) - set(self.parameters))[:2]
            raise ModelError(
                f"adapter does not fit model '{self.base.source.name}': missing {missing}, unknown {unknown}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if adapter[name].shape != parameter.shape:
                    raise ModelError(
                        f"adapter does not fit: {name} is {tuple(adapter[name].shape)}, "
                        f"model '{self.base.source.name}' has {tuple(parameter.shape)}"
                    )
                parameter.copy_(adapter[name])

    # --- running it ---

    def train_mode(self, on: bool) -> None:
        """Switch dropout and gradient checkpointing on or off."""
        self._model.train(on)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Return the log-probability of every target of ``batch``, float32 (targets,)."""
        return self.target_scores(batch)[0]

    def target_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (log-probability, whether it is the likeliest token) of every target, each (targets,)."""
        logits = self._logits_at_targets(batch)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        scores = -nn.functional.cross_entropy(precise, batch.targets, reduction="none")
        return scores, logits.detach().argmax(dim=-1) == batch.targets

    def mean_hidden(self, batch: Batch) -> Tensor:
        """Return each row's mean last hidden state under the base, float32 (rows, width); the batch is padded."""
        if batch.mask is None:
            raise ValueError("mean_hidden needs a padded batch")
        with torch.no_grad(), self._model.disable_adapter():
            output = self.base.model(
                input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True, use_cache=False
            )
        weights = batch.mask.unsqueeze(-1).float()
        hidden: Tensor = output.hidden_states[-1].float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def generate(
        self, ids: Tensor, mask: Tensor, config: GenerationConfig, streamer: BaseStreamer | None = None
    ) -> Tensor:
        """Return prompts and answers, int64 (rows, length), of left-padded prompts (rows, length)."""
        output = self._model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, streamer=streamer
        )
        if not isinstance(output, Tensor):
            raise TypeError(f"generate returned {type(output).__name__}")
        return output

    def _logits_at_targets(self, batch: Batch) -> Tensor:
        inputs: dict[str, Tensor | bool] = {"input_ids": batch.ids, "use_cache": False}
        if batch.mask is None:
            inputs["position_ids"] = batch.positions
        else:
            inputs["attention_mask"] = batch.mask
        width = batch.ids.shape[1]
        columns = batch.at % width
        if not self._keeps_logits:
            logits: Tensor = self._model(**inputs).logits
            return logits[batch.at // width, columns]
        # The head runs only on columns in which some row has a target.
        kept = columns.unique()
        logits = self._model(**inputs, logits_to_keep=kept).logits
        return logits[batch.at // width, torch.searchsorted(kept, columns)]

    # --- PEFT ---

    def _find_parameters(self) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad:
                continue
            module, factor = canonical_name(name)
            # Adapters stay float32 over a bfloat16 or quantised base: updates are smaller than bf16 steps.
            parameter.data = parameter.data.to(self._dtype(parameter))
            found[f"{module}.{factor}"] = parameter
        return dict(sorted(found.items()))

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        return torch.float64 if self.base.dtype == torch.float64 else torch.float32

    def _can_pack(self) -> bool:
        """Whether restarting positions keeps packed rows apart in this architecture; found by trying."""
        import numpy as np

        from fedit.data.tokens import TokenRow
        from fedit.model.batch import collate

        vocabulary = self.base.model.config.get_text_config().vocab_size
        rows = [
            TokenRow(np.arange(start, start + 5, dtype=np.int32) % vocabulary, np.ones(5, dtype=bool))
            for start in (5, 17)
        ]
        try:
            with torch.no_grad():
                together = self._logits_at_targets(collate(rows, packed=True).to(self.device)).float()
                apart = self._logits_at_targets(collate(rows, packed=False).to(self.device)).float()
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        # Not equal bits: different kernels. Leaking attention moves logits by far more than rounding does.
        tolerance = 1e-4 if self.base.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((together - apart).norm() <= tolerance * apart.norm())


def canonical_name(name: str) -> tuple[str, str]:
    """Return (module, "A" or "B") for PEFT's name of a LoRA factor.

    >>> canonical_name("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    ('model.layers.0.self_attn.q_proj', 'A')
    """
    module, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
    factor = rest.split(".")[0]
    if factor not in ("A", "B") or not module:
        raise ModelError(f"'{name}' is not a LoRA factor of a linear layer; such adapters cannot be federated")
    return module, factor
