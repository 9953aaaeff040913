"""The engine of a deployment over sites in this process: same bits as a simulation, and every kind of trouble."""

import json
from dataclasses import replace
from io import StringIO

import pytest
import torch
from loops import LoopLink
from rich.console import Console
from splitting import SITES, split, write_owned_rows

from fedit import tensorfiles
from fedit.cli.results import print_result
from fedit.errors import RoundError
from fedit.events import EventLog
from fedit.flower.engine import SENDINGS, TENSORS, Flower
from fedit.flower.link import Trouble
from fedit.flower.policy import Policy
from fedit.flower.progress import read_progress
from fedit.flower.run import run_deployed
from fedit.flower.site import SiteSettings, SiteWorker
from fedit.launch import run
from fedit.model.export import read_adapter
from fedit.report.markdown import markdown
from fedit.report.run_report import run_report


@pytest.fixture
def data(tmp_path):
    """A file of rows that three sites own."""
    path = tmp_path / "all.jsonl"
    write_owned_rows(path, 48)
    return path


@pytest.fixture
def job(make_config):
    def make(**changes):
        return make_config(
            **{"held_out": None, "num_clients": None, "stack_clients": 1, "num_rounds": 3, **changes}
        )

    return make


def site_worker(data, folder, name, policy=None, **options):
    settings = SiteSettings(name, data.parent / f"{name}.jsonl", folder / name, **options)
    settings.folder.mkdir(parents=True, exist_ok=True)
    return SiteWorker(settings, policy or Policy())


def flower(link, config, **options):
    return Flower(
        link, "first", config.model_dump(mode="json"), len(link.sites), clock=link.clock, together=1, **options
    )


def simulated(job, data, folder, **changes):
    config = job(dataset=str(data), partitioner="natural", partition_by="site", held_out=0.2, **changes)
    split(config, data)
    return run(config, folder)


@pytest.mark.check(4)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": "flora", "client_ranks": {"hospital-a": 2, "hospital-b": 4, "hospital-c": 3}},
        {"client_optimizer": "keep", "transforms": [{"quantize": {"bits": 8}}, {"zstd": {}}]},
        {"transforms": [{"cast": {}}]},
        {"strategy": "scaffold", "optimizer": "sgd"},
        {"clients_per_round": 2},
        {"secure_aggregation": True},
    ],
    ids=["fedit", "ranks", "packed", "bf16", "scaffold", "two", "secure"],
)
def test_a_deployed_run_ends_with_the_bits_of_a_simulation(job, data, tmp_path, changes):
    expected = simulated(job, data, tmp_path / "simulated", **changes)
    link = LoopLink({name: site_worker(data, tmp_path / "sites", name).answer for name in SITES})
    config = job(**changes)
    result = run_deployed(
        config,
        tmp_path / "deployed",
        data.parent / "held-out.jsonl",
        lambda c: flower(link, c),
        lambda event: None,
    )
    ours, theirs = read_adapter(result.adapter), read_adapter(expected.adapter)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert result.summary["held_out"]["after"]["loss"] == expected.summary["held_out"]["after"]["loss"]


# --- trouble ---


@pytest.fixture
def sites(job, data, tmp_path):
    """Return (link over three sites, settings): a federation of three rounds."""
    simulated_config = job(dataset=str(data), partitioner="natural", partition_by="site", held_out=0.2)
    split(simulated_config, data)
    return LoopLink({name: site_worker(data, tmp_path / "sites", name).answer for name in SITES}), job()


def deployed(sites, tmp_path, data, events=None, **options):
    link, config = sites
    heard = events if events is not None else []
    return run_deployed(
        config,
        tmp_path / "deployed",
        data.parent / "held-out.jsonl",
        lambda c: flower(link, c, **options),
        heard.append,
    )


def rounds(result):
    lines = (result.folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == "round"], [
        e for e in map(json.loads, lines) if e["event"] == "client_failed"
    ]


def troubled(answer, trouble, times):
    """Return an answer that is trouble the first times it trains."""

    def wrapped(header, pieces):
        found = answer(header, pieces)
        if header["do"] == "train" and times and times.pop(0):
            return trouble
        return found

    return wrapped


