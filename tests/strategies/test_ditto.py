"""Ditto: what its pull does at both ends, against federated averaging and clients alone."""

from dataclasses import replace

import pytest
import torch
from personal import CLIENTS, HOW, PLAIN, assert_same, begin, differ, federate, info

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.strategies.ditto import Ditto
from fedit.types import ClientState, own_adapter


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama")


def personal(model, strategy, **options):
    server, kept, _ = federate(model, strategy, **options)
    return server, {client: strategy.personal(server, info(client), kept[client]).adapter for client in CLIENTS}


def test_the_global_adapter_is_that_of_federated_averaging_bit_for_bit(model):
    for lam in (0.0, 0.3):
        ditto, _, _ = federate(model, Ditto(lam=lam))
        plain, _, _ = federate(model, Strategy())
        assert_same(ditto.adapter, plain.adapter)


class Alone(Strategy):
    """Nothing is shared: everybody goes on with its own adapter."""

    def shares(self, name):
        return False

    def aggregate(self, server, updates):
        assert list(updates)
        return server


def test_without_a_pull_everybody_trains_alone(model):
    """Its own rows and steps, from the adapter that the run began with."""
    _, own = personal(model, Ditto(lam=0.0))
    _, kept, _ = federate(model, Alone())
    for client in CLIENTS:
        assert_same(own[client], kept[client].private)


def test_the_pull_is_the_gradient_of_half_the_squared_distance(model):
    """One step of plain SGD: v - η (g + λ (v - θ)), with g the gradient at v."""
    how = replace(PLAIN, steps=1)
    lam = 0.7
    _, kept, _ = federate(model, Ditto(lam=lam), rounds=2, how=how)
    before, first, _ = federate(model, Ditto(lam=lam), rounds=1, how=how)
    _, free, _ = federate(model, Ditto(lam=0.0), rounds=2, how=how, server=before, first=2, store=Kept(first))
    for client in CLIENTS:
        v = own_adapter(first[client].memory, "personal")
        unpulled = own_adapter(free[client].memory, "personal")
        expected = {n: unpulled[n] - how.learning_rate * lam * (v[n] - before.adapter[n]) for n in v}
        assert differ(expected, unpulled)
        assert_same(own_adapter(kept[client].memory, "personal"), expected, 1e-12)


class Kept:
    """A store that begins with given states."""

    def __init__(self, states):
        self.states = dict(states)

    def read(self, client, before_round):
        return self.states.get(client, ClientState())

    def write(self, client, round, state):
        self.states[client] = state


def distance(server, own):
    return max(float((own[name] - server.adapter[name]).abs().max()) for name in own)


def test_the_stronger_the_pull_the_nearer_is_the_global_adapter(model):
    """λ = 1/η takes v to θ in every step, so that one step of gradient is all that is left between them."""
    rates = replace(PLAIN, steps=4)
    found = []
    for lam in (0.0, 1.0, 1 / rates.learning_rate):
        before, first, _ = federate(model, Ditto(lam=lam), rounds=2, how=rates)
        _, kept, _ = federate(
            model, Ditto(lam=lam), rounds=3, how=rates, server=before, first=3, store=Kept(first)
        )
        found.append(max(distance(before, own_adapter(kept[c].memory, "personal")) for c in CLIENTS))
    assert found[0] > found[1] > found[2]
    tiny_step = replace(rates, learning_rate=1e-6)
    before, first, _ = federate(model, Ditto(lam=0.0), rounds=2, how=rates)
    strong = Ditto(lam=1e6)
    _, kept, _ = federate(model, strong, rounds=3, how=tiny_step, server=before, first=3, store=Kept(first))
    assert max(distance(before, own_adapter(kept[c].memory, "personal")) for c in CLIENTS) < 1e-4
    assert max(distance(before, own_adapter(first[c].memory, "personal")) for c in CLIENTS) > 1e-2


def test_who_has_no_adapter_of_its_own_runs_the_global_one(model):
    server = begin(model, Ditto())
    assert Ditto().personal(server, info("a"), ClientState()).adapter == server.adapter


def test_the_pull_reaches_float32_factors_of_any_shape():
    theta = {"x.A": torch.ones(2, 5), "x.B": torch.zeros(3, 2)}
    task = type("Task", (), {"broadcast": type("Sent", (), {"adapter": theta})()})()
    own = Ditto(lam=2.0).phases(task, ClientState())[1]
    params = {name: torch.full_like(tensor, 3.0) for name, tensor in theta.items()}
    grads = {name: torch.ones_like(tensor) for name, tensor in theta.items()}
    own.correct(params, grads)
    assert_same(grads, {"x.A": torch.full((2, 5), 5.0), "x.B": torch.full((3, 2), 7.0)})


@pytest.mark.parametrize(
    ("strategy", "how", "words"),
    [
        (Ditto(lam=-1.0), HOW, "lam.*-1.0"),
        (Ditto(personal_share=0.0), HOW, "personal_share.*0.0"),
        (Ditto(lam=20.0), PLAIN, "lam.*overshoots.*less than 20"),
    ],
)
def test_what_cannot_work_is_refused(strategy, how, words):
    with pytest.raises(ConfigError, match=words):
        strategy.check(how)
