"""Transforms in a round: what workers send, what the server reads, what is counted, and the same bits anywhere."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import arms, cohort, tensors
from fedit.engines.inprocess import InProcess
from fedit.errors import ConfigError
from fedit.launch import resume, run
from fedit.prepare import prepare
from fedit.rounds import run_rounds
from fedit.seeds import derive
from fedit.settings import from_values, load
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.transforms import build_transforms
from fedit.transforms.chain import Downlink, receive, send
from fedit.transforms.sparse import densify, sparsify
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining, ServerState
from fedit.updates import Updates
from fedit.worker import Worker

CLIENTS = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
HOW = LocalTraining(learning_rate=0.05, num_rounds=4, steps=2, batch_size=2)
ALL = [{"top_k": {"fraction": 0.2}}, {"quantize": {"bits": 8}}, {"zstd": {}}]
SPARSE_BOTH_WAYS = [{"flasc": {}}, {"cast": {}}, {"zstd": {}}]


def states(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def rounds_of(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in events if e["event"] == "round"]


# --- the client's half ---


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("gpt2", dtype="fp32")


@pytest.fixture
def adapter(model):
    return random_adapter(model, 1)


def worker(model, spec, store=None, strategy=None):
    store = store or ClientStore()
    return Worker(model, CLIENTS, strategy or FedIT(), seed=0, store=store, transforms=build_transforms(spec))


def task(client, adapter, round=1, spec=()):
    sent = Downlink(build_transforms(spec)).sent(Broadcast(adapter))
    return ClientTask(round, client, sent, HOW, derive(0, "train", round, client))


def test_a_client_sends_bytes_and_keeps_what_it_did_not_send(model, adapter, tmp_path):
    plain = worker(model, []).train(task("a", adapter))
    store = ClientStore(tmp_path)
    sent = worker(model, ALL, store).train(task("a", adapter, 1, ALL))
    assert {tensor.dtype for tensor in sent.delta.values()} == {torch.uint8}
    assert tensors.num_bytes(sent.delta) < tensors.num_bytes(plain.delta) / 6
    state = store.read("a", 2)
    assert not state.memory
    back = receive(build_transforms(ALL), sent)
    peak = max(float(tensor.abs().max()) for tensor in plain.delta.values())
    for name, learnt in plain.delta.items():
        # What is kept is exact for what top_k sent; the quantiser's error comes on top.
        off = back.delta[name] + state.transforms[f"0.unsent.{name}"] - learnt
        assert off.abs().max() <= 1.01 * peak / 127


def test_a_round_done_again_from_the_store_gives_the_same_bits(model, adapter, tmp_path):
    one = worker(model, ALL, ClientStore(tmp_path))
    one.train(task("a", adapter, 1, ALL))
    first = one.train(task("a", adapter, 2, ALL))
    again = worker(model, ALL, ClientStore(tmp_path)).train(task("a", adapter, 2, ALL))
    assert set(first.delta) == set(again.delta)
    assert all(torch.equal(first.delta[name], again.delta[name]) for name in first.delta)


def test_what_is_remembered_depends_on_the_client_alone(model, adapter):
    one, two = worker(model, ALL), worker(model, ALL)
    for client in "abc":
        one.train(task(client, adapter, 1, ALL))
    two.train(task("c", adapter, 1, ALL))
    after, alone = (own.train(task("c", adapter, 2, ALL)) for own in (one, two))
    assert all(torch.equal(after.delta[name], alone.delta[name]) for name in after.delta)


def test_a_damaged_broadcast_is_a_failure_of_that_client_alone(model, adapter):
    tasks = [task(client, adapter, 1, [{"zstd": {}}]) for client in "ab"]
    packed = tasks[0].broadcast.adapter["#zstd.packed"]
    packed[len(packed) // 2] ^= 1
    bad, good = worker(model, [{"zstd": {}}]).train_together(tasks)
    assert isinstance(bad, ClientFailure)
    assert "damaged on the way" in bad.reason
    assert isinstance(good, ClientUpdate)


@dataclass(frozen=True)
class SendsMore(Strategy):
    """A tensor beside the delta, and memory of its own."""

    def finish(self, task, result, memory):
        return {"c": torch.linspace(0, 1, 200)}, {"unsent": torch.ones(2)}


def test_a_strategys_extra_is_packed_and_its_memory_left_alone(model, adapter):
    store = ClientStore()
    sent = worker(model, ALL, store, SendsMore()).train(task("a", adapter, 1, ALL))
    assert tensors.num_bytes(sent.extra) < 400
    back = receive(build_transforms(ALL), sent)
    assert (back.extra["c"] - torch.linspace(0, 1, 200)).abs().max() <= 1 / 127
    assert set(store.read("a", 2).memory) == {"unsent"}


# --- the server's half ---


@dataclass
class Wire:
    """An engine that keeps what goes by, and may damage what a client sends."""

    inner: InProcess
    spoil: str | None = None
    tasks: list = field(default_factory=list)
    results: list = field(default_factory=list)

    def clients(self):
        return self.inner.clients()

    def run(self, tasks):
        self.tasks += tasks
        for result in self.inner.run(tasks):
            if result.client_id == self.spoil:
                damaged = {name: tensor.clone() for name, tensor in result.delta.items()}
                next(iter(damaged.values())).view(torch.uint8)[0] ^= 1
                result = replace(result, delta=damaged)
            self.results.append(result)
            yield result


def go(model, spec, rounds=2, spoil=None, strategy=None):
    engine = Wire(InProcess(worker(model, spec, strategy=strategy)), spoil)
    server = ServerState(0, random_adapter(model, 1), scale=2.0)
    found = list(
        run_rounds(
            server,
            engine,
            strategy or FedIT(),
            rounds=rounds,
            cohort=lambda clients, round: cohort.uniform(clients, 1.0, seed=0, round=round),
            training=lambda round: HOW,
            seed=0,
            transforms=build_transforms(spec),
        )
    )
    return engine, found


def test_bytes_are_those_of_what_was_carried_and_raw_bytes_those_before(model):
    engine, found = go(model, SPARSE_BOTH_WAYS, rounds=1)
    _, ((_, plain),) = go(model, [], rounds=1)
    ((_, record),) = found
    assert record.bytes_up == sum(tensors.num_bytes(r.delta) + tensors.num_bytes(r.extra) for r in engine.results)
    assert record.bytes_down == sum(tensors.num_bytes(t.broadcast.adapter) for t in engine.tasks)
    assert (record.raw_bytes_up, record.raw_bytes_down) == (plain.bytes_up, plain.bytes_down)
    assert (plain.raw_bytes_up, plain.raw_bytes_down) == (plain.bytes_up, plain.bytes_down)
    assert record.bytes_up < record.raw_bytes_up / 4
    assert record.bytes_down < record.raw_bytes_down / 2


def test_lossless_packing_changes_no_bit_of_a_run(model):
    _, packed = go(model, [{"zstd": {}}])
    _, plain = go(model, [])
    for (one, _), (two, _) in zip(packed, plain, strict=True):
        assert all(torch.equal(one.adapter[name], two.adapter[name]) for name in two.adapter)


def test_clients_that_are_sent_the_same_share_one_packed_set(model):
    engine, _ = go(model, [{"zstd": {}}], rounds=1)
    assert len({id(task.broadcast.adapter["#zstd.packed"]) for task in engine.tasks}) == 1


def test_a_damaged_update_is_left_out_and_reported(model):
    engine, ((state, record),) = go(model, ALL, rounds=1, spoil="b")
    assert [(f.client_id, f.round) for f in record.failures] == [("b", 1)]
    assert "damaged on the way" in record.failures[0].reason
    assert [client["client"] for client in record.clients] == ["a", "c"]
    assert tensors.is_finite(state.adapter)
    # It was carried all the same.
    assert record.bytes_up == sum(tensors.num_bytes(result.delta) for result in engine.results)


@dataclass(frozen=True)
class Starts(Strategy):
    """Keeps where the first client ended, as the server knows it."""

    def aggregate(self, server, updates):
        one, *_ = [updates.trained(update) for update in updates]
        return replace(server, memory=dict(one))


def test_the_server_knows_the_thinned_adapter_that_a_client_started_from(model):
    """FLASC trains from the largest entries: what a client ended with is those plus its delta."""
    _, ((state, _),) = go(model, [{"flasc": {"upload": 1.0}}], rounds=1, strategy=Starts())
    start = random_adapter(model, 1)
    thin = densify(sparsify(start, 0.25))
    assert sum(int((t != 0).sum()) for t in thin.values()) == int(0.25 * sum(t.numel() for t in thin.values()))
    same = ClientTask(1, "a", Broadcast(thin, scale=2.0), HOW, derive(0, "train", 1, "a"))
    alone = worker(model, []).train(same)
    for name in start:
        torch.testing.assert_close(state.memory[name], thin[name] + alone.delta[name], rtol=0, atol=1e-6)


def test_the_servers_adapter_stays_dense(model):
    """Entries that were not sent down keep their value at the server, but for what clients add."""
    _, ((state, _),) = go(model, [{"flasc": {"download": 0.1, "upload": 0.01}}], rounds=1)
    start = random_adapter(model, 1)
    same = sum(int((state.adapter[name] == start[name]).sum()) for name in start)
    assert same >= (1 - 3 * 0.01) * sum(tensor.numel() for tensor in start.values())


def test_nan_that_a_client_quantises_is_screened_out():
    """Rounding must not make a number of it."""
    transforms = build_transforms([{"quantize": {}}, {"zstd": {}}])
    start = {"m.A": torch.ones(2, 3), "m.B": torch.ones(4, 2)}
    delta = {name: torch.ones_like(tensor) for name, tensor in start.items()}
    delta["m.B"][0, 0] = float("nan")
    sent, _ = send(transforms, ClientUpdate("bad", 1, 1, 1.0, delta), {}, 0)
    updates = Updates([receive(transforms, sent)], start)
    assert list(updates) == []
    assert "not finite" in updates.failures[0].reason


def test_mixed_ranks_are_thinned_each_on_its_own():
    server = {"m.A": torch.randn(4, 8), "m.B": torch.randn(6, 4)}
    small = {"m.A": server["m.A"][:2].clone(), "m.B": server["m.B"][:, :2].clone()}
    down = Downlink(build_transforms([{"flasc": {"download": 0.5}}]))
    for adapter in (server, small):
        got = down.arrived(down.sent(Broadcast(adapter))).adapter
        assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in adapter.items()}
        assert all(torch.equal(down.start(Broadcast(adapter))[name], got[name]) for name in got)


# --- whole runs ---


@pytest.mark.slow
@pytest.mark.parametrize("spec", [ALL, SPARSE_BOTH_WAYS], ids=["up", "both ways"])
def test_two_workers_give_the_bits_of_one_process(make_config, tmp_path, importable, spec):
    own = {"transforms": spec, "num_clients": 4, "clients_per_round": 3, "num_rounds": 3}
    one = run(make_config(**own, num_workers=1), tmp_path / "one")
    two = run(make_config(**own, num_workers=2), tmp_path / "two")
    assert states(one.folder) == states(two.folder)
    assert rounds_of(one.folder) == rounds_of(two.folder)
    assert one.summary["bytes_up"] == two.summary["bytes_up"] < one.summary["raw_bytes_up"] / 3


def test_an_interrupted_run_goes_on_with_what_was_not_sent(make_config, tmp_path):
    class Killed(BaseException):
        pass

    def kill(event):
        if event["event"] == "round" and event["round"] == 2:
            raise Killed

    config = make_config(transforms=ALL, num_rounds=4)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "cut", listener=kill)
    cut = resume(tmp_path / "cut")
    assert states(whole.folder) == states(cut.folder)
    assert rounds_of(whole.folder) == rounds_of(cut.folder)
    assert any(b"transforms/0.unsent" in content for content in states(whole.folder).values())


def test_baselines_send_nothing_and_are_not_transformed(make_config):
    job = prepare(make_config(transforms=ALL))
    assert len(arms.federated(job).transforms) == 3
    assert arms.named(job, "centralised", {1: 10}).transforms == ()


# --- settings ---


@pytest.mark.parametrize(
    "written",
    [
        [{"top_k": {"fraction": 0.2}}, "zstd"],
        [{"top_k": {"fraction": 0.2}}, {"zstd": None}],
        {"top_k": {"fraction": 0.2}, "zstd": {}},
    ],
)
def test_a_list_may_be_written_in_several_ways(written):
    assert from_values({"transforms": written}, "test").transforms == [{"top_k": {"fraction": 0.2}}, {"zstd": {}}]


def test_a_job_file_and_the_command_line_mean_the_same(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("transforms:\n  - top_k: {fraction: 0.2}\n  - zstd\n", encoding="utf-8")
    here = load(None, ["transforms=[top_k: {fraction: 0.2}, zstd]"]).config
    assert load(path).config.transforms == here.transforms
    assert load(None, ["transforms=cast,zstd"]).config.transforms == [{"cast": {}}, {"zstd": {}}]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([{"cast": {}, "zstd": {}}], "one name"),
        (7, "transforms is 7"),
        ([["cast"]], "transforms"),
        ([{"cast": 3}], "transforms"),
    ],
)
def test_what_is_no_list_of_names_is_refused(written, words):
    with pytest.raises(ConfigError, match=words):
        from_values({"transforms": written}, "test")


def test_an_unknown_transform_is_refused_before_anything_is_loaded(make_config):
    with pytest.raises(ConfigError, match="did you mean 'quantize'"):
        prepare(make_config(transforms=["quantise"], model="/does/not/exist"))