def test_lost_work_is_sent_again_and_answered_without_training_again(sites, data, tmp_path):
    link, _ = sites
    trained = []
    real = link.sites[SITES[0]]

    def counting(header, pieces):
        before = len(trained)
        found = real(header, pieces)
        if header["do"] == "train" and header["task_id"] not in trained:
            trained.append(header["task_id"])
        assert len(trained) <= before + 1
        return found

    link.sites[SITES[0]] = troubled(counting, Trouble("upload broke off", lost=True), [True])
    result = deployed(sites, tmp_path, data)
    records, failures = rounds(result)
    assert [r["delivered"] for r in records] == [3, 3, 3]
    assert not failures
    assert len(link.trained()) == 3 * 3 + 1
    assert len(trained) == 3


def test_what_is_lost_again_and_again_is_that_site_s_failure(sites, data, tmp_path):
    link, _ = sites
    link.sites[SITES[0]] = troubled(link.sites[SITES[0]], Trouble("gone", lost=True), [True] * SENDINGS)
    records, failures = rounds(deployed(sites, tmp_path, data))
    assert [r["delivered"] for r in records] == [2, 3, 3]
    assert [(f["client"], f["reason"]) for f in failures] == [(SITES[0], f"site {SITES[0]}: gone")]


@pytest.mark.check(5)
def test_an_error_at_a_site_costs_its_update_alone(sites, data, tmp_path):
    link, _ = sites
    link.sites[SITES[1]] = troubled(link.sites[SITES[1]], ({"error": "out of memory"}, {}), [False, True])
    records, failures = rounds(deployed(sites, tmp_path, data))
    assert [r["delivered"] for r in records] == [3, 2, 3]
    assert failures[0]["reason"] == f"site {SITES[1]}: out of memory"


@pytest.mark.check(4)
def test_an_update_with_nan_is_refused_and_named(sites, data, tmp_path):
    link, _ = sites
    real = link.sites[SITES[0]]

    def poisoned(header, pieces):
        answer, found = real(header, pieces)
        if header["do"] != "train" or header["tasks"][0]["round"] != 2:
            return answer, found
        sets, _ = tensorfiles.decode(found["0"], (TENSORS,))
        spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in sets[TENSORS].items()}
        return answer, {"0": tensorfiles.encode({TENSORS: spoilt}, {})}

    link.sites[SITES[0]] = poisoned
    records, failures = rounds(deployed(sites, tmp_path, data))
    assert [r["delivered"] for r in records] == [3, 2, 3]
    assert (failures[0]["client"], "finite" in failures[0]["reason"]) == (SITES[0], True)


