"""All general federated optimisers: each learns, equal ones are equal, and an interruption leaves no mark."""

import pytest
import torch
from quadratics import SHAPES, Quadratics, distance, federate, joined, random_tensors

from fedit import checkpoint
from fedit.errors import ConfigError, UnknownName
from fedit.store import ClientStore
from fedit.strategies import STRATEGIES, build_strategy
from fedit.types import ClientUpdate, LocalTraining
from fedit.updates import Updates

# Server rates in the size of these problems' updates, not of a language model's.
LEARNING = {
    "fedavg": {},
    "fedavgm": {"beta": 0.5},
    "fedadagrad": {"server_lr": 1.0, "tau": "auto"},
    "fedadam": {"server_lr": 0.1, "beta2": 0.9, "tau": 0.01},
    "fedyogi": {"server_lr": 0.1, "beta2": 0.9, "tau": 0.01},
    "fedprox": {"mu": 0.1},
    "scaffold": {},
    "fednova": {},
    "feddyn": {"alpha": 1.0},
}
SGD = LocalTraining(learning_rate=0.1, num_rounds=1000, steps=1, optimizer="sgd")


def step(strategy, deltas, weights=(1.0, 1.0, 1.0), state=None):
    state = state or strategy.init(random_tensors(0))
    sent = [ClientUpdate(c, 1, int(w), w, d) for c, d, w in zip("abc", deltas, weights, strict=False)]
    return strategy.aggregate(state, Updates(sent, state.adapter))


def same(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", LEARNING)
def test_every_algorithm_of_the_table_converges(name):
    """A peer's FedAdagrad could never run: clients and server spelt its name differently."""
    engine = Quadratics(build_strategy(name, LEARNING[name]), alike=True)
    after = federate(engine, 120)[-1]
    assert distance(engine, after) < 1e-2 * distance(engine, engine.strategy.init(random_tensors(99)))


@pytest.mark.parametrize("name", LEARNING)
def test_a_misspelt_algorithm_fails_when_it_is_named(name):
    """And does not quietly become federated averaging."""
    wrong = name[:-2] + name[-1]
    with pytest.raises(UnknownName, match=f"unknown strategy '{wrong}'; did you mean"):
        build_strategy(wrong, {})
    assert name in STRATEGIES


@pytest.mark.parametrize("name", LEARNING)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(name, tmp_path):
    """Momentum, moments and control variates of server and clients come back from the disk."""
    strategy = build_strategy(name, LEARNING[name])
    whole = federate(Quadratics(strategy), 6, per_round=3)
    first = federate(Quadratics(strategy, store=ClientStore(tmp_path / "clients")), 3, per_round=3)
    checkpoint.save(tmp_path / "server", first[-1])
    resumed = Quadratics(strategy, store=ClientStore(tmp_path / "clients"))
    later = federate(resumed, 6, per_round=3, start=checkpoint.load(tmp_path / "server", 3))
    assert same(later[-1].adapter, whole[-1].adapter)
    assert same(later[-1].memory, whole[-1].memory)


@pytest.mark.parametrize("name", LEARNING)
def test_a_round_that_is_done_again_gives_the_same_bits(name, tmp_path):
    """A run killed between a client's state and the server's goes back: the client's newest state is too new."""
    strategy = build_strategy(name, LEARNING[name])
    engine = Quadratics(strategy, store=ClientStore(tmp_path))
    first = federate(engine, 3)
    again = federate(engine, 3, start=first[1])
    assert same(again[-1].adapter, first[-1].adapter)


@pytest.mark.parametrize("name", LEARNING)
def test_clients_that_come_in_another_order_do_not_change_each_other(name):
    strategy = build_strategy(name, LEARNING[name])

    class Backwards(Quadratics):
        def run(self, tasks):
            done = {task.client_id: self.train(task) for task in reversed(tasks)}
            return (done[task.client_id] for task in tasks)

    assert same(federate(Backwards(strategy), 4)[-1].adapter, federate(Quadratics(strategy), 4)[-1].adapter)


@pytest.mark.parametrize("name", sorted(set(LEARNING) - {"fednova"}))
def test_a_cohort_that_shows_its_mean_alone_is_enough(name):
    strategy = build_strategy(name, LEARNING[name])
    state, sent = strategy.init(random_tensors(0)), [ClientUpdate("a", 1, 1, 1.0, random_tensors(1))]
    hidden = strategy.aggregate(state, Updates(sent, state.adapter, sealed=True))
    assert same(hidden.adapter, strategy.aggregate(state, Updates(sent, state.adapter)).adapter)


@pytest.mark.parametrize("name", LEARNING)
def test_the_server_state_that_goes_in_is_not_edited(name):
    strategy = build_strategy(name, LEARNING[name])
    state = step(strategy, [random_tensors(1)])
    before = {part: {n: t.clone() for n, t in getattr(state, part).items()} for part in ("adapter", "memory")}
    step(strategy, [random_tensors(2), random_tensors(3)], state=state)
    assert same(state.adapter, before["adapter"])
    assert same(state.memory, before["memory"])


@pytest.mark.parametrize("name", LEARNING)
def test_float32_adapters_keep_float32_and_their_shapes(name):
    strategy = build_strategy(name, LEARNING[name])
    state = strategy.init(random_tensors(0, dtype=torch.float32))
    for seed in (1, 2):
        state = step(strategy, [random_tensors(seed, 1e-3, torch.float32)], state=state)
    assert {n: tuple(t.shape) for n, t in state.adapter.items()} == SHAPES
    assert all(t.dtype == torch.float32 for t in [*state.adapter.values(), *state.memory.values()])


# --- what equals federated averaging ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedit", {}),
        ("fedavgm", {"beta": 0.0}),
        ("fedprox", {"mu": 0.0}),
        ("fedprox", {"mu": 0.0, "decoupled": True}),
    ],
)
def test_what_is_federated_averaging_at_a_setting_is_so_bit_for_bit(name, options):
    plain = federate(Quadratics(build_strategy("fedavg", {}), (5, 10, 40)), 5)[-1]
    found = federate(Quadratics(build_strategy(name, options), (5, 10, 40)), 5)[-1]
    assert same(found.adapter, plain.adapter)


