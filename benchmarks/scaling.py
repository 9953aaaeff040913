"""Curves of the full run: clients in the population, small clients of a round, rank, length of rows."""

import importlib.util
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import ours
from fedit.cohort import uniform
from fedit.data.tokens import TokenRow
from fedit.engines.inprocess import InProcess
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.process import set_environment, silence_libraries
from fedit.rounds import run_rounds
from fedit.store import ClientStore
from fedit.strategies import build_strategy
from fedit.types import LocalTraining
from fedit.worker import Worker

TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
PER_ROUND, ROUNDS = 100, 3
COHORT_TOKENS = 64


def population(clients: int, most: int = PER_ROUND) -> dict[str, float]:
    """Train a tiny model with ``clients`` clients of one row each, at most ``most`` a round, states on disk."""
    from transformers import AutoConfig, AutoModelForCausalLM

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY, **TINY_HEADS)).save_pretrained(
            folder
        )
        base = load_base(resolve_model(folder), device="cpu", dtype="fp32", tokenizer=object())
        model = AdaptedModel(base, rank=4, alpha=8)
        rng = np.random.default_rng(0)
        row = TokenRow(rng.integers(0, 512, size=24).astype(np.int32), np.ones(24, dtype=np.bool_))
        strategy = build_strategy("fedit", {})
        data = {f"c{i:05d}": [row] for i in range(clients)}
        worker = Worker(model, data, strategy, seed=0, store=ClientStore(Path(folder) / "clients"))
        start_up = time.perf_counter() - started
        started = time.perf_counter()
        training = LocalTraining(1e-3, num_rounds=ROUNDS, steps=1, batch_size=1)
        per_round = min(most, clients)
        for _ in run_rounds(
            replace(strategy.init(model.initial(0)), scale=model.scale),
            InProcess(worker),
            strategy,
            rounds=ROUNDS,
            cohort=lambda infos, number: uniform(infos, per_round, seed=0, round=number),
            training=lambda number: training,
            seed=0,
        ):
            pass
        seconds = time.perf_counter() - started
    return {
        "clients": clients,
        "start_up_s": start_up,
        "ms_per_client_round": 1e3 * seconds / (ROUNDS * per_round),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def cohort(request: dict, clients: int) -> dict[str, float]:
    """Run a round of small clients over the real model; an engine that stacks them makes more of them cheaper."""
    job, rows = ours.load(request, ours.DEFAULTS), ours.read_rows(request)
    row = ours.short_row(rows, COHORT_TOKENS)
    ours.one_round(job, row, 1, clients)
    cpu, _ = ours.one_round(job, row, 1, clients)
    return {"value": clients, "tokens": COHORT_TOKENS, "cpu_s": cpu}


def point(request: dict) -> dict:
    """Return one point of a curve; every point is a process of its own."""
    if request["curve"] == "clients":
        return population(request["value"])
    if request["curve"] == "cohort":
        return cohort(request, request["value"])
    result = ours.throughput(request, {**ours.DEFAULTS, **request["options"]})
    return {**result, "value": request["value"]}


def stacked_is_there() -> bool:
    """Whether this fedit trains several clients in one pass."""
    return importlib.util.find_spec("fedit.stacked") is not None


def main() -> None:
    request = json.load(sys.stdin)
    set_environment()
    silence_libraries()
    torch.set_num_threads(request["threads"])
    print(json.dumps(point(request)))


if __name__ == "__main__":
    main()
