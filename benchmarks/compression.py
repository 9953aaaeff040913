"""``python -m benchmarks.compression``: what transforms take and lose on real updates, in one CPU thread.

Two clients of the demo train for some rounds of a few steps; the last updates are what is packed. Progress goes to
standard error, the table to standard output, whose last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.history import machine
from fedit import arms, settings, tensors
from fedit.engines.inprocess import InProcess
from fedit.prepare import prepare
from fedit.process import set_environment, silence_libraries
from fedit.rounds import run_rounds
from fedit.transforms import build_transforms
from fedit.transforms.chain import receive, send
from fedit.types import ClientFailure, ClientUpdate, ServerState, Tensors
from fedit.worker import Worker

CHAINS: tuple[list[Mapping[str, Mapping[str, object]]], ...] = (
    [{"zstd": {}}],
    [{"cast": {}}],
    [{"cast": {}}, {"zstd": {}}],
    [{"quantize": {"bits": 8}}],
    [{"quantize": {"bits": 8}}, {"zstd": {}}],
    [{"quantize": {"bits": 4}}],
    [{"quantize": {"bits": 4}}, {"zstd": {}}],
    [{"flasc": {"upload": 0.25}}],
    [{"top_k": {"fraction": 0.25}}],
    [{"top_k": {"fraction": 0.1}}],
    [{"top_k": {"fraction": 0.1}}, {"quantize": {"bits": 8}}, {"zstd": {}}],
    [{"top_k": {"fraction": 0.01}}],
)
REPEATS = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One chain of transforms, on average over the updates.

    bits:    of what is carried, a parameter.
    error:   Euclidean norm of what is lost, as a share of the delta's.
    kept:    squared norm of what arrives, as a share of the delta's.
    whole:   error, as a share of the delta's norm, had the trained adapter been sent and not its delta.
    encode, decode: float32 megabytes a CPU second, the best of several.
    """

    name: str
    bits: float
    error: float
    kept: float
    whole: float
    encode: float
    decode: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", default="demo")
    parser.add_argument("--rounds", type=int, default=2)
    arguments, changes = parser.parse_known_args()
    set_environment()
    silence_libraries()
    started = time.time()
    received, updates = real_updates(arguments.job, arguments.rounds, changes)
    count = sum(tensor.numel() for tensor in updates[0].delta.values())
    share = mean(tensors.norm(update.delta) for update in updates) / tensors.norm(received)
    print(f"{len(updates)} updates of {count:,} parameters; norm of a delta {share:.1%} of the adapter's\n")
    rows = [measure(name_of(chain), chain, received, updates) for chain in CHAINS]
    print_table(rows)
    result = {"rows": [vars(row) for row in rows], "machine": machine(), "seconds": round(time.time() - started)}
    print(json.dumps(result))


def real_updates(job_name: str, rounds: int, changes: list[str]) -> tuple[Tensors, list[ClientUpdate]]:
    """Return the adapter of the last round, and the updates that clients send from it."""
    job = prepare(settings.load(job_name, ["num_workers=1", *changes]).config, num_threads=1)
    arm = arms.federated(job)
    engine = Keeping(Worker(job.model, arms.ArmRows(job, arm.clients), arm.strategy, seed=job.config.seed))
    start = arm.strategy.init(job.model.initial(job.config.seed))
    server: ServerState = replace(start, scale=job.config.scale)
    states = run_rounds(
        server,
        engine,
        arm.strategy,
        rounds=rounds,
        cohort=arm.cohort,
        training=arm.training,
        seed=job.config.seed,
    )
    before = tensors.flatten(server.adapter)
    for number, (state, record) in enumerate(states, 1):
        print(f"round {number}: train loss {record.loss:.3f}", file=sys.stderr, flush=True)
        if number < rounds:
            before = tensors.flatten(state.adapter)
    return before, engine.last


class Keeping(InProcess):
    """Clients of this process; keeps the updates of the last round."""

    last: list[ClientUpdate]

    def run(self, tasks):
        self.last = []
        for result in super().run(tasks):
            if isinstance(result, ClientUpdate):
                self.last.append(result)
            yield result


def measure(
    name: str, chain: list[Mapping[str, Mapping[str, object]]], received: Tensors, updates: list[ClientUpdate]
) -> Row:
    transforms = build_transforms(chain)

    def there_and_back(update: ClientUpdate) -> tuple[ClientUpdate, Tensors]:
        sent, _ = send(transforms, update, {}, 0)
        back = receive(transforms, sent)
        if isinstance(back, ClientFailure):
            raise RuntimeError(back.reason)
        return sent, back.delta

    bits, errors, kept, whole, packing, unpacking = [], [], [], [], [], []
    for update in updates:
        delta, size = update.delta, tensors.norm(update.delta)
        entries = sum(tensor.numel() for tensor in delta.values())
        sent, back = there_and_back(update)
        bits.append(8 * tensors.num_bytes(sent.delta) / entries)
        errors.append(tensors.norm(difference(back, delta)) / size)
        kept.append((tensors.norm(back) / size) ** 2)
        trained = tensors.add(received, delta)
        full = ClientUpdate(update.client_id, update.round, 1, 1.0, trained)
        whole.append(tensors.norm(difference(there_and_back(full)[1], trained)) / size)
        packing.append(best(lambda update=update: send(transforms, update, {}, 0)))
        unpacking.append(best(lambda sent=sent: receive(transforms, sent)))
    raw = tensors.num_bytes(updates[0].delta) / 1e6
    return Row(name, mean(bits), mean(errors), mean(kept), mean(whole), raw / min(packing), raw / min(unpacking))


def difference(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.double() - two[name].double() for name, tensor in one.items()}


def best(act: Callable[[], T]) -> float:
    """Return the CPU seconds of the fastest of several tries: others may use the machine."""
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        act()
        seconds.append(time.process_time() - started)
    return min(seconds)


def name_of(chain: list[Mapping[str, Mapping[str, object]]]) -> str:
    """Return a chain as it is written in a job: "top_k: {fraction: 0.1}, zstd"."""
    return ", ".join(
        f"{name}: {{{', '.join(f'{option}: {value}' for option, value in options.items())}}}" if options else name
        for item in chain
        for name, options in item.items()
    )


def print_table(rows: list[Row]) -> None:
    heads = ("transforms", "bits a parameter", "times smaller", "error", "energy kept", "of the adapter itself")
    print(f"| {' | '.join(heads)} | MB a CPU second |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| `{row.name}` | {row.bits:.2f} | {32 / row.bits:.1f} | {row.error:.2%} | {row.kept:.1%} "
            f"| {row.whole:.1%} | {row.encode:,.0f} / {row.decode:,.0f} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
