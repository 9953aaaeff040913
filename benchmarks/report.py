"""Tables, ratios and the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import fixed
from benchmarks.flops import FORMULA
from benchmarks.grid import PEERS, default, ours, tuned
from benchmarks.measure import median, spread

Results = Mapping[str, Sequence[Mapping[str, float]]]


def fastest_product(limits: Mapping) -> tuple[float, str]:
    """Return the fastest rate of any product of the model, in FLOP/s, and the dtype it was measured in."""
    return max((rate, dtype) for dtype, rates in limits["products"].items() for rate in rates.values())


def ratios(results: Results, sizes: Mapping[str, Sequence[dict]], limits: Mapping, needed: float) -> dict:
    """Return what scripts read; CPU-seconds decide."""
    rate = median(results[ours().label], "tokens_per_cpu_s")
    peers = {label: found for label, found in results.items() if found and not label.startswith("fedit:")}
    best = max(peers, key=lambda label: median(peers[label], "tokens_per_cpu_s"))
    # A peer's memory counts at its default and where it is fastest, not at a point nobody would choose.
    counted = {best, *(p(who).label for who in PEERS for p in (default, tuned))} & set(peers)
    smallest = min(median(peers[label], "peak_rss") for label in counted)
    own, theirs = (fixed.fixed_seconds(sizes[who], "cpu_s") for who in ("fedit", "flowertune"))
    return {
        "vs_default": {
            who: round(rate / median(peers[default(who).label], "tokens_per_cpu_s"), 3) for who in PEERS
        },
        "vs_best": round(rate / median(peers[best], "tokens_per_cpu_s"), 3),
        "best_peer": best,
        "limit_fraction": round(rate * needed / fastest_product(limits)[0], 3),
        "fixed_ms_per_client_round": round(own * 1e3, 1),
        "fixed_vs_flwr": round(theirs / own, 2),
        "peak_rss_ratio": round(median(results[ours().label], "peak_rss") / smallest, 3),
    }


def print_limits(limits: Mapping, needed: Mapping[str, float]) -> None:
    print(FORMULA)
    print("  here: " + ", ".join(f"{name} {flops / 1e6:.1f}" for name, flops in needed.items()) + " MFLOP/token")
    print("\nMatrix products at the model's shapes (one thread, GFLOP per CPU-second):")
    names = list(limits["products"]["fp32"])
    print(f"  {'':6}" + "".join(f"{name:>12}" for name in names))
    for dtype, rates in limits["products"].items():
        print(f"  {dtype:6}" + "".join(f"{rates[name] / 1e9:12.1f}" for name in names))
    rate, dtype = fastest_product(limits)
    print(f"  limit: {rate / needed['total']:.0f} tokens/CPU-s, by {dtype} products of {rate / 1e9:.0f} GFLOP/s")
    print(f"  copying memory: {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s")


def print_throughput(results: Results) -> None:
    base = median(results[ours().label], "tokens_per_cpu_s")
    print("\nTraining, one thread, real tokens:")
    print(f"  {'':72} tok/CPU-s  spread  tok/s wall  peak GB  fedit is")
    for label, found in results.items():
        if not found:
            print(f"  {label:72} failed, see above")
            continue
        cpu, wall = (median(found, key) for key in ("tokens_per_cpu_s", "tokens_per_s"))
        peak = median(found, "peak_rss") / 1e9
        width = f"{spread(found, 'tokens_per_cpu_s'):.0%}" if len(found) > 1 else "once"
        print(f"  {label:72} {cpu:9.1f} {width:>7} {wall:11.1f} {peak:8.2f} {base / cpu:8.2f}x")


def print_fixed(sizes: Mapping[str, Sequence[dict]]) -> None:
    print(f"\nA client-round, milliseconds of CPU / wall time ({fixed.CLIENTS} clients a size):")
    print(f"  {'':12} {'fixed':>15} " + "".join(f"{t:>9} tokens" for t, s in fixed.SIZES if s == 1))
    columns: dict[str, list[tuple[float, float]]] = {}
    for who, found in sizes.items():
        pairs = [tuple(fixed.fixed_seconds(found, clock) for clock in ("cpu_s", "wall_s"))]
        cpu, wall = (fixed.end_to_end(found, clock) for clock in ("cpu_s", "wall_s"))
        columns[who] = [*pairs, *((cpu[tokens], wall[tokens]) for tokens in cpu)]
        print(f"  {who:12}" + "".join(f"{c * 1e3:9.0f}/{w * 1e3:<6.0f}" for c, w in columns[who]))
    for who in sizes:
        if who != "fedit":
            pairs = zip(columns[who], columns["fedit"], strict=True)
            print(
                f"  {who + ' is':12}" + "".join(f"{a / c:8.1f}x/{f'{b / d:.1f}x':<6}" for (a, b), (c, d) in pairs)
            )


def print_server(figures: Mapping[str, float]) -> None:
    print(f"\nServer, adapters of {figures['adapter_mb']:.1f} MB, one thread:")
    print(
        f"  averaging 100 updates: {figures['aggregate_gb_per_s']:.1f} GB/s, screening included "
        f"(peers' dictionary sums {figures['peers_aggregate_gb_per_s']:.1f}, "
        f"copying {figures['copy_gb_per_s']:.1f})"
    )
    print(
        f"  a checkpoint: written in {figures['save_ms']:.1f} ms of CPU time, read in {figures['load_ms']:.1f} "
        f"(torch.save {figures['torch_save_ms']:.1f}, torch.load {figures['torch_load_ms']:.1f})"
    )


def print_curves(curves: Mapping[str, Sequence[dict]], cores: Mapping[str, float]) -> None:
    print("\nWall time with all cores (fedit: a process per core; peers: all threads), real tokens a second:")
    for label, rate in cores.items():
        print(f"  {label:72} {rate:9.1f}")
    print("\nPopulation of tiny clients, at most 100 a round:")
    for found in curves["clients"]:
        print(
            f"  {found['clients']:6} clients: start-up {found['start_up_s']:.2f} s, "
            f"{found['ms_per_client_round']:.1f} ms a client-round, peak {found['peak_rss'] / 1e6:.0f} MB"
        )
    for name in ("cohort", "rank", "length"):
        rates = (f"{found['value']}: {found['tokens'] / found['cpu_s']:.0f}" for found in curves[name])
        print(f"{name}: tokens/CPU-s " + ", ".join(rates))


def draw(results: Results, limit: float, path: Path) -> None:
    """Draw every point's throughput as a bar, grouped by whose it is, with the machine's limit as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {label: values for label, values in results.items() if values}
    labels = sorted(found, key=lambda label: median(found[label], "tokens_per_cpu_s"))
    rates = [median(found[label], "tokens_per_cpu_s") for label in labels]
    colours = {"fedit": "#0072b2", "shepherd": "#999999", "openfedllm": "#bbbbbb", "flowertune": "#dddddd"}
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.28 * len(labels)), layout="constrained")
    bars = axes.barh(labels, rates, color=[colours[label.split(":")[0]] for label in labels])
    axes.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=3, fontsize=8)
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        "limit of matrix products ", (limit, 0.02), xycoords=("data", "axes fraction"), ha="right", fontsize=8
    )
    axes.set_xlim(0, 1.1 * max(limit, *rates))
    axes.set_xlabel("real tokens per CPU-second, one thread")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
