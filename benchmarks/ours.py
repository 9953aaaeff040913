"""fedit under the peers' protocol, in its own environment; benchmarks/peers/common.py describes a request."""

import json
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch

from fedit import settings, stacked
from fedit.data.tokens import TokenRow
from fedit.engines.inprocess import InProcess
from fedit.job import Job
from fedit.model.adapted import AdaptedModel
from fedit.prepare import prepare
from fedit.process import set_environment, silence_libraries
from fedit.rounds import run_rounds
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining
from fedit.worker import Worker

RANK, ALPHA, TARGETS = 16, 32, ("q_proj", "k_proj", "v_proj", "o_proj")
REPEATS = 5
DEFAULTS = {"dtype": "auto", "rank": RANK, "batch": 64, "dropout": 0.0, "micro_batch": None, "max_length": 512}


def load(request: dict, options: dict) -> Job:
    """Prepare a job as a run does; its own data is not used."""
    changes = {
        "model": request["model"],
        "device": "cpu",
        "dtype": options["dtype"],
        "lora_r": options["rank"],
        "lora_alpha": ALPHA,
        "lora_dropout": options["dropout"],
        "lora_target_modules": json.dumps(list(options.get("targets", TARGETS))),
        "max_length": options["max_length"],
        "num_threads": request["threads"],
    }
    return prepare(settings.load("demo", [f"{name}={value}" for name, value in changes.items()]).config)


def read_rows(request: dict) -> list[TokenRow]:
    with open(request["rows"], encoding="utf-8") as file:
        return [token_row(**json.loads(line)) for line in file]


def token_row(ids: list[int], supervised: list[int]) -> TokenRow:
    return TokenRow(np.array(ids, dtype=np.int32), np.array(supervised, dtype=np.bool_))


def short_row(rows: list[TokenRow], tokens: int) -> TokenRow:
    """Return ``tokens`` tokens of a real row, the latter two thirds supervised."""
    ids = next(row.ids for row in rows if len(row.ids) >= tokens)[:tokens]
    return TokenRow(ids, np.arange(tokens) >= tokens // 3)


def train(model: AdaptedModel, rows: list[TokenRow], training: LocalTraining) -> int:
    """Train the loaded adapter on ``rows`` and return the real tokens."""
    job = LocalJob(
        rows,
        training,
        round=1,
        batches_seen=0,
        data_seed=0,
        noise_seed=0,
        trainable=list(model.parameters),
        optimizer_state={},
        correct=lambda params, grads: None,
    )
    progress, _, _ = Trainer(model).train(job, model.read())
    return progress.tokens


def throughput(request: dict, options: dict) -> dict:
    """Train one epoch after a short warm-up."""
    job, rows = load(request, options), read_rows(request)
    job.model.load(job.model.initial(0))
    training = LocalTraining(
        1e-4, num_rounds=1, epochs=1, batch_size=options["batch"], micro_batch_size=options["micro_batch"]
    )
    longest = sorted(rows, key=lambda row: len(row.ids))[-2:]
    train(job.model, longest, replace(training, epochs=None, steps=1))
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = train(job.model, rows, training)
    return {
        "tokens": tokens,
        "supervised": sum(int(row.supervised[1:].sum()) for row in rows),
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "dtype": str(job.model.base.dtype).removeprefix("torch."),
    }


def rounds(request: dict, options: dict) -> dict:
    """Measure whole rounds of the real loop, aggregation included; the first round is not counted.

    A fixed cost of milliseconds is a small difference of longer times: the least of several repeats is taken,
    since other work can only add.
    """
    job, rows = load(request, options), read_rows(request)
    one_round(job, short_row(rows, request["sizes"][0][0]), 1, request["clients"])
    measured: dict[tuple[int, int], list[tuple[float, float]]] = {tuple(size): [] for size in request["sizes"]}
    for _ in range(REPEATS):
        for (tokens, steps), found in measured.items():
            found.append(one_round(job, short_row(rows, tokens), steps, request["clients"]))
    return {
        "sizes": [
            {
                "tokens": tokens,
                "steps": steps,
                "cpu_s": min(cpu for cpu, _ in found),
                "wall_s": min(wall for _, wall in found),
            }
            for (tokens, steps), found in measured.items()
        ]
    }


def one_round(job: Job, row: TokenRow, steps: int, clients: int) -> tuple[float, float]:
    """Return the CPU and wall seconds of one client's share of a round."""
    worker = Worker(job.model, {f"c{i:05d}": [row] for i in range(clients)}, job.strategy, seed=0)
    training = LocalTraining(1e-4, num_rounds=1, steps=steps, batch_size=1)
    server = replace(job.strategy.init(job.model.initial(0)), scale=job.config.scale)
    cpu, wall = time.process_time(), time.perf_counter()
    loop = run_rounds(
        server,
        InProcess(worker, width=stacked.width(len(row.ids))),  # as a run of such clients would be
        job.strategy,
        rounds=1,
        cohort=lambda infos, number: [info.client_id for info in infos],
        training=lambda number: training,
        seed=0,
    )
    delivered = sum(len(record.clients) for _, record in loop)
    if delivered != clients:
        raise RuntimeError(f"{clients - delivered} of {clients} clients did not deliver")
    return (time.process_time() - cpu) / clients, (time.perf_counter() - wall) / clients


def main() -> None:
    request = json.load(sys.stdin)
    set_environment()
    silence_libraries()
    torch.set_num_threads(request["threads"])
    options = {**DEFAULTS, **request["options"]}
    result = {"throughput": throughput, "rounds": rounds}[request["task"]](request, options)
    versions = {name: version(name) for name in ("fedit", "torch", "transformers", "peft")}
    print(json.dumps({**result, "versions": versions}))


if __name__ == "__main__":
    main()
