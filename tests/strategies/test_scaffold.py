"""SCAFFOLD: control variates are mean gradients, add up, and take the bias of local steps away."""

from dataclasses import replace

import pytest
import torch
from quadratics import Quadratics, distance, federate, joined, random_tensors

from fedit.errors import ConfigError
from fedit.strategies.fedavg import FedAvg
from fedit.strategies.scaffold import Scaffold
from fedit.types import Broadcast, ClientInfo, ClientTask, LocalResult, LocalTraining

SGD = LocalTraining(learning_rate=0.1, num_rounds=1, steps=1, optimizer="sgd")
SIZES = (5, 10, 40, 20)


def control_of(engine, client):
    return joined(engine.store.read(client, 10**6).memory)


def test_heterogeneous_clients_reach_the_optimum_where_averaging_is_biased():
    biased = Quadratics(FedAvg(), SIZES)
    assert distance(biased, federate(biased, 100)[-1]) > 0.1
    exact = Quadratics(Scaffold(), SIZES)
    assert distance(exact, federate(exact, 100)[-1]) < 1e-6


def test_cohorts_of_two_of_four_unequal_clients_reach_the_optimum():
    engine = Quadratics(Scaffold(), SIZES)
    assert distance(engine, federate(engine, 150, per_round=2)[-1]) < 1e-6


def test_clipped_steps_reach_it_too():
    engine = Quadratics(Scaffold(), SIZES)
    assert distance(engine, federate(engine, 130, max_grad_norm=1.0)[-1]) < 1e-6


@pytest.mark.parametrize("per_round", [None, 2, 1])
def test_the_servers_control_variate_is_the_weighted_mean_of_all_clients(per_round):
    engine = Quadratics(Scaffold(), SIZES)
    state = federate(engine, 9, per_round=per_round)[-1]
    seen = [c for c in engine.sizes if engine.store.read(c, 10**6).memory]
    expected = sum(engine.sizes[c] * control_of(engine, c) for c in seen) / sum(SIZES)
    torch.testing.assert_close(joined(state.memory), expected, rtol=0, atol=1e-12)


def test_after_one_step_a_clients_control_variate_is_its_gradient():
    engine = Quadratics(Scaffold(), SIZES)
    federate(engine, 1, steps=1)
    start = joined(random_tensors(99))
    for client in engine.sizes:
        gradient = engine.curvatures[client] @ (start - engine.centres[client])
        torch.testing.assert_close(control_of(engine, client), gradient, rtol=0, atol=1e-12)


def test_control_variates_follow_learning_rates_that_change_within_a_round():
    """c_k' = c_k - c + (x - y) / sum of rates, where the paper writes steps times the rate."""
    sent, c, own, delta = (random_tensors(seed) for seed in range(4))
    task = ClientTask(2, "a", Broadcast(sent, extra=c), SGD, 0)
    rates = (0.1, 0.05, 0.01)
    change, memory = Scaffold().finish(task, LocalResult(delta, 3, {}, rates), own)
    expected = joined(own) - joined(c) - joined(delta) / sum(rates)
    torch.testing.assert_close(joined(memory), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(joined(change), expected - joined(own), rtol=0, atol=1e-13)


def test_gradients_are_corrected_by_both_control_variates():
    sent, c, own, grads = (random_tensors(seed) for seed in range(4))
    expected = joined(grads) - joined(own) + joined(c)
    task = ClientTask(2, "a", Broadcast(sent, extra=c), SGD, 0)
    Scaffold().correct_gradients(task, sent, grads, own)
    torch.testing.assert_close(joined(grads), expected, rtol=0, atol=1e-13)


def test_the_servers_control_variate_travels_with_the_adapter():
    engine = Quadratics(Scaffold())
    (state,) = federate(engine, 1)
    sent = Scaffold().broadcast(state, ClientInfo("a", 1))
    assert set(sent.extra) == set(sent.adapter)
    assert torch.equal(joined(sent.extra), joined(state.memory))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"optimizer": "adamw"}, "it is not SGD"), ({"momentum": 0.9}, "momentum is 0.9")],
)
def test_an_optimizer_that_moves_by_something_else_than_gradients_is_refused(changes, told):
    """A peer reads control variates off AdamW's steps, whose lengths say nothing of the gradients."""
    Scaffold().check(SGD)
    with pytest.raises(ConfigError, match=f"{told}.*set optimizer: sgd and momentum: 0"):
        Scaffold().check(replace(SGD, **changes))
