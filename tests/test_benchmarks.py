import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import compression, fixed, report, rows, scaling
from benchmarks import ours as our_script
from benchmarks.flops import Shapes, flops_needed
from benchmarks.grid import PEERS, default, full, ours, tuned
from benchmarks.kept import Kept
from benchmarks.runner import Failed, Runner, run
from fedit.types import ClientUpdate

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SMOLLM = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
}


def test_linear_weights_of_the_formula_are_those_of_the_model(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    shapes = Shapes.of(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny))
    linear = {n: m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    counted = sum(module.weight.numel() for module in linear.values())
    needed = flops_needed(shapes, [10, 20], 15, rank=4, targets=TARGETS)
    assert needed["body"] == 4 * counted
    assert needed["head"] == 4 * model.lm_head.weight.numel() / 2
    sides = sum(m.in_features + m.out_features for n, m in linear.items() if n.endswith(TARGETS))
    assert needed["LoRA"] == 6 * 4 * sides


def test_flops_of_smollm2_by_hand() -> None:
    needed = flops_needed(Shapes.of(SMOLLM), [180], 120, rank=16, targets=TARGETS)
    assert needed["body"] == pytest.approx(424.7e6, rel=1e-3)
    assert needed["LoRA"] == pytest.approx(11.06e6, rel=1e-3)
    assert needed["head"] == pytest.approx(4 * 49152 * 576 * 2 / 3)
    assert needed["attention"] == pytest.approx(6 * 30 * 576 * 181)
    assert needed["total"] == pytest.approx(sum(v for k, v in needed.items() if k != "total"))


def test_intercept_is_what_time_does_not_owe_to_tokens() -> None:
    assert fixed.intercept([(32, 0.02 + 32 * 0.01), (96, 0.02 + 96 * 0.01)]) == pytest.approx(0.02)
    sizes = [
        {"tokens": t, "steps": s, "cpu_s": 0.5 + 0.01 * t * s, "wall_s": 1 + 0.01 * t * s} for t, s in fixed.SIZES
    ]
    sizes[0]["cpu_s"] = 99.0  # a size that the line does not use
    assert fixed.fixed_seconds(sizes, "cpu_s") == pytest.approx(0.5)
    assert fixed.fixed_seconds(sizes, "wall_s") == pytest.approx(1)
    assert set(fixed.end_to_end(sizes, "wall_s")) == {10, 32, 160}
    with pytest.raises(ValueError, match="two different"):
        fixed.intercept([(32, 1.0), (32, 2.0)])


def test_synthetic_rows_are_as_long_as_dollys_and_always_the_same() -> None:
    made = rows.synthetic_rows(2000, 49152)
    lengths = [len(row["ids"]) for row in made]
    assert np.median(lengths) == pytest.approx(120, rel=0.1)
    assert np.mean(lengths) == pytest.approx(180, rel=0.1)
    assert max(lengths) == rows.MAX_LENGTH
    assert sum(sum(row["supervised"]) for row in made) / sum(lengths) == pytest.approx(0.68, abs=0.01)
    assert all(len(row["ids"]) == len(row["supervised"]) for row in made)
    assert rows.synthetic_rows(2000, 49152) == made


def test_few_rows_stand_for_all() -> None:
    made = rows.synthetic_rows(2000, 49152)
    chosen = rows.representative(made, 2000)
    lengths = [len(row["ids"]) for row in made]
    few = [len(row["ids"]) for row in chosen]
    assert sum(few) == pytest.approx(2000, rel=0.1)
    assert np.mean(few) == pytest.approx(np.mean(lengths), rel=0.1)
    assert np.median(few) == pytest.approx(np.median(lengths), rel=0.15)
    assert rows.representative(made, 2000) == chosen
    assert few != sorted(few)


@pytest.mark.parametrize("who", PEERS)
def test_a_grid_starts_with_what_the_quick_run_measures(who: str) -> None:
    grid = full(who)
    assert grid[:2] == [default(who), tuned(who)]
    assert len({point.label for point in grid}) == len(grid)


def test_ratios_are_ours_over_theirs() -> None:
    def found(rate: float, peak: float) -> list[dict[str, float]]:
        return [{"tokens_per_cpu_s": rate, "peak_rss": peak}]

    results = {ours().label: found(100, 2)}
    for index, who in enumerate(PEERS, 1):
        results[default(who).label] = found(10 * index, 8)
        results[tuned(who).label] = found(12 * index, 4 + index)
    results["shepherd: slow and small"] = found(1, 1)  # nobody would choose it
    results["shepherd: impossible"] = []
    lines = {"fedit": 0.02, "flowertune": 0.5}
    sizes = {
        who: [{"tokens": t, "steps": s, "cpu_s": base + t * s, "wall_s": base} for t, s in fixed.SIZES]
        for who, base in lines.items()
    }
    limits = {"products": {"fp32": {"a": 1e9, "b": 2e9}, "bf16": {"a": 5e8}}}
    headline = report.ratios(results, sizes, limits, needed=1e7)
    assert headline["vs_default"] == {"shepherd": 10.0, "openfedllm": 5.0, "flowertune": 3.333}
    assert headline["vs_best"] == round(100 / 36, 3)
    assert headline["best_peer"] == tuned("flowertune").label
    assert headline["limit_fraction"] == 0.5
    assert headline["fixed_ms_per_client_round"] == 20.0
    assert headline["fixed_vs_flwr"] == 25.0
    assert headline["peak_rss_ratio"] == 0.4


def test_our_script_answers_a_request_of_either_kind(tiny: Path, cache: Path, tmp_path: Path) -> None:
    made = [
        {**row, "ids": row["ids"][-40:], "supervised": row["supervised"][-40:]}
        for row in rows.synthetic_rows(6, 200)
    ]
    rows.write(made, tmp_path / "rows.jsonl")
    request = {"model": str(tiny), "rows": str(tmp_path / "rows.jsonl"), "threads": 1}
    request |= {"clients": 2, "sizes": [[8, 1], [16, 3]]}
    options = {**our_script.DEFAULTS, "max_length": 128}
    result = our_script.throughput(request, options)
    assert result["tokens"] == sum(len(row["ids"]) for row in made)
    assert result["supervised"] == sum(sum(row["supervised"][1:]) for row in made)
    sizes = our_script.rounds(request, options)["sizes"]
    assert [(size["tokens"], size["steps"]) for size in sizes] == [(8, 1), (16, 3)]
    assert all(size["cpu_s"] > 0 for size in sizes)


def test_a_population_of_more_clients_than_a_round_takes() -> None:
    found = scaling.population(6, most=4)
    assert found["clients"] == 6
    assert found["ms_per_client_round"] > 0


def test_a_missing_result_is_said_with_the_last_words(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"limits ended with 1: .*No such file"):
        run("limits", {"model": str(tmp_path / "nowhere"), "threads": 1})


def test_an_interrupted_run_measures_nothing_twice(tmp_path: Path) -> None:
    path, measured = tmp_path / "partial.jsonl", []

    def measure() -> dict:
        measured.append(1)
        return {"rate": len(measured)}

    first = Kept(path)
    assert [first.of({"who": "a"}, measure)["rate"] for _ in range(2)] == [1, 2]  # repeats are measured
    assert first.of({"who": "b"}, measure) == {"rate": 3}
    again = Kept(path)
    assert len(again) == 3
    found = [again.of({"who": who}, measure)["rate"] for who in ("a", "a", "b", "a", "c")]
    assert found == [1, 2, 3, 4, 5]
    again.forget()
    assert len(Kept(path)) == 0


def test_what_is_kept_belongs_to_the_rows_and_not_to_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr("benchmarks.runner.measured", lambda *asked: calls.append(asked) or {"n": len(calls)})
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("same", "same", "other"), strict=True):
        path.write_text(text)
    kept = tmp_path / "kept"
    found = [Runner(Kept(kept))("ours", {"rows": str(path), "threads": 1}) for path in paths]
    assert found == [{"n": 1}, {"n": 1}, {"n": 2}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_of_a_gpu_runs_on_a_tiny_model_without_one() -> None:
    """What it measures there says nothing; that every part of it runs, does."""
    from benchmarks import cuda

    pytest.importorskip("bitsandbytes")
    result = cuda.run("tiny", torch.device("cpu"), torch.float32, 2000, [16, 4])
    assert all(result["found"].values())
    for bits in ("16_bits", "4_bits"):
        assert set(result[bits]) == {"product_fraction", "vs_padded", "vs_packed", "stacked_gain"}


def test_the_benchmark_of_compression_measures_a_loss_that_is_known() -> None:
    """Of entries 3, 4 and six zeros, an eighth is the 4: 16 of 25 of the energy, an error of 3 / 5."""
    delta = {"m.A": torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])}
    received = {"m.A": torch.zeros(2, 4)}
    chain = [{"top_k": {"fraction": 0.125}}]
    row = compression.measure(compression.name_of(chain), chain, received, [ClientUpdate("a", 1, 1, 1.0, delta)])
    assert row.name == "top_k: {fraction: 0.125}"
    assert (row.error, row.kept, row.whole) == pytest.approx((0.6, 0.64, 0.6))
    assert row.bits >= 16 / 8
    assert min(row.encode, row.decode) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_of_generation_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from benchmarks import generation

    monkeypatch.setattr("sys.argv", ["generation", "--prompts", "8", "--tokens", "2"])
    threads = torch.get_num_threads()
    try:
        generation.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["tokens_per_cpu_second"]) == 5
    assert all(speed > 0 for speed in result["tokens_per_cpu_second"].values())