@pytest.mark.parametrize("name", ["scaffold", "fedavgm"])
def test_the_first_round_without_memory_is_federated_averaging(name):
    plain = federate(Quadratics(build_strategy("fedavg", {}), (5, 10, 40)), 2)
    found = federate(Quadratics(build_strategy(name, {}), (5, 10, 40)), 2)
    assert same(found[0].adapter, plain[0].adapter)
    assert not same(found[1].adapter, plain[1].adapter)


def test_one_step_of_all_clients_is_the_centralised_step():
    """Weighted by examples, the mean of the clients' steps is the step on everyone's rows."""
    engine = Quadratics(build_strategy("fedavg", {}), (5, 10, 40))
    start = joined(random_tensors(99))
    after = federate(engine, 1, steps=1, learning_rate=0.2)[-1]
    total = sum(engine.sizes.values())
    gradient = sum(n / total * engine.curvatures[c] @ (start - engine.centres[c]) for c, n in engine.sizes.items())
    torch.testing.assert_close(joined(after.adapter), start - 0.2 * gradient, rtol=0, atol=1e-12)


# --- momentum ---


def test_momentum_adds_up_earlier_means():
    strategy = build_strategy("fedavgm", {"beta": 0.9, "server_lr": 0.5})
    state, start = strategy.init(random_tensors(0)), joined(random_tensors(0))
    means = []
    for round in range(3):
        deltas = [random_tensors(10 * round + k + 1) for k in range(3)]
        means.append((joined(deltas[0]) + 2 * joined(deltas[1]) + 5 * joined(deltas[2])) / 8)
        state = step(strategy, deltas, (1.0, 2.0, 5.0), state)
    expected = start
    for round in range(3):
        expected = expected + 0.5 * sum(0.9 ** (round - s) * means[s] for s in range(round + 1))
    torch.testing.assert_close(joined(state.adapter), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavgm", {"beta": 1.0}),
        ("fedavgm", {"server_lr": 0.0}),
        ("fedadagrad", {"tau": 0.0}),
        ("fedadam", {"beta1": 1.0}),
        ("fedadam", {"beta2": -0.1}),
        ("fedyogi", {"server_lr": -1.0}),
        ("fedprox", {"mu": -0.1}),
        ("scaffold", {"server_lr": 0.0}),
        ("feddyn", {"alpha": 0.0}),
        ("feddyn", {"cap": -1.0}),
        ("feddyn", {"alpha": float("nan")}),
    ],
)
def test_a_value_that_cannot_work_is_refused(name, options):
    (option,) = options
    with pytest.raises(ConfigError, match=f"option '{option}' of strategy '{name}'.*expected"):
        build_strategy(name, options).check(SGD)
