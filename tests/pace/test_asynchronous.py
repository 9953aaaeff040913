"""Rounds of arrivals: the queue against one written plainly, staleness, identities, resuming at any step."""

import heapq
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from arithmetic import Arithmetic, clock, constant, go, same, training

from fedit import checkpoint
from fedit.availability import Availability, build_availability
from fedit.errors import RoundError
from fedit.pace.asynchronous import Asynchronous
from fedit.pace.synchronous import Synchronous
from fedit.rounds import left_under_way
from fedit.seeds import derive
from fedit.selection import build_selection
from fedit.strategies import build_strategy
from fedit.types import ClientFailure, ServerState

SIZES = [3, 9, 5, 20, 7, 11, 4, 8]
BYTES = 4 * (2 * 3 + 4 * 2)


def pace(concurrency=4, buffer=2, own=None, selection="uniform", availability=None):
    return Asynchronous(
        build_selection(selection, {}),
        concurrency,
        buffer,
        0,
        own or clock(),
        availability or build_availability("always", {}),
    )


def fedbuff(buffer=2, **options):
    return build_strategy("fedbuff", {"buffer_size": buffer, **options})


def plainly(engine, own, concurrency, buffer, steps):
    """Return (client, version, arrival) of every server step, from a queue that is only that."""
    by_id = {c.client_id: c for c in engine.clients()}
    queue, now, version, found = [], 0.0, 0, []

    def depart(taken):
        idle = sorted((derive(0, "cohort", version + 1, c), c) for c in by_id if c not in taken)
        for _, client in idle[: concurrency - len(queue)]:
            took = own.duration(by_id[client], training(version + 1), BYTES, BYTES).total
            heapq.heappush(queue, (now + took, client, version))

    for _ in range(steps):
        arrived = []
        depart({c for _, c, _ in queue})
        while len(arrived) < buffer:
            now, client, started = heapq.heappop(queue)
            arrived.append((client, started, now))
            if len(arrived) < buffer:
                depart({c for _, c, _ in queue} | {c for c, _, _ in arrived})
        found.append(arrived)
        version += 1
    return found


@pytest.mark.parametrize(("concurrency", "buffer"), [(4, 2), (8, 3), (2, 5), (8, 8), (1, 1), (5, 1)])
def test_the_queue_is_that_of_a_plain_one(concurrency, buffer):
    own, engine = clock(), Arithmetic(SIZES)
    results = go(engine, pace(concurrency, buffer), rounds=9, strategy=fedbuff(buffer))
    expected = plainly(engine, own, concurrency, buffer, 9)
    times = [0.0]
    for (_, record), arrived in zip(results, expected, strict=True):
        assert record.cohort == sorted(client for client, _, _ in arrived)
        staleness = {c["client"]: c["staleness"] for c in record.clients}
        assert staleness == {client: record.round - 1 - version for client, version, _ in arrived}
        times.append(arrived[-1][2])
        assert record.simulated_seconds == pytest.approx(times[-1] - times[-2], rel=1e-9, abs=1e-12)
    assert len({record.round - 1 - c["staleness"] for _, record in results for c in record.clients}) > 1


def test_clients_train_from_the_state_that_they_were_sent():
    engine = Arithmetic(SIZES)
    start = ServerState(0, constant(0))
    results = go(engine, pace(), rounds=8, strategy=fedbuff(), start=start)
    states = [start, *(state for state, _ in results)]
    assert len(engine.tasks) == 16
    old = 0
    for place, task in enumerate(engine.tasks):
        assert torch.equal(task.broadcast.adapter["m.B"], states[task.round - 1].adapter["m.B"])
        assert task.training == training(task.round)
        old += task.round < 1 + place // 2
    assert old > 2


def test_an_update_enters_one_round_only():
    engine = Arithmetic(SIZES)
    results = go(engine, pace(5, 2), rounds=20, strategy=fedbuff())
    entered = Counter((task.client_id, task.round) for task in engine.tasks)
    assert max(entered.values()) == 1
    heard = [(record.round, c["client"]) for _, record in results for c in record.clients]
    assert len(set(heard)) == len(heard) == 40


def test_arrivals_are_discounted_by_their_age():
    engine = Arithmetic(SIZES)
    state = ServerState(0, constant(0))
    for after, record in go(engine, pace(), rounds=6, strategy=fedbuff(exponent=1.0, server_lr=0.7), start=state):
        tasks = {(task.client_id, task.round): task for task in engine.tasks}
        total = sum(c["weight"] for c in record.clients)
        moved = torch.zeros(4, 2, dtype=torch.float64)
        for client in record.clients:
            (alone,) = Arithmetic(SIZES).run([tasks[client["client"], record.round - client["staleness"]]])
            moved += client["weight"] / total * alone.delta["m.B"].double() / (1 + client["staleness"])
        expected = state.adapter["m.B"].double() + 0.7 * moved
        torch.testing.assert_close(after.adapter["m.B"].double(), expected, rtol=0, atol=1e-6)
        state = after


