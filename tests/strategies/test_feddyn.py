"""FedDyn: the tilt that clients remember adds up on the server and takes the bias of local steps away."""

import pytest
import torch
from quadratics import Quadratics, distance, federate, joined, random_tensors

from fedit import tensors
from fedit.strategies.fedavg import FedAvg
from fedit.strategies.feddyn import FedDyn
from fedit.types import Broadcast, ClientTask, ClientUpdate, LocalResult, LocalTraining
from fedit.updates import Updates

SGD = LocalTraining(learning_rate=0.1, num_rounds=1, steps=1, optimizer="sgd")
SIZES = (5, 10, 40, 20)


def test_heterogeneous_clients_reach_the_optimum_where_averaging_is_biased():
    biased = Quadratics(FedAvg(), SIZES)
    assert distance(biased, federate(biased, 80)[-1]) > 0.1
    exact = Quadratics(FedDyn(alpha=1.0), SIZES)
    assert distance(exact, federate(exact, 80)[-1]) < 1e-6


def test_cohorts_of_two_of_four_unequal_clients_reach_the_optimum():
    engine = Quadratics(FedDyn(alpha=1.0), SIZES)
    assert distance(engine, federate(engine, 150, per_round=2)[-1]) < 1e-6


@pytest.mark.parametrize("per_round", [None, 2, 1])
def test_the_servers_h_is_the_weighted_mean_of_all_clients(per_round):
    engine = Quadratics(FedDyn(alpha=0.7), SIZES)
    state = federate(engine, 9, per_round=per_round)[-1]
    kept = {c: engine.store.read(c, 10**6).memory for c in engine.sizes}
    expected = sum(engine.sizes[c] * joined(h) for c, h in kept.items() if h) / sum(SIZES)
    torch.testing.assert_close(joined(state.memory), expected, rtol=0, atol=1e-12)


def test_a_client_that_trains_to_its_end_remembers_its_gradient_there():
    engine = Quadratics(FedDyn(alpha=1.0), (10,))
    state = federate(engine, 1, steps=500, learning_rate=0.1)[-1]
    h = joined(engine.store.read("a", 2).memory)
    ended = joined(random_tensors(99)) - h / 1.0  # h = -alpha (y - x)
    torch.testing.assert_close(h, engine.curvatures["a"] @ (ended - engine.centres["a"]), rtol=0, atol=1e-9)
    # one client: the mean is y, and h / alpha goes off it
    torch.testing.assert_close(joined(state.adapter), ended - h / 1.0, rtol=0, atol=1e-12)


def test_gradients_are_tilted_and_held():
    sent, params, grads, h = (random_tensors(seed) for seed in range(4))
    expected = joined(grads) - joined(h) + 0.3 * (joined(params) - joined(sent))
    FedDyn(alpha=0.3).correct_gradients(ClientTask(1, "a", Broadcast(sent), SGD, 0), params, grads, h)
    torch.testing.assert_close(joined(grads), expected, rtol=0, atol=1e-13)


def test_the_first_round_in_closed_form():
    """h = -alpha share mean, so the server goes (1 + share) times the mean."""
    start, delta = random_tensors(0), random_tensors(1)
    updates = Updates([ClientUpdate("a", 1, 3, 3.0, delta)], start, weights={"a": 3, "b": 9})
    after = FedDyn(alpha=0.2).aggregate(FedDyn().init(start), updates)
    expected = joined(start) + 1.25 * joined(delta)
    torch.testing.assert_close(joined(after.adapter), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(joined(after.memory), -0.2 * 0.25 * joined(delta), rtol=0, atol=1e-14)


def test_a_cap_bounds_every_h_and_keeps_its_direction():
    start, delta = random_tensors(0), random_tensors(1, 50.0)
    task, result = ClientTask(1, "a", Broadcast(start), SGD, 0), LocalResult(delta, 1, {}, (0.1,))
    _, free = FedDyn(alpha=1.0).finish(task, result, {})
    _, capped = FedDyn(alpha=1.0, cap=2.0).finish(task, result, {})
    assert tensors.norm(free) > 100
    assert tensors.norm(capped) == pytest.approx(2.0)
    torch.testing.assert_close(joined(capped), joined(free) * 2.0 / tensors.norm(free), rtol=1e-12, atol=0)
    updates = Updates([ClientUpdate("a", 1, 1, 1.0, delta)], start)
    after = FedDyn(alpha=1.0, cap=2.0).aggregate(FedDyn().init(start), updates)
    assert tensors.norm(after.memory) == pytest.approx(2.0)
    _, roomy = FedDyn(alpha=1.0, cap=1e6).finish(task, result, {})
    assert torch.equal(joined(roomy), joined(free))
