"""A run at its defaults leaves out what no honest client sends, says so, and goes on."""

import pytest

from fedit.events import EventLog
from fedit.launch import run


@pytest.mark.parametrize(
    ("attack", "strength", "reason"),
    [
        ("boost", 1e6, "times the median"),
        pytest.param("nan", None, "not finite", marks=pytest.mark.slow),
        pytest.param("wrong_rank", None, "shape", marks=pytest.mark.slow),
        pytest.param("copycat", None, "a copy of that of", marks=pytest.mark.slow),
    ],
)
def test_a_default_run_screens_hostile_updates(make_config, tmp_path, attack, strength, reason):
    config = make_config(num_clients=5, num_rounds=1, attack=[attack], attackers=1, attack_strength=strength)
    assert config.strategy in ("fedavg", "fedit")
    run(config, tmp_path / "run")
    events = EventLog(tmp_path / "run").read()
    failed = [event for event in events if event["event"] == "client_failed"]
    assert len(failed) == 1
    assert reason in failed[0]["reason"]
    assert len([event for event in events if event["event"] == "client"]) == 4
