"""Gradients of the fast path, and those of transformers and PEFT in the precision of the test."""

import types

import numpy as np
import torch
from tiny import CONFIGS
from torch import nn

from fedit.data.tokens import TokenRow
from fedit.model.fast import architecture
from fedit.objectives import negative_log_likelihood

FAMILIES = sorted(set(CONFIGS) & architecture.FAMILIES)
LENGTHS = [150, 40, 38, 21, 20, 12]
"""One row is longer than a block of queries, some are of almost one length, some share a length with none."""


def float64_norms(model: nn.Module) -> nn.Module:
    """Let transformers' norms, which compute in float32 whatever their input, keep float64."""

    def exact(self, x):
        weight = self.weight + (1 if "Gemma" in type(self).__name__ else 0)
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(exact, module)
    return model


def gradients_of_rows(model, adapter, rows):
    """Return (summed loss, gradients by name), one row after the other through transformers and PEFT."""
    parameters = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            parameters[f"{module}.{rest[0]}"] = parameter
            parameter.grad = None
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))
        chosen = torch.from_numpy(np.flatnonzero(row.supervised[1:]))
        logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, chosen]
        loss = nn.functional.cross_entropy(logits, ids[1:][chosen], reduction="sum")
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad for name, parameter in parameters.items()}


def gradients(model, rows):
    for parameter in model.parameters.values():
        parameter.grad = None
    model.train_mode(True)
    loss = negative_log_likelihood(model, model.collate(rows))
    loss.backward()
    model.train_mode(False)
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.parameters.items() if p.grad is not None}


def distance(found, expected):
    """Return the relative Euclidean distance over all tensors together."""
    assert set(found) == set(expected)
    found, expected = ({n: t.double().cpu() for n, t in side.items()} for side in (found, expected))
    error = sum(float((found[n] - expected[n]).square().sum()) for n in found)
    return (error / sum(float(expected[n].square().sum()) for n in expected)) ** 0.5


def with_prefix(rows, length):
    """Return the rows with the first row's first tokens in front of all."""
    head = rows[0].ids[:length]
    return [TokenRow(np.concatenate([head, row.ids[length:]]), row.supervised) for row in rows]
