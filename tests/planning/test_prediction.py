"""Plans beside the runs they are of: three recipes, shortened, on the real model.

Both count processor time of one process, which other programs on the machine hardly change.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIME = 2.0
"""Factor within which time is predicted; MEMORY: the peak of what is resident; TOKENS: of training."""
MEMORY = 1.3
TOKENS = 1.15

SHORT = ["num_workers=1", "max_examples=12", "held_out=1", "num_rounds=3", "local_steps=2", "eval_every=3"]
RECIPES = {
    "demo": ["max_new_tokens=8"],
    "preferences": ["batch_size=2", "max_examples=6"],
    "dolly-cpu": ["dataset=skills", "prompt_template=alpaca", "batch_size=4", "num_clients=6"],
}

_BEGIN = """
import json, sys, time
time.perf_counter = time.process_time
from fedit import settings
config = settings.load(sys.argv[1], json.loads(sys.argv[2])).config
"""
_PLAN = f"""{_BEGIN}
from fedit.planning.plan import plan
print(json.dumps(plan(config, begun=0.0).as_dict()))
"""
_RUN = f"""{_BEGIN}
from fedit.launch import run
from fedit.planning.memory import Watch
with Watch() as watch:
    summary = run(config, sys.argv[3]).summary
print(json.dumps({{**summary, "peak": watch.peaks.everything, "processor": time.process_time()}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=() if recipe == "demo" else pytest.mark.long) for recipe in RECIPES]
)
def test_a_plan_is_near_what_the_run_takes(recipe, tmp_path):
    job = [recipe, json.dumps([*SHORT, *RECIPES[recipe]])]
    planned = alone(_PLAN, *job)
    ran = alone(_RUN, *job, str(tmp_path / "run"))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (begun,) = [event for event in events if event["event"] == "arm_started"]

    for name in ("bytes_up", "bytes_down"):
        assert planned[name] == dict.fromkeys(("expected", "low", "high"), ran[name])
    assert planned["trainable_parameters"]["expected"] == begun["trainable_parameters"]
    steps = sum(event["steps"] for event in events if event["event"] == "client")
    assert planned["steps"] == dict.fromkeys(("expected", "low", "high"), steps)
    assert planned["epsilon"] is None
    assert within(planned["tokens"], ran["tokens"], TOKENS)
    assert within(planned["seconds"], ran["processor"], TIME)
    assert within(planned["peak_memory_bytes"], ran["peak"], MEMORY)
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert planned["disk_bytes"]["low"] <= size <= planned["disk_bytes"]["high"]


def within(predicted, found, factor):
    """Return whether a number is as predicted, within a factor."""
    return found / factor <= predicted["expected"] <= found * factor


def alone(script, *arguments):
    """Return what a script prints as JSON on its last line, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
