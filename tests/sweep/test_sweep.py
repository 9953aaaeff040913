"""Whole tiny sweeps: what the points are, that all are checked first, and that nothing is done twice."""

import json
import os

import numpy as np
import pytest
from tiny import write_rows

from fedit import settings
from fedit.errors import ConfigError, FeditError, RunFolderError
from fedit.study.run import run_study
from fedit.sweep import run as module
from fedit.sweep.plan import check, name_of, plan, split_axes
from fedit.sweep.run import fitting, run_sweep


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny):
    """A job file with one axis; another one comes from the command line."""
    folder = tmp_path_factory.mktemp("sweep")
    write_rows(folder / "rows.jsonl", 60)
    (folder / "job.yaml").write_text(
        f"model: {tiny}\ndevice: cpu\ndtype: fp32\ndataset: {folder / 'rows.jsonl'}\nlora_r: 4\nlora_alpha: 8\n"
        "num_clients: 2\nnum_rounds: 2\nlocal_steps: 1\nbatch_size: 4\nheld_out: 2\nmax_length: 96\n"
        "eval_every: 2\nnum_workers: 1\nstudy: {resamples: 40}\nsweep: {learning_rate: [1e-3, 2e-2]}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        yield folder / "job.yaml"


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory):
    points = plan(str(job), ["strategy=fedavg,ffa_lora"], {}, seeds=2)
    out = tmp_path_factory.mktemp("finished") / "out"
    heard = []
    summary = run_sweep(points, out, parallel=1, listener=heard.append)
    return points, out, summary, heard


def test_axes_come_from_the_file_and_from_values_with_commas(job):
    found = plan(
        str(job), ["strategy=fedavg,ffa_lora", "max_length=64", "study.arms=base,federated"], {}, seeds=[3, 5]
    )
    assert found.axes == {"learning_rate": ["1e-3", "2e-2"], "strategy": ["fedavg", "ffa_lora"]}
    assert [point.name for point in found.points] == [
        "learning_rate=1e-3 strategy=fedavg",
        "learning_rate=1e-3 strategy=ffa_lora",
        "learning_rate=2e-2 strategy=fedavg",
        "learning_rate=2e-2 strategy=ffa_lora",
    ]
    last = found.points[-1].settings
    assert (last.config.learning_rate, last.config.strategy, last.config.max_length) == (0.02, "ffa_lora", 64)
    assert (last.study.seeds, last.study.arms, last.study.generate) == ([3, 5], ["base", "federated"], False)
    assert len({point.file_name for point in found.points}) == 4


def test_commas_within_brackets_separate_nothing():
    plain, axes = split_axes(
        ["a=1,2", "b=[x],[x,y]", "c=[x,y]", "d=1", "strategy_options.mu=0.1,0.2", "study.arms=a,b"]
    )
    assert axes == {"a": [1, 2], "b": [["x"], ["x", "y"]], "strategy_options.mu": [0.1, 0.2]}
    assert plain == ["c=[x,y]", "d=1", "study.arms=a,b"]
    assert name_of({"b": ["x"], "c": None}) == 'b=["x"] c=null'


def test_an_option_and_no_value_at_all_may_be_swept(job):
    found = plan(str(job), ["strategy=fedprox", "strategy_options.mu=0.1,0.2", "sweep.num_threads=[null, 1]"], {})
    options = [point.settings.config.strategy_options for point in found.points]
    assert sorted(one["mu"] for one in options) == [0.1] * 4 + [0.2] * 4
    assert {point.settings.config.num_threads for point in found.points} == {None, 1}


