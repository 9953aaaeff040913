"""Who a robust strategy lets in."""

from dataclasses import replace

import pytest
import torch

from fedit.errors import ConfigError, NoUpdates
from fedit.screening import admit, combine
from fedit.types import ClientUpdate
from fedit.updates import Updates

START = {"m.A": torch.ones(2, 3), "m.B": torch.ones(4, 2)}


def update(client, size=1.0, weight=1.0, seed=None):
    generator = torch.Generator().manual_seed(hash(client) % 1000 if seed is None else seed)
    delta = {n: size * torch.randn(t.shape, generator=generator) for n, t in START.items()}
    return ClientUpdate(client, 1, 1, weight, delta)


def read(sent, **options):
    updates = Updates(sent, START)
    return admit(updates, **options), updates


def names(members):
    return [each.client_id for each in members.updates]


def test_an_update_far_longer_than_the_median_is_rejected_with_the_numbers():
    sent = [*(update(f"c{i}", seed=i) for i in range(4)), update("big", 1000, seed=9)]
    members, updates = read(sent, max_norm=10)
    assert names(members) == ["c0", "c1", "c2", "c3"]
    (failure,) = updates.failures
    assert failure.client_id == "big"
    assert "more than 10 times the cohort's median" in failure.reason
    assert updates.rejected == {"big"}
    assert len(read(sent, max_norm=0)[0]) == 5


def test_huge_factors_of_an_innocent_product_are_rejected():
    """1000 B and A / 1000 change the weights as B and A do, and would ruin the mean of the factors."""
    clients = [update(f"c{i}", seed=i) for i in range(4)]
    trained = {n: t + clients[0].delta[n] for n, t in START.items()}
    stretched = {"m.A": trained["m.A"] / 1000 - START["m.A"], "m.B": 1000 * trained["m.B"] - START["m.B"]}
    hidden = replace(clients[0], client_id="hidden", delta=stretched)
    members, updates = read([*clients, hidden], max_norm=10)
    assert names(members) == ["c0", "c1", "c2", "c3"]
    assert "changes the factors" in updates.failures[0].reason


def test_of_copies_the_first_id_stays_whoever_came_first():
    one, copy = update("b", seed=1), replace(update("b", seed=1), client_id="a")
    for order in ([one, copy], [copy, one]):
        members, updates = read([*order, update("c", seed=2)], reject_duplicates=True)
        assert names(members) == ["a", "c"]
        assert [(f.client_id, f.reason) for f in updates.failures] == [("b", "the update is a copy of that of a")]


def test_clients_that_learnt_nothing_are_no_copies_and_no_measure():
    zeros = [replace(update(c), delta={n: torch.zeros_like(t) for n, t in START.items()}) for c in "abc"]
    members, updates = read([*zeros, update("d")], reject_duplicates=True, max_norm=10)
    assert names(members) == ["a", "b", "c", "d"]
    assert not updates.failures


def test_weights_are_uniform_unless_they_are_asked_for_and_then_capped():
    sent = [update("a", weight=10), update("b", weight=20), update("c", weight=30), update("liar", weight=1e9)]
    assert read(sent)[0].weights.tolist() == [1.0] * 4
    assert read(sent, weight_cap=2)[0].weights.tolist() == [10.0, 20.0, 30.0, 50.0]


def test_too_few_that_are_left_are_not_enough():
    with pytest.raises(NoUpdates, match="1 usable updates; with 0 attackers among them the rule needs at least 2"):
        read([update("a"), replace(update("a"), client_id="b")], reject_duplicates=True, least=lambda f: 2)
    with pytest.raises(NoUpdates, match="0 usable"):
        read([], max_norm=10)


def test_the_rejected_count_as_attackers_where_too_few_are_left():
    def left(honest, bad, attackers):
        nan = {n: torch.full_like(t, float("nan")) for n, t in START.items()}
        sent = [update(f"c{i}", seed=i) for i in range(honest)]
        sent += [replace(update(f"x{i}"), delta=nan) for i in range(bad)]
        return read(sent, attackers=attackers, least=lambda f: 2 * f + 3)[0].attackers

    assert left(7, 0, 2) == 2
    assert left(7, 1, 2) == 2  # enough are left to be careful
    assert left(6, 1, 2) == 1
    assert left(5, 2, 2) == 1
    assert left(4, 3, 2) == 0
    with pytest.raises(NoUpdates, match="6 usable updates; with 2 attackers among them the rule needs at least 7"):
        left(6, 0, 2)


def test_several_ranks_are_refused():
    small = {"m.A": torch.ones(1, 3), "m.B": torch.ones(4, 1)}
    updates = Updates([update("a"), replace(update("b"), delta=small)], START, starts={"b": small})
    with pytest.raises(ConfigError, match="several ranks"):
        admit(updates)


def test_nobody_who_counts_leaves_the_adapter_as_it_is():
    members, updates = read([update("a"), update("b")])
    after = combine(START, members, torch.zeros(2, dtype=torch.float64), updates)
    assert all(torch.equal(after[name], START[name]) for name in START)
    assert updates.shares == {"a": 0.0, "b": 0.0}


def test_who_claims_more_examples_than_announced_is_screened_out():
    updates = Updates([replace(update("a"), num_examples=99), update("b")], START, announced={"a": 9, "b": 1})
    assert names(admit(updates)) == ["b"]
    assert updates.failures[0].reason == "it claims 99 examples and has announced 9"
