"""Runs whose updates are added up securely: in this process and in others, with drop-outs in every stage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedit import arms, tensors
from fedit.compute import Here
from fedit.errors import ConfigError, ProtocolError
from fedit.launch import run
from fedit.model.export import read_adapter
from fedit.prepare import prepare
from fedit.privacy.secagg.client import begin
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.members import Members
from fedit.privacy.secagg.messages import AskKeys, AskMasked, AskShares, AskUnmask, Keys, Shares, named
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.privacy.secagg.vectors import encoded, read_figures
from fedit.rounds import run_rounds
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, LocalTraining

STAGES = ("keys", "shares", "masked", "unmask")


def events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def relative(ours, theirs, start):
    """Return how far two adapters are apart, over how far the second has moved."""
    apart = {name: ours[name] - theirs[name] for name in theirs}
    return tensors.norm(apart) / tensors.norm({name: theirs[name] - start[name] for name in theirs})


@pytest.fixture
def play(make_config, tmp_path):
    """Return the (state, record) of every round; dropping: (round, client) -> stage; change: of (task, result)."""

    def play(dropping=None, rounds=2, change=lambda task, result: result, secure=True, after=None, **changes):
        if not secure:
            changes.pop("secure_aggregation_options", None)
        config = make_config(num_clients=4, stack_clients=1, secure_aggregation=secure, **changes)
        job = prepare(config)
        arm = arms.federated(job)
        engine = Unreliable(Here(job).engine(arm, tmp_path / f"{secure}", lambda *_: None), dropping or {}, change)
        state = after or replace(arm.strategy.init(job.model.initial(0)), scale=config.scale)
        played = run_rounds(
            state,
            engine,
            arm.strategy,
            rounds=rounds,
            cohort=arm.cohort,
            training=arm.training,
            seed=0,
            min_clients=arm.min_clients,
            secure=arm.secure,
            privacy=arm.privacy(None) if arm.privacy else None,
        )
        return [(state, None), *played], engine

    return play


class Unreliable:
    """An engine some of whose clients do not answer from a stage of a round on."""

    def __init__(self, engine, dropping, change):
        self.engine, self.dropping, self.change = engine, dropping, change
        self.asked = []

    def clients(self):
        return self.engine.clients()

    def run(self, tasks):
        self.asked += [(task.round, task.stage, task.client_id) for task in tasks]
        for task in tasks:
            if self.dropping.get((task.round, task.client_id)) == task.stage:
                yield ClientFailure(task.client_id, task.round, "gone")
            else:
                yield from (self.change(task, result) for result in self.engine.run([task]))


def test_a_secure_run_ends_where_an_open_one_does(make_config, tmp_path):
    plain = run(make_config(), tmp_path / "plain")
    secure = run(make_config(secure_aggregation=True), tmp_path / "secure")
    start = prepare(make_config()).model.initial(0)
    assert relative(read_adapter(secure.adapter), read_adapter(plain.adapter), start) < 1e-5
    for one, other in zip(events(secure.folder, "round"), events(plain.folder, "round"), strict=True):
        assert one["delivered"] == other["delivered"] == 3
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["tokens"] == other["tokens"]
        assert "update_norm_mean" not in one
    assert not events(secure.folder, "client")
    states = [json.loads(path.read_text()) for path in (secure.folder / "secure").iterdir()]
    assert {state["session"]["stage"] for state in states} == {"unmask"}
    assert {(s["session"]["mask_key"], s["session"]["seed"], len(s["session"]["held"])) for s in states} == {
        ("", "", 0)
    }


STAGE_BY_ROUND = {(round, "client-1"): stage for round, stage in enumerate(STAGES, 1)}


@pytest.mark.parametrize("strategy", ["fedit", "scaffold", "fedsa_lora"])
def test_whoever_drops_out_the_rest_is_averaged_as_in_the_open(play, strategy):
    options = {"strategy": strategy, "optimizer": "sgd", "num_rounds": 4, "rounds": 4}
    secure, _ = play(STAGE_BY_ROUND, **options)
    # Who is only missing at the end is in the sum.
    plain, _ = play(
        {key: "" for key, stage in STAGE_BY_ROUND.items() if stage != "unmask"}, secure=False, **options
    )
    for (ours, record), (theirs, known) in zip(secure[1:], plain[1:], strict=True):
        assert relative(ours.adapter, theirs.adapter, plain[0][0].adapter) < 1e-4
        assert record.delivered == known.delivered
        assert all(ours.memory[name].allclose(memory, atol=1e-6) for name, memory in theirs.memory.items())
        stage = STAGE_BY_ROUND[record.round, "client-1"]
        assert [f.reason for f in record.failures] == ([] if stage == "unmask" else [f"gone (stage '{stage}')"])


def test_too_few_leave_the_round_out_and_nothing_is_revealed(play):
    gone = {(1, "client-1"): "masked", (1, "client-2"): "masked", (2, "client-1"): "masked"}
    ((start, _), (first, one), (second, other)), engine = play(gone, min_clients=4)
    assert "2 of 4 clients are left and 4 are needed" in one.reason
    assert "3 of 4 clients are left and 4 are needed" in other.reason
    assert torch.equal(first.adapter.buffer, tensors.flatten(start.adapter).buffer)
    assert torch.equal(second.adapter.buffer, first.adapter.buffer)
    assert not [asked for asked in engine.asked if asked[1] == "unmask"]


def test_a_round_that_a_dead_server_does_again_gives_the_same_or_nothing(play):
    (_, (first, _), (second, _)), _ = play()
    (_, (again, record)), _ = play(after=first)
    assert record.delivered == 4
    assert torch.equal(again.adapter.buffer, second.adapter.buffer)
    (_, (other, record)), _ = play({(2, "client-1"): "masked"}, after=first)
    assert "are left and 3 are needed" in record.reason
    assert torch.equal(other.adapter.buffer, first.adapter.buffer)


def test_what_is_no_answer_costs_its_sender_its_place(play):
    def spoil(task, result):
        if (task.client_id, task.stage) == ("client-1", "masked"):
            return replace(result, extra={"masked": torch.zeros(3)})
        if (task.client_id, task.stage) == ("client-2", "keys"):
            return replace(result, message={"mask_key": "x"})
        return result

    (_, (_, record)), _ = play(change=spoil, rounds=1)
    assert record.delivered == 2
    assert [(f.client_id, "stage" in f.reason) for f in record.failures] == [
        ("client-2", True),
        ("client-1", True),
    ]


# --- with client-level privacy ---

QUIET = {"privacy": "client", "weighting": "uniform", "rounds": 1}


@pytest.mark.parametrize("strategy", ["fedit", "scaffold"])
def test_a_private_sum_is_clipped_by_the_clients_as_the_server_would(play, strategy):
    options = {"clip_norm": 0.05, "noise_multiplier": 0.0, "adaptive": True, "count_noise": 1e-9}
    both = {"strategy": strategy, "optimizer": "sgd", "privacy_options": options, **QUIET}
    (start, (secure, record)), _ = play(**both)
    (_, (plain, _)), _ = play(secure=False, **both)
    assert relative(secure.adapter, plain.adapter, start[0].adapter) < 1e-5
    assert float(secure.privacy["clip_norm"]) == pytest.approx(float(plain.privacy["clip_norm"]), rel=1e-6)
    assert tensors.norm(tensors.sub(secure.adapter, start[0].adapter)) > 0
    assert (record.withheld, record.cohort, record.members, record.loss) == (True, [], (), None)


@pytest.mark.parametrize("noise", ["central", "distributed"])
def test_the_noise_on_a_private_sum_is_what_was_stated(play, noise):
    """With changes that are clipped to nothing beside it, the mean's entries are the noise over the cohort."""
    pytest.importorskip("dp_accounting")
    options = {"clip_norm": 1e-3, "noise_multiplier": 50.0}
    secure = {"noise": noise, "survivors": 1.0}
    (start, (after, _)), _ = play(privacy_options=options, secure_aggregation_options=secure, **QUIET)
    moved = tensors.sub(after.adapter, tensors.flatten(start[0].adapter)).buffer
    assert moved.double().std() == pytest.approx(50.0 * 1e-3 / 4, rel=0.06)


