"""One client's optimisation: its stream of batches, its optimizer, one step that survives a lack of memory."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedit import seeds
from fedit.data.tokens import TokenRow
from fedit.errors import FeditError
from fedit.model.adapted import AdaptedModel
from fedit.model.batch import collate, micro_batches
from fedit.model.hardware import is_out_of_memory, release_memory
from fedit.objectives import negative_log_likelihood
from fedit.schedule import learning_rate
from fedit.types import LocalTraining, Tensors

log = logging.getLogger(__name__)

TOKENS_PER_PASS = {"cpu": 512, "cuda": 8192, "mps": 2048}


class TrainingFailed(FeditError):
    """A client's training cannot go on: its loss is not finite, or one example does not fit into memory."""


@dataclass(slots=True)
class Progress:
    """What one client has done in one round; ``loss`` is the mean over supervised tokens, in nats."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    nll: float = 0.0
    learning_rates: list[float] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)

    @property
    def loss(self) -> float:
        """Mean training loss of the round."""
        return self.nll / max(self.supervised_tokens, 1)


def batches(num_rows: int, batch_size: int, seed: int, start: int) -> Iterator[list[int]]:
    """Yield an endless stream of batches from the ``start``-th on.

    Every epoch is a fresh seeded permutation cut into batches, the last of which may be
    smaller; a client that continues where it stopped sees every row once an epoch.
    """
    per_epoch = math.ceil(num_rows / batch_size)
    position = start
    while True:
        epoch, first = divmod(position, per_epoch)
        order = np.random.default_rng(seeds.derive(seed, "order", epoch)).permutation(num_rows)
        for index in range(first, per_epoch):
            yield [int(i) for i in order[index * batch_size : (index + 1) * batch_size]]
            position += 1


class Trainer:
    """Trains the adapter that is loaded in a model."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self._most_rows: int | None = None

    def train(
        self,
        rows: Sequence[TokenRow],
        training: LocalTraining,
        *,
        round: int,
        batches_seen: int,
        data_seed: int,
        noise_seed: int,
        trainable: Sequence[str],
        optimizer_state: Tensors,
        correct: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None],
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> tuple[Progress, Tensors]:
        """Train until the round's steps, epochs or tokens are spent.

        data_seed fixes the client's order of rows for the whole run, noise_seed the dropout of this round.
        Returns what was done and the optimizer's state (empty unless it is kept).

        Raises:
            TrainingFailed: the loss or a gradient is not finite, or memory does not suffice for one example.
        """
        model, progress = self.model, Progress()
        # Found anew by every client: how a batch is cut must not depend on who trained before.
        self._most_rows = None
        for name, parameter in model.parameters.items():
            parameter.requires_grad_(name in trainable)
        params = {name: model.parameters[name] for name in trainable}
        optimizer = _optimizer(params, training)
        _load_state(optimizer, params, optimizer_state)
        per_epoch = math.ceil(len(rows) / training.batch_size)
        total = training.tokens or training.steps or (training.epochs or 1) * per_epoch
        stream = batches(len(rows), training.batch_size, data_seed, batches_seen)
        model.train_mode(True)
        try:
            while (done := progress.tokens if training.tokens else progress.steps) < total:
                chosen = next(stream)
                batch = [rows[i] for i in chosen]
                ahead = sum(len(row.ids) for row in batch) if training.tokens else 1
                rate = learning_rate(training, round, done, total, ahead)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                nll, supervised = self._gradients(batch, training, seeds.derive(noise_seed, progress.steps))
                grads = {name: p.grad for name, p in params.items() if p.grad is not None}
                correct(params, grads)
                if training.max_grad_norm > 0:
                    _clip(list(grads.values()), training.max_grad_norm, progress.steps)
                optimizer.step()
                _count(progress, batch, chosen, nll, supervised, rate)
                on_step(progress)
        finally:
            model.train_mode(False)
            for parameter in model.parameters.values():
                parameter.requires_grad_(True)
                parameter.grad = None
        return progress, _read_state(optimizer, params) if training.keep_optimizer else {}

    def _gradients(self, rows: Sequence[TokenRow], training: LocalTraining, seed: int) -> tuple[float, int]:
        """Fill ``grad`` with the gradient of the mean loss over the step's supervised tokens."""
        supervised = sum(int(row.supervised[1:].sum()) for row in rows)
        if supervised == 0:
            raise TrainingFailed("a batch has no supervised token")
        while True:
            most = min(x for x in (training.micro_batch_size, self._most_rows, len(rows)) if x is not None)
            try:
                return self._accumulate(rows, most, supervised, seed), supervised
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(len(row.ids) for row in rows)
                if most == 1:
                    raise TrainingFailed(f"out of memory on a single example of up to {longest} tokens") from error
            # Outside the handler, where the failed pass is no longer referenced.
            release_memory(self.model.device)
            self._most_rows = max(1, most // 2)
            log.warning(
                "out of memory with %d examples a pass; doing the step again with %d (see micro_batch_size)",
                most,
                self._most_rows,
            )

    def _accumulate(self, rows: Sequence[TokenRow], most_rows: int, supervised: int, seed: int) -> float:
        model = self.model
        for parameter in model.parameters.values():
            parameter.grad = None
        budget = TOKENS_PER_PASS[model.device.type]
        total = 0.0
        passes = micro_batches(rows, most_tokens=budget, most_rows=most_rows, packed=model.packs)
        for index, members in enumerate(passes):
            batch = collate([rows[i] for i in members], packed=model.packs).to(model.device)
            if len(batch.targets) == 0:
                continue
            with _dropout_seed(model, seeds.derive(seed, index)):
                nll = negative_log_likelihood(model, batch)
                (nll / supervised).backward()
            total += float(nll.detach())
        if not math.isfinite(total):
            raise TrainingFailed(f"the training loss became {total}")
        return total


@contextmanager
def _dropout_seed(model: AdaptedModel, seed: int) -> Iterator[None]:
    """Seed PyTorch's generators for dropout inside the block and restore them after it."""
    if model.dropout == 0:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _optimizer(params: Mapping[str, Tensor], training: LocalTraining) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            params.values(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    return torch.optim.AdamW(
        params.values(),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )


def _read_state(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensors:
    state: Tensors = {}
    for name, parameter in params.items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                state[f"{name}.{key}"] = value.detach().to("cpu", copy=True)
    return state


def _load_state(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], state: Tensors) -> None:
    for name, parameter in params.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if own:
            # The step counter stays where the optimizer keeps it; moments follow their parameter.
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in own.items()}


def _clip(grads: Sequence[Tensor], norm: float, step: int) -> None:
    total = torch.nn.utils.get_total_norm(grads)
    if not torch.isfinite(total):
        raise TrainingFailed(f"the gradient became {float(total)} at step {step + 1}")
    scale = torch.clamp(norm / (total + 1e-6), max=1.0)
    torch._foreach_mul_(list(grads), scale)


def _count(
    progress: Progress, batch: Sequence[TokenRow], chosen: list[int], nll: float, supervised: int, rate: float
) -> None:
    progress.steps += 1
    progress.examples += len(batch)
    progress.tokens += sum(len(row.ids) for row in batch)
    progress.supervised_tokens += supervised
    progress.nll += nll
    progress.learning_rates.append(rate)
    progress.rows.update(chosen)
