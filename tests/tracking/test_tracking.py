"""Curves beside the log: every point once, whatever happened; a tracker's trouble is not the run's."""

import json
import sqlite3
import sys
import types
from pathlib import Path

import pytest

from fedit import settings
from fedit.errors import ConfigError
from fedit.events import EventLog
from fedit.launch import resume, run
from fedit.tracking.listening import STATE, Tracking
from fedit.tracking.points import points


def curves(folder: Path, arm: str = "federated") -> dict[str, list[tuple[int, float]]]:
    """Read all that TensorBoard's files hold, before its purging, which would hide points that stand twice."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard" / arm).glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def logged(folder: Path, kind: str, name: str) -> list[tuple[int, float]]:
    events = EventLog(folder).history()
    return [(int(e["round"]), pytest.approx(e[name], rel=1e-6)) for e in events if e["event"] == kind]


def test_an_events_numbers_have_its_names():
    event = {
        "event": "evaluation", "round": 3, "time": 5.0, "loss": 1.5, "per_category": {"a b:c": 2.0}, "flag": True,
        "clients": {"mean": 1.0, "worst_decile": None}, "per_client": {"x": 1.0}, "text": "t", "nan": float("nan"),
    }  # fmt: skip
    assert points(event) == {
        "evaluation/loss": 1.5,
        "evaluation/per_category/a b_c": 2.0,
        "evaluation/clients/mean": 1.0,
    }
    assert points({"event": "client", "round": 1, "loss": 1.0}) == {}


def test_a_run_leaves_curves_of_all_its_arms(tmp_path, make_config):
    run(make_config(compare=["centralised"]), tmp_path / "run")
    for arm, folder in (
        ("federated", tmp_path / "run"),
        ("centralised", tmp_path / "run" / "arms" / "centralised"),
    ):
        found = curves(tmp_path / "run", arm)
        assert found["round/train_loss"] == logged(folder, "round", "train_loss")
        assert [step for step, _ in found["round/train_loss"]] == [1, 2]
        assert found["evaluation/loss"] == logged(folder, "evaluation", "loss")
        assert found["round/bytes_up"] == logged(folder, "round", "bytes_up")
    assert not (tmp_path / "run" / STATE).exists()


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


def killed(config, folder: Path, kind: str, round: int, monkeypatch) -> None:
    """Run until an event was written and passed on, and no further: its round is not committed."""

    def listener(event):
        if event["event"] == kind and event["round"] == round:
            raise Stop

    real = Tracking.hear

    def hear(self, event):  # the trackers hear of it before the process dies
        theirs, self._listener = self._listener, None
        real(self, event)
        self._listener = theirs
        if theirs is not None:
            theirs(event)

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "hear", hear)
        with pytest.raises(Stop):
            run(config, folder, listener=listener)


def test_a_resumed_run_has_every_point_once(tmp_path, make_config, monkeypatch):
    config = make_config(num_rounds=3)
    killed(config, tmp_path / "run", "evaluation", 2, monkeypatch)
    assert [step for step, _ in curves(tmp_path / "run")["round/train_loss"]] == [1, 2]  # 2 will be done again
    resume(tmp_path / "run")
    found = curves(tmp_path / "run")
    assert [step for step, _ in found["round/train_loss"]] == [1, 2, 3]
    assert [step for step, _ in found["evaluation/loss"]] == [0, 1, 2, 3]
    assert found["evaluation/loss"] == logged(tmp_path / "run", "evaluation", "loss")
    undisturbed = tmp_path / "other"
    run(config, undisturbed)
    assert curves(undisturbed)["evaluation/loss"] == found["evaluation/loss"]


@pytest.fixture
def trackio_folder(tmp_path, monkeypatch):
    """trackio reads where it keeps things once, at its import."""
    import trackio.sqlite_storage  # noqa: F401

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio"


def test_trackio_has_every_point_of_a_resumed_run_once(tmp_path, make_config, monkeypatch, trackio_folder):
    config = make_config(num_rounds=3, report_to=["trackio"])
    killed(config, tmp_path / "run", "evaluation", 2, monkeypatch)
    resume(tmp_path / "run")
    (database,) = trackio_folder.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    rows = [(name, step, json.loads(text)) for name, step, text in rows]
    assert len({name for name, _, _ in rows}) == 1
    assert rows[0][0].startswith("run-")
    steps = [(step, "round" if "round/train_loss" in numbers else "evaluation") for _, step, numbers in rows]
    rounds = [(n, kind) for n in (1, 2, 3) for kind in ("round", "evaluation")]
    assert steps == [(0, "evaluation"), *rounds]
    losses = [(step, own["evaluation/loss"]) for _, step, own in rows if "evaluation/loss" in own]
    assert losses == logged(tmp_path / "run", "evaluation", "loss")


class Recorded:
    """A stand-in for a tracker's run, which writes down what it is called with."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return Recorded(self.calls)

        return call


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the packages wandb and mlflow, with what of their documented interface is used."""
    calls: list = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    wandb.init = lambda **options: calls.append(("init", (), options)) or Recorded(calls)
    mlflow, entities, tracking = (types.ModuleType(f"mlflow{end}") for end in ("", ".entities", ".tracking"))
    mlflow.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    entities.Metric = lambda key, value, timestamp, step: ("metric", key, value, timestamp, step)
    entities.Param = lambda key, value: ("param", key, value)

    class Client(Recorded):
        def __init__(self):
            super().__init__(calls)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("create_run", (experiment, run_name), {}))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

    tracking.MlflowClient = Client
    for module in (wandb, mlflow, entities, tracking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def play(folder, *events, **changes):
    """Let a run's events be tracked, without the run."""
    folder.mkdir(exist_ok=True)
    heard = []
    tracking = Tracking(settings.load_config(None, **changes), folder, lambda arm: folder, heard.append)
    log = EventLog(folder, tracking.hear, arm="federated")
    for kind, round, fields in events:
        log.write(kind, round, **fields)
    tracking.close()
    return heard


