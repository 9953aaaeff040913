"""The loop: who is asked, what is counted, what happens when clients fail. Clients here are arithmetic."""

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch

from fedit import cohort
from fedit.errors import RoundError
from fedit.rounds import run_rounds
from fedit.strategies.base import Strategy
from fedit.strategies.fedit import FedIT
from fedit.tensors import Flat
from fedit.types import ClientFailure, ClientInfo, ClientUpdate, LocalTraining, ServerState

SHAPES = {"m.A": (2, 3), "m.B": (4, 2)}


def zeros():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def constant(value):
    return {name: torch.full(shape, float(value)) for name, shape in SHAPES.items()}


@dataclass
class Arithmetic:
    """An engine whose client number k moves every entry by k, unless ``spoil`` says otherwise."""

    count: int = 4
    spoil: dict = None  # (round, client) -> result maker

    def __post_init__(self):
        self.tasks = []

    def clients(self):
        return [ClientInfo(f"c{k}", 10 * (k + 1)) for k in range(self.count)]

    def run(self, tasks):
        for task in tasks:
            self.tasks.append(task)
            number = int(task.client_id[1:])
            update = ClientUpdate(
                task.client_id,
                task.round,
                10 * (number + 1),
                float(10 * (number + 1)),
                constant(number),
                metrics={"loss": float(number), "tokens": 100.0},
            )
            spoil = (self.spoil or {}).get((task.round, task.client_id))
            yield spoil(update) if spoil else update


def go(engine, rounds=2, start=None, per_round=1.0, strategy=None, **options):
    return list(
        run_rounds(
            start or ServerState(0, zeros()),
            engine,
            strategy or FedIT(),
            rounds=rounds,
            cohort=lambda clients, round: cohort.uniform(clients, per_round, seed=0, round=round),
            training=lambda round: LocalTraining(learning_rate=0.1 * round, num_rounds=rounds, steps=1),
            seed=0,
            **options,
        )
    )


def fail(update):
    return ClientFailure(update.client_id, update.round, "the machine caught fire")


def poison(update):
    return replace(update, delta=constant(float("nan")))


def test_the_mean_is_applied_every_round():
    results = go(Arithmetic(), rounds=3)
    # weights 10, 20, 30, 40 of moves 0, 1, 2, 3: a mean of 2
    assert [state.round for state, _ in results] == [1, 2, 3]
    assert [float(state.adapter["m.A"][0, 0]) for state, _ in results] == [2, 4, 6]


def test_a_record_adds_up():
    ((_, record),) = go(Arithmetic(), rounds=1)
    size = 4 * (2 * 3 + 4 * 2)
    assert record.cohort == ["c0", "c1", "c2", "c3"]
    assert (record.bytes_up, record.bytes_down, record.tokens) == (4 * size, 4 * size, 400)
    assert record.loss == pytest.approx((0 * 10 + 1 * 20 + 2 * 30 + 3 * 40) / 100)
    assert record.aggregated
    assert record.seconds > 0
    assert [c["client"] for c in record.clients] == ["c0", "c1", "c2", "c3"]
    assert [c["weight"] for c in record.clients] == [10, 20, 30, 40]
    assert record.clients[3]["update_norm"] == pytest.approx(3 * 14**0.5)
    assert {"update_norm_mean", "pairwise_cosine", "diversity", "aggregation_bias"} <= set(record.diagnostics)


def test_tasks_carry_the_round_its_training_and_a_seed_of_their_own():
    engine = Arithmetic()
    go(engine, rounds=2)
    assert [task.training.learning_rate for task in engine.tasks] == [0.1] * 4 + [0.2] * 4
    assert len({task.seed for task in engine.tasks}) == 8
    again = Arithmetic()
    go(again, rounds=2)
    assert [task.seed for task in again.tasks] == [task.seed for task in engine.tasks]


def test_starting_later_gives_the_same_bits():
    whole = go(Arithmetic(), rounds=5, per_round=0.5)
    later = go(Arithmetic(), rounds=5, per_round=0.5, start=whole[2][0])
    assert [record.cohort for _, record in later] == [record.cohort for _, record in whole[3:]]
    assert torch.equal(later[-1][0].adapter["m.B"], whole[-1][0].adapter["m.B"])


def test_a_finished_federation_does_nothing():
    engine = Arithmetic()
    assert go(engine, rounds=3, start=ServerState(3, zeros())) == []
    assert engine.tasks == []


