"""``fedit ui`` and ``fedit votes``: what is found in folders, and how the command starts and ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from fedit.errors import ModelError
from fedit.evaluation.votes import append
from fedit.ui.arms import find_arms

# --- which arms there are ---


@pytest.fixture
def study(tiny_run, tmp_path):
    """A folder with two runs in it, and an adapter on its own beside them."""
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / "study" / name)
    shutil.copytree(tiny_run / "adapter", tmp_path / "exported")
    return tmp_path / "study"


def test_a_run_offers_all_its_arms_and_its_base(tiny_run):
    found = find_arms([tiny_run])
    assert list(found.arms) == ["federated", "centralised", "base"]
    assert (found.home, found.notes) == (tiny_run.resolve(), [])
    assert found.arms["base"].adapter == {}
    assert {tuned.template for tuned in found.arms.values()} == {"alpaca_short"}


def test_an_arm_or_an_adapter_of_a_run_is_offered_alone(tiny_run):
    for folder in (tiny_run / "arms" / "centralised", tiny_run / "arms" / "centralised" / "adapter"):
        assert list(find_arms([folder]).arms) == ["centralised", "base"]
    assert list(find_arms([tiny_run / "adapter"]).arms) == ["federated", "base"]
    both = [tiny_run / "adapter", tiny_run / "arms" / "centralised"]
    assert list(find_arms(both).arms) == ["federated", "centralised", "base"]
    assert list(find_arms([tiny_run, tiny_run / "arms" / "centralised"]).arms) == [
        "federated",
        "centralised",
        "base",
    ]


def test_the_names_of_clients_are_those_of_the_run_not_of_its_folders(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for folder, name in (("local.client-0", "local:client-0"), ("local.%C3%84-1a2b3c4d", "local:Ä")):
        shutil.copytree(run / "arms" / "centralised", run / "arms" / folder)
        (run / "arms" / folder / "events.jsonl").write_text(
            json.dumps({"arm": name, "event": "arm_started"}) + "\n"
        )
    shutil.copytree(run / "arms" / "centralised", run / "arms" / "local.client-2")
    (run / "arms" / "local.client-2" / "events.jsonl").write_text("")
    assert set(find_arms([run]).arms) == {
        "federated", "centralised", "local:client-0", "local:client-2", "local:Ä", "base",
    }  # fmt: skip


def test_a_study_offers_its_runs_under_names_that_tell_them_apart(study):
    names = ["one/federated", "one/centralised", "two/federated", "two/centralised", "base"]
    assert list(find_arms([study]).arms) == names
    assert list(find_arms([study / "one", study / "two"]).arms) == names
    assert list(find_arms([study / "one", study / "one"]).arms) == ["federated", "centralised", "base"]


def test_runs_of_one_name_are_told_apart_by_their_folders(study, tmp_path):
    shutil.copytree(study / "one", tmp_path / "other" / "one")
    found = find_arms([study / "one", tmp_path / "other" / "one"])
    assert list(found.arms)[::2] == ["study/one/federated", "other/one/federated", "base"]


def test_runs_of_two_templates_have_two_bases(study):
    path = study / "two" / "resolved.yaml"
    path.write_text(path.read_text().replace("prompt_template: alpaca_short", "prompt_template: vicuna"))
    arms = find_arms([study]).arms
    assert {name: tuned.template for name, tuned in arms.items() if name.endswith("base")} == {
        "one/base": "alpaca_short", "two/base": "vicuna",
    }  # fmt: skip


def test_an_adapter_beside_a_run_is_named_by_its_folder(study, tmp_path, tiny):
    found = find_arms([study / "one", tmp_path / "exported"], model=str(tiny))
    assert list(found.arms) == ["one/federated", "one/centralised", "exported", "base"]
    shutil.copytree(tmp_path / "exported", tmp_path / "base")
    assert list(find_arms([tmp_path / "base"], model=str(tiny)).arms) == ["base-adapter", "base"]


def test_what_has_not_begun_is_noted_and_what_is_unfinished_too(study):
    shutil.rmtree(study / "one" / "arms" / "centralised" / "adapter")
    shutil.rmtree(study / "one" / "arms" / "centralised" / "server")
    shutil.rmtree(study / "two" / "adapter")
    found = find_arms([study])
    assert list(found.arms) == ["one/federated", "two/federated", "two/centralised", "base"]
    holds, unfinished = found.notes
    assert "holds nothing to chat with" in holds
    assert "is not finished" in unfinished


def test_folders_without_any_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"adapter_config\.json.*resolved\.yaml"):
        find_arms([tmp_path])
    with pytest.raises(ModelError, match="there is no folder"):
        find_arms([tmp_path / "nowhere"])


# --- the commands ---


def start(folder, *options):
    command = [sys.executable, "-m", "fedit", "ui", str(folder), "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_prints_an_address_answers_there_and_ends_with_ctrl_c(tiny_run, tmp_path, importable):
    process = start(tiny_run, "--votes", str(tmp_path / "votes.jsonl"))
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=60) as page:
            assert "<title>fedit</title>" in page.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "federated, centralised, base on" in err
    assert f"Votes go to {tmp_path / 'votes.jsonl'}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--questions", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--votes", "."], "is a folder; expected a file"),
        (["--template", "alpacca"], "did you mean 'alpaca'"),
    ],
)
def test_mistakes_end_the_command_with_what_to_do(fedit, tiny_run, options, message):
    outcome = fedit("ui", tiny_run, "--port", 0, *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_runs_of_different_bases_are_refused(fedit, study, tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 256')
    )
    path = study / "two" / "resolved.yaml"
    path.write_text(path.read_text().replace(f"model: {tiny}", f"model: {tmp_path / 'model'}"))
    outcome = fedit("ui", study, "--port", 0)
    assert outcome.code == 2
    assert "one/federated and two/federated need different bases: model" in outcome.err


def test_damaged_votes_are_found_at_the_start(fedit, tiny_run, tmp_path):
    (tmp_path / "votes.jsonl").write_text("{}\n")
    outcome = fedit("ui", tiny_run, "--port", 0, "--votes", tmp_path / "votes.jsonl")
    assert outcome.code == 2
    assert "votes.jsonl:1: first is None" in outcome.err


def test_votes_are_counted_from_folders_and_files(fedit, tmp_path):
    verdicts = [("first", True), ("first", True), ("tie", True), ("second", False)]
    lines = [{"first": "federated", "second": "base", "winner": w, "blind": blind} for w, blind in verdicts]
    append(tmp_path / "votes.jsonl", lines[:2])
    append(tmp_path / "more.jsonl", lines[2:])
    outcome = fedit("votes", tmp_path, tmp_path / "more.jsonl")
    assert outcome.code == 0
    row = next(line.split() for line in outcome.out.splitlines() if line.startswith("federated"))
    assert row == ["federated", "base", "2", "0", "1", "0", "83.3%", "31.0%", "to", "98.2%"]
    assert "the answer shown first won 2 of 2 decided" in outcome.out
    assert "votes with the names shown, not counted: 1" in outcome.out
    parsed = json.loads(fedit("votes", tmp_path, tmp_path / "more.jsonl", "--json").out)
    assert parsed["pairs"][0]["win_rate"] == pytest.approx(5 / 6)


def test_no_votes_are_a_message_not_a_failure(fedit, tmp_path):
    (tmp_path / "votes.jsonl").write_text("")
    assert fedit("votes", tmp_path / "votes.jsonl").out == "no blind votes yet\n"
    missing = fedit("votes", tmp_path / "nowhere.jsonl")
    assert missing.code == 2
    assert "cannot read the votes" in missing.err
