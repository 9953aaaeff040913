"""Interrupted runs: at any moment, by any means, they end with the bits of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import save_model, write_rows

from fedit import checkpoint
from fedit.errors import ConfigError, RunFolderError, UserError
from fedit.launch import resume, run
from fedit.model.export import read_adapter


class Killed(BaseException):
    """Stands for the end of the process: nothing in a run may catch it."""


def killer(moment):
    """Return a listener that ends the run at the ``moment``-th thing it hears."""
    heard = 0

    def listen(event):
        nonlocal heard
        heard += 1
        if heard == moment:
            raise Killed(event["event"])

    return listen


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def essence(folder):
    """Return what an undisturbed run and an interrupted one have in common: everything but the clock."""
    kept = [e for e in events_of(folder) if e["event"] not in ("resumed",)]
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in kept]


def states(folder):
    """Return the bytes of all client states and server states, by file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def timeless(summary):
    return {key: value for key, value in summary.items() if key != "seconds"}


def assert_same_run(one, two):
    assert states(one) == states(two)
    logs = sorted(path.relative_to(one).parent for path in one.rglob("events.jsonl"))
    assert logs == sorted(path.relative_to(two).parent for path in two.rglob("events.jsonl"))
    for log in logs:
        assert essence(one / log) == essence(two / log)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert timeless(summaries[0]) == timeless(summaries[1])


@pytest.fixture
def config(make_config):
    return make_config(
        num_rounds=3,
        num_clients=4,
        clients_per_round=2,
        client_optimizer="keep",
        lora_dropout=0.1,
        lr_schedule="cosine",
        warmup_ratio=0.2,
        held_out=1,
        local_steps=2,
    )


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(config, tmp_path):
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    moments = len(heard)
    assert moments > 25
    for moment in range(2, moments + 1, 4):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert_same_run(folder, tmp_path / "whole")


def test_a_run_killed_again_and_again_ends_with_the_same_bits(config, tmp_path):
    run(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        run(config, folder, listener=killer(8))
    for attempt in range(20):
        try:
            resume(folder, listener=killer(11 + attempt % 4))
            break
        except Killed:
            continue
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "oort", "devices": "lognormal", "stragglers": "over_select"},
        {"selection": "power_of_choice", "availability": "diurnal", "availability_options": {"period": 3.0}},
        {"strategy": "fedbuff", "strategy_options": {"buffer_size": 1}, "devices": "lognormal"},
        {"strategy": "fedasync", "devices": "lognormal", "selection": "round_robin", "clients_per_round": 3},
    ],
    ids=lambda changes: changes.get("strategy", changes.get("selection")),
)
def test_a_run_at_another_pace_killed_at_any_moment_ends_with_the_same_bits(config, tmp_path, changes):
    config = config.model_copy(update={"num_rounds": 4, **changes})
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    rounds = [event for event in events_of(tmp_path / "whole") if event["event"] == "round"]
    assert all("simulated_seconds" in event for event in rounds) == (config.devices != "none")
    ages = [e["staleness"] for e in events_of(tmp_path / "whole") if e["event"] == "client" and "staleness" in e]
    assert not ages or max(ages) > 0
    for moment in range(7, len(heard), 11):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert_same_run(folder, tmp_path / "whole")


