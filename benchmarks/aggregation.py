"""One measurement of ``benchmarks.products``: a cohort's updates streamed through a strategy, one process each."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.limits import copy_bandwidth
from fedit.strategies import build_strategy
from fedit.tensors import flatten
from fedit.types import ClientUpdate, Tensors
from fedit.updates import Updates

RANK = 16
SMOLLM2 = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)} | {
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}
"""Projection -> (out, in) of SmolLM2-135M, 30 layers."""
LLAMA = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)} | {
    "gate": (14336, 4096),
    "up": (14336, 4096),
    "down": (4096, 14336),
}
"""Projection -> (out, in) of Llama 3 8B, 32 layers."""
SHAPES = {"smollm2": SMOLLM2, "llama": LLAMA}
POOL = 8
"""Different updates that take turns where generating them is not what is measured: more than a cache holds."""


@dataclass
class Clock:
    """CPU seconds of the aggregation alone: clients are made while it stands still."""

    spent: float = 0.0
    _since: float = 0.0

    def start(self) -> None:
        self._since = time.process_time()

    def stop(self) -> None:
        self.spent += time.process_time() - self._since


def adapter(shapes: dict[str, tuple[int, int]], layers: int, seed: int, size: float) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for layer in range(layers):
        for name, (out, width) in shapes.items():
            made[f"l{layer:02d}.{name}.A"] = torch.randn(RANK, width, generator=generator).mul_(size / width**0.5)
            made[f"l{layer:02d}.{name}.B"] = torch.randn(out, RANK, generator=generator).mul_(size / width**0.5)
    return flatten(made)


def aggregate(strategy_name: str, model: str, layers: int, clients: int, *, pooled: bool) -> dict[str, float]:
    """Return CPU seconds and bytes of one round; updates are made one at a time, or a few take turns."""
    shapes = SHAPES[model]
    strategy = build_strategy(strategy_name, {})
    server = replace(strategy.init(adapter(shapes, layers, 0, 1.0)), scale=2.0)
    pool = [_delta(shapes, layers, seed) for seed in range(POOL)] if pooled else []
    clock = Clock()

    def updates() -> Iterator[ClientUpdate]:
        for index in range(clients):
            clock.stop()
            delta = pool[index % POOL] if pooled else _delta(shapes, layers, index)
            sent = {n: t for n, t in delta.items() if strategy.uploads(n, 1)}
            delta = delta if len(sent) == len(delta) else flatten(sent)
            clock.start()
            yield ClientUpdate(f"c{index}", 1, 10, float(index + 1), delta, scale=2.0)

    clock.start()
    after = strategy.aggregate(
        server, Updates(updates(), server.adapter, uploads=lambda name: strategy.uploads(name, 1))
    )
    clock.stop()
    held = [*after.adapter.values(), *after.ledger.values()]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in server.adapter.values())
    return {
        "cpu_s": clock.spent,
        "bytes": float(num_bytes * clients),
        "state_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in held)),
    }


def _delta(shapes: dict[str, tuple[int, int]], layers: int, seed: int) -> Tensors:
    return adapter(shapes, layers, 1 + seed, 0.1)


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    if request["task"] == "limits":
        print(json.dumps({"copy_bytes_per_s": copy_bandwidth()}))
        return
    found = aggregate(
        request["strategy"], request["model"], request["layers"], request["clients"], pooled=request["pooled"]
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
