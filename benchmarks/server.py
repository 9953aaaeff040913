"""The server's side: how fast a cohort's updates are averaged and one adapter is written and read."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.limits import copy_bandwidth
from fedit import checkpoint
from fedit.strategies import build_strategy
from fedit.tensors import flatten
from fedit.types import ClientUpdate, ServerState, Tensors
from fedit.updates import Updates

COHORT = 100
MODULES, RANK, WIDTH = 120, 16, 480
TRIALS = 3


def adapter(seed: int) -> Tensors:
    """Return random factors of 1,843,200 parameters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"m{i:03d}.{factor}": shape
        for i in range(MODULES)
        for factor, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def aggregate() -> float:
    """Return the CPU seconds in which a cohort is checked and averaged; its updates are there already."""
    strategy = build_strategy("fedit", {})
    server = ServerState(0, flatten(adapter(0)))
    delta = flatten(adapter(1))  # as trained adapters are

    def updates() -> Iterator[ClientUpdate]:
        for index in range(COHORT):
            yield ClientUpdate(f"c{index}", 1, 10, float(index + 1), delta)

    return fastest(lambda: strategy.aggregate(server, Updates(updates(), server.adapter)))


def peers_aggregate() -> float:
    """Return the CPU seconds of the peers' dictionary of products and sums over the same updates."""
    delta = adapter(1)

    def average() -> None:
        mean = {name: tensor * 0.01 for name, tensor in delta.items()}
        for _ in range(COHORT - 1):
            for name, tensor in delta.items():
                mean[name] = mean[name] + tensor * 0.01

    return fastest(average)


def fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIALS):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure() -> dict[str, float]:
    tensors = adapter(0)
    num_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save = fastest(lambda: checkpoint.save(path, ServerState(1, tensors)))
        load = fastest(lambda: checkpoint.load(path, 1))
        torch_save = fastest(lambda: torch.save(tensors, path / "peer.bin"))
        torch_load = fastest(lambda: torch.load(path / "peer.bin", weights_only=True))
    own, theirs = aggregate(), peers_aggregate()
    return {
        "adapter_mb": num_bytes / 1e6,
        "aggregate_gb_per_s": COHORT * num_bytes / own / 1e9,
        "peers_aggregate_gb_per_s": COHORT * num_bytes / theirs / 1e9,
        "copy_gb_per_s": copy_bandwidth() / 1e9,
        "save_ms": save * 1e3,
        "load_ms": load * 1e3,
        "torch_save_ms": torch_save * 1e3,
        "torch_load_ms": torch_load * 1e3,
    }


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()
