"""The recipe of the paper's comparison, cut short, over the real model and Dolly-15k."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedit import settings

DOLLY = Path(os.environ.get("FEDIT_DATA", "")) / "dolly15k" / "dolly15k.jsonl"


def test_the_recipe_is_a_job_and_a_study():
    found = settings.load("paper-mini")
    assert found.config.partitioner == "shepherd_shards"
    assert found.config.validation > 0
    assert found.study.num_seeds == 3
    assert len(found.study.learning_rates) == 3
    assert set(found.study.arms) == {"base", "local", "local_total", "centralised", "federated"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not (os.environ.get("FEDIT_DATA") and DOLLY.is_file()), reason="needs FEDIT_DATA with dolly15k/dolly15k.jsonl"
)
def test_the_recipe_runs_on_dolly_and_reports(tmp_path):
    short = [f"dataset={DOLLY}", "num_rounds=1", "local_steps=1", "held_out=1", "validation=1", "max_new_tokens=4"]
    study = [
        "study.seeds=1",
        "study.learning_rates=3e-4,1e-3",
        "study.questions=vicuna80",
        "study.question_tokens=2",
    ]
    command = [
        sys.executable,
        "-m",
        "fedit",
        "study",
        "paper-mini",
        *short,
        *study,
        "--out",
        str(tmp_path / "mini"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "estimate:" in done.stdout
    summary = json.loads((tmp_path / "mini/summary.json").read_text())
    assert summary["held_out_rows"] == [8]
    assert {"base", "centralised", "federated", "local-1", "local-2", "local-3"} <= set(summary["arms"])
    for arm in summary["arms"].values():
        assert len(arm["per_category"]) == 8
        assert arm["ci"]["loss"][0] <= arm["loss"] <= arm["ci"]["loss"][1]
    page = (tmp_path / "mini/report.html").read_text(encoding="utf-8")
    assert "Answers to questions" in page
    assert len(list((tmp_path / "mini/answers").glob("*.jsonl"))) == len(summary["arms"])