# --- what is not late is federated averaging ---


@pytest.mark.parametrize("strategy", ["fedit", "fedbuff"])
def test_a_buffer_of_everybody_is_federated_averaging_bit_for_bit(strategy):
    plain = go(Arithmetic(SIZES), Synchronous(build_selection("uniform", {}), 8, 0, clock()), rounds=5)
    algorithm = fedbuff(8) if strategy == "fedbuff" else build_strategy("fedit", {})
    asynchronous = go(Arithmetic(SIZES), pace(8, 8), rounds=5, strategy=algorithm)
    for (one, first), (two, second) in zip(plain, asynchronous, strict=True):
        assert all(torch.equal(tensor, two.adapter[name]) for name, tensor in one.adapter.items())
        assert first.cohort == second.cohort
        assert first.simulated_seconds == pytest.approx(second.simulated_seconds, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_equal_devices_and_as_many_places_as_arrivals_are_sampled_federated_averaging(size):
    """Simultaneous arrivals make their step before anybody departs, so nobody is ever late."""
    own = clock(name="equal")
    plain = go(Arithmetic([6] * 8), Synchronous(build_selection("uniform", {}), size, 0, own), rounds=6)
    late = go(Arithmetic([6] * 8), pace(size, size, own), rounds=6, strategy=fedbuff(size))
    assert [r.cohort for _, r in plain] == [r.cohort for _, r in late]
    assert all(torch.equal(t, late[-1][0].adapter[n]) for n, t in plain[-1][0].adapter.items())


# --- resuming ---


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
@pytest.mark.parametrize("selection", ["uniform", "round_robin", "power_of_choice", "oort"])
def test_a_run_resumed_at_any_step_has_the_same_bits(strategy, selection, tmp_path):
    algorithm = fedbuff(2) if strategy == "fedbuff" else build_strategy("fedasync", {})
    own = pace(4, algorithm.buffer, selection=selection)
    whole = go(Arithmetic(SIZES), own, rounds=8, strategy=algorithm)
    for state, _ in whole[:-1]:
        checkpoint.save(tmp_path, state)
        start = checkpoint.load(tmp_path, state.round)
        assert same(state, start)
        later = go(Arithmetic(SIZES), own, rounds=8, strategy=algorithm, start=start)
        rest = whole[state.round :]
        assert [record.cohort for _, record in later] == [record.cohort for _, record in rest]
        assert all(same(a, b) for (a, _), (b, _) in zip(later, rest, strict=True))


def test_only_states_that_somebody_started_from_are_carried():
    results = go(Arithmetic(SIZES), pace(3, 1), rounds=12, strategy=fedbuff(1))
    for state, _ in results:
        versions = {int(v) for v in state.schedule["flight.version"]}
        carried = {
            int(n.split("/")[0].removeprefix("version.")) for n in state.schedule if n.startswith("version.")
        }
        assert carried == versions
        assert len(state.schedule["flight.client"]) == 2
        assert max(versions) < state.round


def test_ledger_and_memory_of_an_old_state_come_back():
    strategy = fedbuff(1)
    start = ServerState(
        0, constant(0), {"m.A": torch.ones(1, 3), "m.B": torch.ones(4, 1)}, {"v": torch.ones(2)}, scale=0.5
    )
    engine = Arithmetic(SIZES)
    results = go(engine, pace(3, 1), rounds=6, strategy=strategy, start=start)
    assert any("version.0/memory/v" in state.schedule for state, _ in results)
    assert all(torch.equal(task.broadcast.ledger["m.A"], torch.ones(1, 3)) for task in engine.tasks)
    assert all(task.broadcast.scale == 0.5 for task in engine.tasks)


# --- when things go wrong ---


def test_an_arrival_that_failed_leaves_the_step_to_the_others():
    def lose(update):
        return ClientFailure(update.client_id, update.round, "lost")

    plain = go(Arithmetic(SIZES), pace(), rounds=4, strategy=fedbuff())
    lost = plain[0][1].cohort[0]
    spoiled = go(Arithmetic(SIZES, {(1, lost): lose}), pace(), rounds=4, strategy=fedbuff())
    record = spoiled[0][1]
    assert [(f.client_id, f.round, f.reason) for f in record.failures] == [(lost, 1, "lost")]
    assert record.aggregated
    assert [r.cohort for _, r in spoiled] == [r.cohort for _, r in plain]


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
def test_a_step_without_any_usable_update_keeps_the_adapter(strategy):
    def poison(update):
        return replace(update, delta=constant(float("nan")))

    algorithm = fedbuff(1) if strategy == "fedbuff" else build_strategy("fedasync", {})
    first = go(Arithmetic(SIZES), pace(4, 1), rounds=1, strategy=algorithm)[0][1].cohort[0]
    engine = Arithmetic(SIZES, {(1, first): poison})
    ((state, record),) = go(engine, pace(4, 1), rounds=1, strategy=algorithm, start=ServerState(0, constant(7)))
    assert not record.aggregated
    assert torch.equal(state.adapter["m.A"], constant(7)["m.A"])


def test_free_places_are_filled_when_somebody_comes(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"c0": [[0, 1]], "c1": [[0.5, 9]], "*": [[1e6, 2e6]]}))
    there = build_availability("trace", {"file": str(path)})
    own = clock(name="equal", speed=100.0)
    ((_, record),) = go(Arithmetic(SIZES), pace(4, 2, own, availability=there), rounds=1, strategy=fedbuff())
    assert record.cohort == ["c0", "c1"]
    took = own.duration(Arithmetic(SIZES).clients()[1], training(1), BYTES, BYTES).total
    assert record.simulated_seconds == pytest.approx(max(0.5 + took, record.simulated_seconds))
    assert record.simulated_seconds < 1000


