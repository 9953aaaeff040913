"""FedAdagrad, FedAdam and FedYogi against closed forms in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import SIZE, joined, named, random_tensors

from fedit.errors import ConfigError
from fedit.strategies import build_strategy
from fedit.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedit.types import ClientUpdate, LocalTraining
from fedit.updates import Updates

ALL = [FedAdagrad, FedAdam, FedYogi]
LONG = LocalTraining(learning_rate=0.1, num_rounds=1000, steps=1)


def step(strategy, state, delta):
    return strategy.aggregate(state, Updates([ClientUpdate("a", 1, 7, 7.0, delta)], state.adapter))


def moment(state, kind):
    return joined({name.removeprefix(kind): t for name, t in state.memory.items() if name.startswith(kind)})


def walk(strategy, deltas):
    """Return the states after each of ``deltas``."""
    states = [strategy.init(random_tensors(0))]
    for delta in deltas:
        states.append(step(strategy, states[-1], delta))
    return states[1:]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@given(st.floats(0, 0.99), st.floats(0, 0.999), st.floats(1e-4, 10), st.floats(1e-4, 1), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_first_round_of_fedadam_and_fedyogi(beta1, beta2, tau, rate, seed):
    start, delta = joined(random_tensors(0)), joined(random_tensors(seed))
    for strategy in (
        FedAdam(rate, beta1, beta2, tau),
        FedYogi(rate, beta1, beta2, tau),
    ):
        (state,) = walk(strategy, [named(delta)])
        v = beta2 * tau**2 + (1 - beta2) * delta**2
        if isinstance(strategy, FedYogi):
            v = tau**2 - (1 - beta2) * delta**2 * torch.sign(tau**2 - delta**2)
        close(joined(state.adapter), start + rate * (1 - beta1) * delta / (v.sqrt() + tau))


def test_the_first_two_rounds_of_fedadagrad():
    start, one, two = (joined(random_tensors(seed)) for seed in range(3))
    state = walk(FedAdagrad(0.3, 0.0, 0.01), [named(one), named(two)])[-1]
    first = start + 0.3 * one / ((0.01**2 + one**2).sqrt() + 0.01)
    close(joined(state.adapter), first + 0.3 * two / ((0.01**2 + one**2 + two**2).sqrt() + 0.01))


def test_fedadam_with_bias_correction_is_adam():
    """torch.optim.Adam on the negated means, whose eps is tau."""
    strategy = FedAdam(0.05, 0.9, 0.99, 1e-3, bias_correction=True)
    deltas = [random_tensors(seed + 1, 0.1) for seed in range(6)]
    parameter = torch.nn.Parameter(joined(random_tensors(0)))
    adam = torch.optim.Adam([parameter], lr=0.05, betas=(0.9, 0.99), eps=1e-3)
    for delta, state in zip(deltas, walk(strategy, deltas), strict=True):
        parameter.grad = -joined(delta)
        adam.step()
        close(joined(state.adapter), parameter.detach())


def test_the_second_moment_is_of_the_mean_update_and_not_of_the_first_moment():
    """A peer squares m in place of the update, which shrinks v by (1 - beta1)^2 at first."""
    delta = joined(random_tensors(5))
    (state,) = walk(FedAdam(1.0, 0.9, 0.99, 0.1), [named(delta)])
    close(moment(state, "v/"), 0.99 * 0.1**2 + 0.01 * delta**2)
    close(moment(state, "m/"), 0.1 * delta)


def test_the_second_moment_starts_at_tau_squared_and_only_with_bias_correction_at_zero():
    """flwr starts it at zero and corrects one round late; the paper starts it at tau squared, uncorrected."""
    delta = joined(random_tensors(5))
    for strategy, start in ((FedAdam(tau=0.2), 0.04), (FedAdam(tau=0.2, bias_correction=True), 0.0)):
        (state,) = walk(strategy, [named(delta)])
        close(moment(state, "v/"), 0.99 * start + 0.01 * delta**2)


def test_with_bias_correction_the_first_step_is_a_whole_one():
    """Corrected a round late, as flwr does, it would be sqrt(1 + beta2) / (1 + beta1) of it, about 0.74."""
    delta = random_tensors(5)
    (state,) = walk(FedAdam(0.1, 0.9, 0.99, 1e-12, bias_correction=True), [delta])
    moved = joined(state.adapter) - joined(random_tensors(0))
    torch.testing.assert_close(moved, 0.1 * torch.sign(joined(delta)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("rounds", [1, 4])
def test_where_tau_is_huge_fedadam_is_averaging_up_to_what_v_started_at(rounds):
    """At server_lr = tau: in full where v starts at 0, and by 1 / (1 + sqrt(beta2^t)) where it starts at tau^2."""
    tau, deltas = 1e9, [random_tensors(seed + 1) for seed in range(rounds)]
    start = joined(random_tensors(0))
    corrected = walk(FedAdam(tau, 0.0, 0.9, tau, bias_correction=True), deltas)[-1]
    plain = walk(FedAdam(tau, 0.0, 0.9, tau), deltas)[-1]
    moved = sum(joined(delta) for delta in deltas)
    slowed = sum(joined(d) / (1 + math.sqrt(0.9 ** (t + 1))) for t, d in enumerate(deltas))
    torch.testing.assert_close(joined(corrected.adapter), start + moved, rtol=0, atol=1e-7)
    torch.testing.assert_close(joined(plain.adapter), start + slowed, rtol=0, atol=1e-7)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=8), st.integers(0, 10**6))
@settings(max_examples=30)
def test_yogis_second_moment_is_never_negative_and_moves_by_no_more_than_the_new_square(sizes, seed):
    deltas = [random_tensors(seed + k, size) for k, size in enumerate(sizes)]
    before = torch.full((SIZE,), 1e-3**2, dtype=torch.float64)
    for delta, state in zip(deltas, walk(FedYogi(), deltas), strict=True):
        v = moment(state, "v/")
        assert (v >= 0).all()
        bound = (1 - FedYogi().beta2) * joined(delta) ** 2
        assert ((v - before).abs() <= bound + 1e-12 * (v.abs() + before.abs())).all()
        before = v


@pytest.mark.parametrize("bias_correction", [False, True])
def test_without_news_adam_forgets_and_adagrad_does_not(bias_correction):
    zero, one = named(torch.zeros(SIZE, dtype=torch.float64)), random_tensors(3)
    adam = walk(FedAdam(beta1=0.0, bias_correction=bias_correction), [one, zero])
    adagrad = walk(FedAdagrad(), [one, zero])
    for states in (adam, adagrad):
        assert torch.equal(joined(states[1].adapter), joined(states[0].adapter))
    close(moment(adam[1], "v/"), 0.99 * moment(adam[0], "v/"))
    assert torch.equal(moment(adagrad[1], "v/"), moment(adagrad[0], "v/"))


@pytest.mark.parametrize("build", ALL)
def test_automatic_tau_is_the_size_of_the_first_mean_update(build):
    one, two = random_tensors(3, 0.02), random_tensors(4, 5.0)
    size = float(joined(one).square().mean().sqrt())
    automatic, given_ = (walk(build(tau=tau), [one, two])[-1] for tau in ("auto", size))
    close(joined(automatic.adapter), joined(given_.adapter))


@pytest.mark.parametrize("build", ALL)
def test_automatic_tau_waits_for_a_round_that_moves(build):
    zero, one = named(torch.zeros(SIZE, dtype=torch.float64)), random_tensors(3)
    waited, direct = walk(build(tau="auto"), [zero, one]), walk(build(tau="auto"), [one])
    assert torch.equal(joined(waited[0].adapter), joined(random_tensors(0)))
    assert torch.equal(joined(waited[1].adapter), joined(direct[0].adapter))


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_tau_is_a_number_or_auto(name):
    assert build_strategy(name, {"tau": "auto"}).tau == "auto"
    assert build_strategy(name, {"tau": 1}).tau == 1
    for wrong in ("automatic", True, None):
        with pytest.raises(ConfigError, match=f"option 'tau' of strategy '{name}'.*expected float or 'auto'"):
            build_strategy(name, {"tau": wrong})


@pytest.mark.parametrize("build", [FedAdam, FedYogi])
def test_a_run_too_short_for_the_second_moment_is_warned_of(build, caplog):
    short = LocalTraining(learning_rate=0.1, num_rounds=20, steps=1)
    build().check(LONG)
    build(bias_correction=True).check(short)
    build(beta2=0.5).check(short)
    assert not caplog.records
    build().check(short)
    assert "about 500 rounds" in caplog.text
    assert "run has 20" in caplog.text
