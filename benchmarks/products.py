"""``python -m benchmarks.products [--layers N]``: what the server's half of each strategy costs, one thread.

First 100 clients' adapters of SmolLM2-135M (all linear layers, rank 16) streamed through FedIT, beside the speed
of copying memory, and the memory that 10 and 100 of them take. Then one round of 10 clients of Llama 3 8B's shapes
through the strategies that take products apart, beside FedIT's averaging on the same machine in the same minutes.
CPU seconds, generating the clients excluded; FedIT is measured before and after, so that a busy machine shows.
"""

import argparse
import json

from benchmarks.history import machine
from benchmarks.measure import say
from benchmarks.runner import measured

STRATEGIES = ("fedsvd", "flexlora", "fedmomentum", "flora", "fedex_lora")
LAYERS = 32


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.products", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of the Llama-like model ({LAYERS})")
    layers = parser.parse_args().layers
    copying = measured("aggregation", {"threads": 1, "task": "limits"})["copy_bytes_per_s"]
    stream = ask("fedit", "smollm2", 30, 100, pooled=True)
    peaks = {count: ask("fedit", "smollm2", 30, count)["peak_rss"] for count in (10, 100)}
    rate = stream["bytes"] / stream["cpu_s"]
    print(
        f"FedIT, 100 adapters of {stream['bytes'] / 100 / 1e6:.1f} MB (SmolLM2-135M, rank 16, all linear layers):"
    )
    print(f"  {rate / 1e9:.2f} GB/s, {rate / copying:.0%} of copying memory ({copying / 1e9:.2f} GB/s)")
    print("  peak memory: " + ", ".join(f"{count} clients {peak / 1e6:.0f} MB" for count, peak in peaks.items()))
    before = ask("fedit", "llama", layers, 10)
    found = {name: ask(name, "llama", layers, 10) for name in STRATEGIES}
    after = ask("fedit", "llama", layers, 10)
    least = min(before["cpu_s"], after["cpu_s"])
    print(f"\nOne round of 10 clients, rank 16, {layers} layers of 7 modules of Llama 3 8B's shapes:")
    print(f"  {'strategy':12} {'CPU s':>8} {'x FedIT':>8} {'ms a module':>12} {'peak GB':>8} {'state MB':>9}")
    for name, one in {"fedit": before, **found, "fedit again": after}.items():
        print(
            f"  {name:12} {one['cpu_s']:8.2f} {one['cpu_s'] / least:8.1f} {1e3 * one['cpu_s'] / layers / 7:12.1f} "
            f"{one['peak_rss'] / 1e9:8.2f} {one['state_bytes'] / 1e6:9.0f}"
        )
    print(f"\n{json.dumps(machine())}")


def ask(strategy: str, model: str, layers: int, clients: int, *, pooled: bool = False) -> dict[str, float]:
    """Return one measurement, made in a process of its own."""
    request = {"strategy": strategy, "model": model, "layers": layers, "clients": clients, "pooled": pooled}
    found = measured("aggregation", {"threads": 1, "task": "aggregate", **request})
    say(f"{strategy}, {clients} clients of {model}: {found['cpu_s']:.2f} s ({found['total_s']:.0f} s in all)")
    return found


if __name__ == "__main__":
    main()
