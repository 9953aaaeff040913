"""FedNova: updates are averaged per step."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import Quadratics, distance, federate, joined, random_tensors

from fedit.errors import ConfigError, NoUpdates, SealedUpdates
from fedit.strategies.fedavg import FedAvg
from fedit.strategies.fednova import NORMALISER, FedNova
from fedit.types import Broadcast, ClientTask, ClientUpdate, LocalResult, LocalTraining
from fedit.updates import Updates

SGD = LocalTraining(learning_rate=0.1, num_rounds=1, steps=1, optimizer="sgd")


def normaliser(how, rates):
    task = ClientTask(1, "a", Broadcast(random_tensors(0)), how, 0)
    extra, memory = FedNova().finish(task, LocalResult(random_tensors(1), len(rates), {}, rates), {})
    assert memory == {}
    return float(extra[NORMALISER])


def sent(client, seed, weight, steps):
    extra = {NORMALISER: torch.tensor([steps], dtype=torch.float64)}
    return ClientUpdate(client, 1, int(weight), weight, random_tensors(seed), extra)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.5, 50)), min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_server_moves_by_the_mean_direction_times_the_mean_number_of_steps(clients, seed):
    start, weights, steps = random_tensors(seed), [n for n, _ in clients], [a for _, a in clients]
    updates = [sent(str(k), seed + k + 1, float(n), a) for k, (n, a) in enumerate(clients)]
    after = FedNova().aggregate(FedNova().init(start), Updates(updates, start))
    p = [n / sum(weights) for n in weights]
    direction = sum(p[k] * joined(random_tensors(seed + k + 1)) / steps[k] for k in range(len(p)))
    expected = joined(start) + sum(p[k] * steps[k] for k in range(len(p))) * direction
    torch.testing.assert_close(joined(after.adapter), expected, rtol=1e-12, atol=1e-12)


def test_clients_of_equal_steps_are_averaged():
    nova, plain = (federate(Quadratics(rule, (5, 10, 40)), 5)[-1] for rule in (FedNova(), FedAvg()))
    torch.testing.assert_close(joined(nova.adapter), joined(plain.adapter), rtol=0, atol=1e-12)


def test_unequal_steps_no_longer_move_the_optimum():
    steps = {"a": 1, "b": 4, "c": 8, "d": 16}
    nova, plain = (Quadratics(rule, steps=steps) for rule in (FedNova(), FedAvg()))
    ends = [distance(engine, federate(engine, 100, learning_rate=0.01)[-1]) for engine in (nova, plain)]
    assert ends[0] < 0.2 * ends[1]


def test_sgd_counts_its_steps_and_adamw_too():
    for how in (SGD, replace(SGD, optimizer="adamw", momentum=0.9)):
        assert normaliser(how, (0.1,) * 7) == pytest.approx(0.7)
        assert normaliser(how, (0.1, 0.05)) == pytest.approx(0.15)


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_momentum_counts_what_a_gradient_moves_later(rho, steps):
    closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert normaliser(replace(SGD, momentum=rho), (0.1,) * steps) == pytest.approx(0.1 * closed)


def test_the_normaliser_is_how_far_a_constant_gradient_moves_a_client():
    rates, rho = (0.1, 0.05, 0.02, 0.02), 0.9
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=rho)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = -torch.ones_like(parameter)
        optimizer.step()
    assert normaliser(replace(SGD, momentum=rho), rates) == pytest.approx(float(parameter.detach()))


def test_a_client_that_claims_no_steps_is_left_out():
    start = random_tensors(0)
    updates = Updates([sent("bad", 9, 100.0, 0.0), sent("worse", 8, 100.0, -1.0), sent("a", 1, 2.0, 3.0)], start)
    after = FedNova().aggregate(FedNova().init(start), updates)
    assert [failure.client_id for failure in updates.failures] == ["bad", "worse"]
    torch.testing.assert_close(
        joined(after.adapter), joined(start) + joined(random_tensors(1)), rtol=0, atol=1e-12
    )


def test_nobody_delivering_is_told():
    start = random_tensors(0)
    with pytest.raises(NoUpdates):
        FedNova().aggregate(FedNova().init(start), Updates([], start))


def test_a_cohort_that_shows_its_mean_alone_is_refused():
    start = random_tensors(0)
    with pytest.raises(SealedUpdates):
        FedNova().aggregate(FedNova().init(start), Updates([sent("a", 1, 1.0, 1.0)], start, sealed=True))


def test_momentum_that_survives_rounds_is_refused():
    with pytest.raises(ConfigError, match="client_optimizer: reset"):
        FedNova().check(replace(SGD, momentum=0.9, keep_optimizer=True))
    FedNova().check(replace(SGD, momentum=0.9))
    FedNova().check(replace(SGD, optimizer="adamw", momentum=0.9, keep_optimizer=True))
