"""Rounds that begin together: selection, simulated time, slow clients, availability, resuming."""

import json
import math

import pytest
import torch
from arithmetic import Arithmetic, clock, constant, go, same, training

from fedit import checkpoint, cohort
from fedit.availability import build_availability
from fedit.clock import Duration
from fedit.errors import ConfigError, RoundError
from fedit.pace import STRAGGLERS
from fedit.pace.base import Asked
from fedit.pace.stragglers import build_stragglers
from fedit.pace.synchronous import Synchronous
from fedit.selection import SELECTIONS, build_selection
from fedit.selection.base import Pool
from fedit.types import ClientFailure, ClientInfo, ServerState

SIZES = [3, 9, 5, 20, 7, 11, 4, 8]


def pace(selection="uniform", size=3, stragglers=("wait_all", {}), availability=None, own=None, **options):
    return Synchronous(
        build_selection(selection, options),
        size,
        0,
        own,
        build_stragglers(*stragglers),
        availability or build_availability("always", {}),
    )


def asked(*durations):
    start = ServerState(0, {})
    return [
        Asked(ClientInfo(f"c{i}", 5), 1, start, training(1), Duration(1.0, 4, (total - 2.0) / 4, 1.0))
        for i, total in enumerate(durations)
    ]


def ids(kept):
    return [one.client_id for one in kept]


# --- one loop, one result ---


def test_the_default_pace_is_the_plain_rule_bit_for_bit():
    one = go(Arithmetic(SIZES), pace())
    two = go(Arithmetic(SIZES), lambda clients, round: cohort.uniform(clients, 3, seed=0, round=round))
    assert [record.cohort for _, record in one] == [record.cohort for _, record in two]
    assert same(one[-1][0], two[-1][0])
    assert one[-1][0].schedule == {}
    assert one[0][1].simulated_seconds is None


@pytest.mark.parametrize("selection", sorted(SELECTIONS))
@pytest.mark.parametrize("timed", [False, True])
def test_a_run_that_is_resumed_after_any_round_has_the_same_cohorts_and_bits(selection, timed, tmp_path):
    own = pace(selection, own=clock() if timed else None)
    whole = go(Arithmetic(SIZES), own, rounds=7)
    for state, _ in whole[:-1]:
        checkpoint.save(tmp_path, state)
        later = go(Arithmetic(SIZES), own, rounds=7, start=checkpoint.load(tmp_path, state.round))
        rest = whole[state.round :]
        assert [record.cohort for _, record in later] == [record.cohort for _, record in rest]
        assert [r.simulated_seconds for _, r in later] == [r.simulated_seconds for _, r in rest]
        assert all(same(a, b) for (a, _), (b, _) in zip(later, rest, strict=True))


def test_what_was_heard_moves_the_next_cohorts():
    calm, stormy = Arithmetic(SIZES), Arithmetic(SIZES)
    for round in range(1, 5):
        stormy.spoil |= {
            (round, f"c{k}"): lambda update: ClientFailure(update.client_id, update.round, "lost")
            for k in range(4)
        }
    one = [r.cohort for _, r in go(calm, pace("power_of_choice"))]
    two = [r.cohort for _, r in go(stormy, pace("power_of_choice"), min_clients=0)]
    assert one[0] == two[0]
    assert one != two


def test_draws_by_size_are_averaged_plainly_and_count_as_often_as_they_fell():
    engine = Arithmetic([1, 1, 30])
    ((_, record),) = go(engine, pace("weighted", size=3), rounds=1)
    draws = build_selection("weighted", {}).choose(Pool(engine.clients(), 3, 3, 1, 0))
    weights = {client["client"]: client["weight"] for client in record.clients}
    assert weights == {client: float(draws.count(client)) for client in set(draws)}
    assert max(weights.values()) > 1
    assert len(engine.tasks) == len(weights)


def test_round_robin_hears_everybody_in_turn():
    cohorts = [record.cohort for _, record in go(Arithmetic(SIZES), pace("round_robin", size=4), rounds=4)]
    assert sorted(cohorts[0] + cohorts[1]) == sorted(cohorts[2] + cohorts[3]) == [f"c{k}" for k in range(8)]


