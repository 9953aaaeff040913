"""The virtual clock and availability: numbers by hand, deterministic, one draw a client."""

import json
import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.availability import build_availability
from fedit.clock import Clock, Duration, build_devices
from fedit.errors import ConfigError, UnknownName
from fedit.types import ClientInfo, LocalTraining


def training(**changes):
    budget = {} if {"epochs", "tokens"} & set(changes) else {"steps": 3}
    return LocalTraining(learning_rate=0.1, num_rounds=2, batch_size=4, **{**budget, **changes})


def clock(tokens=900, **options):
    return Clock(build_devices("equal", options), lambda client: tokens, 0)


def test_a_duration_is_download_computing_and_upload():
    # 10 rows in 3 batches of 300 tokens on average; 8 megabits are a million bytes
    own = clock(speed=100.0, up=8.0, down=16.0, latency=0.25)
    duration = own.duration(ClientInfo("a", 10), training(), down=4_000_000, up=3_000_000)
    assert (duration.download, duration.steps, duration.step, duration.upload) == (2.25, 3, 3.0, 3.25)
    assert duration.total == 2.25 + 9 + 3.25


@pytest.mark.parametrize(
    ("how", "steps"), [({"steps": 7}, 7), ({"epochs": 2}, 6), ({"tokens": 301}, 2), ({"tokens": 300}, 1)]
)
def test_steps_follow_from_the_budget(how, steps):
    assert clock().duration(ClientInfo("a", 10), training(**how), 0, 0).steps == steps


def test_whole_epochs_take_exactly_the_tokens_of_all_rows():
    own = clock(tokens=905, speed=1.0)
    duration = own.duration(ClientInfo("a", 10), training(epochs=2), 0, 0)
    assert duration.steps * duration.step == pytest.approx(2 * 905, rel=1e-15)


@given(st.floats(0, 50), st.integers(1, 40), st.floats(0.01, 5), st.floats(0, 50))
def test_steps_within_a_time_fit_and_one_more_would_not(download, steps, step, upload):
    duration = Duration(download, steps, step, upload)
    for limit in (0.0, 10.0, duration.total):
        fit = duration.steps_within(limit)
        assert 0 <= fit <= steps
        assert fit == 0 or duration.cut(fit).total <= limit + 1e-6
        assert fit == steps or duration.cut(fit + 1).total > limit
    assert duration.steps_within(duration.total) == steps


def test_lognormal_devices_are_drawn_once_a_client_around_the_median():
    devices = build_devices("lognormal", {"speed": 200.0, "speed_sigma": 0.5, "up": 4.0, "down": 20.0})
    drawn = {f"c{i}": devices.device(f"c{i}", 3) for i in range(400)}
    assert drawn == {name: devices.device(name, 3) for name in reversed(drawn)}
    assert drawn["c0"] != devices.device("c0", 4)
    assert median(d.speed for d in drawn.values()) == pytest.approx(200, rel=0.15)
    spread = [math.log(d.speed / 200) for d in drawn.values()]
    assert math.sqrt(sum(x * x for x in spread) / len(spread)) == pytest.approx(0.5, rel=0.15)
    assert all(d.down / d.up == pytest.approx(5) for d in drawn.values())
    same = build_devices("lognormal", {"speed_sigma": 0.0, "bandwidth_sigma": 0.0})
    assert same.device("a", 0) == build_devices("equal", {}).device("b", 1)


def test_a_file_says_what_each_client_has(tmp_path):
    path = tmp_path / "devices.json"
    path.write_text(json.dumps({"slow": {"speed": 5}, "*": {"speed": 50, "up": 1}}))
    devices = build_devices("file", {"file": str(path)})
    devices.check(["slow", "other"])
    assert (devices.device("slow", 0).speed, devices.device("slow", 0).up) == (5, 10)
    assert (devices.device("other", 0).speed, devices.device("other", 0).up) == (50, 1)
    path.write_text(json.dumps({"slow": {"speed": 5}}))
    with pytest.raises(ConfigError, match="says nothing of client 'other'"):
        devices.check(["slow", "other"])


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a": {"sped": 1}}', '{"a": {"speed": 0}}', '{"a": {"speed": "x"}}']
)
def test_a_file_of_devices_that_cannot_work_is_refused(tmp_path, content):
    path = tmp_path / "devices.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"devices\.json"):
        build_devices("file", {"file": str(path)})


@pytest.mark.parametrize(
    ("name", "options"),
    [("equal", {"speed": 0.0}), ("equal", {"latency": -1.0}), ("lognormal", {"speed_sigma": -1.0})],
)
def test_devices_that_cannot_work_are_refused(name, options):
    with pytest.raises(ConfigError, match=f"devices '{name}': {next(iter(options))}"):
        build_devices(name, options)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        build_devices("file", {"file": str(tmp_path / "nowhere.json")})
    with pytest.raises(UnknownName, match="did you mean 'lognormal'"):
        build_devices("log_normal", {})


# --- availability ---


def test_a_trace_is_followed_and_repeated(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"a": [[10, 20], [30, 40]], "*": [[0, 5]]}))
    once = build_availability("trace", {"file": str(path)})
    assert [once.wait("a", t, 0) for t in (0, 10, 19.5, 20, 39, 40)] == [10, 0, 0, 10, 0, math.inf]
    again = build_availability("trace", {"file": str(path), "period": 100.0})
    assert [again.wait("a", t, 0) for t in (40, 110, 245)] == [70, 0, 65]
    assert again.wait("b", 0, 0) == 0


@pytest.mark.parametrize("content", ['{"a": 3}', '{"a": [[2, 1]]}', '{"a": [["x", 1]]}', '{"a": [[1]]}'])
def test_a_trace_that_cannot_work_is_refused(tmp_path, content):
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"trace\.json: 'a'"):
        build_availability("trace", {"file": str(path)})


@given(st.floats(0, 1000), st.integers(0, 50))
def test_diurnal_clients_are_there_for_their_share_and_waiting_ends_when_they_come(now, number):
    days = build_availability("diurnal", {"period": 10.0, "share": 0.3})
    client = f"c{number}"
    wait = days.wait(client, now, 0)
    assert 0 <= wait <= 7.0 + 1e-9
    assert days.wait(client, now + wait + 1e-6, 0) == 0


def test_a_third_of_diurnal_clients_is_there_at_any_time():
    days = build_availability("diurnal", {"period": 24.0, "share": 1 / 3})
    for now in (0.0, 7.0, 100.0):
        there = sum(days.wait(f"c{i}", now, 0) == 0 for i in range(900))
        assert there / 900 == pytest.approx(1 / 3, abs=0.06)


def test_everybody_is_always_there():
    assert build_availability("always", {}).wait("a", 5.0, 0) == 0


@pytest.mark.parametrize("options", [{"period": 0.0}, {"share": 0.0}, {"share": 1.5}])
def test_days_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match="diurnal"):
        build_availability("diurnal", options)
