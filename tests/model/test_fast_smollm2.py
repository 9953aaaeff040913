"""The fast path on the real small model: gradients in both precisions, and a hundred steps in bfloat16."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_rows, random_adapter

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.objectives import negative_log_likelihood
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining

DOLLY = Path(os.environ.get("FEDIT_DATA") or "nowhere") / "dolly15k" / "dolly15k.jsonl"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def smollm2(dtype, **options):
    base = load_base(resolve_model("smollm2-135m-instruct"), device="cpu", dtype=dtype, attention="eager")
    return AdaptedModel(base, rank=16, alpha=32, targets=["q_proj", "k_proj", "v_proj", "o_proj"], **options)


def gradient(model, adapter, rows):
    """Return the adapter's whole gradient as one vector."""
    model.load(adapter)
    model.parameters.train(list(model.parameters))
    negative_log_likelihood(model, model.collate(rows)).backward()
    found = torch.cat([p.grad.double().flatten() for p in model.parameters.values()])
    model.parameters.forget()
    return found


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_gradients_are_those_of_transformers_and_peft():
    rows = make_rows([60, 41, 40, 17])
    head = rows[0].ids[:12]
    rows = [TokenRow(np.concatenate([head, row.ids[12:]]), np.arange(len(row.ids)) >= 14) for row in rows]
    theirs = smollm2("fp32", fast_path=False)
    adapter = random_adapter(theirs, 1, size=0.02)
    exact = gradient(theirs, adapter, rows)
    ours = smollm2("fp32")
    assert ours.fast is not None
    assert distance(gradient(ours, adapter, rows), exact) < 1e-4
    ours = smollm2("bf16")
    assert ours.fast is not None
    coarse = distance(gradient(ours, adapter, rows), exact)
    reference = distance(gradient(smollm2("bf16", fast_path=False), adapter, rows), exact)
    assert coarse <= 1.5 * reference


@pytest.mark.skipif(not DOLLY.is_file(), reason="FEDIT_DATA names no folder with dolly15k/dolly15k.jsonl")
def test_a_hundred_steps_in_bfloat16_learn_what_float32_learns():
    """One row of up to 40 tokens a step: the last steps' loss is within the spread of float32 over seeds."""
    curves = {}
    for dtype, seeds in (("fp32", (0, 1, 2)), ("bf16", (0,))):
        model = smollm2(dtype)
        rows = dolly_rows(model.base.tokenizer)
        for seed in seeds:
            assert model.fast is not None
            curves[dtype, seed] = train(model, rows, seed)
    last = {key: float(np.mean(curve[-50:])) for key, curve in curves.items()}
    spread = [last["fp32", seed] for seed in (0, 1, 2)]
    assert min(spread) < max(spread)
    assert abs(last["bf16", 0] - last["fp32", 0]) <= max(spread) - min(spread)
    assert last["fp32", 0] < float(np.mean(curves["fp32", 0][:10]))


def dolly_rows(tokenizer):
    rows = []
    for line in DOLLY.read_text(encoding="utf-8").splitlines()[:400]:
        row = json.loads(line)
        prompt = tokenizer(row["instruction"] + "\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        ids = np.array([*prompt, *answer][:40], dtype=np.int32)
        if len(prompt) < 30 and len(ids) == 40:
            rows.append(TokenRow(ids, np.arange(40) >= len(prompt)))
    return rows[:100]


def train(model, rows, seed):
    """Return the loss of every step of one epoch, from the adapter of ``seed``, in the same order of rows."""
    losses, before = [], [0.0, 0]

    def on_step(progress):
        losses.append((progress.summed - before[0]) / (progress.supervised_tokens - before[1]))
        before[:] = [progress.summed, progress.supervised_tokens]

    how = LocalTraining(learning_rate=3e-4, num_rounds=1, epochs=1, batch_size=1)
    job = LocalJob(rows, how, 1, 0, 0, 0, list(model.parameters), {}, lambda params, grads: None)
    Trainer(model).train(job, model.initial(seed), on_step)
    return losses