def test_a_comparison_killed_in_its_arms_ends_with_the_same_bits(make_config, tmp_path):
    config = make_config(compare=["local", "centralised"], compare_clients=1, max_new_tokens=2, held_out=1)
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    for moment in (len(heard) // 3, len(heard) // 2, len(heard) - 9):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert_same_run(folder, tmp_path / "whole")


def test_a_run_that_stops_early_does_so_after_a_resume_too(make_config, tmp_path):
    config = make_config(
        num_rounds=9, early_stopping=2, validation=2, learning_rate=3.0, keep_rounds=1, held_out=1
    )
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    for moment in (6, len(heard) // 2, len(heard) - 3, len(heard) - 1):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert_same_run(folder, tmp_path / "whole")


def test_a_run_killed_while_it_reports_is_only_reported_again(config, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fedit.launch.write_summary", stop)
        with pytest.raises(Killed):
            run(config, tmp_path / "r")
    monkeypatch.setattr("fedit.training.Trainer.train", stop)
    summary = resume(tmp_path / "r").summary
    assert summary["rounds"] == 3
    assert len([e for e in events_of(tmp_path / "r") if e["event"] == "finished"]) == 1


def test_half_written_files_are_cleared(config, tmp_path):
    folder = tmp_path / "r"
    with pytest.raises(Killed):
        run(config, folder, listener=killer(20))
    for place in (folder, folder / "server"):
        (place / ".half.12ab.tmp").mkdir()
    (folder / ".run.json.12ab.tmp").write_text("{")
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"event": "rou')
    resume(folder)
    assert [path for path in folder.rglob("*.tmp")] == []
    run(config, tmp_path / "whole")
    assert_same_run(folder, tmp_path / "whole")


def test_totals_of_a_resumed_run_are_those_of_its_events(config, tmp_path):
    folder = tmp_path / "r"
    with pytest.raises(Killed):
        run(config, folder, listener=killer(20))
    summary = resume(folder).summary
    rounds = [e for e in events_of(folder) if e["event"] == "round"]
    assert [e["round"] for e in rounds] == [1, 2, 3]
    assert summary["tokens"] == sum(e["tokens"] for e in rounds)
    assert len([e for e in events_of(folder) if e["event"] == "resumed"]) == 1


# --- what may not be resumed ---


@pytest.fixture
def stopped(config, tmp_path):
    with pytest.raises(Killed):
        run(config, tmp_path / "r", listener=killer(20))
    return tmp_path / "r"


def edit(folder, **changes):
    path = folder / "resolved.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_changed_settings_are_refused(stopped):
    edit(stopped, learning_rate=0.5)
    with pytest.raises(RunFolderError, match=r"resolved\.yaml changed"):
        resume(stopped)


def test_broken_settings_are_refused(stopped):
    edit(stopped, learning_rate="fast")
    with pytest.raises(ConfigError, match="learning_rate"):
        resume(stopped)
    (stopped / "resolved.yaml").write_text("model: [")
    with pytest.raises(RunFolderError, match=r"resolved\.yaml"):
        resume(stopped)


def test_another_number_of_threads_is_no_change(stopped):
    edit(stopped, num_threads=7)
    resume(stopped)


@pytest.mark.parametrize("change", ["edited", "more", "fewer", "gone"])
def test_changed_data_is_refused(stopped, dataset, change):
    lines = dataset.read_text().splitlines()
    if change == "edited":
        lines[7] = json.dumps({**json.loads(lines[7]), "output": "something else"})
    elif change == "more":
        write_rows(dataset, 61)
        lines = dataset.read_text().splitlines()
    elif change == "fewer":
        lines = lines[:-1]
    dataset.write_text("\n".join(lines) + "\n")
    if change == "gone":
        dataset.unlink()
    with pytest.raises(UserError) as info:
        resume(stopped)
    assert "data" in str(info.value) or "rows.jsonl" in str(info.value)


def test_another_model_under_the_same_name_is_refused(make_config, tmp_path):
    folder = tmp_path / "model"
    save_model("llama", folder, seed=0)
    with pytest.raises(Killed):
        run(make_config(model=str(folder)), tmp_path / "r", listener=killer(12))
    save_model("llama", folder, seed=1)
    with pytest.raises(RunFolderError, match="the base model changed"):
        resume(tmp_path / "r")


def test_another_partition_is_refused(stopped):
    path = stopped / "partition.json"
    content = json.loads(path.read_text())
    first, second = sorted(content["clients"])[:2]
    content["clients"][first], content["clients"][second] = content["clients"][second], content["clients"][first]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError):
        resume(stopped)


def damage(folder, round):
    file = folder / "server" / f"round-{round:04d}" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("moment", [22, 27, 30])
def test_a_run_whose_newest_state_was_damaged_goes_on_from_the_one_before(config, tmp_path, moment, caplog):
    run(config, tmp_path / "whole")
    folder = tmp_path / "r"
    with pytest.raises(Killed):
        run(config, folder, listener=killer(moment))
    newest = checkpoint.rounds(folder / "server")[-1]
    assert newest > 0
    damage(folder, newest)
    resume(folder)
    assert len([text for text in caplog.messages if "going on from round" in text]) == 1
    shutil.rmtree(folder / "server" / f"damaged-round-{newest:04d}")
    assert_same_run(folder, tmp_path / "whole")


def test_damaged_states_alone_are_named(stopped):
    for round in checkpoint.rounds(stopped / "server"):
        damage(stopped, round)
    with pytest.raises(RunFolderError, match=r"round-\d{4}.*start a new run"):
        resume(stopped)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"version": 1}'])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json|resolved\.yaml"):
        resume(tmp_path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        resume(tmp_path / "nowhere")


# --- real processes ---


JOB = """
import sys, time
import torch
torch.set_num_threads(1)
from fedit import settings
from fedit.launch import run, resume
from pathlib import Path
folder = Path(sys.argv[2])
def slowly(event):
    if event["event"] == "step":
        time.sleep(0.03)  # so that a random moment falls into any part of a round
config = settings.load(sys.argv[1]).config
if (folder / "run.json").exists():
    resume(folder, listener=slowly)
else:
    run(config, folder, listener=slowly)
"""


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(make_config, tmp_path):
    config = make_config(
        num_rounds=6, num_clients=4, clients_per_round=3, client_optimizer="keep", lora_dropout=0.1, held_out=1
    )
    run(config, tmp_path / "whole")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    (tmp_path / "job.py").write_text(JOB)
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": ""}
    rng, kills = random.Random(0), 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "job.py"), str(job), str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Start to count when the run does: imports take most of a short life.
        log = folder / "events.jsonl"
        size = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size != size:
                break
            time.sleep(0.01)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.0, 1.5) if kills < 3 else 120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        break
    assert kills >= 2
    assert (folder / "summary.json").exists()
    assert_same_run(folder, tmp_path / "whole")
    adapters = [read_adapter(place / "adapter") for place in (folder, tmp_path / "whole")]
    assert all((adapters[0][name] == tensor).all() for name, tensor in adapters[1].items())