def test_an_empty_cohort_keeps_the_adapter_and_is_no_failure():
    start = ServerState(0, constant(7))
    results = go(Arithmetic(SIZES), pace("poisson", probability=1e-9), rounds=6, start=start)
    assert len(results) == 6
    for state, record in results:
        assert (record.cohort, record.clients, record.failures, record.aggregated) == ([], [], [], False)
        assert record.loss is None
        assert torch.equal(state.adapter["m.A"], start.adapter["m.A"])


# --- simulated time ---


def test_a_round_takes_what_its_slowest_client_takes():
    own = clock()
    engine = Arithmetic(SIZES)
    for _, record in go(engine, pace(own=own), rounds=3):
        size = 4 * (2 * 3 + 4 * 2)
        by_id = {c.client_id: c for c in engine.clients()}
        totals = {c: own.duration(by_id[c], training(1), size, size).total for c in record.cohort}
        assert record.simulated_seconds == pytest.approx(max(totals.values()), rel=1e-12)
        assert {c["client"]: c["simulated_seconds"] for c in record.clients} == totals


def test_time_adds_up_over_rounds():
    results = go(Arithmetic(SIZES), pace(own=clock()), rounds=5)
    total = sum(record.simulated_seconds for _, record in results)
    assert float(results[-1][0].schedule["now"]) == pytest.approx(total, rel=1e-12)


# --- slow clients ---


def test_wait_all_waits():
    kept, dropped, seconds = build_stragglers("wait_all", {}).sort(asked(3.0, 9.0, 4.0), 3)
    assert (ids(kept), dropped, seconds) == (["c0", "c1", "c2"], [], 9.0)


def test_a_deadline_drops_who_is_late_and_ends_the_round():
    policy = build_stragglers("deadline", {"seconds": 5.0})
    kept, dropped, seconds = policy.sort(asked(3.0, 9.0, 5.0), 3)
    assert (ids(kept), seconds) == (["c0", "c2"], 5.0)
    ((late, why),) = dropped
    assert late.client_id == "c1"
    assert why == "late: its round takes 9.000 simulated s, the deadline is 5"
    assert policy.sort(asked(3.0, 4.0), 2)[2] == 4.0


@pytest.mark.parametrize(("factor", "size", "contacts"), [(1.3, 10, 13), (1.1, 10, 11), (1.3, 3, 4), (1.0, 7, 7)])
def test_over_selection_rounds_up_and_not_beyond(factor, size, contacts):
    """1.1 * 10 is 11.000000000000002, whose ceiling is 12."""
    assert build_stragglers("over_select", {"factor": factor}).contacts(size) == contacts


def test_over_selection_takes_the_first_and_ends_with_the_last_of_them():
    kept, dropped, seconds = build_stragglers("over_select", {}).sort(asked(5.0, 9.0, 4.0, 5.0), 2)
    assert (ids(kept), seconds) == (["c0", "c2"], 5.0)
    assert [one.client_id for one, _ in dropped] == ["c1", "c3"]
    assert "2 of 4 were faster" in dropped[0][1]


def test_partial_work_cuts_steps_to_what_fits():
    # transfers take 2 s; steps 0.5, 2 and 10 s
    kept, dropped, seconds = build_stragglers("partial_work", {"seconds": 6.0}).sort(asked(4.0, 10.0, 42.0), 3)
    assert [(one.client_id, one.training.steps, one.duration.total) for one in kept] == [
        ("c0", 4, 4.0),
        ("c1", 2, 6.0),
    ]
    ((none, why),) = dropped
    assert none.client_id == "c2"
    assert "too slow for a single step" in why
    assert seconds == 6.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deadline", {"seconds": 0.0}),
        ("deadline", {}),
        ("partial_work", {"seconds": math.inf}),
        ("over_select", {"factor": 0.9}),
    ],
)
def test_policies_that_cannot_work_are_refused(name, options):
    with pytest.raises(ConfigError, match=r"seconds|factor"):
        build_stragglers(name, options)


