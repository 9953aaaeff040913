"""FedBuff's discount and step; its rounds are tested in tests/pace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedit.errors import ConfigError
from fedit.strategies import build_strategy
from fedit.strategies.fedit import FedIT
from fedit.types import ClientUpdate, LocalTraining, ServerState
from fedit.updates import Updates

SHAPES = {"m.A": (2, 5), "m.B": (3, 2)}
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def updates(server, sealed=False):
    sent = [ClientUpdate(f"c{k}", 1, k + 1, float(k + 1), tensors(k + 1)) for k in range(4)]
    return Updates(sent, server.adapter, sealed=sealed)


@given(st.integers(0, 200), st.floats(0, 4))
def test_older_updates_count_less(staleness, exponent):
    strategy = build_strategy("fedbuff", {"exponent": exponent})
    assert strategy.discount(0) == 1.0
    assert 0 < strategy.discount(staleness + 1) <= strategy.discount(staleness)
    assert strategy.discount(staleness) == pytest.approx((1 + staleness) ** -exponent)


def test_a_step_is_that_of_federated_averaging_bit_for_bit_and_needs_the_mean_alone():
    server = ServerState(0, tensors(0))
    for rate in (1.0, 0.7):
        strategy = build_strategy("fedbuff", {"server_lr": rate})
        one = FedIT(rate).aggregate(server, updates(server))
        two = strategy.aggregate(server, updates(server, sealed=True))
        assert all(torch.equal(tensor, two.adapter[name]) for name, tensor in one.adapter.items())


def test_other_strategies_wait_for_their_cohort_and_discount_nothing():
    assert FedIT().buffer is None
    assert FedIT().discount(7) == 1.0
    assert build_strategy("fedbuff", {"buffer_size": 4}).buffer == 4


@pytest.mark.parametrize("options", [{"buffer_size": 0}, {"exponent": -0.5}, {"server_lr": 0.0}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build_strategy("fedbuff", options).check(TRAINING)