@pytest.mark.parametrize(
    "answer",
    [
        ({"results": []}, {}),
        ({"results": [{"client_id": "somebody", "round": 1}]}, {}),
        ({"results": [{"client_id": SITES[0], "round": 7, "reason": "x"}]}, {}),
        ({"results": "none"}, {}),
        ({}, {}),
        ({"results": [{"client_id": SITES[0], "round": 1, "num_examples": 1, "weight": 1.0, "metrics": {},
                       "scale": 1.0}]}, {"0": b"not tensors"}),
    ],
    ids=["none", "another", "old", "text", "empty", "bytes"],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_that_site_s_failure(sites, data, tmp_path, answer):
    link, _ = sites
    link.sites[SITES[0]] = troubled(link.sites[SITES[0]], answer, [True])
    records, failures = rounds(deployed(sites, tmp_path, data))
    assert [r["delivered"] for r in records] == [2, 3, 3]
    assert failures[0]["reason"].startswith(f"site {SITES[0]}: its answer cannot be read")


@pytest.mark.check(12)
def test_a_late_site_is_not_waited_for_not_asked_while_at_work_and_never_counted_twice(sites, data, tmp_path):
    link, _ = sites
    late = SITES[2]
    events = []
    real_send, real_answers = link.send, link.answers

    def send(parcels):
        if any(p.header["do"] == "train" and p.header["tasks"][0]["round"] == 1 for p in parcels):
            link.silent.add(late)
        return real_send(parcels)

    def answers(ids):
        if any(e["event"] == "round" and e["round"] == 2 for e in events):
            link.silent.discard(late)
        return real_answers(ids)

    link.send, link.answers = send, answers
    records, failures = rounds(deployed(sites, tmp_path, data, events, deadline=5.0))
    assert [r["delivered"] for r in records] == [2, 2, 3]
    assert [f["reason"] for f in failures] == [
        f"site {late} did not answer in time",
        f"site {late} is still at work on round 1",
    ]
    assert [e["site"] for e in events if e["event"] == "site_back"] == [late]
    written = EventLog(tmp_path / "deployed").read()
    assert [(e["event"], e["round"]) for e in written if e.get("site") == late] == [
        ("site_joined", 0),
        ("site_late", 1),
        ("site_back", 1),
    ]


def test_a_site_that_is_offline_is_not_asked(sites, data, tmp_path):
    link, _ = sites
    events = []
    real = link.answers

    def answers(ids):
        if any(e["event"] == "round" for e in events):
            link.offline.add(SITES[0])
        return real(ids)

    link.answers = answers
    records, failures = rounds(deployed(sites, tmp_path, data, events))
    assert records[0]["delivered"] == 3
    assert records[2]["delivered"] == 2
    assert f"site {SITES[0]} is offline" in [f["reason"] for f in failures]


def test_a_run_goes_on_after_its_server_died(sites, job, data, tmp_path):
    class Killed(BaseException):
        pass

    def kill(event):
        if event["event"] == "round" and event["round"] == 2:
            raise Killed

    link, config = sites
    folder, held_out = tmp_path / "deployed", data.parent / "held-out.jsonl"
    with pytest.raises(Killed):
        run_deployed(config, folder, held_out, lambda c: flower(link, c), kill)
    result = run_deployed(config, folder, held_out, lambda c: flower(link, c), lambda event: None)
    expected = simulated(job, data, tmp_path / "simulated")
    ours, theirs = read_adapter(result.adapter), read_adapter(expected.adapter)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert len({e["round"] for e in rounds(result)[0]}) == 3


def test_a_site_that_refuses_is_left_out_and_shown(sites, data, tmp_path):
    link, _ = sites
    link.sites[SITES[0]] = site_worker(data, tmp_path / "strict", SITES[0], Policy(max_rank=1)).answer
    records, _ = rounds(deployed(sites, tmp_path, data))
    assert [r["delivered"] for r in records] == [2, 2, 2]
    (late,) = read_progress(tmp_path / "deployed").late
    assert (late.who, late.reason.partition(":")[0]) == (f"site {SITES[0]}", "max_rank")


def test_two_sites_with_one_client_are_named(sites, data, tmp_path):
    link, _ = sites
    link.sites[SITES[1]] = link.sites[SITES[0]]
    with pytest.raises(RoundError, match=f"sites {SITES[0]} and {SITES[1]} both have a client '{SITES[0]}'"):
        deployed(sites, tmp_path, data)


def test_too_few_sites_end_the_wait(sites, data, tmp_path):
    link, _ = sites
    link.offline.add(SITES[0])
    with pytest.raises(RoundError, match="2 of 3 sites answered within 20 s"):
        deployed(sites, tmp_path, data, joining=20.0)


def test_a_broadcast_that_all_share_is_encoded_once(sites, data, tmp_path):
    link, _ = sites
    deployed(sites, tmp_path, data)
    by_round = {}
    for parcel in link.trained():
        by_round.setdefault(parcel.header["tasks"][0]["round"], []).append(next(iter(parcel.pieces.values())))
    assert all(all(piece is own[0] for piece in own) for own in by_round.values())


# --- a run that goes on, and one that measures nothing ---


class Killed(BaseException):
    """What ends a run as a kill does."""


def killed_in_round_2(sites, tmp_path, data):
    def kill(event):
        if event["event"] == "round" and event["round"] == 2:
            raise Killed

    link, config = sites
    held_out = data.parent / "held-out.jsonl"
    with pytest.raises(Killed):
        run_deployed(config, tmp_path / "deployed", held_out, lambda c: flower(link, c), kill)


def test_a_run_goes_on_with_a_quorum_and_takes_in_the_site_that_comes_later(sites, job, data, tmp_path):
    sites = (sites[0], job(num_rounds=4))
    killed_in_round_2(sites, tmp_path, data)
    link, away, events = sites[0], SITES[0], []
    link.offline.add(away)
    real = link.send

    def send(parcels):
        if any(p.kind == "train" for p in parcels):
            link.offline.clear()
        return real(parcels)

    link.send = send
    started = link.time
    records, failures = rounds(deployed(sites, tmp_path, data, events, deadline=20.0))
    assert 20 < link.time - started < 60
    assert [r["delivered"] for r in records] == [3, 2, 2, 3]
    assert {f["reason"] for f in failures} == {f"site {away} is offline"}
    told = {
        (e["event"], e["site"]): None for e in events if "site" in e
    }  # what was only told yet is written later
    assert list(told) == [
        ("site_back", SITES[1]),
        ("site_back", SITES[2]),
        ("site_late", away),
        ("site_back", away),
    ]


def test_a_run_that_goes_on_waits_for_its_quorum(sites, job, data, tmp_path):
    sites = (sites[0], job(min_clients=3))
    killed_in_round_2(sites, tmp_path, data)
    sites[0].offline.add(SITES[0])
    with pytest.raises(RoundError, match="2 of 3 sites answered within 50 s"):
        deployed(sites, tmp_path, data, deadline=5.0, quorum=3, joining=50.0)


def test_a_round_waits_while_too_few_are_there_to_be_asked(sites, data, tmp_path):
    link, _ = sites
    events, gone = [], []
    real = link.nodes

    def nodes():
        if len([e for e in events if e["event"] == "round"]) == 1:
            link.time += 1.0
            gone.append(link.time)
        link.offline = set(SITES) if gone and link.time - gone[0] < 30 else set()
        return real()

    link.nodes = nodes
    records, failures = rounds(deployed(sites, tmp_path, data, events, deadline=100.0))
    assert gone[-1] - gone[0] > 30
    assert [r["delivered"] for r in records] == [3, 3, 3]
    assert not failures


def test_a_site_that_was_not_there_at_the_beginning_is_left_out_and_shown(sites, data, tmp_path):
    link, config = sites
    link.offline.add(SITES[2])
    events = []
    real = link.send

    def send(parcels):
        if any(p.kind == "train" for p in parcels):
            link.offline.clear()
        return real(parcels)

    link.send = send
    result = run_deployed(
        config,
        tmp_path / "deployed",
        data.parent / "held-out.jsonl",
        lambda c: Flower(link, "first", c.model_dump(mode="json"), 2, clock=link.clock),
        events.append,
    )
    assert [r["delivered"] for r in rounds(result)[0]] == [2, 2, 2]
    (late,) = read_progress(tmp_path / "deployed").late
    assert late.reason == "came when the run had begun, and takes no part in it"


def test_a_server_without_rows_measures_nothing_and_says_so_everywhere(sites, data, tmp_path):
    link, config = sites
    events = []
    folder = tmp_path / "deployed"
    result = run_deployed(config, folder, None, lambda c: flower(link, c), events.append)
    assert [e["event"] for e in events if e["event"] in ("evaluation", "evaluating", "not_evaluated")] == [
        "not_evaluated"
    ]
    assert result.summary["held_out"] is None
    assert result.summary["held_out_rows"] == 0
    assert (folder / "adapter" / "adapter_config.json").is_file()
    assert not (folder / "curves.png").exists()
    assert "Nothing was measured: the server had no held-out rows." in (folder / "summary.md").read_text()
    report = markdown(run_report(folder))
    assert "was not measured: the server has no held-out rows" in report
    assert "simulated on one machine" not in report
    assert "diverged" not in report
    assert read_progress(folder).unmeasured == "the server has no held-out rows"
    screen = Console(file=StringIO(), width=200)
    print_result(screen, result)
    assert "Nothing was measured" in screen.file.getvalue()
    assert "curves.png" not in screen.file.getvalue()


def test_a_restarted_node_without_keys_is_known_by_what_it_says(sites, data, tmp_path):
    link, _ = sites
    real_nodes, events = link.nodes, []

    def nodes():
        if any(e["event"] == "round" for e in events) and "again" not in link.sites:
            link.offline.add(SITES[0])
            link.sites["again"] = link.sites[SITES[0]]
        return [replace(node, name=str(node.node_id), registered=False) for node in real_nodes()]

    link.nodes = nodes
    records, failures = rounds(deployed(sites, tmp_path, data, events))
    assert [r["delivered"] for r in records] == [3, 2, 3]
    assert [f["reason"] for f in failures] == [f"site {SITES[0]} is offline"]
    assert {e["site"] for e in events if "site" in e} == set(SITES)


def test_many_clients_of_one_site_train_in_the_stacks_of_a_simulation(job, data, tmp_path):
    expected = simulated(job, data, tmp_path / "simulated", stack_clients=2)
    (data.parent / "ward.jsonl").write_text("".join((data.parent / f"{site}.jsonl").read_text() for site in SITES))
    link = LoopLink({"ward": site_worker(data, tmp_path / "sites", "ward", client_by="site").answer})
    config = job(stack_clients=2)
    engine = Flower(link, "first", config.model_dump(mode="json"), 1, clock=link.clock, together=2)
    held_out = data.parent / "held-out.jsonl"
    result = run_deployed(config, tmp_path / "deployed", held_out, lambda c: engine, lambda event: None)
    ours, theirs = read_adapter(result.adapter), read_adapter(expected.adapter)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert [len(parcel.header["tasks"]) for parcel in link.trained()] == [1, 2] * 3


# --- secure sums ---


def secure(sites):
    """Return the federation with secure sums."""
    link, config = sites
    return link, config.model_copy(update={"secure_aggregation": True})


def test_the_server_of_a_secure_run_is_sent_keys_letters_and_masked_vectors_alone(sites, data, tmp_path):
    link, config = secure(sites)
    came = []
    for name, answer in list(link.sites.items()):

        def heard(header, pieces, answer=answer):
            found = answer(header, pieces)
            came.append((header, found))
            return found

        link.sites[name] = heard
    result = deployed((link, config), tmp_path, data)
    records, failures = rounds(result)
    assert [r["delivered"] for r in records] == [3, 3, 3]
    assert not failures
    stages = [header["tasks"][0]["stage"] for header, _ in came if header["do"] == "train"]
    assert stages == [stage for _ in range(3) for stage in ("keys", "shares", "masked", "unmask") for _ in SITES]
    for header, (answer, pieces) in came:
        if header["do"] == "train":
            assert [result["metrics"] for result in answer["results"]] == [{}]
            held = [
                name for piece in pieces.values() for name in tensorfiles.decode(piece, (TENSORS,))[0][TENSORS]
            ]
            assert held == (["extra/masked"] if header["tasks"][0]["stage"] == "masked" else [])
    audit = (tmp_path / "sites" / SITES[0] / "state" / "audit.jsonl").read_text().splitlines()
    messages = [e.get("message") for e in map(json.loads, audit) if e["event"] == "sent"]
    assert messages[:4] == [
        ["commitment", "mask_key", "share_key"],
        ["sealed"],
        ["extras"],
        ["mask_keys", "seeds"],
    ]


def test_a_site_that_is_lost_in_a_stage_of_a_secure_round_is_not_in_its_sum(sites, data, tmp_path):
    link, config = secure(sites)
    real = link.sites[SITES[1]]

    def away(header, pieces):
        tasks = header.get("tasks")
        stage = {1: "shares", 2: "masked", 3: "unmask"}[tasks[0]["round"]] if tasks else ""
        return ({"error": "gone"}, {}) if tasks and tasks[0]["stage"] == stage else real(header, pieces)

    link.sites[SITES[1]] = away
    records, failures = rounds(deployed((link, config), tmp_path, data))
    assert [r["delivered"] for r in records] == [2, 2, 3]
    assert [f["reason"] for f in failures] == [
        f"site {SITES[1]}: gone (stage 'shares')",
        f"site {SITES[1]}: gone (stage 'masked')",
    ]
