"""A client's optimizer over runs of neighbouring factors: a whole adapter is one tensor to it."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fedit.model.parameters import Parameters
from fedit.types import LocalTraining, Tensors


class LocalOptimizer:
    """AdamW (arXiv:1711.05101) or SGD, whose state is kept under the factors' names.

    Factors that lie side by side and have the same history are optimised as one tensor;
    every entry gets the same update as it would alone.
    """

    def __init__(
        self, parameters: Parameters, names: Sequence[str], training: LocalTraining, state: Tensors
    ) -> None:
        own = [
            {key.removeprefix(f"{n}."): t for key, t in state.items() if key.startswith(f"{n}.")} for n in names
        ]
        kept = dict(zip(names, own, strict=True)) if state else {}
        self._names = _runs(parameters, names, kept)
        self._shapes = {name: parameters[name].shape for name in names}
        self._runs = [parameters.run(run) for run in self._names]
        self._optimizer = _make(self._runs, training)
        for run, joined in zip(self._names, self._runs, strict=True):
            if kept.get(run[0]):
                self._optimizer.state[joined] = _join([kept[name] for name in run], joined.device)

    def gradients(self) -> list[Tensor]:
        """Return the gradient of every run."""
        return [run.grad for run in self._runs if run.grad is not None]

    def step(self, learning_rate: float) -> None:
        """Take one step with the present gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def state(self) -> Tensors:
        """Return "factor.key" -> copy on the CPU."""
        found: Tensors = {}
        for run, joined in zip(self._names, self._runs, strict=True):
            sizes = [self._shapes[name].numel() for name in run]
            for key, value in self._optimizer.state[joined].items():
                if not isinstance(value, Tensor):
                    continue
                parts = value.split(sizes) if value.dim() else (value,) * len(run)
                for name, part in zip(run, parts, strict=True):
                    shaped = part.view(self._shapes[name]) if part.dim() else part
                    found[f"{name}.{key}"] = shaped.detach().to("cpu", copy=True)
        return found


def _make(runs: Sequence[Tensor], training: LocalTraining) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            runs, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(
        runs,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )


def _runs(parameters: Parameters, names: Sequence[str], kept: dict[str, Tensors]) -> list[list[str]]:
    """Cut ``names`` (ascending) where the buffer has another factor between, or the history differs."""
    order = {name: index for index, name in enumerate(parameters)}
    runs: list[list[str]] = []
    for before, name in itertools.pairwise(["", *names]):
        follows = bool(runs) and order[name] == order[before] + 1
        if follows and _history(kept.get(before, {})) == _history(kept.get(name, {})):
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _history(state: Tensors) -> tuple[object, ...]:
    """Return what a factor's state has to share with its neighbour's: its keys and its counters."""
    return tuple((key, None if value.dim() else float(value)) for key, value in sorted(state.items()))


def _join(states: Sequence[Tensors], device: torch.device) -> Tensors:
    """Return the state of one run from those of its factors."""
    joined: Tensors = {}
    for key, value in states[0].items():
        # Fused AdamW has its counter beside the moments, on the parameter's device.
        flat = torch.cat([state[key].reshape(-1) for state in states]) if value.dim() else value.clone()
        joined[key] = flat.to(device)
    return joined
