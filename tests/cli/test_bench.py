"""``fedit bench`` on a finished run, from its command to its table."""

import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

FACTS = Path(__file__).parents[2] / "examples" / "benchmarks" / "facts.yaml"


def test_all_arms_of_a_run_are_measured_and_told_of(fedit, tiny_run, tmp_path):
    shown = fedit("bench", tiny_run, "--tasks", FACTS, "--out", tmp_path / "bench")
    assert shown.code == 0, shown.err
    assert "facts (version 1.0): 8 documents" in shown.out
    assert "federated minus it" in shown.out
    assert "base: facts done" in shown.err
    again = fedit("bench", tiny_run, "--tasks", FACTS, "--out", tmp_path / "bench", "--json")
    assert "base: facts kept" in again.err
    summary = json.loads(again.out)
    assert summary["arms"] == ["base", "federated", "centralised"]
    for arm, number in summary["tasks"]["facts"]["metrics"]["acc,none"]["arms"].items():
        assert re.search(rf"{arm} +{number['value']:.4f} +{number['stderr']:.4f}", shown.out)


def test_some_arms_and_documents_can_be_chosen(fedit, tiny_run, tmp_path):
    options = ("--arms", "base,centralised", "--limit", 3, "--reference", "base", "--out", tmp_path)
    shown = fedit("bench", tiny_run, "--tasks", FACTS, *options)
    assert shown.code == 0, shown.err
    assert "3 of 8 documents" in shown.out
    assert "base minus it" in shown.out
    assert "federated" not in shown.out


def test_mistakes_end_with_what_to_do(fedit, tiny_run, tmp_path, monkeypatch):
    wrong = fedit("bench", tiny_run, "--tasks", FACTS, "--arms", "bass", "--out", tmp_path)
    assert (wrong.code, "did you mean 'base'" in wrong.err) == (2, True)
    nothing = fedit("bench", tiny_run, "--tasks", ",", "--out", tmp_path)
    assert (nothing.code, "no task" in nothing.err) == (2, True)

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("fedit.harness.library.version", absent)
    without = fedit("bench", tiny_run, "--tasks", FACTS, "--out", tmp_path)
    assert (without.code, "pip install 'fedit[harness]'" in without.err) == (2, True)
    assert not list(tmp_path.iterdir())
