"""From settings to a pace: what goes together, what is refused and why, and whole runs."""

import json

import pytest

from fedit import settings
from fedit.errors import ConfigError, RunFolderError, UnknownName
from fedit.launch import resume, run
from fedit.pace.asynchronous import Asynchronous
from fedit.pace.synchronous import Synchronous
from fedit.pacing import pace_of
from fedit.report.run_report import run_report
from fedit.report.write import write_report
from fedit.selection.draws import Uniform
from fedit.strategies import build_strategy

CLIENTS = [f"c{i:03d}" for i in range(100)]


def pace(clients=CLIENTS, **changes):
    config = settings.from_values(changes, "test")
    strategy = build_strategy(config.strategy, config.strategy_options)
    return pace_of(config, strategy, clients, lambda client: 100)


def events_of(folder, *kinds):
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] in kinds]


def test_the_default_is_a_uniform_cohort_without_a_clock():
    made = pace(clients_per_round=0.1)
    assert isinstance(made, Synchronous)
    assert (made.selection, made.size, made.clock) == (Uniform(), 10, None)


def test_a_fraction_is_rounded_and_not_cut():
    """0.29 * 100 is 28.999999999999996, which int() makes 28."""
    assert pace(clients_per_round=0.29).size == 29
    assert pace(clients_per_round=0.29, strategy="fedbuff", devices="equal").concurrency == 29


def test_a_strategy_with_a_buffer_makes_rounds_of_arrivals():
    made = pace(strategy="fedbuff", strategy_options={"buffer_size": 7}, devices="lognormal", clients_per_round=20)
    assert isinstance(made, Asynchronous)
    assert (made.buffer, made.concurrency) == (7, 20)
    # More arrivals than there are places, and then clients, are a matter of waiting.
    assert pace(strategy="fedbuff", devices="equal", clients_per_round=1, min_clients=8).concurrency == 1


