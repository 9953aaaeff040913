"""``python -m benchmarks.dpsgd``: DP-SGD on LoRA beside plain training and beside Opacus over PEFT.

Everybody takes one step over all rows (every example joins with probability 1), one process at a time on one
thread, interleaved. Progress goes to standard error, the table to standard output, whose last line is one JSON
object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure, rows
from benchmarks.grid import GLIBC, Point, fast_dtype
from benchmarks.history import machine
from benchmarks.ours import RANK, TARGETS
from benchmarks.runner import PEERS_PYTHON
from fedit.model.sources import resolve_model

MODEL = "smollm2-135m-instruct"
PRIVATE = {"clip": 1.0, "noise": 1.0}


def main() -> None:
    arguments = parse()
    if not PEERS_PYTHON.exists():
        sys.exit(f"Opacus is not installed in {PEERS_PYTHON.parent.parent}; run: make bench-dpsgd")
    started, load = time.time(), os.getloadavg()[0]
    model = resolve_model(MODEL).path
    with tempfile.TemporaryDirectory() as folder:
        _, request, said = rows.prepared(model, arguments.tokens, Path(folder))
        print(f"{MODEL}, LoRA r={RANK} on {', '.join(TARGETS)}; {said}\n")
        pairs = points()
        once = {point.label: point for pair in pairs for point in pair}
        results = measure.throughput(list(once.values()), request, arguments.repeats)
    table = [row_of(private, plain, results) for private, plain in pairs]
    print_table(table)
    print(
        f"\n{arguments.repeats} repeats; load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f}; "
        f"{time.time() - started:.0f} s in all"
    )
    print(json.dumps({"rows": table, "machine": machine(), "load": load}))


def points() -> list[tuple[Point, Point]]:
    """Return private training, and the same without privacy."""
    found = []
    for dtype in ("fp32", *(["bf16"] if fast_dtype() == "bf16" else [])):
        for name, options in (("", {}), (", through PEFT", {"fast_path": False})):
            plain = {"dtype": dtype, **options}
            found.append(
                (
                    Point("fedit", f"private, {dtype}{name}", {**plain, **PRIVATE}),
                    Point("fedit", f"plain, {dtype}{name}", plain),
                )
            )
        size = {"dtype": dtype, "micro_batch": 4}
        plain = Point("opacus_lora", f"plain loop, {dtype}", {**size, "mode": "plain"}, GLIBC)
        found.append((Point("opacus_lora", f"hooks, {dtype}", {**size, **PRIVATE, "mode": "hooks"}, GLIBC), plain))
        if dtype == "fp32":
            ghost = Point("opacus_lora", "ghost, fp32", {**size, **PRIVATE, "mode": "ghost"}, GLIBC)
            found.append((ghost, plain))
    return found


def row_of(private: Point, plain: Point, results: dict[str, list[dict]]) -> dict[str, float | str | None]:
    """Return medians over the repeats of one line of the table."""

    def rate(point: Point) -> float | None:
        rates = [result["tokens_per_cpu_s"] for result in results[point.label]]
        return statistics.median(rates) if rates else None

    one, other = rate(private), rate(plain)
    peak = [result["peak_rss"] / 1e9 for result in results[private.label]]
    return {
        "who": private.label,
        "private": one,
        "plain": other,
        "share": one / other if one and other else None,
        "peak_gb": max(peak, default=None),
    }


def print_table(table: list[dict]) -> None:
    print("| | private, tokens a CPU second | plain | private / plain | peak memory |")
    print("|---|---:|---:|---:|---:|")
    for row in table:
        shown = [
            "-" if row[name] is None else format(row[name], form)
            for name, form in (("private", ".0f"), ("plain", ".0f"), ("share", ".2f"), ("peak_gb", ".1f"))
        ]
        print(f"| {row['who']} | {shown[0]} | {shown[1]} | {shown[2]} | {shown[3]} GB |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dpsgd", description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=2000, help="about so many tokens of rows (2000)")
    parser.add_argument("--repeats", type=int, default=2, help="interleaved repeats (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
