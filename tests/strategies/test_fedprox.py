"""FedProx: the penalty's gradient, its proximal map, and what both do to drift."""

from dataclasses import replace

import pytest
import torch
from quadratics import Quadratics, federate, joined, random_tensors

from fedit.errors import ConfigError
from fedit.strategies.fedprox import FedProx
from fedit.types import Broadcast, ClientTask, LocalTraining

SGD = LocalTraining(learning_rate=0.1, num_rounds=1, steps=1, optimizer="sgd")
SENT = random_tensors(1)
TASK = ClientTask(1, "a", Broadcast(SENT), SGD, 0)


def drift(strategy, **training):
    engine = Quadratics(strategy, (10,))
    start = strategy.init(random_tensors(99))
    return float((joined(federate(engine, 1, start=start, **training)[-1].adapter) - joined(start.adapter)).norm())


def test_the_gradient_gets_mu_times_the_way_gone():
    params, grads = random_tensors(2), random_tensors(3)
    before = joined(grads)
    FedProx(mu=0.3).correct_gradients(TASK, params, grads, {})
    expected = before + 0.3 * (joined(params) - joined(SENT))
    torch.testing.assert_close(joined(grads), expected, rtol=0, atol=1e-14)


def test_decoupled_it_is_the_proximal_map_after_the_step():
    """The minimiser of |z - y|^2 / (2 rate) + mu / 2 |z - x|^2."""
    params, grads = random_tensors(2), random_tensors(3)
    y = joined(params).clone()
    untouched = joined(grads).clone()
    strategy = FedProx(mu=0.3, decoupled=True)
    strategy.correct_gradients(TASK, params, grads, {})
    assert torch.equal(joined(grads), untouched)
    strategy.correct_parameters(TASK, params, 0.1, {})
    z = joined(params)
    torch.testing.assert_close((z - y) / 0.1 + 0.3 * (z - joined(SENT)), torch.zeros_like(z), rtol=0, atol=1e-13)


def test_decoupled_is_lr_mu_times_the_way_gone_where_these_are_small():
    params = random_tensors(2)
    y = joined(params).clone()
    FedProx(mu=1e-3, decoupled=True).correct_parameters(TASK, params, 1e-4, {})
    torch.testing.assert_close(joined(params) - y, -1e-7 * (y - joined(SENT)), rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("decoupled", [False, True])
def test_clients_drift_less_the_larger_mu_is(decoupled):
    drifts = [drift(FedProx(mu, decoupled), steps=30, learning_rate=0.02) for mu in (0, 0.01, 0.1, 1, 10, 40)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < 0.1 * drifts[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_huge_mu_pins_clients_to_what_they_were_sent(optimizer):
    assert drift(FedProx(1e9, decoupled=True), optimizer=optimizer) < 1e-6
    assert drift(FedProx(0.0), optimizer=optimizer) > 0.1


def test_the_pinned_point_is_the_minimum_of_the_penalised_objective():
    engine = Quadratics(FedProx(2.0), (10,))
    start = joined(random_tensors(99))
    after = joined(federate(engine, 1, steps=400, learning_rate=0.1)[-1].adapter)
    gradient = engine.curvatures["a"] @ (after - engine.centres["a"]) + 2.0 * (after - start)
    assert float(gradient.norm()) < 1e-9


def test_sgd_that_would_diverge_is_refused():
    with pytest.raises(ConfigError, match=r"'mu' of strategy 'fedprox' is 30.*decoupled: true"):
        FedProx(mu=30.0).check(SGD)
    FedProx(mu=30.0, decoupled=True).check(SGD)
    FedProx(mu=30.0).check(replace(SGD, optimizer="adamw"))
