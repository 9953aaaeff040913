"""What personal strategies have in common: clients are apart, others' states rest, a restart changes no bit."""

from dataclasses import replace

import pytest
import torch
from personal import CLIENTS, HOW, assert_same, begin, differ, federate, info, worker

from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.strategies.ditto import Ditto
from fedit.strategies.feddpa import FedDPA
from fedit.strategies.fedper import FedPer
from fedit.strategies.fedrep import FedRep
from fedit.types import ClientState, ClientTask, ClientUpdate, Phase
from fedit.worker import share_of

PERSONAL = [Ditto(), FedPer(), FedRep(), FedDPA()]
ALL = pytest.mark.parametrize("strategy", PERSONAL, ids=lambda s: type(s).__name__)
KEEPING = replace(HOW, keep_optimizer=True)


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("llama")


def assert_same_state(one, two):
    for part in ("private", "memory", "optimizer"):
        assert_same(getattr(one, part), getattr(two, part))
    assert one.batches_seen == two.batches_seen


@ALL
def test_a_cohort_in_another_order_gives_the_same_bits(model, strategy):
    """FedLLM-Factory resets only what was uploaded: one client goes on with the rest of the one before it."""
    one, kept, sent = federate(model, strategy, how=KEEPING, cohort="abc")
    two, kept_too, sent_too = federate(model, strategy, how=KEEPING, cohort="cab")
    assert_same(one.adapter, two.adapter)
    for key in sent:
        assert_same(sent[key].delta, sent_too[key].delta)
    for client in CLIENTS:
        assert_same_state(kept[client], kept_too[client])
        assert kept[client].private or kept[client].memory


@ALL
def test_who_does_not_take_part_keeps_what_it_has(model, strategy):
    store = ClientStore()
    server, before, _ = federate(model, strategy, rounds=2, store=store)
    _, after, _ = federate(model, strategy, rounds=4, cohort="bc", store=store, server=server, first=3)
    assert_same_state(before["a"], after["a"])
    assert differ({**before["b"].private, **before["b"].memory}, {**after["b"].private, **after["b"].memory})


@ALL
def test_clients_that_swap_their_states_swap_what_they_run(model, strategy):
    server, kept, _ = federate(model, strategy)
    own = strategy.settled(model.shapes)
    one, two = own.personal(server, info("a"), kept["a"]), own.personal(server, info("b"), kept["b"])
    swapped = own.personal(server, info("a"), kept["b"])
    assert_same(swapped.adapter, two.adapter)
    assert differ(one.adapter, two.adapter)


@ALL
def test_a_client_that_never_took_part_runs_no_other_clients_tensors(model, strategy):
    server, _, _ = federate(model, strategy)
    own = strategy.settled(model.shapes)
    running = own.personal(server, info("a"), ClientState())
    assert_same(running.adapter, server.adapter)
    assert not running.ledger


@ALL
def test_clients_go_on_from_the_disk_with_the_same_bits(model, strategy, tmp_path):
    whole, kept, _ = federate(model, strategy, rounds=3, how=KEEPING)
    half, _, _ = federate(model, strategy, rounds=1, how=KEEPING, store=ClientStore(tmp_path))
    rest, kept_too, _ = federate(
        model, strategy, rounds=3, how=KEEPING, store=ClientStore(tmp_path), server=half, first=2
    )
    assert_same(whole.adapter, rest.adapter)
    for client in CLIENTS:
        assert_same_state(kept[client], kept_too[client])


@ALL
def test_stacked_clients_learn_what_they_learn_alone(model, strategy):
    one, kept, _ = federate(model, strategy)
    two, kept_too, _ = federate(model, strategy, together=True)
    assert_same(one.adapter, two.adapter, 1e-9)
    for client in CLIENTS:
        assert_same(kept[client].private, kept_too[client].private, 1e-9)
        assert_same(kept[client].memory, kept_too[client].memory, 1e-9)