def test_wandb_is_called_as_its_documentation_says(tmp_path, calls):
    """With a stand-in for the package: the run's id is kept, and rounds are the axis."""
    play(tmp_path / "r", ("round", 1, {"train_loss": 2.0}), report_to=["wandb"])
    init = calls[0][2]
    assert (init["project"], init["resume"], init["reinit"]) == ("fedit", "allow", "create_new")
    assert init["config"]["num_rounds"] == 10
    assert ("define_metric", ("*",), {"step_metric": "fedit_round"}) in calls
    assert ("log", ({"round/train_loss": 2.0, "fedit_round": 1},), {}) in calls
    assert calls[-1][0] == "finish"
    first = init["id"]
    calls.clear()
    play(tmp_path / "r", ("round", 1, {"train_loss": 2.0}), ("round", 2, {"train_loss": 1.0}), report_to=["wandb"])
    assert calls[0][2]["id"] == first
    assert [call[1][0]["fedit_round"] for call in calls if call[0] == "log"] == [2]


def test_mlflow_is_called_as_its_documentation_says(tmp_path, calls):
    """With a stand-in for the package: parameters once, metrics with step and time, the same run afterwards."""
    play(tmp_path / "r", ("evaluation", 0, {"loss": 2.0}), report_to=["mlflow"])
    assert calls[0][0] == "create_run"
    assert calls[0][1][0] == "7"
    given = [param for name, _, options in calls if name == "log_batch" for param in options.get("params", [])]
    assert ("param", "num_rounds", "10") in given
    (metrics,) = [options["metrics"] for name, _, options in calls if "metrics" in options]
    assert [(m[1], m[2], m[4]) for m in metrics] == [("evaluation/loss", 2.0, 0)]
    assert metrics[0][3] > 1e12  # milliseconds
    assert calls[-1] == ("set_terminated", ("abc",), {})
    calls.clear()
    play(tmp_path / "r", ("evaluation", 1, {"loss": 1.0}), report_to=["mlflow"])
    assert calls[0] == ("update_run", ("abc",), {"status": "RUNNING"})


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(Recorded, "__getattr__", lambda self, name: (_ for _ in ()).throw(OSError("no network")))
    heard = play(
        tmp_path / "r", ("round", 1, {"train_loss": 2.0}), ("round", 2, {"train_loss": 1.0}), report_to=["wandb"]
    )
    failures = [event for event in heard if event["event"] == "tracking_failed"]
    assert [(f["tracker"], f["reason"]) for f in failures] == [("wandb", "OSError: no network")]
    assert [step for step, _ in curves(tmp_path / "r")["round/train_loss"]] == [1, 2]


def test_a_package_that_is_missing_is_named_with_its_extra_before_anything_starts(
    tmp_path, make_config, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedit\[wandb\]'"):
        run(make_config(report_to=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