class Almost(Availability):
    """Everybody comes just after 4 s, and waits there for a time that is too short to be added to 4."""

    def wait(self, client_id, now, seed):
        return 0.0 if now > 4 else max(4 - now, 1e-17)


def test_time_moves_however_short_a_wait_is():
    ((_, record),) = go(Arithmetic(SIZES), pace(4, 2, availability=Almost()), rounds=1, strategy=fedbuff())
    assert len(record.cohort) == 2
    assert record.simulated_seconds > 4


def leaving(tmp_path, **when):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({**when, "*": [[-2, -1]]}))
    return build_availability("trace", {"file": str(path)})


def test_a_buffer_that_nobody_is_left_to_fill_makes_a_step_of_what_is_in_it(tmp_path):
    """c0 and c1 come once, for a buffer of five; after them there is nobody to ask, which ends the run."""
    start, engine = ServerState(0, constant(0)), Arithmetic(SIZES)
    there = leaving(tmp_path, c0=[[0, 1]], c1=[[0, 1]])
    ((state, record),) = go(engine, pace(4, 5, availability=there), rounds=1, strategy=fedbuff(5), start=start)
    assert record.cohort == [c["client"] for c in record.clients] == ["c0", "c1"]
    assert record.flushed
    assert record.aggregated
    assert not record.failures
    assert not record.dropped
    alone = go(Arithmetic(SIZES), lambda clients, round: ["c0", "c1"], rounds=1, start=start)[-1][0]
    assert all(torch.equal(tensor, alone.adapter[name]) for name, tensor in state.adapter.items())
    with pytest.raises(RoundError, match=r"round 2: no client is under way or available after"):
        go(Arithmetic(SIZES), pace(4, 5, availability=there), rounds=2, strategy=fedbuff(5), start=start)


def test_a_flushed_buffer_goes_on_with_who_is_still_there(tmp_path):
    """Nobody arrives twice in a round, so of the one client that stays each arrival is a step of its own."""
    there = leaving(tmp_path, c0=[[0, 1e9]], c1=[[0, 1]])
    results = go(Arithmetic(SIZES), pace(4, 2, availability=there), rounds=4, strategy=fedbuff())
    assert [record.cohort for _, record in results] == [["c0", "c1"], ["c0"], ["c0"], ["c0"]]
    assert [record.flushed for _, record in results] == [False, True, True, True]


def test_a_federation_that_everybody_has_left_ends(tmp_path):
    there = leaving(tmp_path)
    with pytest.raises(RoundError, match=r"round 1: no client is under way or available after"):
        go(Arithmetic(SIZES), pace(4, 2, availability=there), rounds=1, strategy=fedbuff())


def test_those_under_way_when_the_rounds_are_over_are_named_with_what_they_were_sent():
    own, algorithm = pace(4, 2), fedbuff()
    state, _ = go(Arithmetic(SIZES), own, rounds=5, strategy=algorithm)[-1]
    left = left_under_way(state, Arithmetic(SIZES), algorithm, own)
    assert len(left.clients) == len(state.schedule["flight.client"]) == 3
    assert left.clients == sorted(left.clients)
    assert left.bytes_down == left.raw_bytes_down == 3 * BYTES
    one_more = go(Arithmetic(SIZES), pace(4, 3), rounds=6, strategy=algorithm, start=state)[-1][1]
    assert set(one_more.cohort) & set(left.clients)
    synchronous = Synchronous(build_selection("uniform", {}), 3, 0)
    assert left_under_way(state, Arithmetic(SIZES), algorithm, synchronous).clients == []
