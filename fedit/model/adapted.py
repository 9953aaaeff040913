"""A base with one trainable adapter, LoRA or another kind; clients take turns by loading theirs into it."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from fedit import seeds, tensors
from fedit.data.tokens import TokenRow
from fedit.errors import ModelError
from fedit.model.batch import Batch, collate, micro_batches
from fedit.model.examples import ExampleGradients, Examples, Recorder
from fedit.model.fast import architecture, head, varlen
from fedit.model.fast.decode import Choose, Prompt, decode, likeliest
from fedit.model.fast.layout import Layout
from fedit.model.fast.linear import Dropout
from fedit.model.fast.model import FastModel
from fedit.model.fast.probe import first_difference
from fedit.model.kinds import ADAPTER, KINDS, PREFIX, Options
from fedit.model.loading import Base
from fedit.model.parameters import Parameters
from fedit.scaling import lora_scale
from fedit.types import LEDGER, Tensors, with_ledger

log = logging.getLogger(__name__)

FAST_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}
GENERAL_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 2048}
"""Device -> tokens of one pass. Measured on a CPU: larger passes gain little and take more memory."""


class AdaptedModel:
    """One resident base and what is trained on top of it: LoRA factors, or another of `fedit.model.kinds`.

    fast:        hand-written passes over packed rows; None where the model is left to transformers and PEFT.
    why_general: why the fast path was wanted and is not used.

    Everything outside sees the adapter as `Tensors`: float32 on the CPU under canonical
    names, "m.A" of shape (rank, in) and "m.B" of shape (out, rank) for module m; other kinds have other tensors.
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
        fast_path: bool = True,
        tuning: str = "lora",
        virtual_tokens: int = 20,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.device = base.device
        self.rank = rank
        self.alpha, self.rslora = alpha, rslora
        self.scale = self.scale_at(rank)
        self.dropout = dropout
        self.kind = KINDS[tuning]
        options = Options(rank, alpha, dropout, targets, rslora, virtual_tokens, seed)
        with torch.random.fork_rng():  # PEFT draws factors that `initial` replaces
            self._model: Any
            self._model, self.config = self.kind.wrap(base.model, options)
        self._model.eval()
        self._training = False
        self.parameters = self._find_parameters()
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        # What a kind starts from that is not drawn: magnitudes, ones, the base's own weights.
        found = {n: p for n, p in self.parameters.items() if not n.endswith((".A", ".B", PREFIX))}
        self._begin = {name: parameter.detach().to("cpu", copy=True) for name, parameter in found.items()}
        self._ledger: Tensors = {}
        self._adapted_modules = self._watch_modules() if self.kind.factors else {}
        if gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        # LLM.int8 (arXiv:2208.07339) decides over all rows of a product which inputs it leaves at full precision.
        self._couples_rows = any(type(module).__name__ == "Linear8bitLt" for module in base.model.modules())
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.model.forward).parameters
        # A learnt prefix stands before every row: rows on one line would share it.
        self.packs = tuning != "prefix" and self._can_pack()
        self.why_general: str | None = None
        self.fast = self._fast_model(gradient_checkpointing) if fast_path else None

    # --- the adapter as tensors ---

    def initial(self, seed: int) -> Tensors:
        """Return a fresh adapter; no global generator moves.

        A is uniform in ±1/sqrt(in) as PEFT draws it, B zero; a prefix is normal with deviation 0.02; the rest is
        what leaves the base as it is.
        """
        fresh: Tensors = {}
        for name, shape in self.shapes.items():
            value = torch.zeros(shape, dtype=self._dtype(self.parameters[name]))
            if name.endswith(".A"):
                generator = torch.Generator().manual_seed(seeds.derive(seed, "init", name))
                bound = 1 / math.sqrt(shape[1])
                value.uniform_(-bound, bound, generator=generator)
            elif name == PREFIX:
                value.normal_(0, 0.02, generator=torch.Generator().manual_seed(seeds.derive(seed, "init", name)))
            elif name in self._begin:
                value.copy_(self._begin[name])
            fresh[name] = value
        return tensors.flatten(fresh)

    def read(self) -> Tensors:
        """Return a copy of the adapter."""
        return self.parameters.read()

    def on_device(self, held: Mapping[str, Tensor]) -> Tensors:
        """Return tensors on the model's device."""
        return {name: tensor.to(self.device) for name, tensor in held.items()}

    def parameters_of(self, adapter: Mapping[str, Tensor]) -> Parameters:
        """Return trainable copies of ``adapter`` on the model's device, apart from the loaded one."""
        return Parameters(tensors.flatten(adapter).to(self.device))

    def load(
        self,
        adapter: Mapping[str, Tensor],
        ledger: Mapping[str, Tensor] | None = None,
        *,
        scale: float | None = None,
    ) -> None:
        """Put ``adapter``, which may have any rank, in place of the present one.

        ledger: frozen corrections of the weights, "m.A" and "m.B" of any rank, added as they are; they may also
                stand in ``adapter`` under "ledger/m.A".
        scale:  that B A is multiplied by; None: the model's own at this rank.

        Raises:
            ModelError: a factor is missing, unknown or of a shape that does not fit.
        """
        inner = {n.removeprefix(LEDGER): t for n, t in adapter.items() if n.startswith(LEDGER)}
        if inner:
            adapter = {name: t for name, t in adapter.items() if not name.startswith(LEDGER)}
        self._refuse_misfit(adapter)
        if (ledger or inner) and self.kind.name != "lora":
            raise ModelError(f"a ledger corrects the layers under LoRA factors; tuning={self.kind.name} has none")
        self._ledger = self.on_device({**(ledger or {}), **inner})
        if any(adapter[name].shape != parameter.shape for name, parameter in self.parameters.items()):
            self.parameters = Parameters(tensors.flatten(adapter).to(self.device), dict(self.parameters))
        else:
            self.parameters.load(adapter)
        self._use_scale(self.scale_of(adapter) if scale is None else scale)

    @property
    def loaded_is_plain(self) -> bool:
        """Whether what is loaded has the model's own rank and scale and no ledger."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        return not self._ledger and shapes == self.shapes and self.scale == self.scale_at(self.rank)

    def _refuse_misfit(self, adapter: Mapping[str, Tensor]) -> None:
        if set(adapter) != set(self.shapes):
            missing = sorted(set(self.shapes) - set(adapter))[:2]
            unknown = sorted(set(adapter) - set(self.shapes))[:2]
            raise ModelError(
                f"adapter does not fit model '{self.base.source.name}': missing {missing}, unknown {unknown}"
            )
        for name, shape in self.shapes.items():
            if self.kind.name != "lora":
                if adapter[name].shape != shape:
                    raise ModelError(
                        f"adapter does not fit: {name} is {tuple(adapter[name].shape)}, "
                        f"model '{self.base.source.name}' has {tuple(shape)}"
                    )
                continue
            found, partner = adapter[name].shape, adapter[_partner(name)].shape
            inner, outer = (0, 1) if name.endswith(".A") else (1, 0)
            if found[outer] != shape[outer] or found[inner] != partner[outer]:
                raise ModelError(
                    f"adapter does not fit: {name} is {tuple(found)}, "
                    f"model '{self.base.source.name}' has {tuple(shape)}"
                )

    def _use_scale(self, scale: float) -> None:
        if scale != self.scale:
            self.scale = scale
            for module in self._adapted_modules.values():
                module.scaling[ADAPTER] = scale

    # --- running it ---

    def train_mode(self, on: bool) -> None:
        """Switch dropout and gradient checkpointing on or off."""
        self._training = on
        if self.fast is None:  # visiting hundreds of modules takes as long as a small step
            self._model.train(on)

    @property
    def tokens_per_pass(self) -> int:
        """How many tokens one pass should compute: enough for fast products, few enough for memory."""
        return (FAST_TOKENS if self.fast else GENERAL_TOKENS)[self.device.type]

    def passes(
        self, rows: Sequence[TokenRow], most_rows: int | None, together: int = 1, *, apart: bool = False
    ) -> list[list[int]]:
        """Cut rows into passes that fill ``tokens_per_pass``; deterministic, at most ``most_rows`` in a pass.

        together: so many rows in a row are one that is never cut; these are counted and their indices returned.
        apart:    whether the passes tell examples apart, so that no prompt's beginning is shared.
        """
        most = self.tokens_per_pass
        if apart and self._couples_rows:
            most_rows = 1
        if self.fast is None:
            lengths = [len(row.ids) for row in rows]
            units = _units(lengths, together, padded=not self.packs)
            return micro_batches(units, most_tokens=most, most_rows=most_rows, packed=self.packs)
        own, shared = ([len(row.ids) for row in rows], 0) if apart else self.fast.own_lengths(rows)
        units = _units(own, together, padded=False)
        return micro_batches(units, most_tokens=max(most - shared, 1), most_rows=most_rows, packed=True)

    def collate(self, rows: Sequence[TokenRow]) -> Batch | Layout:
        """Return one pass over ``rows``, on the model's device."""
        if self.fast is not None:
            return self.fast.lay_out([rows])
        return collate(rows, packed=self.packs).to(self.device)

    def log_probabilities(self, batch: Batch | Layout) -> Tensor:
        """Return the log-probability of every target of ``batch``, float32 (targets,), differentiable."""
        if isinstance(batch, Batch):
            return self._score(batch)[0]
        return self._fast.log_probabilities(batch, [self._running], [self.scale], self._dropout())

    def example_gradients(
        self, examples: Sequence[Sequence[TokenRow]], loss: Callable[[Tensor], Tensor]
    ) -> ExampleGradients:
        """Return the gradient of each example's own loss, from one pass; no parameter's ``grad`` moves.

        examples: rows of each; loss: log-probabilities of all targets in order -> the sum of the examples' losses.

        Raises:
            ModelError: a layer of this model does not see every token once.
        """
        found = ExampleGradients()
        if self.fast is not None:
            layout = self.fast.lay_out_examples([examples])
            loss(
                self.fast.log_probabilities(layout, [self._running], [self.scale], self._dropout(), [found])
            ).backward()
            return found
        rows = [row for own in examples for row in own]
        batch = collate(rows, packed=self.packs).to(self.device)
        width = batch.ids.shape[1]
        lengths = [sum(len(row.ids) if self.packs else width for row in own) for own in examples]
        places = Examples(lengths, [len(examples)], self.device)
        with self._recorder.into(found, places):  # the backward pass may compute layers again
            loss(self._score(batch)[0]).backward()
        return found

    def target_scores(self, batch: Batch | Layout) -> tuple[Tensor, Tensor]:
        """Return (log-probability, whether it is the likeliest token) of every target, each (targets,)."""
        if isinstance(batch, Batch):
            return self._score(batch)
        return self._fast.score(batch, [self._running], [self.scale])

    def target_moments(self, batch: Batch | Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Return ln p of every target, and mean and deviation of ln p under p there, each (targets,)."""
        if not isinstance(batch, Batch):
            return self._fast.moments(batch, [self._running], [self.scale])
        logits = self._logits_at_targets(batch)
        return head.moments(logits if logits.dtype == torch.float64 else logits.float(), batch.targets)

    @property
    def _running(self) -> Mapping[str, Tensor]:
        """The loaded adapter with its ledger."""
        return with_ledger(self.parameters, self._ledger)

    def stacked_target_scores(
        self, rows: Sequence[Sequence[TokenRow]], adapters: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `target_scores` of the rows of several adapters, and which row, in order, each target is of.

        rows, adapters: one of each per adapter; needs the fast path.
        """
        layout = self._fast.lay_out(rows)
        scores, likeliest = self._fast.score(layout, *self._ready(adapters))
        return scores, likeliest, layout.row_of_target

    def stacked_target_moments(
        self, rows: Sequence[Sequence[TokenRow]], adapters: Sequence[Mapping[str, Tensor]]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Return `target_moments` of the rows of several adapters, and which row, in order, each target is of."""
        layout = self._fast.lay_out(rows)
        return self._fast.moments(layout, *self._ready(adapters)), layout.row_of_target

    def stacked_log_probabilities(
        self,
        rows: Sequence[Sequence[TokenRow]],
        adapters: Sequence[Mapping[str, Tensor]],
        noise_seeds: Sequence[int],
        scales: Sequence[float | None] | None = None,
    ) -> list[Tensor]:
        """Return per client the log-probabilities of its rows' targets under its adapter, from one pass.

        rows, adapters, noise_seeds: one of each per client; needs the fast path.
        scales: that B A is multiplied by; None: the model's own at the adapter's rank.
        """
        return self._stacked(self._fast.lay_out(rows), adapters, noise_seeds, scales)

    def stacked_example_gradients(
        self,
        examples: Sequence[Sequence[Sequence[TokenRow]]],
        adapters: Sequence[Mapping[str, Tensor]],
        noise_seeds: Sequence[int],
        scales: Sequence[float | None] | None,
        loss: Callable[[list[Tensor]], Tensor],
    ) -> list[ExampleGradients]:
        """Return per client what `example_gradients` would for its adapter, from one pass.

        examples: of each client, and of each the rows; loss: log-probabilities of each client -> the sum of all
        examples' losses; the rest is as in `stacked_log_probabilities`.
        """
        found = [ExampleGradients() for _ in examples]
        layout = self._fast.lay_out_examples(examples)
        loss(self._stacked(layout, adapters, noise_seeds, scales, found)).backward()
        return found

    def _stacked(
        self,
        layout: Layout,
        adapters: Sequence[Mapping[str, Tensor]],
        noise_seeds: Sequence[int],
        scales: Sequence[float | None] | None,
        examples: Sequence[ExampleGradients] = (),
    ) -> list[Tensor]:
        dropout = None
        if self.dropout > 0:
            generators = [torch.Generator(self.device).manual_seed(seed) for seed in noise_seeds]
            dropout = Dropout(self.dropout, generators)
        given = scales or [None] * len(adapters)
        used = [self.scale_of(a) if s is None else s for a, s in zip(adapters, given, strict=True)]
        scores = self._fast.log_probabilities(layout, adapters, used, dropout, examples)
        return [scores[start:end] for start, end in layout.target_spans]

    def _ready(self, adapters: Sequence[Mapping[str, Tensor]]) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Return adapters on the model's device and their scales."""
        return [self.on_device(adapter) for adapter in adapters], [self.scale_of(adapter) for adapter in adapters]

    def scale_of(self, adapter: Mapping[str, Tensor]) -> float:
        """Return the scale that an adapter of its own rank has at this model's alpha."""
        ranks = (t.shape[0] for n, t in adapter.items() if n.endswith(".A") and not n.startswith(LEDGER))
        return self.scale_at(next(ranks, self.rank))

    def scale_at(self, rank: int) -> float:
        """Return what B A is multiplied by at a rank: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        return lora_scale(self.alpha, rank, rslora=self.rslora)

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self._logits_at_targets(batch)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        scores = -nn.functional.cross_entropy(precise, batch.targets, reduction="none")
        return scores, logits.detach().argmax(dim=-1) == batch.targets

    def mean_hidden(self, batch: Batch) -> Tensor:
        """Return each row's mean last hidden state under the base, float32 (rows, width); the batch is padded."""
        without = self._model.disable_adapter() if isinstance(self._model, peft.PeftModel) else nullcontext()
        with without:
            hidden, mask = self._hidden(batch)
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def last_hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden state at each row's last token under what is loaded, float32 (rows, width).

        The batch is padded.
        """
        hidden, mask = self._hidden(batch)
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the last hidden states of a padded batch, float32 (rows, length, width), and its mask."""
        if batch.mask is None:
            raise ValueError("hidden states need a padded batch")
        with torch.no_grad():
            output = self.base.model(
                input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True, use_cache=False
            )
        return output.hidden_states[-1].float(), batch.mask

    def decode(
        self,
        prompts: Sequence[Prompt],
        adapters: Sequence[Mapping[str, Tensor]],
        *,
        stops: Sequence[int],
        max_new_tokens: int,
        choose: Choose = likeliest,
        on_token: Callable[[int, int], bool] = lambda prompt, token: True,
    ) -> list[list[int]]:
        """Return each prompt's answer by the adapter it names, all in one batch; needs the fast path.

        Arguments are those of `fedit.model.fast.decode.decode`.
        """
        return decode(
            self._fast,
            *self._ready(adapters),
            prompts,
            stops=stops,
            max_new_tokens=max_new_tokens,
            tokens_per_pass=self.tokens_per_pass,
            choose=choose,
            on_token=on_token,
        )

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

    def peft_state(self) -> Tensors:
        """Return what is loaded under the names that PEFT writes, with the frozen tensors that belong to it."""
        state = peft.get_peft_model_state_dict(self._model, adapter_name=ADAPTER)
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def _find_parameters(self) -> Parameters:
        found: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad:
                continue
            # Adapters stay float32 over a bfloat16 or quantised base: updates are smaller than bf16 steps.
            parameter.data = parameter.data.to(self._dtype(parameter))
            found[self.kind.canonical(name)] = parameter
        return Parameters(tensors.flatten(found).clone(), found)

    def _watch_modules(self) -> dict[str, Any]:
        """Return the adapted modules by name; each adds its ledger's product to its output."""
        names = {name.rpartition(".")[0] for name in self.parameters}
        found: dict[str, Any] = {}
        for path, module in self._model.named_modules():
            name = path.removeprefix("base_model.model.")
            if name in names:
                found[name] = module
                module.register_forward_hook(partial(self._add_ledger, name))
        return found

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self._adapted_modules, ADAPTER)

    def _add_ledger(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if f"{name}.A" not in self._ledger or self._adapted_modules[name].disable_adapters:
            return output
        a, b = self._ledger[f"{name}.A"], self._ledger[f"{name}.B"]
        return output + ((inputs[0].to(a.dtype) @ a.T) @ b.T).to(output.dtype)

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        return torch.float64 if self.base.dtype == torch.float64 else torch.float32

    def _can_pack(self) -> bool:
        """Whether restarting positions keeps packed rows apart in this architecture; found by trying."""
        rows = self._probe_rows((5, 17), prefix=0)
        try:
            with torch.no_grad():
                together = self._logits_at_targets(collate(rows, packed=True).to(self.device)).float()
                apart = self._logits_at_targets(collate(rows, packed=False).to(self.device)).float()
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        return self._agree(together, apart)

    def _fast_model(self, recompute: bool) -> FastModel | None:
        """Return the fast path if the model has the parts it knows and gives the model's own numbers."""
        adapted = {name.rpartition(".")[0] for name in self.parameters}
        if self.kind.name != "lora":
            self.why_general = f"tuning={self.kind.name} runs through transformers and PEFT"
            return None
        try:
            parts = architecture.read(self.base.model, sorted(adapted))
            kernel = varlen.choose([layer.heads for layer in parts.layers], self.base.dtype, self.device)
            made = FastModel(parts, recompute=recompute, kernel=kernel)
            rows = self._probe_rows((5, 17, 29), prefix=9)
            where = first_difference(self.base.model, made, rows, self.parameters, self.scale)
            if where is not None:
                raise architecture.Unsupported(f"its numbers differ from the model's own: {where}")
        except architecture.Unsupported as error:
            self.why_general = str(error)
            return None
        return made

    @property
    def _fast(self) -> FastModel:
        if self.fast is None:
            raise ValueError("a layout needs the fast path, which this model does not have")
        return self.fast

    def _dropout(self) -> Dropout | None:
        return Dropout(self.dropout, [None]) if self.dropout > 0 and self._training else None

    def _probe_rows(self, starts: Sequence[int], prefix: int) -> list[TokenRow]:
        """Return short rows of consecutive tokens after a common prefix."""
        vocabulary = self.base.model.config.get_text_config().vocab_size
        rows = []
        for start in starts:
            ids = np.concatenate([np.arange(prefix) + 3, np.arange(start, start + 5)]) % vocabulary
            rows.append(TokenRow(ids.astype(np.int32), np.arange(len(ids)) > prefix))
        return rows

    def _agree(self, one: Tensor, other: Tensor) -> bool:
        # Not equal bits: different kernels. A mistake moves numbers by far more than rounding does.
        tolerance = 1e-4 if self.base.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((one - other).norm() <= tolerance * other.norm())


def _units(lengths: Sequence[int], size: int, *, padded: bool) -> list[int]:
    """Return what every ``size`` rows take together; padded ones take as much as the longest of them."""
    groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return [size * max(group) if padded else sum(group) for group in groups]


def _partner(name: str) -> str:
    """Return the other factor's name."""
    return f"{name[:-1]}{'B' if name.endswith('.A') else 'A'}"


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
