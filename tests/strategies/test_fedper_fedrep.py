"""FedPer and FedRep: which layers stay at home, in which order they are trained, and what is refused."""

from dataclasses import replace

import pytest
import torch
from personal import CLIENTS, HOW, assert_same, begin, differ, federate, info

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.strategies.fedper import FedPer
from fedit.strategies.fedrep import FedRep
from fedit.strategies.layers import count_layers, is_kept, layer_of
from fedit.types import ClientState, ClientTask

NAMES = [f"model.layers.{layer}.self_attn.{kind}.{f}" for layer in range(5) for kind in ("q", "v") for f in "AB"]
BOTH = pytest.mark.parametrize("kind", [FedPer, FedRep])


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama")


def is_last(name):
    return ".layers.1." in name


def test_the_number_of_a_layer_is_read_from_any_models_names():
    assert layer_of("model.layers.11.self_attn.q_proj.A") == 11
    assert layer_of("transformer.h.3.attn.c_attn.B") == 3
    assert layer_of("lm_head.A") is None
    assert layer_of("model.layers2.q.A") is None
    assert count_layers(NAMES) == 5
    assert count_layers(["lm_head.A"]) == 0


@BOTH
def test_the_last_half_of_an_odd_number_is_the_smaller_one(kind):
    own = kind().settled(NAMES)
    assert own.num_layers == 5
    assert [name for name in NAMES if not own.shares(name)] == [name for name in NAMES if layer_of(name) >= 3]
    assert kind(num_layers=10).settled([*NAMES, "model.layers.9.q.A"]).num_layers == 10


@BOTH
def test_a_pattern_chooses_by_name(kind):
    own = kind(keep=r"\.v\.").settled(NAMES)
    assert [name for name in NAMES if not own.shares(name)] == [name for name in NAMES if ".v." in name]


@BOTH
@pytest.mark.parametrize(("pattern", "words"), [("zzz", "no tensor"), ("model", "nothing would be shared")])
def test_a_pattern_that_splits_nothing_is_refused_when_the_names_are_known(kind, pattern, words):
    with pytest.raises(ConfigError, match=f"keep.*{words}"):
        kind(keep=pattern).settled(NAMES)


@BOTH
def test_a_pattern_that_is_none_is_refused_before_the_run(kind):
    with pytest.raises(ConfigError, match=r"keep.*\[.*regular expression"):
        kind(keep="[").check(HOW)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_a_phase_nothing_is_refused(share):
    with pytest.raises(ConfigError, match=f"personal_share.*{share}"):
        FedRep(personal_share=share).check(HOW)


def test_nothing_is_kept_while_the_layers_are_not_counted():
    assert not any(is_kept(name, "last_half", 0) for name in NAMES)


@BOTH
def test_only_the_shared_layers_travel_and_only_they_are_averaged(model, kind):
    start = begin(model, kind())
    server, kept, sent = federate(model, kind())
    own = kind().settled(model.shapes)
    assert {is_last(name) for name in own.broadcast(server, info("a")).adapter} == {False}
    for update in sent.values():
        assert {is_last(name) for name in update.delta} == {False}
    for name in start.adapter:
        assert torch.equal(server.adapter[name], start.adapter[name]) == is_last(name)
    for client in CLIENTS:
        assert {is_last(name) for name in kept[client].private} == {True}


@BOTH
def test_a_client_runs_the_shared_layers_with_its_own(model, kind):
    server, kept, _ = federate(model, kind())
    own = kind().settled(model.shapes)
    for client in CLIENTS:
        running = own.personal(server, info(client), kept[client]).adapter
        expected = {**server.adapter, **kept[client].private}
        assert_same(running, expected)


def test_fedper_is_federated_averaging_of_a_single_client(model):
    one, kept, _ = federate(model, FedPer(), cohort="a")
    plain, _, _ = federate(model, Strategy(), cohort="a")
    own = FedPer().settled(model.shapes)
    assert_same(own.personal(one, info("a"), kept["a"]).adapter, plain.adapter, 1e-12)


def test_fedrep_fits_its_own_layers_first_and_then_the_shared_ones_with_them(model):
    """With plain gradients: two rounds in which all but some tensors are frozen, one after the other."""

    class Frozen(Strategy):
        def trains(self, name, round):
            return is_last(name) == (round == 1)

    how = replace(HOW, optimizer="sgd", learning_rate=0.1, steps=4)
    server, kept, _ = federate(model, FedRep(), rounds=1, how=how, cohort="a")
    oracle, _, _ = federate(model, Frozen(), rounds=2, how=replace(how, steps=2), cohort="a")
    own = FedRep().settled(model.shapes)
    assert_same(own.personal(server, info("a"), kept["a"]).adapter, oracle.adapter, 1e-12)
    assert kept["a"].batches_seen == 4


def test_fedrep_gives_the_personal_layers_their_share_of_the_steps(model):
    own = FedRep(personal_share=0.25).settled(model.shapes)
    server = begin(model, own)
    first, second = own.phases(ClientTask(1, "a", own.broadcast(server, info("a")), HOW, 0), ClientState())
    assert (first.share, second.share) == (0.25, 0.75)
    assert {is_last(name) for name in model.shapes if first.trains(name)} == {True}
    assert {is_last(name) for name in model.shapes if second.trains(name)} == {False}


def test_fedrep_is_not_fedper(model):
    assert differ(federate(model, FedRep())[0].adapter, federate(model, FedPer())[0].adapter)
