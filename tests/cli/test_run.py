"""``fedit run``, ``resume`` and ``show`` as scripts and people use them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from fedit.cli import run as commands
from fedit.cli.app import app
from fedit.cli.errors import run_and_exit
from fedit.config import RunConfig


@pytest.fixture
def job(make_config, tmp_path):
    """A job file of a tiny run."""
    path = tmp_path / "job.yaml"
    values = make_config().model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def fedit(capsys):
    """Run the command line in this process; return (exit code, standard output, standard error)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            run_and_exit(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_a_run_leaves_what_scripts_read(fedit, job, tmp_path):
    out = tmp_path / "out"
    code, text, _ = fedit("run", job, "num_rounds=1", "--local_steps", "1", "--out", out)
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 1
    assert summary["held_out"]["before"]["loss"] > 0
    assert summary["held_out"]["after"]["loss"] > 0
    assert set(summary["per_category"]["copy"]) == {"before", "after"}
    assert {"tokens", "seconds", "bytes_up", "bytes_down"} <= set(summary)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert f"fedit chat {out}" in text


def test_json_is_all_that_json_prints(fedit, job, tmp_path):
    out = tmp_path / "out"
    code, text, _ = fedit("run", job, "num_rounds=1", "--json", "--out", out)
    assert code == 0
    assert json.loads(text) == json.loads((out / "summary.json").read_text())
    assert json.loads(fedit("resume", out, "--json")[1]) == json.loads(text)


def test_resuming_a_finished_run_says_so_and_ends_well(fedit, job, tmp_path):
    out = tmp_path / "out"
    fedit("run", job, "num_rounds=1", "--out", out)
    before = (out / "events.jsonl").read_bytes()
    code, text, _ = fedit("resume", out)
    assert code == 0
    assert "finished" in text
    assert (out / "events.jsonl").read_bytes() == before


def test_a_folder_with_a_run_is_only_replaced_when_told(fedit, job, tmp_path):
    out = tmp_path / "out"
    fedit("run", job, "num_rounds=1", "--out", out)
    code, _, errors = fedit("run", job, "num_rounds=1", "--out", out)
    assert code == 2
    assert "already holds a run" in errors
    assert fedit("run", job, "num_rounds=1", "--out", out, "--replace")[0] == 0


def test_replace_never_deletes_a_folder_that_holds_no_run(fedit, job, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    fedit("run", job, "num_rounds=1", "--out", out, "--replace")
    assert (out / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora_rr=4"], "unknown setting 'lora_rr'; did you mean 'lora_r'?"),
        (["strategy=fedtt"], "unknown strategy 'fedtt'; did you mean 'fedit'?"),
        (["partitioner=dirichet"], "did you mean 'dirichlet'?"),
        (["prompt_template=alpacca"], "did you mean 'alpaca'?"),
        (["dataset=nowhere.jsonl"], "nowhere.jsonl"),
        (["model=no-such-folder/at-all/here"], "no-such-folder"),
        (["num_clients=1000"], "1000"),
        (["max_length=100000"], "reads at most 512 tokens"),
        (["strategy_options.server_lrr=1"], "did you mean 'server_lr'?"),
        (["strategy_options.server_lr=fast"], "expected float"),
        (["lora_target_modules=q_prog"], "did you mean 'q_proj'?"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(fedit, job, tmp_path, arguments, words):
    code, _, errors = fedit("run", job, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert words in errors
    assert "Traceback" not in errors


def test_an_unknown_flag_is_a_mistake(fedit, job):
    code, _, errors = fedit("run", job, "--lora_rr", "4")
    assert code == 2
    assert "--lora_r" in errors


def test_a_failure_that_is_nobodys_mistake_exits_with_one(fedit, job, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(commands, "_execute", broken)
    code, _, errors = fedit("run", job, "--out", tmp_path / "out")
    assert code == 1
    assert "ZeroDivisionError: a defect" in errors
    assert "Traceback" not in errors


def test_show_prints_settings_and_what_they_imply_and_trains_nothing(fedit, job, tmp_path):
    code, text, _ = fedit("show", job, "--json", "clients_per_round=2")
    assert code == 0
    shown = json.loads(text)
    assert shown["settings"]["clients_per_round"] == 2
    implied = shown["implies"]
    # tiny Llama: per layer q (32, 32), k and v (32, 16), o (32, 32); rank 4, 2 layers
    assert implied["trainable_parameters"] == 2 * 4 * (64 + 48 + 48 + 64)
    assert implied["bytes_up_per_round"] == 2 * 4 * implied["trainable_parameters"]
    assert implied["clients"] == 3
    assert implied["clients_per_round"] == 2
    assert "from" in fedit("show", job)[1]


def test_show_agrees_with_the_run(fedit, job, tmp_path):
    implied = json.loads(fedit("show", job, "--json")[1])["implies"]
    summary = json.loads(fedit("run", job, "--json", "--out", tmp_path / "out")[1])
    assert summary["bytes_up"] + summary["bytes_down"] == implied["bytes_total"]
    assert summary["held_out_rows"] == implied["held_out_rows"]


def test_every_setting_is_read_in_some_run(fedit, job, tmp_path, monkeypatch):
    """A setting that no run reads would be accepted and ignored."""
    read = set()
    found = RunConfig.__getattribute__

    def recording(self, name):
        if name in RunConfig.model_fields:
            read.add(name)
        return found(self, name)

    monkeypatch.setattr(RunConfig, "__getattribute__", recording)
    monkeypatch.setattr(RunConfig, "_problems", lambda self: [])  # checks read everything; they do not count
    monkeypatch.setattr(RunConfig, "model_dump", lambda self, **options: {})
    from fedit import arms, compute, federation, prepare

    config = RunConfig(**{**yaml.safe_load(job.read_text()), "compare": ["local"], "num_rounds": 1})
    read.clear()
    ready = prepare.prepare(config)
    arm = arms.federated(ready)
    log = federation.EventLog(tmp_path / "run")
    here = compute.Here(ready)
    trained = federation.train(ready, here, arm, tmp_path / "run", log)
    here.seconds_per_token()
    for name in arms.baseline_names(ready):
        arms.named(ready, name, arms.tokens_by_round(trained.events)).training(1)
    from fedit.scoring import answer_held_out

    answer_held_out(ready, here, trained.adapter)
    elsewhere = {
        "dataset_split": "hub data sets",
        "exact_match": "the launch of a run",
        "num_clusters": "partitioner cluster",
        "num_workers": "worker processes",
        "upload_megabytes": "lora_r=auto",
        "adapter_megabytes": "lora_r=auto",
        "attackers": "attack",
        "attack_strength": "attack",
        "poison_share": "attack",
        "personal_evaluation": "the launch of a run",
        "personal_steps": "personal_evaluation",
        "secure_aggregation_options": "secure_aggregation",
        "canaries_options": "canaries",
        "report_to": "the launch of a run",
    }
    assert set(RunConfig.model_fields) - read <= set(elsewhere)


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_the_run_can_be_resumed(job, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fedit", "run", str(job), "num_rounds=400", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not (out / "server" / "round-0002").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"fedit resume {out}" in errors
    assert "Traceback" not in errors
    resumed = subprocess.run(
        [sys.executable, "-m", "fedit", "resume", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((out / "summary.json").read_text())["rounds"] == 400


@pytest.mark.slow
def test_a_full_disk_is_explained(job, tmp_path):
    """A limit on file sizes is met like a full disk: the write fails half way."""
    command = f"ulimit -f 8; exec {sys.executable} -m fedit run {job} --out {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
