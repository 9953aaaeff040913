"""``python -m benchmarks [--quick]``: fedit beside its peers, one process at a time, one thread each.

Progress goes to standard error, the tables to standard output, whose last line is one JSON object. The full run
also appends it to benchmarks/history.jsonl and draws benchmarks/throughput.png; interrupted, it goes on where it
was.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure, report, rows
from benchmarks.flops import Shapes, flops_needed
from benchmarks.grid import PEERS, default, full, ours, ours_full, tuned
from benchmarks.history import append, machine
from benchmarks.kept import FILE, Kept
from benchmarks.ours import RANK, TARGETS
from benchmarks.runner import PEERS_PYTHON, run
from fedit.model.sources import resolve_model

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"


def main() -> None:
    arguments = parse()
    if not PEERS_PYTHON.exists():
        sys.exit(f"the peers are not installed in {PEERS_PYTHON.parent.parent}; run: make bench-peers")
    started = time.time()
    if not arguments.quick:
        run.kept = Kept()
        if run.kept:
            measure.say(f"going on with {len(run.kept)} measurements of an interrupted run, in {FILE}")
    model = resolve_model(MODEL).path
    with tempfile.TemporaryDirectory() as folder:
        chosen, request, said = rows.prepared(model, arguments.tokens, Path(folder))
        print(f"{MODEL}, LoRA r={RANK} on {', '.join(TARGETS)}; {said}")
        limits = measure.limits(request)
        needed = needed_for(chosen, model)
        if arguments.quick:
            # fedit at both ends and in the middle: a machine that others use too changes its pace.
            points = [ours(), *map(default, PEERS), ours(), *map(tuned, PEERS), ours()]
            results = measure.throughput(points, request, repeats=1)
            sizes = measure.fixed_costs(["fedit", "flowertune"], request)
        else:
            points = [*ours_full(), *(point for who in PEERS for point in full(who))]
            results = measure.throughput(points, request, arguments.repeats)
            sizes = measure.fixed_costs(["fedit", *PEERS], request)
            cores = measure.all_cores(PEERS, request)
            curves = measure.curves(request, Path(folder), rows.pool(model)[0])
        server = run("server", request)
    report.print_limits(limits, needed)
    report.print_throughput(results)
    report.print_fixed(sizes)
    report.print_server(server)
    headline = report.ratios(results, sizes, limits, needed["total"])
    if not arguments.quick:
        report.print_curves(curves, cores)
        limit = report.fastest_product(limits)[0] / needed["total"]
        report.draw(results, limit, HERE / "throughput.png")
        details = {"results": results, "fixed": sizes, "limits": limits, "server": server, "curves": curves}
        append({**headline, "all_cores": cores, **details, "machine": machine(), "rows": rows.describe(chosen)})
        run.kept.forget()
    print(f"\n{time.time() - started:.0f} s in all, {json.dumps(machine())}")
    print(f"versions: {json.dumps(versions(results))}\n")
    print(json.dumps(headline))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="default and one tuned setting per peer")
    parser.add_argument("--tokens", type=int, help="about so many tokens of rows (2000 quick, 5700 full)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of the full run (3)")
    arguments = parser.parse_args()
    arguments.tokens = arguments.tokens or (2000 if arguments.quick else 5700)
    return arguments


def needed_for(chosen: list[rows.Row], model: Path) -> dict[str, float]:
    """Return the FLOPs that a real token of these rows needs."""
    shapes = Shapes.of(json.loads((model / "config.json").read_text()))
    supervised = sum(sum(row["supervised"][1:]) for row in chosen)
    lengths = [len(row["ids"]) for row in chosen]
    return flops_needed(shapes, lengths, supervised, rank=RANK, targets=TARGETS)


def versions(results: dict[str, list[dict]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for values in results.values():
        for result in values:
            found.update(result["versions"])
    return found


if __name__ == "__main__":
    main()