def test_a_private_round_of_too_few_is_noise(play):
    pytest.importorskip("dp_accounting")
    gone = {(1, f"client-{number}"): "masked" for number in (1, 2, 3)}
    (start, (after, record)), _ = play(gone, privacy_options={"clip_norm": 1.0, "noise_multiplier": 1.0}, **QUIET)
    assert record.aggregated
    assert tensors.sub(after.adapter, tensors.flatten(start[0].adapter)).buffer.std() == pytest.approx(
        0.25, rel=0.1
    )


# --- what clients refuse ---


@pytest.fixture
def member():
    """Return what asks one client that trains at once for its answers."""
    members = Members(SecureAggregation())
    training = LocalTraining(0.1, 3, steps=1)

    def answer(client, stage, question, round=1):
        message = question.as_json() if question else {}
        task = ClientTask(round, client, Broadcast({}), training, 0, stage, message)
        (result,) = members.answer([task], lambda tasks: [trained(own) for own in tasks])
        return result

    return answer


def trained(task):
    return ClientUpdate(
        task.client_id, task.round, 5, 5.0, {"m.A": torch.full((2, 3), 0.25)}, metrics={"loss": 2.0}
    )


def opened(member, session, clients, survivors, round=1):
    """Play a session among ``clients`` and return what the first of them answers at its end."""
    said = {c: Keys.read(dict(member(c, "keys", AskKeys(session), round).message)) for c in clients}
    sealed = {}
    for own in clients:
        peers = {c: (said[c].mask_key, said[c].share_key) for c in clients if c != own}
        sealed[own] = Shares.read(dict(member(own, "shares", AskShares(session, peers), round).message)).sealed
    for own in clients:
        letters = {c: sealed[c][own] for c in clients if c != own}
        asked = AskMasked(session, letters, 3, 1.0, 30, 9, None, 0.0, ("weight", "loss"))
        assert isinstance(member(own, "masked", asked, round), ClientUpdate)
        assert "this stage follows" in member(own, "masked", asked, round).reason
    gone = tuple(c for c in clients if c not in survivors)
    return member(clients[0], "unmask", AskUnmask(session, named(survivors), tuple(survivors), gone), round)


