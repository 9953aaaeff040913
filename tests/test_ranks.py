"""Ranks: the largest within a budget of bytes, ranks of single clients, and who refuses them."""

import pytest
import torch
from tiny import save_model

from fedit import lora
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.facts import bytes_in_training
from fedit.model.shapes import shapes_of
from fedit.model.sources import resolve_model
from fedit.optimizer import LocalOptimizer
from fedit.ranks import check_ranks, ranks_of_clients, with_rank
from fedit.rehearsal import rehearse
from fedit.strategies import build_strategy
from fedit.strategies.fedit import FedIT
from fedit.types import LocalTraining


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    found = {}
    for kind in ("llama", "gpt2"):
        folder = tmp_path_factory.mktemp(kind)
        save_model(kind, folder)
        found[kind] = resolve_model(str(folder))
    return found


def config(**values):
    return RunConfig(**values)


def test_shapes_are_those_of_the_layers_however_they_are_stored(sources):
    assert sorted(set(shapes_of(sources["llama"], "attention"))) == [(32, 16), (32, 32)]
    assert set(shapes_of(sources["gpt2"], ["c_attn"])) == {(32, 96)}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_auto_takes_the_largest_rank_whose_upload_fits(sources, kind):
    numbers = sum(width + out for width, out in shapes_of(sources[kind], "auto"))
    budget = 5.5 * 4 * numbers / 1e6
    found = with_rank(config(lora_r="auto", upload_megabytes=budget), FedIT(), sources[kind])
    assert found.rank == 5
    exactly = with_rank(config(lora_r="auto", upload_megabytes=20 * numbers / 1e6), FedIT(), sources[kind])
    assert exactly.rank == 5


def test_a_budget_below_rank_one_is_refused_with_what_rank_one_takes(sources):
    with pytest.raises(ConfigError, match=r"at rank 1 a client sends 0\.00"):
        with_rank(config(lora_r="auto", upload_megabytes=1e-6), FedIT(), sources["llama"])


@pytest.mark.parametrize(
    ("name", "trained"), [("fedit", "AB"), ("ffa_lora", "B"), ("rolora", "AB"), ("fed_sb", "R")]
)
@pytest.mark.parametrize(
    ("optimizer", "moments"), [({}, 2), ({"optimizer": "sgd"}, 0), ({"optimizer": "sgd", "momentum": 0.9}, 1)]
)
def test_what_an_adapter_is_said_to_take_in_training_is_what_it_takes(adapted, name, trained, optimizer, moments):
    """Bytes of the very tensors that training holds: values, gradients, the optimizer's state."""
    model, strategy = adapted("llama"), build_strategy(name, {})
    adapter = strategy.init(model.initial(0)).adapter
    parameters = model.parameters_of(adapter)
    most = 0
    for number in (1, 2):
        names = [n for n in adapter if strategy.trains(n, number)]
        assert {n.rpartition(".")[2] for n in names} <= set(trained)
        how = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1, **optimizer)
        parameters.train(names)
        own = LocalOptimizer(parameters, sorted(names), how, {})
        own.step(0.1)
        held = [parameters.values_flat.buffer, parameters.gradients, *own.state().values()]
        most = max(most, sum(t.numel() * t.element_size() for t in held if t.dim()))
        parameters.forget()
    shapes = [(model.shapes[f"{m}.A"][1], model.shapes[f"{m}.B"][0]) for m in lora.modules(model.shapes)]
    entry = parameters.values_flat.buffer.element_size()
    said = bytes_in_training(strategy, shapes, model.rank, moments=moments, entry=entry)
    assert said == most


@pytest.mark.parametrize(("optimizer", "copies"), [({}, 4), ({"optimizer": "sgd"}, 2), ({"dtype": "fp64"}, 8)])
def test_auto_takes_the_largest_rank_whose_adapter_fits_the_memory(sources, optimizer, copies):
    """AdamW holds values, gradients and two moments of every entry, in fp32 but over a fp64 base."""
    numbers = sum(width + out for width, out in shapes_of(sources["llama"], "auto"))
    budget = copies * 4 * numbers / 1e6
    for fits, rank in ((3.0, 3), (3.9, 3), (4.0, 4)):
        found = with_rank(
            config(lora_r="auto", adapter_megabytes=fits * budget, **optimizer), FedIT(), sources["llama"]
        )
        assert found.rank == rank
        assert found.adapter_megabytes is None  # the settings that are kept have a number


