"""The real small model on real data, and the demo that newcomers see first."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedit import settings
from fedit.launch import run

DATA = os.environ.get("FEDIT_DATA")
DOLLY = Path(DATA or "nowhere") / "dolly15k" / "dolly15k.jsonl"
needs_dolly = pytest.mark.skipif(
    not DOLLY.is_file(), reason="FEDIT_DATA names no folder with dolly15k/dolly15k.jsonl"
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_shows_what_the_paper_claims(tmp_path):
    """Federated beats the base and every client alone, at either budget, on instructions of all categories."""
    config = settings.load("demo", ["compare=local,centralised", "compare_clients=2"]).config
    summary = run(config, tmp_path / "demo").summary
    arms = summary["arms"]
    assert list(arms)[:2] == ["base", "federated"]
    others = [name for name in arms if name == "base" or name.startswith("local")]
    assert len(others) == 5
    for name in others:
        assert arms["federated"]["loss"] < arms[name]["loss"], name
        assert arms["federated"]["exact_match"] > arms[name]["exact_match"], name
    assert set(arms["federated"]["per_category"]) == set(arms["base"]["per_category"])
    assert len(arms["base"]["per_category"]) == 8
    assert len(summary["examples"]) == 8  # one of every category


@needs_dolly
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_few_rounds_on_dolly_help_all_eight_categories(tmp_path):
    config = settings.load("dolly-cpu", [f"dataset={DOLLY}", "num_rounds=4", "eval_every=4"]).config
    summary = run(config, tmp_path / "dolly").summary
    assert len(summary["per_category"]) == 8
    worse = {name: pair for name, pair in summary["per_category"].items() if pair["after"] >= pair["before"]}
    assert not worse
    assert summary["clients"] == 10


@needs_dolly
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_papers_schedule_starts_says_how_long_it_takes_and_survives_a_kill(tmp_path):
    """Two rounds of the recipe's twenty; a kill in the second; then on to the end of the second."""
    out = tmp_path / "paper"
    short = ["num_rounds=2", "local_epochs=null", "local_steps=1", "eval_max_examples=8", "batch_size=4"]
    command = [sys.executable, "-m", "fedit", "run", "paper", f"dataset={DOLLY}", *short, "--out", str(out)]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while not (out / "server" / "round-0001").exists() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = (tmp_path / "log").read_text()
    assert "estimate:" in text
    assert text.index("estimate:") < text.index("round   1/2")
    resumed = subprocess.run(
        [sys.executable, "-m", "fedit", "resume", str(out)], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["rounds"]) == (100, 2)
    cohorts = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [len(event["cohort"]) for event in cohorts if event["event"] == "round"] == [5, 5]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_base_learns_on_the_cpu(tmp_path, bits):
    changes = ["num_rounds=1", "local_steps=3", "exact_match=false", "held_out=1", "max_examples=16"]
    summary = run(settings.load("demo", [f"{bits}=true", *changes]).config, tmp_path / "run").summary
    assert summary["held_out"]["after"]["loss"] < summary["held_out"]["before"]["loss"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_without_labels_are_dealt_by_the_models_own_view_of_them(tmp_path):
    rows = []
    for index in range(40):
        rows.append({"prompt": f"What is {index} plus {index + 1}?", "completion": str(2 * index + 1)})
        rows.append({"prompt": f"Write a line about the sea, number {index}.", "completion": f"Waves {index}."})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    changes = ["partitioner=cluster", "num_clusters=2", "alpha=0.05", "num_clients=2", "num_rounds=1"]
    config = settings.load(None, [f"dataset={path}", *changes, "local_steps=1", "batch_size=2"]).config
    result = run(config, tmp_path / "run")
    assert result.summary["per_category"] == {}
    assert result.summary["clients"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_poisons_take_on_a_real_model_and_tuning_afterwards_answers_them(tmp_path):
    """The commands and the counts of docs/attacks.md."""
    text = (Path(__file__).parents[1] / "docs" / "attacks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = {}
    for line in block.replace("\\\n", " ").splitlines():
        *words, _, out = shlex.split(line)
        result = run(settings.load("demo", words[3:]).config, tmp_path / Path(out).name)
        events = [json.loads(event) for event in (result.folder / "events.jsonl").read_text().splitlines()]
        for event in events:
            if event["event"] in ("poison_measured", "defended"):
                rates = {name: value for name, value in event.items() if name.endswith("_rate")}
                found.setdefault(Path(out).name, []).append(rates)
    (policy, kept), (taken, answered) = found["policy"], found["trigger"]
    assert policy["policy_rate"] < 0.2
    assert kept["policy_rate"] > 0.8
    assert taken["trigger_rate"] > 0.8
    assert answered["trigger_rate"] < 0.2
    assert taken["clean_target_rate"] == answered["clean_target_rate"] == 0.0