def test_an_axis_may_be_of_named_settings(job, tmp_path):
    text = job.read_text().replace(
        "{learning_rate: [1e-3, 2e-2]}",
        "{defence: {mean: {}, median: {strategy: ffa_lora}}, attack: {none: {}, some: {attack: sign_flip}}}",
    )
    (tmp_path / "job.yaml").write_text(text)
    found = plan(str(tmp_path / "job.yaml"), [], {})
    assert found.axes == {"defence": ["mean", "median"], "attack": ["none", "some"]}
    assert [point.name for point in found.points][1:3] == [
        "defence=mean attack=some",
        "defence=median attack=none",
    ]
    last = found.points[-1].settings.config
    assert (last.strategy, last.attack) == ("ffa_lora", ["sign_flip"])
    with pytest.raises(ConfigError, match="strategy one value"):
        plan(str(tmp_path / "job.yaml"), [], {"strategy": "fedavg"})
    with pytest.raises(ConfigError, match="defence and strategy both give strategy"):
        plan(str(tmp_path / "job.yaml"), ["strategy=fedavg,fedprox"], {})
    (tmp_path / "job.yaml").write_text(text.replace("strategy: ffa_lora", "study.seeds: 3"))
    with pytest.raises(ConfigError, match=r"study\.seeds, which is the same at every point"):
        plan(str(tmp_path / "job.yaml"), [], {})
    (tmp_path / "job.yaml").write_text(text.replace("strategy: ffa_lora", "strateggy: ffa_lora"))
    with pytest.raises(ConfigError, match=r"defence=median attack=none.*strateggy"):
        plan(str(tmp_path / "job.yaml"), [], {})


