"""FedAsync's mixing and its three decays; its rounds are tested in tests/pace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedit.errors import ConfigError, NoUpdates
from fedit.strategies import build_strategy
from fedit.types import ClientUpdate, LocalTraining, ServerState
from fedit.updates import Updates

SHAPES = {"m.A": (2, 5), "m.B": (3, 2)}
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@given(
    st.sampled_from(["constant", "polynomial", "hinge"]), st.integers(0, 100), st.floats(0, 20), st.integers(0, 9)
)
def test_older_updates_count_less(decay, staleness, a, b):
    strategy = build_strategy("fedasync", {"decay": decay, "a": a, "b": b})
    assert strategy.trust(0) == 1.0
    assert 0 < strategy.trust(staleness + 1) <= strategy.trust(staleness)


def test_decays_are_the_papers():
    polynomial = build_strategy("fedasync", {"decay": "polynomial", "a": 0.5})
    assert [polynomial.trust(t) for t in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert build_strategy("fedasync", {"decay": "constant"}).trust(50) == 1.0


def test_hinge_counts_from_where_it_begins():
    """1 / (a (tau - b) + 1), continuous at b; with tau + b in its place it would fall to 1 / (2 a b + 1)."""
    hinge = build_strategy("fedasync", {"decay": "hinge", "a": 10.0, "b": 4})
    assert [hinge.trust(t) for t in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])


@pytest.mark.parametrize(("staleness", "trust"), [(0, 1.0), (3, 0.5)])
def test_an_arrival_is_mixed_in(staleness, trust):
    server, old, delta = ServerState(5, tensors(0)), tensors(1), tensors(2)
    start = old if staleness else server.adapter
    update = ClientUpdate("a", 6, 3, 3.0, delta, staleness=staleness)
    after = build_strategy("fedasync", {"mixing": 0.6}).aggregate(
        server, Updates([update], server.adapter, starts={"a": start} if staleness else {})
    )
    for name, theta in server.adapter.items():
        theirs = start[name].double() + delta[name].double()
        expected = (1 - 0.6 * trust) * theta.double() + 0.6 * trust * theirs
        torch.testing.assert_close(after.adapter[name].double(), expected, rtol=0, atol=1e-6)


def test_all_of_an_arrival_that_is_not_late_is_the_clients_adapter():
    server, delta = ServerState(5, tensors(0)), tensors(2)
    update = ClientUpdate("a", 6, 3, 3.0, delta)
    after = build_strategy("fedasync", {"mixing": 1.0}).aggregate(server, Updates([update], server.adapter))
    assert all(torch.equal(after.adapter[name], server.adapter[name] + delta[name]) for name in SHAPES)


def test_nothing_delivered_is_no_step():
    server = ServerState(5, tensors(0))
    with pytest.raises(NoUpdates):
        build_strategy("fedasync", {}).aggregate(server, Updates([], server.adapter))


@pytest.mark.parametrize("options", [{"mixing": 0.0}, {"mixing": 1.5}, {"decay": "poly"}, {"a": -1.0}, {"b": -1}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build_strategy("fedasync", options).check(TRAINING)
