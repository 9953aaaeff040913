"""Rows learnt by heart: an audit finds them all without privacy, and none under a small epsilon."""

import json
import random

import pytest
from tiny import save_model

from fedit import settings
from fedit.launch import run
from fedit.privacy.audit.run import AuditOptions, audit

pytest.importorskip("dp_accounting")

CLAIM = 1.0
ROWS = 40


def write_secrets(path, seed):
    """Write rows whose answers can only be known by heart."""
    pick = random.Random(seed)

    def letters(of, count):
        return "".join(pick.choices(of, k=count))

    rows = [
        {
            "instruction": f"Say {letters('abcdefghij', 4)}",
            "response": letters("abcdefghijklmnop", 8),
            "category": "a",
        }
        for _ in range(2 * ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Train on secrets until they are known by heart, attack, and return the scores of the final model."""
    folder = tmp_path_factory.mktemp("learnt")
    save_model("llama", folder / "model", hidden_size=64, intermediate_size=128)

    def attack(name, seed, **changes):
        rows = folder / f"rows-{seed}.jsonl"
        write_secrets(rows, seed)
        values = {
            "model": str(folder / "model"), "dataset": str(rows), "num_clients": 1, "num_rounds": 1,
            "held_out": ROWS, "local_steps": 60, "batch_size": ROWS, "learning_rate": 0.03, "lora_r": 32,
            "lora_alpha": 32, "lora_target_modules": "all-linear", "prompt_template": "alpaca_short",
            "max_length": 160, "device": "cpu", "dtype": "fp32", "num_workers": 1, "eval_max_examples": 4,
            "seed": seed,
        }  # fmt: skip
        run(settings.from_values({**values, **changes}, "test"), folder / name)
        found = audit(folder / name, AuditOptions(references=100, rows=ROWS))["models"][-1]["membership"]
        assert found["members"] == found["others"] == ROWS
        return found["scores"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        for figure in ("partition_figure", "learning_curves", "category_curves"):
            patch.setattr(f"fedit.report.summary.{figure}", lambda *args, **options: None)
        patch.setattr("fedit.launch.write_report", lambda *args, **options: None)
        yield attack


@pytest.mark.slow
def test_what_is_known_by_heart_is_found_and_refutes_the_claim_that_nobody_made(attacked):
    scores = attacked("plain", 0)
    assert scores["loss"]["auc"]["low"] > 0.9
    assert scores["loss"]["epsilon_lower_bound"] > CLAIM


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_under_a_small_epsilon_nothing_is_found_and_the_claim_stands(attacked, seed):
    options = {"clip_norm": 0.5, "epsilon": CLAIM, "delta": 1e-3}
    scores = attacked(f"private-{seed}", seed, privacy="example", weighting="uniform", privacy_options=options)
    for score in scores.values():
        assert score["epsilon_lower_bound"] <= CLAIM
        assert score["auc"]["low"] < 0.65