def test_all_that_is_wrong_is_said_at_once_and_what_is_wrong_everywhere_once(job):
    with pytest.raises(ConfigError) as caught:
        plan(str(job), ["lora_r=0,4", "optimizer=lion,sgd", "batch_size=many"], {})
    lines = str(caught.value).split("\n")
    assert sum("batch_size is 'many'" in line for line in lines) == 1
    zero, *_ = [line for line in lines if "lora_r is 0" in line]
    assert zero.startswith("learning_rate=1e-3 lora_r=0 optimizer=lion, ")
    assert zero.count("lora_r=0") == 4
    assert sum("optimizer is 'lion'" in line for line in lines) == 1
    for arguments, words in (
        (["sweep.lora_rr=[1, 2]"], "unknown setting 'lora_rr'; did you mean 'lora_r'"),
        (["sweep.lora_r=4"], "expected a list of values of lora_r"),
        (["lora_r=4,4"], "names a value twice"),
        (["seed=1,2"], "set study.seeds"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan(str(job), arguments, {})
    with pytest.raises(ConfigError, match="nothing to sweep"):
        plan(None, ["lora_r=4"], {})
    with pytest.raises(ConfigError, match="one value, and the sweep several"):
        plan(str(job), ["lora_r=4,8"], {"lora_r": 4})


def test_points_that_only_rows_or_model_refuse_are_found_before_any_starts(job, tmp_path):
    points = plan(str(job), ["num_clients=2,500", "strategy=fedavg,scaffold"], {})
    with pytest.raises(ConfigError) as caught:
        run_sweep(points, tmp_path / "out")
    text = str(caught.value)
    assert "learning_rate=1e-3 num_clients=500 strategy=fedavg" in text  # more clients than rows
    assert "set optimizer: sgd" in text
    assert not (tmp_path / "out").exists()
    good = plan(str(job), ["num_clients=2,3"], {})
    check(good.points)


@pytest.mark.slow
def test_every_point_has_numbers_with_intervals_over_seeds(finished):
    points, out, summary, _ = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert [one["name"] for one in summary["points"]] == [point.name for point in points.points]
    assert summary["seeds"] == [0, 1]
    for one in summary["points"]:
        low, high = one["ci"]["loss"]
        assert low <= one["loss"] <= high
        assert one["loss"] == pytest.approx(np.mean(one["per_seed"]["loss"]))
        assert one["tokens"] > 0
        assert one["bytes_up"] > 0
        own = json.loads((out / one["folder"] / "summary.json").read_text())
        assert one["loss"] == own["arms"]["federated"]["loss"]
    first, *others = summary["points"]
    assert "vs_first" not in first
    for one in others:
        assert one["vs_first"]["loss"]["difference"] == pytest.approx(one["loss"] - first["loss"])
    assert summary["best"] == min(summary["points"], key=lambda one: one["loss"])["name"]
    page = (out / "report.html").read_text()
    for name in ("learning_rate=1e-3 strategy=fedavg", "Held-out loss by learning_rate and strategy"):
        assert name in page
    assert list((out / "figures").glob("points-loss*"))


@pytest.mark.slow
def test_what_is_done_is_only_read_and_a_point_that_was_cut_off_goes_on(finished, tmp_path, monkeypatch):
    points, out, summary, _ = finished
    trained = []

    def counted(own, folder, **more):
        trained.append(folder.name)
        return run_study(own, folder, **more)

    monkeypatch.setattr(module, "run_study", counted)
    assert run_sweep(points, out, parallel=1) == summary
    assert trained == []
    cut = out / summary["points"][1]["folder"]
    (cut / "summary.json").unlink()
    (cut / "seed-1" / "seed.json").unlink()
    assert run_sweep(points, out, parallel=1) == summary
    assert trained == [cut.name]


@pytest.mark.slow
def test_more_values_are_added_and_other_settings_are_refused(finished, job):
    _, out, _, _ = finished
    other = plan(str(job), ["strategy=fedavg,ffa_lora", "lora_alpha=16"], {}, seeds=2)
    with pytest.raises(RunFolderError, match="holds another study"):
        run_sweep(other, out, parallel=1)


def test_a_sweep_takes_as_many_points_at_a_time_as_leave_no_core_idle(monkeypatch):
    monkeypatch.setattr(module, "places", lambda device, threads: 8)
    for changes, expected in (
        ({"num_clients": 4, "clients_per_round": 2}, 4),
        ({"num_clients": 100, "clients_per_round": 0.1}, 1),
        ({"num_clients": 2, "num_workers": 3}, 1),
    ):
        assert fitting(settings.load_config(None, device="cpu", **changes)) == expected


@pytest.mark.slow
def test_points_side_by_side_give_the_same_numbers(finished, job, tmp_path):
    """Two processes, one seed; fedavg is the job's own strategy under another name, to the bit."""
    _, _, summary, _ = finished
    beside = run_sweep(plan(str(job), [], {}, seeds=1), tmp_path / "out", parallel=2)
    for one, other in zip(beside["points"], summary["points"][::2], strict=True):
        assert one["per_seed"]["loss"] == other["per_seed"]["loss"][:1]


def test_a_point_that_fails_ends_those_beside_it_and_is_named(job, tmp_path, monkeypatch):
    points = plan(str(job), [], {})
    script = "import sys, time; print('no luck'); sys.exit(3) if '1e-3' in sys.argv[-1] else time.sleep(600)"
    real = module.subprocess.Popen
    started = []

    def popen(command, **options):
        started.append(real([command[0], "-c", script, command[-1]], **options))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    with pytest.raises(FeditError, match=r"learning_rate=1e-3 ended with 3(.|\n)*no luck"):
        run_sweep(points, tmp_path / "out", parallel=2)
    assert len(started) <= 2
    assert all(child.poll() is not None for child in started)


def test_the_command_prints_json_and_checks_without_training(job, tmp_path, capsys, monkeypatch):
    from fedit.cli.app import app
    from fedit.cli.errors import run_and_exit

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run_and_exit(app, ["sweep", str(job), "strategy=fedavg,flora", "--check", "--json"])
    assert left.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 4
    with pytest.raises(SystemExit) as left:
        run_and_exit(app, ["sweep", str(job), "lora_r=0,4"])
    assert left.value.code == 2
    assert "lora_r is 0" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_study_of_a_job_with_a_sweep_is_the_sweep(job, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fedit.cli import app

    asked = []

    def run_sweep(points, folder, **_):
        asked.append(([point.name for point in points.points], folder))
        return {"points": [], "seeds": [0], "best": ""}

    monkeypatch.setattr("fedit.sweep.run.run_sweep", run_sweep)
    done = CliRunner().invoke(app, ["study", str(job), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert asked == [(["learning_rate=1e-3", "learning_rate=2e-2"], tmp_path / "out")]
