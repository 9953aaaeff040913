"""Clustered: cuts against all possible ones, two populations that want different things, and who comes late."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from personal import CLIENTS, assert_same, federate, info

from fedit import checkpoint
from fedit.errors import ConfigError, NoUpdates, SealedUpdates
from fedit.strategies.base import Strategy
from fedit.strategies.clustered import PARENTS, Clustered, bipartition
from fedit.types import ClientInfo, ClientState, ClientUpdate, LocalTraining
from fedit.updates import Updates

SHAPES = {"x.A": (2, 5), "x.B": (3, 2)}
NAMES = [f"{group}{k}" for group in "ab" for k in range(4)]


def random(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


WISHES = {"a": random(1), "b": random(2)}


def wish(client):
    """Return what a client wants its adapter to be: what its population wants, and a little of its own."""
    own = random(100 + NAMES.index(client), 0.05)
    return {name: tensor + own[name] for name, tensor in WISHES[client[0]].items()}


def one_round(strategy, server, cohort, sealed=False):
    """Every client goes half of its way from what it is sent."""
    sent = {client: strategy.broadcast(server, ClientInfo(client, 10)).adapter for client in cohort}
    updates = [
        ClientUpdate(c, server.round + 1, 10, 10.0, {n: (t - sent[c][n]) / 2 for n, t in wish(c).items()})
        for c in cohort
    ]
    after = strategy.aggregate(server, Updates(updates, server.adapter, starts=sent, sealed=sealed))
    return replace(after, round=server.round + 1)


def run(strategy, rounds, cohort=lambda round: NAMES, server=None):
    server = server or strategy.init(random(0))
    while server.round < rounds:
        server = one_round(strategy, server, cohort(server.round + 1))
    return server


def runs(strategy, server, client):
    return strategy.personal(server, ClientInfo(client, 10), ClientState()).adapter


def away(adapter, client):
    return float(sum((adapter[name] - tensor).norm() ** 2 for name, tensor in wish(client).items())) ** 0.5


# --- the cut ---


@given(st.integers(2, 7), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_other_cut_has_a_smaller_largest_cosine_across_it(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = torch.from_numpy(vectors @ vectors.T)

    def largest_across(side):
        return float(cosines[side][:, ~side].max())

    found = bipartition(cosines)
    assert found[0]
    assert not found.all()
    cuts = (torch.tensor([True, *rest]) for rest in product([True, False], repeat=count - 1) if not all(rest))
    assert largest_across(found) == pytest.approx(min(map(largest_across, cuts)), abs=1e-12)


def test_two_populations_are_found_in_whatever_order_they_come():
    server = run(Clustered(), 3)
    again = run(Clustered(), 3, lambda round: NAMES[::-1])
    assert server.memory[PARENTS].tolist() == again.memory[PARENTS].tolist() == [-1, 0, 0]
    groups = {tuple(sorted(n for n in NAMES if int(s.memory[f"client/{n}"][0]) == c)) for s in (server, again)
              for c in (1, 2)}  # fmt: skip
    assert groups == {tuple(NAMES[:4]), tuple(NAMES[4:])}


def test_every_cluster_learns_what_its_clients_want():
    strategy = Clustered()
    server = run(strategy, 12)
    one_for_all = run(Clustered(max_clusters=1), 12)
    for client in NAMES:
        assert away(runs(strategy, server, client), client) < 0.35
        assert away(runs(strategy, one_for_all, client), client) > 1.0


def test_before_a_split_it_is_federated_averaging_bit_for_bit(adapted):
    model = adapted("llama")
    one, _, _ = federate(model, Clustered(warmup_rounds=9))
    plain, _, _ = federate(model, Strategy())
    assert_same(one.adapter, plain.adapter)
    personal = Clustered().personal(one, info("a"), ClientState())
    assert_same(personal.adapter, plain.adapter)
    assert len(CLIENTS) == 3


def test_who_comes_late_finds_its_cluster_and_moves_nobody():
    strategy = Clustered()
    early = [name for name in NAMES if name not in ("a3", "b3")]
    server = run(strategy, 5, lambda round: early)
    before = runs(strategy, server, "a0")
    assert_same(runs(strategy, server, "a3"), server.adapter)  # it may belong anywhere yet
    late = one_round(strategy, server, ["a3", "b3"])
    assert_same(runs(strategy, late, "a3"), before)
    assert_same(runs(strategy, late, "b3"), runs(strategy, late, "b0"))
    assert_same(runs(strategy, late, "a0"), before)


def test_the_global_adapter_is_the_mean_of_the_clusters_by_their_rows():
    strategy = Clustered()
    cohort = NAMES[:4] + NAMES[4:6]
    server = run(strategy, 4, lambda round: cohort)
    one, two = runs(strategy, server, "a0"), runs(strategy, server, "b0")
    expected = {name: (4 * one[name] + 2 * two[name]) / 6 for name in one}
    assert_same(server.adapter, expected, 1e-6)
    assert_same(runs(strategy, server, "never seen"), server.adapter)


def test_clients_that_want_the_same_stay_together():
    """At the end only what each wants for itself is left, which points everywhere; so little splits nobody."""
    server = run(Clustered(), 8, lambda round: NAMES[:4])
    assert server.memory[PARENTS].tolist() == [-1]
    eager = run(Clustered(movement=0.0), 8, lambda round: NAMES[:4])
    assert len(eager.memory[PARENTS]) > 1


def test_no_more_clusters_than_are_allowed():
    for most in (1, 2, 3):
        server = run(Clustered(max_clusters=most, separation=0.0, movement=0.0), 8)
        parents = server.memory[PARENTS].tolist()
        assert len(parents) - len(set(parents) - {-1}) <= most
    assert len(parents) > 3


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    strategy = Clustered()
    half = run(strategy, 3)
    checkpoint.save(tmp_path, half)
    whole = run(strategy, 6, server=half)
    rest = run(strategy, 6, server=checkpoint.load(tmp_path, 3))
    assert_same(whole.adapter, rest.adapter)
    assert_same(whole.memory, rest.memory)
    for name, state in (("one", whole), ("two", rest)):
        checkpoint.save(tmp_path / name, state)
    one, two = (next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in ("one", "two"))
    assert one == two


def test_states_are_not_edited_in_place():
    strategy = Clustered()
    server = run(strategy, 3)
    before = {name: tensor.clone() for name, tensor in server.memory.items()}
    one_round(strategy, server, NAMES)
    assert_same(server.memory, before)


def test_it_needs_to_see_single_updates():
    with pytest.raises(SealedUpdates):
        one_round(Clustered(), Clustered().init(random(0)), NAMES, sealed=True)


def test_a_round_without_updates_is_no_round():
    with pytest.raises(NoUpdates):
        one_round(Clustered(), Clustered().init(random(0)), [])


@pytest.mark.parametrize(
    "options",
    [{"max_clusters": 0}, {"warmup_rounds": -1}, {"coherence": 1.5}, {"movement": -1.0}, {"separation": -0.1}],
)
def test_what_cannot_work_is_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        Clustered(**options).check(LocalTraining(learning_rate=0.1, num_rounds=2, steps=1))
