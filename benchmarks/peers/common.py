"""What the peers' scripts share: the request, the rows, the adapted model, the clock, the result.

A script reads one JSON request from standard input and prints one JSON line, its last. The same request goes to
fedit's own script (benchmarks/ours.py):

    model     folder of the base model
    rows      JSON lines file, {"ids": [...], "supervised": [0, 1, ...]} a row
    task      "throughput": train once over the rows of one client
              "rounds": ``clients`` clients train ``steps`` optimizer steps of one row of ``tokens`` tokens each,
              for every [tokens, steps] of ``sizes``
    options   one point of the peer's grid
    threads   intra-op threads

CPU seconds are the process's own; flowertune.py counts its whole process tree.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RANK, ALPHA, TARGETS = 16, 32, ("q_proj", "k_proj", "v_proj", "o_proj")
WARM_UP_TOKENS = 32


@dataclass
class Clock:
    """Adds up what runs inside it."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    marks: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall


def read_request() -> dict:
    request = json.load(sys.stdin)
    import torch

    torch.set_num_threads(request["threads"])
    return request


def read_rows(request: dict) -> list[dict]:
    with open(request["rows"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def short_row(rows: list[dict], tokens: int) -> dict:
    """Return ``tokens`` tokens of a real row, the latter two thirds supervised."""
    ids = next(row["ids"] for row in rows if len(row["ids"]) >= tokens)[:tokens]
    return {"ids": ids, "supervised": [int(i >= tokens // 3) for i in range(tokens)]}


def warm_up_rows(rows: list[dict]) -> list[dict]:
    """Return the two longest rows: a step over them has allocated most of what a step needs."""
    return sorted(rows, key=lambda row: len(row["ids"]))[-2:]


def dataset(rows: list[dict]):
    """Return the rows as a Hugging Face data set with labels of -100 where nothing is supervised."""
    import datasets

    return datasets.Dataset.from_list(
        [
            {
                "input_ids": row["ids"],
                "attention_mask": [1] * len(row["ids"]),
                "labels": [i if s else -100 for i, s in zip(row["ids"], row["supervised"], strict=True)],
            }
            for row in rows
        ]
    )


def load_model(request: dict, *, dropout: float):
    """Return the base in float32 with a LoRA adapter, and the tokenizer with a padding token."""
    import peft
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype="float32")
    model.config.use_cache = False
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        target_modules=list(TARGETS),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config), tokenizer


def counted(rows: list[dict]) -> dict[str, int]:
    """Return real and supervised tokens, from the data; a row's first token has nothing to be predicted from."""
    return {
        "tokens": sum(len(row["ids"]) for row in rows),
        "supervised": sum(sum(row["supervised"][1:]) for row in rows),
    }


def mean_of(adapters: list[dict], weights: list[int]) -> dict:
    """Return the weighted mean the peers' way: one product and one sum a tensor and client."""
    total = sum(weights)
    mean = {name: tensor * (weights[0] / total) for name, tensor in adapters[0].items()}
    for adapter, weight in zip(adapters[1:], weights[1:], strict=True):
        for name, tensor in adapter.items():
            mean[name] = mean[name] + tensor * (weight / total)
    return mean


def versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", *names)}


def print_result(result: dict) -> None:
    print(json.dumps(result), flush=True)


def timed_train(trainer) -> Clock:
    """Run ``trainer.train()``; the clock counts from its first step to its end."""
    import transformers

    clock = Clock()

    class Timer(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def on_train_end(self, *args, **kwargs):
            clock.cpu_s = time.process_time() - self.cpu
            clock.wall_s = time.perf_counter() - self.wall

    trainer.add_callback(Timer())
    trainer.train()
    return clock