def test_late_clients_are_not_trained_and_the_others_share_the_weight():
    engine, own = Arithmetic(SIZES), clock()
    ((_, plain),) = go(Arithmetic(SIZES), pace(size=8, own=own), rounds=1)
    times = {c["client"]: c["simulated_seconds"] for c in plain.clients}
    limit = sorted(times.values())[5]
    ((state, record),) = go(engine, pace(size=8, own=own, stragglers=("deadline", {"seconds": limit})), rounds=1)
    late = {c for c, seconds in times.items() if seconds > limit}
    assert len(late) == 2
    assert {one.client_id for one in record.dropped} == late
    assert all("late" in one.reason for one in record.dropped)
    assert not record.failures
    assert {task.client_id for task in engine.tasks} == set(times) - late
    assert record.cohort == sorted(times)
    assert record.simulated_seconds == limit
    alone = go(Arithmetic(SIZES), lambda clients, round: sorted(set(times) - late), rounds=1)
    assert torch.equal(state.adapter["m.A"], alone[0][0].adapter["m.A"])
    # Everybody was sent the adapter, the late ones in vain.
    assert record.bytes_down == plain.bytes_down
    assert record.bytes_up < plain.bytes_up


def test_over_selection_asks_more_and_hears_as_many_as_were_wanted():
    for _, record in go(Arithmetic(SIZES), pace(size=4, own=clock(), stragglers=("over_select", {})), rounds=4):
        assert (len(record.cohort), len(record.clients), len(record.dropped)) == (6, 4, 2)
        assert not record.failures


def test_partial_work_reaches_the_task():
    engine, own = Arithmetic(SIZES), clock(speed=100.0, speed_sigma=1.5)
    go(engine, pace(size=8, own=own, stragglers=("partial_work", {"seconds": 8.0})), rounds=1)
    steps = {task.training.steps for task in engine.tasks}
    assert 4 in steps
    assert min(steps) in (1, 2, 3)


def test_a_round_in_which_everybody_is_late_keeps_the_adapter_and_three_of_them_end_the_run():
    start = ServerState(0, constant(7))
    own = pace(own=clock(), stragglers=("deadline", {"seconds": 1e-3}))
    ((state, record),) = go(Arithmetic(SIZES), own, rounds=1, start=start)
    assert not record.aggregated
    assert torch.equal(state.adapter["m.B"], start.adapter["m.B"])
    with pytest.raises(RoundError, match="late: its round takes"):
        go(Arithmetic(SIZES), own, rounds=9)


def test_every_policy_says_what_it_needs():
    needs = {
        n: build_stragglers(n, {"seconds": 1.0} if n in ("deadline", "partial_work") else {}).needs_clock
        for n in STRAGGLERS
    }
    assert needs == {"wait_all": False, "deadline": True, "over_select": True, "partial_work": True}


# --- availability ---


def trace(tmp_path, content):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    return build_availability("trace", {"file": str(path)})


def test_only_those_who_are_there_are_asked(tmp_path):
    there = trace(tmp_path, {"c0": [[0, 2]], "c1": [[1, 9]], "*": [[5, 9]]})
    cohorts = [r.cohort for _, r in go(Arithmetic(SIZES), pace(size=2, availability=there), rounds=4)]
    # Without a clock the first round is at 0, the second at 1.
    assert cohorts == [["c0"], ["c0", "c1"], ["c1"], ["c1"]]


def test_the_server_waits_for_the_first_who_comes(tmp_path):
    there = trace(tmp_path, {"c3": [[100, 2000]], "*": [[500, 2000]]})
    results = go(Arithmetic(SIZES), pace(size=2, availability=there, own=clock()), rounds=2)
    assert results[0][1].cohort == ["c3"]
    assert results[0][1].simulated_seconds > 100


def test_a_federation_that_everybody_has_left_ends(tmp_path):
    there = trace(tmp_path, {"*": [[0, 0.5]]})
    with pytest.raises(RoundError, match=r"round 2: no client is available after"):
        go(Arithmetic(SIZES), pace(size=2, availability=there, own=clock()), rounds=5)
