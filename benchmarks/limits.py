"""What the machine can do: matrix products at the model's own shapes, in fp32 and bf16, and copying memory."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.flops import Shapes

ROWS = (512, 1024)
TRIALS, ENOUGH_S = 8, 0.5
COPY_BYTES = 256 * 2**20


def product_rates(shapes: Shapes, dtype: torch.dtype) -> dict[str, float]:
    """Return shape -> the fastest rate of its product, in FLOP/s; forward and backward orientation both tried."""
    sizes = {*shapes.linears.values(), (shapes.hidden, shapes.vocabulary)}
    rates = {}
    for inner, outer in sorted(sizes):
        weight = torch.randn(outer, inner).to(dtype)
        fastest = 0.0
        # The head is large enough to be steady at few rows.
        for rows in (128,) if outer == shapes.vocabulary else ROWS:
            x, g = torch.randn(rows, inner).to(dtype), torch.randn(rows, outer).to(dtype)
            flops = 2.0 * rows * inner * outer
            fastest = max(fastest, flops / least_seconds(torch.mm, x, weight.T))
            if outer != shapes.vocabulary:  # emulated bf16 would take a minute for the head's
                fastest = max(fastest, flops / least_seconds(torch.mm, g, weight))
        rates[f"{inner}x{outer}"] = fastest
    return rates


def least_seconds(call: Callable, *arguments: torch.Tensor) -> float:
    """Return the CPU seconds of the fastest of some calls; a busy neighbour does not count."""
    least, spent = float("inf"), 0.0
    for _ in range(TRIALS):
        started = time.process_time()
        call(*arguments)
        took = time.process_time() - started
        least, spent = min(least, took), spent + took
        if spent > ENOUGH_S:
            break
    return least


def copy_bandwidth() -> float:
    """Return bytes copied per CPU-second between two buffers that no cache holds."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return COPY_BYTES / least_seconds(target.copy_, source)


def measure(model: Path) -> dict:
    shapes = Shapes.of(json.loads((model / "config.json").read_text()))
    rates = {
        name: product_rates(shapes, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return {"products": rates, "copy_bytes_per_s": copy_bandwidth()}


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    print(json.dumps(measure(Path(request["model"]))))


if __name__ == "__main__":
    main()
