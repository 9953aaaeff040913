"""``fedit plan`` and ``fedit run --dry-run`` as scripts and people use them."""

import json

import pytest
import yaml


@pytest.fixture
def job(make_config, tmp_path):
    """A job file of a tiny run."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    return path


def test_json_without_measuring_has_no_time(fedit, job):
    done = fedit("plan", job, "--no-measure", "--json", "num_rounds=3")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["seconds"] is None
    assert found["rounds"] == 3
    assert found["bytes_up"] == dict.fromkeys(("expected", "low", "high"), 3 * 3 * 4 * 1792)
    assert found["trainable_parameters"]["expected"] == 1792
    assert not found["measured"]


def test_a_plan_is_printed_with_a_row_as_it_is_learnt(fedit, job):
    done = fedit("plan", job, "--no-measure")
    assert done.code == 0
    for text in ("unknown", "peak memory", "sent up", "1,792", "What this rests on", "«", "as it is learnt"):
        assert text in done.out
    assert fedit("plan", "model=nowhere/at-all", "--no-measure").code == 2


def test_a_dry_run_checks_what_a_run_does_and_writes_nothing(fedit, job, tmp_path, tiny_run):
    out = tmp_path / "runs" / "new"
    done = fedit("run", job, "--dry-run", "--out", out)
    assert done.code == 0
    assert f"it would be written to {out}" in "".join(done.out.splitlines())
    assert not out.parent.exists()
    assert json.loads(fedit("run", job, "--dry-run", "--json", "--out", out).out)["rounds"] == 2

    taken = fedit("run", job, "--dry-run", "--out", tiny_run)
    assert taken.code == 2
    assert "already holds a run" in taken.err
    assert fedit("run", job, "--dry-run", "--out", tiny_run, "--replace").code == 0
    assert (tiny_run / "run.json").is_file()
    for wrong in ("lora_rr=4", "max_length=4096", "num_clients=500", "strategy=krum"):
        assert fedit("run", job, wrong, "--dry-run", "--out", out).code == 2
    assert fedit("run", job, "--dry-run", "--out", job / "below").code == 2