@ALL
def test_what_is_personal_never_leaves(model, strategy):
    _, kept, sent = federate(model, strategy)
    for update in sent.values():
        assert not update.extra
        assert not set(update.delta) & {*kept[update.client_id].private, *kept[update.client_id].memory}


# --- phases ---


class Twice(Strategy):
    """Two phases of one step train what one of two steps does."""

    def phases(self, task, state):
        return (Phase(share=0.5), Phase(share=0.5))


def test_phases_that_go_on_are_one_round_cut_in_two(model):
    """Without an optimizer's memory a step does not know what phase it is in."""
    how = replace(HOW, optimizer="sgd", learning_rate=0.1)
    whole, kept, sent = federate(model, Strategy(), how=how)
    cut, kept_too, sent_too = federate(model, Twice(), how=how)
    assert_same(whole.adapter, cut.adapter)
    for key in sent:
        assert sent[key].metrics == sent_too[key].metrics
    assert kept["a"].batches_seen == kept_too["a"].batches_seen == 6


class Fails(Strategy):
    """Its second phase breaks the gradients of one client."""

    def phases(self, task, state):
        def break_it(params, grads):
            if task.client_id == "b":
                for grad in grads.values():
                    grad.fill_(float("nan"))

        return (Phase(), Phase("own", own=True, correct=break_it))


@pytest.mark.parametrize("together", [False, True])
def test_a_client_that_fails_in_a_later_phase_keeps_nothing_and_stops_nobody(model, together):
    store = ClientStore()
    there = worker(model, Fails(), store)
    server = begin(model, Fails())
    sent = Fails().broadcast(server, info("a"))
    tasks = [ClientTask(1, c, sent, HOW, derive(0, "train", 1, c)) for c in "abc"]
    results = there.train_together(tasks) if together else [there.train(task) for task in tasks]
    assert [isinstance(result, ClientUpdate) for result in results] == [True, False, True]
    assert "nan" in results[1].reason
    assert store.read("b", 2) == ClientState()
    assert store.read("a", 2).memory


def test_a_share_of_a_round_is_rounded_and_never_nothing():
    assert share_of(HOW, 1.0, 5) is HOW
    assert share_of(HOW, 0.5, 5).steps == 1
    assert share_of(HOW, 0.1, 5).steps == 1
    assert share_of(HOW, 2.0, 5).steps == 4
    epochs = share_of(replace(HOW, steps=None, epochs=3), 0.5, 5)  # three epochs of three batches
    assert (epochs.steps, epochs.epochs) == (4, None)
    assert share_of(replace(HOW, steps=None, tokens=100), 0.25, 5).tokens == 25


def test_a_round_tells_what_each_phase_cost(model):
    _, _, alone = federate(model, Strategy(), rounds=1)
    _, _, sent = federate(model, Ditto(lam=0.0), rounds=1)
    for key in sent:
        assert sent[key].metrics["tokens"] == 2 * alone[key].metrics["tokens"]
        assert sent[key].metrics["supervised_tokens"] == alone[key].metrics["supervised_tokens"]
        assert sent[key].metrics["loss"] == sent[key].metrics["personal_loss"] == alone[key].metrics["loss"]
        assert sent[key].weight == alone[key].weight


def test_nothing_of_one_client_is_in_what_the_model_holds_for_the_next(model):
    there = worker(model, FedDPA())
    server = begin(model, FedDPA())
    sent = FedDPA().broadcast(server, info("a"))
    clean = worker(model, FedDPA()).train(ClientTask(2, "b", sent, HOW, 7))
    there.train(ClientTask(2, "a", sent, HOW, 7))  # leaves a ledger and a scale of its own behind
    assert_same(there.train(ClientTask(2, "b", sent, HOW, 7)).delta, clean.delta)
    assert torch.isfinite(torch.tensor(clean.metrics["local_loss"]))