def test_of_two_budgets_the_tighter_one_counts_and_is_named(sources):
    numbers = sum(width + out for width, out in shapes_of(sources["llama"], "auto"))
    one = 4 * numbers / 1e6
    both = {"upload_megabytes": 6 * one, "adapter_megabytes": 4 * 5 * one}
    assert with_rank(config(lora_r="auto", **both), FedIT(), sources["llama"]).rank == 5
    both["upload_megabytes"] = 2 * one
    assert with_rank(config(lora_r="auto", **both), FedIT(), sources["llama"]).rank == 2
    with pytest.raises(ConfigError, match=r"upload_megabytes of .* allows rank 2, but client_ranks go up to 4"):
        with_rank(config(lora_r="auto", client_ranks=[4], **both), FedIT(), sources["llama"])
    with pytest.raises(ConfigError, match=r"adapter_megabytes is 1e-06, but at rank 1 the adapter takes"):
        with_rank(config(lora_r="auto", adapter_megabytes=1e-6), FedIT(), sources["llama"])


def test_a_budget_without_auto_would_be_ignored_and_is_refused():
    for budget in ("upload_megabytes", "adapter_megabytes"):
        with pytest.raises(ValueError, match=r"lora_r=auto and a budget .* go together"):
            config(**{budget: 1.0})
    with pytest.raises(ValueError, match="go together"):
        config(lora_r="auto")


def test_a_list_is_dealt_in_turn_and_a_table_names_clients():
    clients = ["a", "b", "c", "d", "e"]
    dealt = ranks_of_clients(config(client_ranks=[8, 2]), clients)
    assert dealt == {"a": 8, "b": 2, "c": 8, "d": 2, "e": 8}
    assert ranks_of_clients(config(client_ranks={"b": 4}), clients) == {"b": 4}
    assert ranks_of_clients(config(), clients) == {}


def test_a_rank_above_the_servers_is_refused():
    with pytest.raises(ValueError, match="client_ranks go up to 32, but lora_r, the server's, is 16"):
        config(client_ranks=[4, 32])


def test_an_unknown_client_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'client-01'; did you mean 'client-1'"):
        check_ranks(config(client_ranks={"client-01": 4}), FedIT(), ["client-1", "client-2"])


def test_a_strategy_of_one_rank_refuses_others_before_training():
    with pytest.raises(ConfigError, match="one rank for all"):
        check_ranks(config(client_ranks=[4]), FedIT(), ["a"])
    assert rehearse(FedIT(), rounds=1, ranks=(None, 6))[0].ranks == (6, 6)  # the same rank is no other


def test_an_adapter_of_another_rank_trains_as_it_would_in_a_model_of_that_rank(adapted, model_folder):
    from tiny import make_rows

    from fedit.model.adapted import AdaptedModel
    from fedit.model.loading import load_base
    from fedit.training import LocalJob, Trainer
    from fedit.types import LocalTraining

    for kind in ("llama", "gpt2"):
        base = load_base(resolve_model(str(model_folder(kind))), device="cpu", dtype="fp64")
        low = AdaptedModel(base, rank=2, alpha=8)
        start = {n: torch.randn_like(t) for n, t in low.read().items()}
        job = LocalJob(
            make_rows([12, 9, 20], seed=3),
            LocalTraining(learning_rate=0.05, num_rounds=1, steps=3, batch_size=2),
            round=1,
            batches_seen=0,
            data_seed=0,
            noise_seed=0,
            trainable=list(start),
            optimizer_state={},
            correct=lambda params, grads: None,
        )
        _, _, expected = Trainer(low).train(job, start)
        high_base = load_base(resolve_model(str(model_folder(kind))), device="cpu", dtype="fp64")
        high = AdaptedModel(high_base, rank=4, alpha=8)
        _, _, found = Trainer(high).train(job, start)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)
        assert high.scale == low.scale == 4
        # and the model's own rank afterwards
        high.load(high.initial(0))
        assert (high.scale, high.loaded_is_plain) == (2, True)
