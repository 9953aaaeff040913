"""The measurements of a run, one process after the other, gathered as plain data."""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import fixed, scaling
from benchmarks.grid import Point, default, ours, tuned
from benchmarks.runner import Failed, measured, run

RANKS, LENGTHS = (4, 16, 64), (128, 512, 1024, 2048)
POPULATIONS, COHORTS = (10, 100, 1000, 10_000), (1, 4, 16)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def throughput(points: Sequence[Point], request: dict, repeats: int) -> dict[str, list[dict]]:
    """Return the results of every point by its label; repeats are interleaved, so that a busy moment hits all."""
    results: dict[str, list[dict]] = {point.label: [] for point in points}
    for _ in range(repeats):
        for point in points:
            results[point.label] += one_throughput(point, request)
    return results


def one_throughput(point: Point, request: dict) -> list[dict]:
    """Measure a point once; a peer that cannot run at a setting is said and left out."""
    asked = {**request, "task": "throughput", "options": point.options}
    try:
        result = run(script(point.who), asked, point.environment)
    except Failed as error:
        say(f"{point.label} failed: {error}")
        return []
    result["tokens_per_cpu_s"] = result["tokens"] / result["cpu_s"]
    result["tokens_per_s"] = result["tokens"] / result["wall_s"]
    say(f"{point.label}: {result['tokens_per_cpu_s']:.1f} tokens/CPU-s ({result['total_s']:.0f} s in all)")
    return [result]


def script(who: str) -> str:
    return "ours" if who == "fedit" else who


def fixed_costs(who: Sequence[str], request: dict) -> dict[str, list[dict]]:
    """Return the client-round seconds of every named script, by size."""
    asked = {**request, "task": "rounds", "options": {}, "clients": fixed.CLIENTS, "sizes": fixed.SIZES}
    sizes = {}
    for name in who:
        result = run(script(name), asked)
        sizes[name] = result["sizes"]
        say(f"{name}: rounds measured ({result['total_s']:.0f} s in all)")
    return sizes


def limits(request: dict) -> dict:
    return run("limits", request)


def all_cores(who: Sequence[str], request: dict) -> dict[str, float]:
    """Return tokens per second of wall time on all cores: a process per core here, all threads in the peers."""
    cores = os.cpu_count() or 1
    asked = {**request, "task": "throughput", "options": {}}
    with ThreadPoolExecutor(cores) as pool:
        # Measured side by side, so none of them can be kept alone.
        results = list(pool.map(lambda _: measured("ours", asked), range(cores)))
    rates = {ours().label: sum(r["tokens"] for r in results) / max(r["wall_s"] for r in results)}
    for name in who:
        for point in (default(name), tuned(name)):
            for result in one_throughput(point, {**request, "threads": cores}):
                rates[point.label] = result["tokens_per_s"]
    return rates


def curves(request: dict, folder: Path, pool: list[dict]) -> dict[str, list[dict]]:
    """Return fedit's curves over the population, a round's small clients, rank and length of rows."""
    from benchmarks import rows as row_files

    found: dict[str, list[dict]] = {"clients": [], "cohort": [], "rank": [], "length": []}
    for clients in POPULATIONS:
        found["clients"].append(run("scaling", {**request, "curve": "clients", "value": clients}))
    for cohort in COHORTS:
        found["cohort"].append(run("scaling", {**request, "curve": "cohort", "value": cohort}))
    for rank in RANKS:
        asked = {**request, "curve": "rank", "value": rank, "options": {"rank": rank}}
        found["rank"].append(run("scaling", asked))
    stream = [(i, s) for row in pool for i, s in zip(row["ids"], row["supervised"], strict=True)]
    for length in LENGTHS:
        pieces = [stream[k * length : (k + 1) * length] for k in range(2048 // length)]
        path = folder / f"length-{length}.jsonl"
        row_files.write([{"ids": [i for i, _ in p], "supervised": [s for _, s in p]} for p in pieces], path)
        asked = {**request, "rows": str(path), "curve": "length", "value": length}
        found["length"].append(run("scaling", {**asked, "options": {"max_length": max(512, length)}}))
    say("curves measured")
    if not scaling.stacked_is_there():
        say("this fedit has no fedit.stacked: the curve over a round's clients shows them one after the other")
    return found


def median(results: Sequence[dict], key: str) -> float:
    return statistics.median(result[key] for result in results)


def spread(results: Sequence[dict], key: str) -> float:
    """Return (largest - smallest) / median."""
    values = [result[key] for result in results]
    return (max(values) - min(values)) / statistics.median(values)