@pytest.mark.parametrize("spoil", [fail, poison])
def test_a_client_that_fails_is_reported_and_the_round_goes_on(spoil):
    ((state, record), (_, after)) = go(Arithmetic(spoil={(1, "c3"): spoil}))
    assert [failure.client_id for failure in record.failures] == ["c3"]
    assert record.aggregated
    # 0, 1, 2 weigh 10, 20, 30
    assert float(state.adapter["m.A"][0, 0]) == pytest.approx((20 + 60) / 60)
    assert record.tokens == 300
    assert after.failures == []


def everyone(round, spoil=fail, but=()):
    return {(round, f"c{k}"): spoil for k in range(4) if k not in but}


def test_a_round_without_updates_keeps_the_adapter():
    start = ServerState(0, constant(7))
    results = go(Arithmetic(spoil=everyone(1)), start=start)
    state, record = results[0]
    assert (state.round, record.aggregated, record.loss) == (1, False, None)
    assert torch.equal(state.adapter["m.A"], start.adapter["m.A"])
    assert results[1][1].aggregated


def test_a_round_with_too_few_updates_keeps_the_adapter():
    ((state, record), _) = go(Arithmetic(spoil=everyone(1, but=(2, 3))), min_clients=3)
    assert not record.aggregated
    assert len(record.clients) == 2
    assert torch.equal(state.adapter["m.A"], zeros()["m.A"])
    ((state, record), _) = go(Arithmetic(spoil=everyone(1, but=(2, 3))), min_clients=2)
    assert record.aggregated


def test_three_empty_rounds_in_a_row_end_the_run_and_say_why():
    engine = Arithmetic(spoil={**everyone(2), **everyone(3), **everyone(4)})
    seen = []
    rounds = run_rounds(
        ServerState(0, zeros()),
        engine,
        FedIT(),
        rounds=9,
        cohort=lambda clients, round: [c.client_id for c in clients],
        training=lambda round: LocalTraining(learning_rate=0.1, num_rounds=9, steps=1),
        seed=0,
    )

    def follow():
        for state, _ in rounds:
            seen.append(state.round)

    with pytest.raises(RoundError, match=r"round 4.*of 4 clients.*c0: the machine caught fire") as info:
        follow()
    assert seen == [1, 2, 3, 4]
    assert "min_clients=1" in str(info.value)
    assert "3th" not in str(info.value)


def test_empty_rounds_apart_from_each_other_do_not_end_the_run():
    engine = Arithmetic(spoil={**everyone(1), **everyone(2), **everyone(4), **everyone(5)})
    assert len(go(engine, rounds=6)) == 6


def test_clients_without_weight_leave_the_adapter():
    engine = Arithmetic(spoil=everyone(1, lambda update: replace(update, weight=0.0)))
    (state, record), _ = go(engine)
    assert not record.aggregated
    assert torch.equal(state.adapter["m.A"], zeros()["m.A"])


@pytest.mark.parametrize("count", [3, 40])
def test_updates_do_not_outlive_their_turn(count):
    """However large the cohort, one client's update is there at a time, and the one before it at most."""
    seen, alive = [], []

    class Watched(Arithmetic):
        def run(self, tasks):
            for update in super().run(tasks):
                seen.append(weakref.ref(update.delta["m.A"]))
                alive.append(sum(ref() is not None for ref in seen))
                yield update
                del update

    go(Watched(count=count), rounds=2)
    assert len(alive) == 2 * count
    assert max(alive) <= 2


def test_a_rounds_sums_end_with_it():
    """They are as large as adapters; were they a circle, they would stay until Python looks for circles."""
    refs = []

    class Noting(FedIT):
        def aggregate(self, server, updates):
            refs.append(weakref.ref(updates))
            return super().aggregate(server, updates)

    gc.collect()
    gc.disable()
    try:
        go(Arithmetic(), rounds=3, strategy=Noting())
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


def test_adapters_stay_flat_from_round_to_round():
    engine = Arithmetic()
    assert all(isinstance(state.adapter, Flat) for state, _ in go(engine, rounds=2))
    assert all(isinstance(task.broadcast.adapter, Flat) for task in engine.tasks)


def test_strategies_learn_which_share_of_the_federation_delivered():
    """By examples, or however clients weigh, and only of those whose update is usable."""
    seen = []

    @dataclass(frozen=True)
    class Asks(Strategy):
        def aggregate(self, server, updates):
            after = super().aggregate(server, updates)
            seen.append(updates.participation)
            return after

    for options, expected in (({}, [0.9, 1.0]), ({"weigh": lambda client: 1.0}, [0.75, 1.0])):
        go(Arithmetic(spoil={(1, "c0"): fail}), strategy=Asks(), **options)
        assert seen == expected
        seen.clear()
    go(Arithmetic(), rounds=1, strategy=Asks(), per_round=0.5)
    assert 0 < seen[0] < 1
