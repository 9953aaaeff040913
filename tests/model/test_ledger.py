"""A ledger corrects the base exactly as weights that were changed would, wherever the model runs."""

import copy

import peft
import pytest
import torch
from tiny import make_rows, random_adapter
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from fedit import lora
from fedit.model.adapted import AdaptedModel
from fedit.model.export import save_adapter
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.stacked import StackedTrainer
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining, with_ledger

ROWS = make_rows([12, 9, 20, 5], seed=3)
KINDS = ["llama", "gpt2", "phi3"]


def load(folder, *, fast=True, dropout=0.0):
    base = load_base(resolve_model(str(folder)), device="cpu", dtype="fp64")
    return AdaptedModel(base, rank=2, alpha=8, fast_path=fast, dropout=dropout)


def make_ledger(model, seed, rank=3):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module in lora.modules(model.shapes):
        width, out = model.shapes[f"{module}.A"][1], model.shapes[f"{module}.B"][0]
        found[f"{module}.A"] = 0.3 * torch.randn(rank, width, generator=generator, dtype=torch.float64)
        found[f"{module}.B"] = 0.3 * torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return found


def merged(folder, ledger, **options):
    """Return a model whose base weights are changed by the ledger."""
    model = load(folder, **options)
    modules = dict(model.base.model.named_modules())
    for module in lora.modules(ledger):
        layer = modules[module]
        layer = getattr(layer, "base_layer", layer)
        change = ledger[f"{module}.B"] @ ledger[f"{module}.A"]
        layer.weight.data += change.T if isinstance(layer, Conv1D) else change
    return model


def job(model, **changes):
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=3, batch_size=2)
    return LocalJob(ROWS, how, 1, 0, 0, 0, list(model.shapes), {}, lambda params, grads: None, **changes)


def assert_close(one, two, tolerance=1e-10):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_training_over_a_ledger_is_training_over_changed_weights(model_folder, kind, fast):
    model = load(model_folder(kind), fast=fast)
    ledger, start = make_ledger(model, 1), random_adapter(model, 2)
    _, _, found = Trainer(model).train(job(model), start, ledger=ledger)
    other = merged(model_folder(kind), ledger, fast=fast)
    _, _, expected = Trainer(other).train(job(other), start)
    assert_close(found, expected)


def test_the_next_to_train_does_not_inherit_a_ledger(model_folder):
    model = load(model_folder("llama"))
    start = random_adapter(model, 2)
    _, _, before = Trainer(model).train(job(model), start)
    Trainer(model).train(job(model), start, ledger=make_ledger(model, 1))
    _, _, after = Trainer(model).train(job(model), start)
    assert_close(before, after, 0)


def test_stacked_clients_have_their_own_ledgers(model_folder):
    model = load(model_folder("llama"))
    shared = make_ledger(model, 4)
    half = {name: t / 2 if name.endswith(".B") else t for name, t in shared.items()}
    for ledgers in (
        [shared, half, shared],  # one A, weighed by another B
        [make_ledger(model, 1), {}, make_ledger(model, 2, rank=5)],
        [shared, shared, shared],
    ):
        adapters = [random_adapter(model, seed) for seed in range(3)]
        jobs = [job(model), job(model, scale=1.5), job(model)]
        expected = [
            Trainer(model).train(one, adapter, ledger=ledger)[2]
            for one, adapter, ledger in zip(jobs, adapters, ledgers, strict=True)
        ]
        found = StackedTrainer(model).train(jobs, adapters, ledgers=ledgers)
        for own, (_, _, trained) in zip(expected, found, strict=True):
            assert_close(own, trained)


def test_a_ledger_feels_no_dropout(model_folder):
    """Dropout stands before the adapter's factors; what corrects the base is part of the base."""
    for fast in (True, False):
        model = load(model_folder("llama"), fast=fast, dropout=0.5)
        ledger, start = make_ledger(model, 1), random_adapter(model, 2)
        _, _, found = Trainer(model).train(job(model), start, ledger=ledger)
        other = merged(model_folder("llama"), ledger, fast=fast, dropout=0.5)
        _, _, expected = Trainer(other).train(job(other), start)
        assert_close(found, expected)


def test_scores_and_answers_see_the_ledger(model_folder):
    from fedit.evaluation.loss import row_losses

    for fast in (True, False):
        model = load(model_folder("llama"), fast=fast)
        ledger, adapter = make_ledger(model, 1), random_adapter(model, 2)
        with_it, without = row_losses(model, [with_ledger(adapter, ledger), adapter], [ROWS, ROWS])
        (expected,) = row_losses(merged(model_folder("llama"), ledger, fast=fast), [adapter], [ROWS])
        torch.testing.assert_close(with_it.sums, expected.sums, rtol=1e-9, atol=0)
        assert not torch.allclose(with_it.sums, without.sums)


def test_an_exported_ledger_is_more_ranks_of_a_plain_adapter(model_folder, tmp_path):
    """In bfloat16 nothing is merged: PEFT adds the whole correction in the adapter's precision."""
    model = load(model_folder("llama"))
    ledger, adapter = make_ledger(model, 1), random_adapter(model, 2)
    save_adapter(model, with_ledger(adapter, ledger), tmp_path / "a", facts={}, settings_yaml="")
    plain = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float64)
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "a")
    assert tuned.peft_config["default"].r == 5
    ids = torch.arange(7).unsqueeze(0)
    with torch.no_grad():
        found = tuned(ids).logits
        direct = merged(model_folder("llama"), ledger, fast=False)
        direct.load(adapter)
        expected = direct.base.model(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_a_plain_adapter_is_exported_as_it_is(model_folder, tmp_path):
    model = load(model_folder("llama"))
    adapter = random_adapter(model, 2)
    save_adapter(model, adapter, tmp_path / "a", facts={}, settings_yaml="")
    assert peft.PeftConfig.from_pretrained(tmp_path / "a").r == 2
