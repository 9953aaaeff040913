"""A site's worker: what it does, what it refuses, what it writes down, and how it is asked."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_rows

from fedit import tensorfiles
from fedit.engines.messages import join
from fedit.errors import ConfigError
from fedit.flower import wire
from fedit.flower.client_app import asked
from fedit.flower.engine import TENSORS
from fedit.flower.policy import Policy
from fedit.flower.site import SiteSettings, SiteWorker, listen, serve
from fedit.prepare import load_model


@pytest.fixture
def config(make_config):
    return make_config(held_out=None, num_clients=None, stack_clients=1)


@pytest.fixture
def settings_of(tmp_path):
    write_rows(tmp_path / "own.jsonl", 20)
    (tmp_path / "site").mkdir()
    return SiteSettings("hospital-a", tmp_path / "own.jsonl", tmp_path / "site")


@pytest.fixture
def worker(settings_of):
    return SiteWorker(settings_of, Policy())


def question(config, **fields):
    return {"do": "clients", "run": "first", "config": config.model_dump(mode="json"), **fields}


def work(config, round=1, client="hospital-a", task_id="t1", **training):
    adapter = load_model(config).initial(0)
    how = {"learning_rate": 0.01, "num_rounds": 2, "steps": 2, "batch_size": 4, **training}
    task = {"round": round, "client_id": client, "training": how, "seed": 1, "scale": 2.0, "broadcast": "b"}
    header = question(config, do="train", tasks=[task], task_id=task_id)
    return header, {"b": tensorfiles.encode({TENSORS: join({"adapter": adapter})}, {})}


def audited(settings_of):
    path = settings_of.folder / "state" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_site_is_one_client_of_its_own_name(worker, config):
    assert worker.answer(question(config), {})[0] == {
        "site": "hospital-a",
        "clients": [{"client_id": "hospital-a", "num_examples": 20}],
    }


def test_a_site_may_hold_many_clients(settings_of, config):
    many = SiteWorker(SiteSettings("a", settings_of.data, settings_of.folder, client_by="category"), Policy())
    found = many.answer(question(config), {})[0]["clients"]
    assert {c["client_id"]: c["num_examples"] for c in found} == {"copy": 7, "upper": 7, "count": 6}


def test_what_leaves_is_written_down_without_any_text(worker, settings_of, config):
    header, pieces = work(config)
    answer, sent = worker.answer(header, pieces)
    (result,) = answer["results"]
    assert result["metrics"]["steps"] == 2
    (line,) = [line for line in audited(settings_of) if line["event"] == "sent"]
    assert (line["run"], line["round"], line["client"]) == ("first", 1, "hospital-a")
    names = tensorfiles.decode(sent["0"], (TENSORS,))[0][TENSORS]
    assert {tensor["name"] for tensor in line["tensors"]} == {name.removeprefix("delta/") for name in names}
    text = (settings_of.folder / "state" / "audit.jsonl").read_text()
    assert not any(word in text for word in ("red", "blue", "sun", "upper:"))


def test_the_same_task_is_answered_without_training_even_by_a_new_worker(worker, settings_of, config):
    header, pieces = work(config)
    first = worker.answer(header, pieces)
    again = SiteWorker(settings_of, Policy())
    assert again.answer(header, pieces) == first
    assert len([line for line in audited(settings_of) if line["event"] == "sent"]) == 1


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"models": ["smollm2-135m-instruct"]}, "models"),
        ({"max_rank": 2}, "max_rank"),
        ({"max_rounds": 1}, "max_rounds"),
        ({"strategies": ["flora"]}, "strategies"),
    ],
)
def test_a_job_beyond_the_policy_is_refused_before_rows_are_read(settings_of, config, policy, reason):
    worker = SiteWorker(SiteSettings("a", Path("/nowhere"), settings_of.folder), Policy(**policy))
    refused = worker.answer(question(config), {})[0]["refused"]
    assert refused.startswith(f"{reason}:")


def test_a_task_that_asks_for_more_than_its_job_is_refused(settings_of, config):
    worker = SiteWorker(settings_of, Policy(max_steps=10))
    header, pieces = work(config, steps=11)
    assert worker.answer(header, pieces)[0]["refused"].startswith("max_steps:")
    assert not [line for line in audited(settings_of) if line["event"] == "sent"]


def test_an_adapter_beyond_the_policy_is_refused_whatever_the_job_says(settings_of, config):
    worker = SiteWorker(settings_of, Policy(max_rank=4))
    large = config.model_copy(update={"lora_r": 8})
    header, pieces = work(large)
    refused = worker.answer({**header, "config": config.model_dump(mode="json")}, pieces)[0]["refused"]
    assert refused == "max_rank: the server sent an adapter of rank 8; this site allows at most 4."


@pytest.mark.parametrize("round", [0, 3])
def test_a_round_that_the_job_does_not_have_is_refused(worker, config, round):
    refused = worker.answer(*work(config, round=round))[0]["refused"]
    assert refused == f"the job has 2 rounds; the server asks for round {round}."


def test_an_oversized_answer_does_not_leave(settings_of, config):
    header, _ = work(config)
    known = {name: tensor for name, tensor in load_model(config).initial(0).items() if name.endswith(".B")}
    piece = tensorfiles.encode({TENSORS: join({"adapter": known})}, {})  # what is left out the site knows itself
    worker = SiteWorker(settings_of, Policy(max_message_megabytes=len(piece) / 1e6))
    answer, sent = worker.answer(header, {"b": piece})
    assert answer["refused"].startswith("max_message_megabytes:")
    assert sent == {}


def test_an_oversized_message_is_refused(settings_of, config):
    worker = SiteWorker(settings_of, Policy(max_message_megabytes=0.001))
    assert worker.answer(*work(config))[0]["refused"].startswith("max_message_megabytes:")


def test_statistics_that_may_not_leave_stay(settings_of, config):
    worker = SiteWorker(settings_of, Policy(allow_statistics=["steps"]))
    plain = config.model_copy(update={"weighting": "uniform"})
    assert worker.answer(question(plain), {})[0]["clients"][0]["num_examples"] == 1
    (result,) = worker.answer(*work(plain))[0]["results"]
    assert (result["metrics"], result["num_examples"], result["weight"]) == ({"steps": 2.0}, 1, 1.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header, pieces: ({**header, "do": "format the disk"}, pieces),
        lambda header, pieces: ({**header, "config": {"model": 3}}, pieces),
        lambda header, pieces: ({**header, "tasks": "all"}, pieces),
        lambda header, pieces: ({**header, "tasks": []} | {"task_id": None}, {}),
        lambda header, pieces: (header, {"b": b"x" * 100}),
        lambda header, pieces: (header, {}),
        lambda header, pieces: ({}, {}),
    ],
    ids=["unknown", "config", "tasks", "no-id", "bytes", "missing", "nothing"],
)
def test_a_malformed_message_is_an_error_and_the_worker_lives(worker, config, spoil):
    answer = worker.answer(*spoil(*work(config)))[0]
    assert "error" in answer or answer.get("results") == []
    assert worker.answer(question(config), {})[0]["clients"]


# --- the socket ---


@pytest.fixture
def listening(tmp_path):
    own = listen(tmp_path / "w.sock")
    yield tmp_path / "w.sock", own
    own.close()


class Echo:
    def answer(self, header, pieces):
        return {"got": header}, pieces


def test_envelopes_cross_the_socket(listening):
    path, own = listening
    threading.Thread(target=serve, args=(Echo(), own), daemon=True).start()
    header, pieces = wire.ask(path, {"do": "x", "é": [1, None]}, {"a": b"", "b": bytes(3_000_000)}, 10)
    assert header == {"got": {"do": "x", "é": [1, None]}}
    assert {name: len(piece) for name, piece in pieces.items()} == {"a": 0, "b": 3_000_000}


def test_only_its_user_can_reach_the_socket(listening):
    assert oct(listening[0].stat().st_mode & 0o777) == "0o600"


def test_a_path_too_long_for_a_socket_is_named(tmp_path):
    with pytest.raises(ConfigError, match="too long for a socket"):
        listen(tmp_path / ("x" * 120) / "w.sock")


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60))
def test_garbage_on_the_socket_is_refused(content):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.WireError):
            wire.receive(theirs)


def test_a_worker_that_died_is_asked_again(tmp_path):
    path = tmp_path / "w.sock"
    own = listen(path)
    deaths = []

    def die_once():
        connection, _ = own.accept()
        wire.receive(connection)
        connection.close()
        deaths.append(1)
        with suppress(OSError):  # the socket is closed under it at the end
            serve(Echo(), own)

    threading.Thread(target=die_once, daemon=True).start()
    assert asked(path, {"do": "x"}, {})[0] == {"got": {"do": "x"}}
    assert deaths == [1]
    own.close()


def test_a_worker_that_dies_twice_at_the_same_work_is_the_answer(tmp_path):
    own = listen(tmp_path / "w.sock")

    def die():
        for _ in range(2):
            own.accept()[0].close()

    threading.Thread(target=die, daemon=True).start()
    assert "died twice" in asked(tmp_path / "w.sock", {"do": "x"}, {})[0]["lost"]
    own.close()


def test_a_worker_that_stays_away_is_the_answer(tmp_path):
    assert "did not come back" in asked(tmp_path / "nobody.sock", {"do": "x"}, {}, patience=0.1)[0]["lost"]


def test_what_passes_messages_on_imports_no_pytorch():
    code = "import fedit.flower.client_app, sys; print('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.check(1)
def test_the_core_imports_no_flwr():
    code = "import fedit, fedit.cli.app, fedit.launch, fedit.rounds, sys; print('flwr' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "False"
