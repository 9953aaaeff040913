"""FedDPA: outputs of two adapters are mixed, not factors, and the ends of the weight are what they must be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from personal import CLIENTS, HOW, assert_same, begin, differ, federate, info, logits, weights
from tiny import random_adapter

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.strategies.ditto import Ditto
from fedit.strategies.feddpa import FedDPA, with_product
from fedit.types import ClientInfo, ClientState, Running, ServerState, own_adapter


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama")


def with_local(adapter):
    return ClientState(memory={f"local/{name}": tensor for name, tensor in adapter.items()})


def test_the_global_adapter_is_that_of_federated_averaging_bit_for_bit(model):
    assert_same(federate(model, FedDPA())[0].adapter, federate(model, Strategy())[0].adapter)


def test_round_one_has_nothing_to_mix_with(model):
    server, kept, _ = federate(model, FedDPA(), rounds=1)
    assert not kept["a"].memory
    assert_same(FedDPA().personal(server, info("a"), kept["a"]).adapter, server.adapter)


@given(
    st.floats(0, 1), st.floats(0.1, 8), st.integers(1, 4), st.integers(1, 4),
    st.sampled_from([(5, 5), (3, 8)]), st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_outputs_are_mixed_whatever_the_ranks_the_scale_and_a_ledger(weight, scale, one, two, shape, seed):
    generator = torch.Generator().manual_seed(seed)

    def factors(rank):
        return {
            "x.A": torch.randn(rank, shape[1], generator=generator),
            "x.B": torch.randn(shape[0], rank, generator=generator),
        }

    general, local, ledger = factors(one), factors(two), factors(2)
    server = ServerState(3, general, ledger, scale=scale)
    running = FedDPA(weight=weight).personal(server, ClientInfo("a", 1), with_local(local))

    def product(adapter):
        return adapter["x.B"].double() @ adapter["x.A"].double()

    oracle = product(ledger) + scale * ((1 - weight) * product(general) + weight * product(local))
    torch.testing.assert_close(weights(running)["x"], oracle, rtol=1e-5, atol=1e-4)


def test_mixed_factors_would_be_another_model(model):
    """FedLLM-Factory mixes A with A and B with B: its weight has B_g A_k in it, which nobody trained."""
    general, local = random_adapter(model, 1), random_adapter(model, 2)
    server = ServerState(3, general, scale=model.scale_at(model.rank))
    mixed = {name: (general[name] + local[name]) / 2 for name in general}
    own = weights(FedDPA(weight=0.5).personal(server, info("a"), with_local(local)))
    wrong = weights(Running(mixed, {}, model.scale_at(model.rank)))
    for module, weight in own.items():
        assert (wrong[module] - weight).norm() > 0.3 * weight.norm()


def test_the_model_runs_the_mixture_of_outputs(model):
    general, local = random_adapter(model, 1), random_adapter(model, 2)
    server = ServerState(3, general, scale=model.scale_at(model.rank))
    joined = {
        name: torch.cat([general[name], local[name]])
        if name.endswith(".A")
        else torch.cat([0.7 * general[name], 0.3 * local[name]], dim=1)
        for name in general
    }
    rows = CLIENTS["c"]
    mixed = logits(model, FedDPA(weight=0.3).personal(server, info("a"), with_local(local)), rows)
    torch.testing.assert_close(
        mixed, logits(model, Running(joined, {}, model.scale_at(model.rank)), rows), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(("weight", "which"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_weight_are_the_global_and_the_local_model(model, weight, which):
    server = ServerState(3, random_adapter(model, 1), scale=model.scale_at(model.rank))
    running = FedDPA(weight=weight).personal(server, info("a"), with_local(random_adapter(model, 2)))
    alone = Running(random_adapter(model, which), {}, model.scale_at(model.rank))
    rows = CLIENTS["c"]
    torch.testing.assert_close(logits(model, running, rows), logits(model, alone, rows), rtol=0, atol=1e-9)


def test_a_local_adapter_of_weight_one_is_trained_as_if_there_were_no_other(model):
    start = begin(model, FedDPA())
    moved = replace(start, adapter=random_adapter(model, 3))
    _, kept, _ = federate(model, FedDPA(weight=1.0), first=2, server=moved)
    _, alone, _ = federate(model, Ditto(lam=0.0), first=2, server=moved)
    for client in CLIENTS:
        one, two = own_adapter(kept[client].memory, "local"), own_adapter(alone[client].memory, "personal")
        assert_same(one, two, 1e-12)


def test_a_local_adapter_learns_beside_the_frozen_global_one(model):
    moved = replace(begin(model, FedDPA()), adapter=random_adapter(model, 3))
    _, beside, _ = federate(model, FedDPA(weight=0.5), first=2, rounds=2, server=moved)
    _, apart, _ = federate(model, FedDPA(weight=0.5), first=2, rounds=2, server=begin(model, FedDPA()))
    for client in CLIENTS:
        assert differ(beside[client].memory, apart[client].memory)


def test_a_local_adapter_of_no_weight_learns_nothing(model):
    _, kept, _ = federate(model, FedDPA(weight=0.0))
    assert_same(own_adapter(kept["a"].memory, "local"), dict(model.initial(0)))


def test_trained_afterwards_rounds_are_fedits_and_clients_keep_nothing(model):
    server, kept, _ = federate(model, FedDPA(afterwards=True))
    plain, _, _ = federate(model, Strategy())
    assert_same(server.adapter, plain.adapter)
    assert not any(state.memory for state in kept.values())
    assert_same(FedDPA(afterwards=True).personal(server, info("a"), kept["a"]).adapter, server.adapter)


def test_what_is_trained_afterwards_begins_fresh_beside_the_frozen_mixed_global_one(model):
    general, ledger = random_adapter(model, 1), {n: 0.1 * t for n, t in random_adapter(model, 2).items()}
    strategy = FedDPA(weight=0.25, afterwards=True)
    start = strategy.tuning(Running(general, ledger, 2.0), model.initial(0))
    assert_same(start.adapter, dict(model.initial(0)))
    for module, weight in weights(start).items():
        product = 0.75 * 2.0 * general[f"{module}.B"].double() @ general[f"{module}.A"].double()
        product += ledger[f"{module}.B"].double() @ ledger[f"{module}.A"].double()
        torch.testing.assert_close(weight, product, rtol=0, atol=1e-6)
    local = replace(start, adapter=random_adapter(model, 3))
    mixed = FedDPA(weight=0.25).personal(
        ServerState(3, general, ledger, scale=2.0), info("a"), with_local(random_adapter(model, 3))
    )
    assert_same(weights(local), weights(mixed), 1e-9)
    assert not FedDPA().tunes_after
    assert FedDPA().tuning(mixed, model.initial(0)) is mixed


def test_the_broadcast_is_not_edited(model):
    general = random_adapter(model, 1)
    before = {name: tensor.clone() for name, tensor in general.items()}
    with_product(general, general, 0.5)
    assert_same(general, before)


def test_likened_what_a_client_runs_says_with_what_it_is_mixed(model):
    server = ServerState(3, random_adapter(model, 1), scale=2.0)
    plain = FedDPA(weight=0.3).personal(server, info("a"), with_local(random_adapter(model, 2)))
    likened = FedDPA(weight=0.3, likened=5).personal(server, info("a"), with_local(random_adapter(model, 2)))
    assert plain.likened is None
    assert (likened.likened.most, likened.likened.examples) == (0.3, 5)
    assert_same(dict(likened.likened.general.adapter), server.adapter)
    assert_same(weights(replace(likened, likened=None)), weights(plain))
    assert FedDPA(likened=5).personal(server, info("a"), ClientState()).likened is None
    with pytest.raises(ConfigError, match=r"likened.*-1"):
        FedDPA(likened=-1).check(HOW)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ConfigError, match=f"weight.*{weight}"):
        FedDPA(weight=weight).check(HOW)


def test_a_local_adapter_without_steps_is_refused():
    with pytest.raises(ConfigError, match=r"personal_share.*0\.0"):
        FedDPA(personal_share=0.0).check(HOW)
