"""Fed-SB and Ravan: small matrices between frozen orthonormal factors."""

from dataclasses import replace

import pytest
import torch
from factored import MODULES, aggregate, assert_close, assert_same, federate, fresh, product, task, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_rows

from fedit.errors import ConfigError
from fedit.rounds import broadcast_bytes
from fedit.strategies.fed_sb import FedSB
from fedit.strategies.ravan import Ravan
from fedit.subspaces import bases
from fedit.types import ClientFailure, ClientInfo, LocalTraining
from fedit.worker import Worker

DATA = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
TRAINING = LocalTraining(learning_rate=0.05, num_rounds=4, steps=2, batch_size=2)
ALL = [FedSB(), FedSB("first_update"), Ravan(heads=2)]


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama", dtype="fp32")


# --- bases ---


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(5, 12), st.integers(5, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_bases_are_orthonormal_and_give_the_product(seed, rank, out, width, missing):
    generator = torch.Generator().manual_seed(seed)
    b, a = torch.randn(out, rank, generator=generator), torch.randn(rank, width, generator=generator)
    b[:, : min(missing, rank)] = 0
    left, values, right = bases(b, a, seed)
    assert (left.shape, values.shape, right.shape) == ((out, rank), (rank,), (rank, width))
    torch.testing.assert_close(left.T @ left, torch.eye(rank), rtol=0, atol=2e-6)
    torch.testing.assert_close(right @ right.T, torch.eye(rank), rtol=0, atol=2e-6)
    torch.testing.assert_close((left * values) @ right, b @ a, rtol=1e-5, atol=1e-5)
    expected = torch.linalg.svdvals(b.double() @ a.double())[:rank]
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    assert int((values > 0).sum()) == max(0, rank - missing)


def test_directions_of_a_zero_product_are_drawn_by_the_seed_and_use_every_output():
    b, a = torch.zeros(30, 4), torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one, two, again = (bases(b, a, seed)[0] for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert (one.abs().max(dim=1).values > 1e-3).all()


def test_a_layer_narrower_than_the_rank_is_refused():
    for b, a in ((torch.zeros(3, 4), torch.randn(4, 9)), (torch.zeros(9, 4), torch.randn(4, 3))):
        with pytest.raises(ConfigError, match="lora_r"):
            bases(b, a, 0)
        with pytest.raises(ConfigError, match="lora_r"):
            FedSB().init({"m.A": a, "m.B": b})


# --- both ---


@pytest.mark.parametrize("strategy", [FedSB(), Ravan(heads=2), Ravan(heads=1), Ravan(heads=4)], ids=str)
def test_the_first_model_is_the_base_with_directions_to_go(strategy):
    server = strategy.init(fresh(0))
    for m in MODULES:
        a, b = server.adapter[f"{m}.A"], server.adapter[f"{m}.B"]
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(b.T @ b, torch.eye(4), rtol=0, atol=1e-6)
        drawn = fresh(0)[f"{m}.A"]
        torch.testing.assert_close((drawn @ a.T) @ a, drawn, rtol=0, atol=2e-6)
    assert not any(value.any() for value in product(strategy.factors(server.adapter)).values())


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_layers_and_seeds_have_their_own_bases(strategy):
    one, two = (FedSB().init(fresh(seed)).adapter for seed in (0, 1))
    assert not torch.equal(one["x.q.B"], two["x.q.B"])
    assert not torch.equal(one["x.q.B"], one["y.v.B"][:5])
    assert_same(strategy.init(fresh(0)).adapter, strategy.init(fresh(0)).adapter)


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_as_many_numbers_are_trained_as_the_paper_says(strategy, model):
    there = Worker(model, DATA, strategy, seed=0)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    for round in (1, 2):
        update = there.train(task(strategy, server, "a", round, TRAINING))
        modules = len({name.rpartition(".")[0] for name in server.adapter})
        sent = sum(tensor.numel() for tensor in update.delta.values())
        if round == 2 or strategy != FedSB("first_update"):
            assert sent == modules * (4 * 4 // getattr(strategy, "heads", 1))
        held = {**server.adapter, **strategy.broadcast(server, ClientInfo("a", 1)).adapter}
        server = aggregate(strategy, server, [update], round=round, starts={"a": held})


# --- Fed-SB ---


def test_the_first_update_gives_the_bases_and_the_model_stays(model):
    strategy = FedSB("first_update")
    states = [state for state, _ in federate(model, strategy, DATA, how=TRAINING, rounds=3)]
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    there = Worker(model, DATA, strategy, seed=0)
    updates = [there.train(task(strategy, server, client, 1, TRAINING)) for client in "abc"]
    weights = [u.weight for u in updates]
    first = states[0].adapter
    for m in {name.rpartition(".")[0] for name in first}:
        mean = {
            f: server.adapter[f"{m}.{f}"].double()
            + sum(w * u.delta[f"{m}.{f}"].double() for w, u in zip(weights, updates, strict=True)) / sum(weights)
            for f in "AB"
        }
        values = torch.linalg.svdvals(mean["B"] @ mean["A"])[:4]
        left, r, right = (first[f"{m}.{f}"].double() for f in "BRA")
        torch.testing.assert_close(left @ r @ right, mean["B"] @ mean["A"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(r.diagonal(), values, rtol=1e-4, atol=1e-6)
        assert torch.equal(r, r.diagonal().diag())
    for later in states[1:]:  # frozen from here on
        assert_same(*({n: t for n, t in s.adapter.items() if not n.endswith(".R")} for s in (later, states[0])))
        assert any(not torch.equal(later.adapter[n], first[n]) for n in first if n.endswith(".R"))


def test_bases_from_the_first_update_are_sent_and_counted(model):
    strategy = FedSB("first_update")
    results = federate(model, strategy, DATA, how=TRAINING, rounds=2)
    (first, record), (_, later) = results
    small = 4 * sum(t.numel() for n, t in first.adapter.items() if n.endswith(".R"))
    everything = 4 * sum(t.numel() for t in first.adapter.values())
    assert (record.bytes_down, later.bytes_down) == (3 * small, 3 * everything)
    assert (record.bytes_up, later.bytes_up) == (3 * (everything - small), 3 * small)


def test_a_first_round_without_an_update_does_not_end_learning(model):
    """Otherwise R would train between a B that is zero, without gradient, for ever."""
    strategy = FedSB("first_update")
    server = replace(strategy.init(model.initial(0)), scale=model.scale, round=1)
    sent = task(strategy, server, "a", 2, TRAINING)
    assert set(sent.broadcast.adapter) == set(server.adapter)
    update = Worker(model, DATA, strategy, seed=0).train(sent)
    assert not isinstance(update, ClientFailure)
    assert all(tensor.any() for tensor in update.delta.values())
    after = aggregate(strategy, server, [update], round=2, starts={"a": sent.broadcast.adapter})
    found, started = strategy.factors(after.adapter), sent.broadcast.adapter
    for name in started:
        if name.endswith(".R"):
            module = name.removesuffix(".R")
            expected = started[f"{module}.B"] @ (started[name] + update.delta[name])
            torch.testing.assert_close(found[f"{module}.B"], expected, rtol=0, atol=1e-6)
            assert expected.any()
    assert_same(strategy.broadcast(after, ClientInfo("b", 1)).adapter, after.adapter)


def test_unknown_bases_are_refused():
    with pytest.raises(ConfigError, match="expected random or first_update"):
        FedSB("gradient").check(TRAINING)


# --- Ravan ---


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=20)
def test_heads_add_up(seed, heads):
    strategy = Ravan(heads)
    made = strategy.init(tensors(seed)).adapter
    moved = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)) for n, t in made.items()}
    width = 4 // heads
    found = product(strategy.factors(moved))
    for m in MODULES:
        total = torch.zeros_like(found[m])
        for i in range(heads):
            place = slice(i * width, (i + 1) * width)
            total += moved[f"{m}.s"][i].double() * (
                moved[f"{m}.B"][:, place].double()
                @ moved[f"{m}.H"][place].double()
                @ moved[f"{m}.A"][place].double()
            )
        torch.testing.assert_close(found[m], total, rtol=1e-4, atol=1e-4)


def test_scales_are_folded_into_what_is_sent_and_start_from_one(model):
    strategy = Ravan(heads=2)
    there = Worker(model, DATA, strategy, seed=0)
    server = replace(strategy.init(model.initial(0)), scale=model.scale)
    raw = []
    train = there._trainer.train

    def spy(job, adapter, *args):
        assert all(torch.equal(t, torch.ones(2)) for n, t in adapter.items() if n.endswith(".s"))
        raw.append(train(job, adapter, *args))
        return raw[-1]

    there._trainer.train = spy
    for round in (1, 2):
        sent = task(strategy, server, "a", round, TRAINING)
        update = there.train(sent)
        trained = raw[-1][2]
        assert any((trained[n] - 1).abs().max() > 1e-3 for n in trained if n.endswith(".s"))
        assert set(update.delta) == {n for n in trained if n.endswith(".H")}
        for name, change in update.delta.items():
            scales = trained[f"{name.removesuffix('.H')}.s"].repeat_interleave(2)[:, None]
            torch.testing.assert_close(server.adapter[name] + change, scales * trained[name], rtol=0, atol=1e-6)
        server = aggregate(strategy, server, [update], round=round)
        assert all(torch.equal(t, torch.ones(2)) for n, t in server.adapter.items() if n.endswith(".s"))
        assert_close(
            dict(strategy.factors(server.adapter)), dict(strategy.factors({**server.adapter, **trained})), 1e-6
        )


def test_heads_must_divide_the_rank():
    with pytest.raises(ConfigError, match="lora_r=4 into 3 heads"):
        Ravan(heads=3).init(fresh(0))
    with pytest.raises(ConfigError, match="heads"):
        Ravan(heads=-1).check(TRAINING)


@pytest.mark.parametrize(("rank", "heads"), [(1, 1), (3, 3), (4, 4), (5, 1), (6, 3), (10, 2)])
def test_by_default_there_are_as_many_heads_as_divide_the_rank(rank, heads):
    made = Ravan().init({"m.A": torch.randn(rank, 12), "m.B": torch.zeros(11, rank)}).adapter
    assert made["m.s"].shape == (heads,)
    assert made["m.H"].shape == (rank, rank // heads)


def test_only_the_heads_matrices_are_sent():
    strategy = Ravan(heads=2)
    sent = strategy.broadcast(strategy.init(fresh(0)), ClientInfo("a", 1))
    assert broadcast_bytes(sent) == 2 * 4 * 8
