"""Populations of thousands: nothing is slow or large because there are many clients."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_rows

from fedit import cohort, scoring
from fedit.data import examples
from fedit.data.examples import Corpus, Example, Message, row_id
from fedit.data.manifest import build
from fedit.data.partition import partition
from fedit.data.statistics import category_counts, measure
from fedit.launch import run
from fedit.types import ClientInfo

ROUNDS = 4

PROGRAM = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from fedit import settings
from fedit.launch import run

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

out, values, found = sys.argv[1], json.loads(sys.argv[2]), {}

def listen(event):
    if event["event"] in ("estimate", "round"):
        found[f"{event['event']} {event['round']}"] = resident()

run(settings.from_values(values, "test"), out, listener=listen)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def resident(tmp_path_factory, tiny):
    """Return the bytes that a run of its own process holds: (clients, per round) -> moment -> bytes."""
    folder = tmp_path_factory.mktemp("scale")
    write_rows(folder / "rows.jsonl", 20_300)
    found = {}

    def measured(clients, per_round):
        if (clients, per_round) not in found:
            values = {
                "model": str(tiny),
                "device": "cpu",
                "dtype": "fp32",
                "dataset": str(folder / "rows.jsonl"),
                "lora_r": 4,
                "lora_alpha": 8,
                "num_clients": clients,
                "clients_per_round": per_round,
                "num_rounds": ROUNDS,
                "local_steps": 1,
                "batch_size": 2,
                "held_out": 20,
                "max_length": 96,
                "num_workers": 1,
                "num_threads": 1,
                "exact_match": False,
            }
            out = folder / f"run-{clients}-{per_round}"
            command = [sys.executable, "-c", PROGRAM, str(out), json.dumps(values)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[clients, per_round] = out, json.loads(done.stdout.splitlines()[-1])
        return found[clients, per_round]

    return measured


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own figures")
def test_memory_does_not_grow_with_the_population_the_cohort_or_the_rounds(resident):
    few, many, small = resident(100, 100)[1], resident(10_000, 100)[1], resident(10_000, 10)[1]
    for moment in few:
        assert abs(many[moment] - few[moment]) < 60e6  # clients are names and row numbers: about 10 MB
        assert abs(many[moment] - small[moment]) < 60e6
    assert many[f"round {ROUNDS}"] - many["round 1"] < 20e6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_run_writes_is_of_its_cohorts_not_of_its_population(resident):
    folder, _ = resident(10_000, 100)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    count = {name: len([e for e in events if e["event"] == name]) for name in ("client", "round", "evaluation")}
    assert count == {"client": 100 * ROUNDS, "round": ROUNDS, "evaluation": ROUNDS + 1}
    assert (folder / "events.jsonl").stat().st_size < 1_000_000
    assert (folder / "partition.svg").stat().st_size < 300_000
    assert (folder / "summary.json").stat().st_size < 20_000
    assert len(list((folder / "clients").iterdir())) <= 100 * ROUNDS


def rows(count):
    kinds = ("copy", "upper", "count")
    return tuple(
        Example((Message("user", f"say {i}"), Message("assistant", str(i))), category=kinds[i % 3])
        for i in range(count)
    )


@pytest.mark.parametrize("scheme", ["iid", "shepherd_shards", "label_count"])
def test_ten_thousand_clients_share_all_rows(scheme):
    clients = partition(rows(21_000), scheme, num_clients=10_000, seed=0, options={})
    assert len(clients) == 10_000
    assert list(clients) == sorted(clients)
    assert sorted(row for mine in clients.values() for row in mine) == list(range(21_000))


def test_a_row_is_digested_once(monkeypatch):
    digested = []
    plain = examples._digest
    monkeypatch.setattr(examples, "_digest", lambda parts: digested.append(len(parts)) or plain(parts))
    corpus = Corpus("x", rows(300))
    made, arranged = build(corpus, "iid", num_clients=100, seed=0, options={}, held_out=5, validation=0)
    made.client_examples(arranged)
    whole = [parts for parts in digested if parts == 3]  # context, question and answer
    assert len(whole) == 300


def test_statistics_of_ten_thousand_clients():
    rng = np.random.default_rng(0)
    lengths = {f"c{i}": rng.integers(5, 300, size=2).tolist() for i in range(10_000)}
    pooled = np.sort(np.concatenate(list(lengths.values())))
    found = measure(dict.fromkeys(lengths, 2), None, lengths)
    one = sorted(lengths["c0"])
    steps = np.arange(0, 300)
    below = [np.searchsorted(sample, steps, side="right") / len(sample) for sample in (one, pooled)]
    by_hand = np.abs(below[0] - below[1]).sum()
    alone = measure(
        {"c0": 2, "rest": 19_998}, None, {"c0": one, "rest": np.concatenate(list(lengths.values())[1:])}
    )
    assert alone.length_distance_max == pytest.approx(by_hand)
    assert found.clients == 10_000
    assert found.length_distance_max >= by_hand


def test_a_cohort_is_drawn_alike_whatever_the_population_holds_beside_it():
    clients = [ClientInfo(f"client-{i:05d}", 1) for i in range(10_000)]
    drawn = cohort.uniform(clients, 100, seed=0, round=3)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 100
    others = [client for client in clients if client.client_id in drawn or client.client_id.endswith("7")]
    assert cohort.uniform(others, 100, seed=0, round=3) == drawn


def test_an_evaluation_lists_single_clients_only_while_they_are_few(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_CLIENTS_NAMED", 2)
    run(make_config(num_clients=3, num_rounds=1), tmp_path / "three")
    run(make_config(num_clients=2, num_rounds=1), tmp_path / "two")
    for name, listed in (("three", 0), ("two", 2)):
        lines = (tmp_path / name / "events.jsonl").read_text().splitlines()
        evaluation = next(e for e in map(json.loads, lines) if e["event"] == "evaluation")
        assert len(evaluation["per_client"]) == listed
        assert {"mean", "worst_decile"} <= set(evaluation["clients"])


def test_row_ids_do_not_change_what_rows_are():
    one, two = rows(1)[0], rows(1)[0]
    row_id(one)
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == repr(two)
    assert category_counts({"a": [one]}) == {"a": {"copy": 1}}
