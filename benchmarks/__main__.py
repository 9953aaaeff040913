"""``make bench``: training throughput of one client, layouts side by side, against the machine's matrix products.

Tokens are real ones, padding not counted; the limit is the FLOPs that frozen-base LoRA needs (forward and backward
through the base's activations: 4 per parameter and token, attention not counted) over the fastest product measured
here at the model's own shapes. One line is appended to benchmarks/history.jsonl.
"""

import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from fedit import settings
from fedit.model.adapted import AdaptedModel
from fedit.prepare import prepare
from fedit.training import Trainer
from fedit.types import LocalTraining

REPEATS = 2
STEPS = 2
HISTORY = Path(__file__).parent / "history.jsonl"


def main() -> None:
    job = prepare(settings.load("demo", ["num_threads=1"]).config)
    rows = job.tokens([example for rows in job.clients.values() for example in rows])
    model = job.model
    model.load(model.initial(0))
    layouts = [(f"{layout} {batch}", layout, batch) for batch in (4, 16) for layout in ("packed", "padded")]
    rates: dict[str, list[float]] = {name: [] for name, _, _ in layouts}
    for _ in range(REPEATS):  # interleaved, so that a busy moment hits all alike
        for name, layout, batch in layouts:
            model.packs = layout == "packed"
            rates[name].append(tokens_per_second(model, rows, batch))
    peak = products_per_second(model)
    parameters = sum(p.numel() for p in job.model.base.model.parameters() if not p.requires_grad)
    limit = peak / (4 * parameters)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"one thread, {job.model.base.dtype}, limit {limit:,.0f} tokens/s at {peak / 1e9:,.0f} GFLOP/s")
    for name, rate in medians.items():
        spread = (max(rates[name]) - min(rates[name])) / rate
        print(f"{name:10s} {rate:7.1f} tokens/s  spread {spread:4.0%}  share of the limit {rate / limit:4.0%}")
    record = {
        "time": round(time.time()),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "dtype": str(job.model.base.dtype),
        "limit": limit,
        "tokens_per_second": medians,
    }
    with open(HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")


def tokens_per_second(model: AdaptedModel, rows: list, batch_size: int) -> float:
    """Train a few steps, the first not timed."""
    trainer = Trainer(model)
    training = LocalTraining(learning_rate=1e-4, num_rounds=1, steps=1, batch_size=batch_size)
    options = {
        "round": 1,
        "data_seed": 0,
        "noise_seed": 0,
        "trainable": list(model.parameters),
        "optimizer_state": {},
        "correct": lambda params, grads: None,
    }
    trainer.train(rows, training, batches_seen=0, **options)
    started = time.perf_counter()
    progress, _ = trainer.train(rows, replace(training, steps=STEPS), batches_seen=1, **options)
    return progress.tokens / (time.perf_counter() - started)


def products_per_second(model: AdaptedModel) -> float:
    """Return the fastest rate, in FLOP/s, of the base's own matrix products at 512 rows."""
    shapes = {tuple(p.shape) for p in model.base.model.parameters() if p.dim() == 2 and not p.requires_grad}
    best = 0.0
    for out, width in shapes:
        weight = torch.randn(out, width).to(model.base.dtype)
        rows = torch.randn(512, width).to(model.base.dtype)
        for _ in range(3):
            started = time.perf_counter()
            rows @ weight.T
            best = max(best, 2 * 512 * out * width / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
