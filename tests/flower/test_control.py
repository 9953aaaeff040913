"""Jobs of a deployment: what is refused before anything is sent, what is remembered, and what status shows."""

import json
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tiny import write_rows
from typer.testing import CliRunner

from fedit import settings
from fedit.cli import app
from fedit.cli.deploytables import status_view
from fedit.config import RunConfig
from fedit.errors import ConfigError, DataError, UnknownName
from fedit.flower import connection, control
from fedit.flower.control import RunStatus, SiteStatus
from fedit.flower.jobs import Jobs, Submitted, check_name
from fedit.flower.layout import Deployment
from fedit.flower.progress import Late, Progress, read_progress
from fedit.flower.submission import check_job

# Flower's own use of pathspec, when it packs the app.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    write_rows(path, 6)
    return path


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("compare=local", "compare"),
        ("attack=sign_flip", "attack"),
        ("attack=trigger", "attack"),
        ("personal_evaluation=true", "personal_evaluation"),
        ("unseen_clients=1", "unseen_clients"),
        ("devices=equal", "devices"),
        ("stragglers=deadline", "stragglers"),
        ("availability=diurnal", "availability"),
        ("strategy=mine.py:Mine", "strategy"),
        ("transforms=mine.py:Mine", "transforms"),
        ("selection=mine.py:Mine", "selection"),
    ],
)
def test_a_setting_that_a_deployment_cannot_have_is_refused_by_name(setting: str, name: str, rows: Path) -> None:
    with pytest.raises(ConfigError, match=f"argument {name}: {name} is ") as refused:
        check_job(settings.load(None, [setting]), rows)
    assert len(str(refused.value).splitlines()) == 1


def test_all_that_cannot_be_is_named_at_once(rows: Path) -> None:
    job = settings.load(None, ["compare=local", "devices=equal"])
    with pytest.raises(ConfigError) as refused:
        check_job(job, rows)
    assert len(str(refused.value).splitlines()) == 2


def test_settings_of_where_rows_come_from_are_named_as_unused(rows: Path) -> None:
    job = settings.load(None, ["num_clients=4", "partitioner=dirichlet", "alpha=0.5", "num_rounds=3"])
    assert check_job(job, rows) == ["num_clients", "partitioner", "alpha"]


@pytest.mark.check(16)
def test_names_options_and_rows_are_checked_before_anything_is_sent(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'fedavgm'"):
        check_job(settings.load(None, ["strategy=fedavgmm"]), rows)
    with pytest.raises(ConfigError, match="is no file"):
        check_job(settings.load(None), tmp_path / "missing.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(DataError):
        check_job(settings.load(None), tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "learning_rat=1"], "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        (["demo", "compare=local"], "which a deployment cannot have"),
        (["demo", "--name", "../x"], "--name is '../x'"),
        (["demo", "--min-sites", "3"], "the deployment has 2 sites"),
    ],
)
def test_submit_refuses_before_it_asks_the_server(
    deployment: Deployment, rows: Path, arguments: list[str], words: str
) -> None:
    result = CliRunner().invoke(
        app, ["deploy", "submit", str(deployment.folder), *arguments, "--held-out", str(rows)]
    )
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
    assert not (deployment.state / "jobs").exists() or not Jobs(deployment.state / "jobs").all()


def test_a_submission_without_a_server_says_how_to_start_it_and_leaves_nothing(
    deployment: Deployment, rows: Path
) -> None:
    with pytest.raises(connection.LinkError, match=f"fedit deploy server {deployment.folder}"):
        control.submit(deployment, "first", RunConfig(), rows)
    assert control.jobs_of(deployment).all() == []


def test_a_name_that_is_taken_is_refused_and_the_next_free_one_is_found(
    deployment: Deployment, rows: Path
) -> None:
    (deployment.runs / "first").mkdir()
    control.jobs_of(deployment).save(submitted("first-2"))
    with pytest.raises(ConfigError, match="choose another --name"):
        control.submit(deployment, "first", RunConfig(), rows)
    assert control.free_name(deployment, "first") == "first-3"


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a b", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        check_name(name)