def test_a_round_that_is_done_again_is_opened_for_the_same_clients_only(member):
    assert isinstance(opened(member, bytes(16), ["a", "b", "c"], ["a", "b", "c"]), ClientUpdate)
    again = opened(member, bytes([1] * 16), ["a", "b", "c"], ["a", "b"])
    assert again.reason == "round 1 was opened for another set of clients already"
    assert isinstance(opened(member, bytes([2] * 16), ["a", "b", "c"], ["a", "b", "c"]), ClientUpdate)
    assert isinstance(opened(member, bytes([3] * 16), ["a", "b", "c"], ["a", "b"], round=2), ClientUpdate)


@pytest.mark.parametrize(
    ("stage", "question", "reason"),
    [
        ("", None, "no update leaves on its own"),
        ("everything", None, "no update leaves on its own"),
        ("unmask", AskUnmask(bytes(16), bytes(32), ("a",), ()), "no session of round 1"),
        ("masked", None, "has the fields"),
    ],
)
def test_nothing_leaves_a_secure_job_in_another_way(member, stage, question, reason):
    result = member("a", stage, question)
    assert isinstance(result, ClientFailure)
    assert reason in result.reason


def test_a_session_survives_its_process(tmp_path):
    task = ClientTask(
        1, "a", Broadcast({}), LocalTraining(0.1, 1, steps=1), 0, "keys", AskKeys(bytes(16)).as_json()
    )
    Members(SecureAggregation(), tmp_path / "secure").answer([task], list)
    again = Members(SecureAggregation(), tmp_path / "secure")
    peer = Keys.read(opened_keys("b"))
    asked = AskShares(bytes(16), {"b": (peer.mask_key, peer.share_key)})
    (second,) = again.answer([replace(task, stage="shares", message=asked.as_json())], list)
    assert set(second.message["sealed"]) == {"b"}
    assert isinstance(again.answer([task], list)[0], ClientFailure)
    assert (tmp_path / "secure").stat().st_mode & 0o077 == 0