ASYNC = {"strategy": "fedbuff", "devices": "equal"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"selection": "unifrom"}, UnknownName, "did you mean 'uniform'"),
        ({"selection_options": {"replacement": True}}, ConfigError, "no option 'replacement'"),
        ({"devices": "lognormel"}, UnknownName, "did you mean 'lognormal'"),
        ({"devices_options": {"speed": 3.0}}, ConfigError, "devices is none"),
        ({"devices": "file"}, ConfigError, "needs devices_options for: file"),
        ({"stragglers": "deadline", "devices": "equal"}, ConfigError, "needs stragglers_options for: seconds"),
        (
            {"stragglers": "over_select"},
            ConfigError,
            "stragglers is over_select, which needs durations; set devices",
        ),
        ({"availability": "dirunal"}, UnknownName, "did you mean 'diurnal'"),
        (
            {"min_clients": 11, "clients_per_round": 10},
            ConfigError,
            "min_clients is 11, but a round has 10 clients",
        ),
        ({"clients_per_round": 101}, ConfigError, "clients_per_round is 101, but there are 100"),
        ({"strategy": "fedbuff"}, ConfigError, "needs durations; set devices"),
        ({**ASYNC, "strategy_options": {"buffer_size": 101}}, ConfigError, "there are 100 clients"),
        ({**ASYNC, "min_clients": 11}, ConfigError, "min_clients is 11"),
        ({**ASYNC, "stragglers": "over_select"}, ConfigError, "leave stragglers at wait_all"),
        ({**ASYNC, "selection": "poisson"}, ConfigError, "selection poisson cannot"),
        ({**ASYNC, "selection": "weighted"}, ConfigError, "selection weighted cannot"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(changes, error, message):
    with pytest.raises(error, match=message):
        pace(**changes)


def test_a_run_refuses_it_before_it_begins(make_config, tmp_path):
    with pytest.raises(ConfigError, match="set devices"):
        run(make_config(strategy="fedasync"), tmp_path / "r")
    assert not (tmp_path / "r" / "events.jsonl").exists()


def test_a_run_says_what_its_rounds_took_on_the_virtual_clock(make_config, tmp_path):
    config = make_config(
        num_clients=4, devices="lognormal", stragglers="over_select", clients_per_round=2, num_rounds=3
    )
    summary = run(config, tmp_path / "r").summary
    rounds = events_of(tmp_path / "r", "round")
    assert [len(event["cohort"]) for event in rounds] == [3, 3, 3]
    assert [event["delivered"] for event in rounds] == [2, 2, 2]
    for event in rounds:
        own = [c for c in events_of(tmp_path / "r", "client") if c["round"] == event["round"]]
        assert event["simulated_seconds"] == pytest.approx(max(c["simulated_seconds"] for c in own), rel=1e-9)
        assert event["seconds"] > 0
    assert summary["simulated_seconds"] == sum(event["simulated_seconds"] for event in rounds)
    assert "Simulated time: " in (tmp_path / "r" / "summary.md").read_text()
    reasons = [event["reason"] for event in events_of(tmp_path / "r", "client_failed")]
    assert len(reasons) == 3
    assert all(reason.startswith("not waited for") for reason in reasons)


def test_a_run_without_a_clock_says_nothing_of_it(make_config, tmp_path):
    summary = run(make_config(num_rounds=1), tmp_path / "r").summary
    assert "simulated_seconds" not in summary
    assert "Simulated" not in (tmp_path / "r" / "summary.md").read_text()


def test_simulated_tokens_are_those_that_are_trained_over_whole_epochs(make_config, tmp_path):
    config = make_config(
        num_rounds=1,
        local_steps=None,
        local_epochs=2,
        devices="equal",
        devices_options={"speed": 1.0, "latency": 0},
    )
    run(config, tmp_path / "r")
    for client in events_of(tmp_path / "r", "client"):
        transfers = client["simulated_seconds"] - client["tokens"]
        assert 0 < transfers < 1


def test_a_run_whose_device_file_changed_is_not_resumed(make_config, tmp_path):
    path = tmp_path / "devices.json"
    path.write_text('{"*": {"speed": 100}}')
    config = make_config(devices="file", devices_options={"file": str(path)}, num_rounds=2)

    class Killed(BaseException):
        pass

    def kill(event):
        if event["event"] == "round":
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "r", listener=kill)
    content = path.read_text()
    path.write_text('{"*": {"speed": 200}}')
    with pytest.raises(RunFolderError, match="a file of devices"):
        resume(tmp_path / "r")
    path.write_text(content)
    assert resume(tmp_path / "r").summary["rounds"] == 2


def test_a_run_whose_rounds_find_nobody_ends_with_the_adapter_it_began_with(make_config, tmp_path):
    config = make_config(
        selection="poisson", selection_options={"probability": 1e-9}, num_rounds=4, compare=["centralised"],
        max_new_tokens=2, held_out=1,
    )  # fmt: skip
    summary = run(config, tmp_path / "r").summary
    rounds = events_of(tmp_path / "r", "round")
    assert [(event["cohort"], event["aggregated"], event["train_loss"]) for event in rounds] == [
        ([], False, None)
    ] * 4
    assert summary["held_out"]["after"]["loss"] == summary["held_out"]["before"]["loss"]
    page = write_report(run_report(tmp_path / "r"), tmp_path / "report", pdf=False)
    assert page.stat().st_size > 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "power_of_choice", "devices": "lognormal", "stragglers": "over_select"},
        {"strategy": "fedbuff", "strategy_options": {"buffer_size": 2}, "devices": "lognormal"},
    ],
    ids=["over_select", "fedbuff"],
)
@pytest.mark.slow
def test_cohorts_and_bits_are_the_same_with_any_number_of_workers(make_config, tmp_path, importable, changes):
    summaries, rounds = [], []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        config = make_config(num_clients=5, clients_per_round=3, num_rounds=4, num_workers=workers, **changes)
        summaries.append(run(config, folder).summary)
        rounds.append([(e["cohort"], e["simulated_seconds"], e["tokens"]) for e in events_of(folder, "round")])
    assert rounds[0] == rounds[1]
    states = [sorted((tmp_path / w / "server").glob("*/state.safetensors")) for w in "12"]
    assert [path.read_bytes() for path in states[0]] == [path.read_bytes() for path in states[1]]
    assert summaries[0]["held_out"] == summaries[1]["held_out"]
