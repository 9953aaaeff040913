"""From settings to a pace: what goes together, what is refused and why, and whole runs."""

import json

import pytest

from fedit import checkpoint, settings
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
    reasons = [event["reason"] for event in events_of(tmp_path / "r", "client_dropped")]
    assert len(reasons) == 3
    assert all(reason.startswith("not waited for") for reason in reasons)
    # More were asked than wanted: nobody failed.
    assert not events_of(tmp_path / "r", "client_failed")
    assert [(event["failed"], event["dropped"]) for event in rounds] == [(0, 1)] * 3
    assert (summary["failed_updates"], summary["dropped_clients"], summary["left_under_way"]) == (0, 3, 0)
    said = "Failed updates: 0. Not waited for, late or more than wanted: 3."
    assert said in (tmp_path / "r" / "summary.md").read_text()
    page = write_report(run_report(tmp_path / "r"), tmp_path / "report", pdf=False).read_text()
    assert "asked for 6 updates and got 6. 3 more clients were asked and not waited for" in page


def test_who_is_under_way_when_asynchronous_rounds_are_over_is_told_with_what_it_was_sent(make_config, tmp_path):
    config = make_config(
        num_clients=5, devices="lognormal", strategy="fedbuff", strategy_options={"buffer_size": 2},
        clients_per_round=3, num_rounds=3,
    )  # fmt: skip
    summary = run(config, tmp_path / "r").summary
    (event,) = events_of(tmp_path / "r", "under_way")
    rounds = events_of(tmp_path / "r", "round")
    state = checkpoint.newest(tmp_path / "r" / "server")
    # The one that filled the buffer leaves its place free until a next step, which does not come.
    assert len(event["clients"]) == summary["left_under_way"] == len(state.schedule["flight.client"]) == 2
    each = sum(4 * tensor.numel() for tensor in state.adapter.values())
    assert event["bytes_down"] == event["raw_bytes_down"] == 2 * each
    assert [e["bytes_down"] for e in rounds] == [2 * each] * 3
    assert summary["bytes_down"] == 8 * each
    assert (summary["failed_updates"], summary["dropped_clients"]) == (0, 0)
    assert (
        "Failed updates: 0. Under way when the rounds were over: 2." in (tmp_path / "r" / "summary.md").read_text()
    )
    page = write_report(run_report(tmp_path / "r"), tmp_path / "report", pdf=False).read_text()
    assert "2 clients were under way when the rounds were over" in page


def test_a_synchronous_run_leaves_nobody_under_way(make_config, tmp_path):
    summary = run(make_config(num_rounds=1), tmp_path / "r").summary
    assert summary["left_under_way"] == summary["dropped_clients"] == 0
    assert not events_of(tmp_path / "r", "under_way")


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