def opened_keys(client):
    return begin(client, 1, AskKeys(bytes(16)))[1].as_json()


# --- clipping, noise, extremes ---


def asked(**changes):
    return AskMasked(bytes(16), {}, 3, **{"limit": 1.0, "bits": 40, "heaviest": 1, "clip": None, "noise": 0.0,
                                          "figures": ("weight", "unclipped"), **changes})  # fmt: skip


def sent(values, weight=1.0, **more):
    return ClientUpdate("a", 1, 1, weight, {"m.A": torch.tensor(values)}, **more)


def test_a_client_clips_for_itself():
    vector, _ = encoded(sent([3.0, 4.0]), asked(clip=1.0))
    delta = FixedPoint(1.0, 40).decode(vector[:2])
    assert np.linalg.norm(delta) <= 1.0
    assert delta == pytest.approx([0.6, 0.8], abs=1e-9)
    assert read_figures(vector, ("weight", "unclipped"), 3) == {"weight": 1.0, "unclipped": 0.0}
    joint, shapes = encoded(sent([3.0, 0.0], extra={"c": torch.tensor([[4.0]])}), asked(clip=1.0))
    assert shapes == (("c", (1, 1)),)
    assert FixedPoint(1.0, 40).decode(joint[:3]) == pytest.approx([0.6, 0.0, 0.8], abs=1e-9)
    within, _ = encoded(sent([0.3, 0.4]), asked(clip=1.0))
    assert read_figures(within, ("weight", "unclipped"), 3)["unclipped"] == 1.0


def test_noise_is_the_clients_where_it_was_asked_for():
    quiet, _ = encoded(sent([0.0] * 20_000), asked(clip=1.0))
    loud, _ = encoded(sent([0.0] * 20_000), asked(clip=1.0, noise=2.0, bits=30))
    assert not quiet[:-2].any()
    assert FixedPoint(1.0, 30).decode(loud[:-2]).std() == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(
    ("update", "question", "reason"),
    [
        (sent([2.0]), asked(), "an entry is 2"),
        (sent([0.1], weight=2.0), asked(), "a weight is 2"),
        (sent([0.1], weight=0.5), asked(), "a weight is 0.5"),
        (sent([0.1], metrics={"tokens": 1e12}), asked(figures=("tokens",)), "an entry is 1e"),
    ],
)
def test_what_does_not_fit_what_was_announced_does_not_leave(update, question, reason):
    with pytest.raises(ProtocolError, match=reason):
        encoded(update, question)


# --- what a job cannot have beside it ---

PRIVATE = {
    "privacy": "client",
    "weighting": "uniform",
    "privacy_options": {"clip_norm": 1.0, "noise_multiplier": 1.0, "adaptive": True},
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "krum"}, "reads single updates"),
        ({"strategy": "flora"}, "reads single updates"),
        ({"client_ranks": [2, 4], "strategy": "flora"}, "client_ranks"),
        ({"transforms": [{"zstd": {}}]}, "masked ones cannot be"),
        ({"selection": "oort"}, "looks at single clients' losses"),
        ({"selection": "weighted"}, "weighs some anew"),
        ({"attack": ["sign_flip"]}, "attack 'sign_flip'"),
        ({"clients_per_round": 1}, "asks 1 client"),
        ({"secure_aggregation_options": {"noise": "distributed"}}, "none to distribute"),
        ({"strategy": "fedbuff", "devices": "equal"}, "as they arrive"),
        ({**PRIVATE, "selection": "poisson", "clients_per_round": 0.5}, "so small that one of two alone"),
        ({**PRIVATE, "secure_aggregation_options": {"noise": "distributed"}}, "a count would need noise"),
    ],
)
def test_a_job_that_needs_single_updates_is_refused_before_training(make_config, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        prepare(make_config(secure_aggregation=True, **changes))


@pytest.mark.slow
def test_clients_in_worker_processes_keep_their_sessions(make_config, tmp_path):
    alone = run(make_config(secure_aggregation=True), tmp_path / "alone")
    apart = run(make_config(secure_aggregation=True, num_workers=2), tmp_path / "apart")
    ours, theirs = read_adapter(apart.adapter), read_adapter(alone.adapter)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