def test_a_job_is_read_as_it_was_written_and_changed_in_place(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs.save(submitted("one"))
    jobs.save(submitted("two"))
    jobs.change("one", state="stopped")
    assert [(job.name, job.state) for job in jobs.all()] == [("one", "stopped"), ("two", "active")]
    assert jobs.get("two") == submitted("two")
    assert jobs.get("three") is None


def test_the_app_that_travels_holds_names_and_no_code() -> None:
    with zipfile.ZipFile(BytesIO(connection.bundle())) as app_file:
        names = app_file.namelist()
        text = app_file.read("pyproject.toml").decode()
    assert not [name for name in names if name.endswith(".py")]
    assert 'serverapp = "fedit.flower.server_app:app"' in text
    assert 'clientapp = "fedit.flower.client_app:app"' in text


def test_progress_is_that_of_the_run_folder(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [
        {"event": "arm_started", "round": 0, "rounds": 5},
        {"event": "evaluation", "round": 0, "loss": 3.0},
        {"event": "site_late", "round": 1, "site": "b"},
        {"event": "client_failed", "round": 1, "client": "b-0", "reason": "site b did not answer in time"},
        {"event": "round", "round": 1, "train_loss": 2.5, "bytes_up": 100, "bytes_down": 200, "time": 7.0},
        {"event": "evaluation", "round": 1, "loss": 2.0, "time": 8.0},
    ]
    write_events(tmp_path, events)
    assert read_progress(tmp_path) == Progress(
        round=1,
        rounds=5,
        train_loss=2.5,
        loss=2.0,
        bytes_up=100,
        bytes_down=200,
        updated=8.0,
        late=[
            Late("site b", 1, "did not answer in time"),
            Late("client b-0", 1, "site b did not answer in time"),
        ],
    )
    write_events(tmp_path, [*events, {"event": "site_back", "round": 2, "site": "b"}])
    assert [late.who for late in read_progress(tmp_path).late] == ["client b-0"]
    assert read_progress(tmp_path / "nothing") == Progress()


def test_status_tells_what_lies_on_disk_while_no_server_answers(deployment: Deployment) -> None:
    control.jobs_of(deployment).save(submitted("first", num_rounds=4))
    write_events(deployment.runs / "first", [{"event": "round", "round": 2, "bytes_up": 1, "bytes_down": 2}])
    result = CliRunner().invoke(app, ["deploy", "status", str(deployment.folder), "--json"])
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status["server"]["up"] is False
    assert "fedit deploy server" in status["server"]["reason"]
    (run,) = status["runs"]
    assert (run["name"], run["run_id"], run["state"]) == ("first", "12345678901234567890", "waiting")
    assert (run["progress"]["round"], run["progress"]["rounds"]) == (2, 4)


def test_status_shows_sites_rounds_losses_bytes_and_who_is_late() -> None:
    progress = Progress(
        3, 10, 1.25, 0.875, 12_300_000, 4_500_000, late=[Late("site b", 4, "did not answer in time")]
    )
    view = status_view(
        "127.0.0.1:8000",
        None,
        [SiteStatus("a", "online", 1.0), SiteStatus("b", control.NEVER_SEEN)],
        [RunStatus("first", 1, "running", progress=progress), RunStatus("other", 2, "failed", "out of luck")],
    )
    screen = StringIO()
    Console(width=150, file=screen).print(view)
    text = screen.getvalue()
    for words in ("127.0.0.1:8000 is up", "never seen", "3 of 10", "1.250", "0.875", "12.3", "4.5"):
        assert words in text
    assert "first, round 4: site b: did not answer in time" in text
    assert "other: out of luck" in text


def test_a_run_that_is_not_there_is_named_with_those_that_are(deployment: Deployment) -> None:
    control.jobs_of(deployment).save(submitted("first"))
    assert control.find(deployment, "12345678901234567890").name == "first"
    with pytest.raises(ConfigError, match=r"no run 'second' .* Runs: first\."):
        control.find(deployment, "second")


def submitted(name: str, **job: object) -> Submitted:
    return Submitted(name, job, "/rows.jsonl", 0.0, 2, run_id=12345678901234567890)


def write_events(folder: Path, events: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps({"arm": "federated", **e}) + "\n" for e in events))
