"""Held-out losses against sums over rows one by one."""

import math

import numpy as np
import pytest
import torch
from measuring import held_out_loss
from oracle import load, row_loss
from tiny import make_rows, random_adapter

from fedit.data.tokens import TokenRow
from fedit.evaluation.loss import LossReport, row_losses
from fedit.model import adapted

ROWS = make_rows([19, 7, 30, 12, 25])
CATEGORIES = ["a", "b", None, "a", "c"]


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("gpt2")


@pytest.fixture(scope="module")
def losses(model, model_folder):
    """Return (summed loss, targets) of every row, and load the same adapter into the model."""
    adapter = random_adapter(model, 1)
    model.load(adapter)
    oracle = load(model_folder("gpt2"), adapter, alpha=8)
    with torch.no_grad():
        found = [row_loss(oracle, (row.ids.tolist(), row.supervised.tolist())) for row in ROWS]
    return [(float(loss), count) for loss, count in found]


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_losses_are_sums_over_rows_whatever_the_size_of_a_pass(model, losses, monkeypatch, budget):
    monkeypatch.setitem(adapted.GENERAL_TOKENS, "cpu", budget)
    report = held_out_loss(model, ROWS, CATEGORIES)
    total, tokens = sum(loss for loss, _ in losses), sum(count for _, count in losses)
    assert report.loss == pytest.approx(total / tokens, rel=1e-12)
    assert report.example_loss == pytest.approx(sum(loss / count for loss, count in losses) / 5, rel=1e-12)
    assert report.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-12)
    assert (report.tokens, report.examples) == (tokens, 5)
    both = [losses[0], losses[3]]
    assert report.per_category["a"] == pytest.approx(sum(x for x, _ in both) / sum(n for _, n in both), rel=1e-12)
    assert report.per_category["c"] == pytest.approx(losses[4][0] / losses[4][1], rel=1e-12)
    assert list(report.per_category) == ["a", "b", "c"]


def test_token_accuracy_counts_the_likeliest_tokens(model, model_folder, losses):
    oracle = load(model_folder("gpt2"), model.read(), alpha=8)
    right = total = 0
    for row in ROWS:
        ids = torch.from_numpy(row.ids.astype(np.int64))
        with torch.no_grad():
            guess = oracle(input_ids=ids[None]).logits[0, :-1].argmax(-1)
        chosen = torch.from_numpy(row.supervised[1:])
        right += int((guess == ids[1:])[chosen].sum())
        total += int(chosen.sum())
    assert held_out_loss(model, ROWS).token_accuracy == right / total


@pytest.mark.parametrize("kind", ["bloom", "llama", "opt"])
def test_padded_and_packed_architectures_alike(adapted, kind):
    model = adapted(kind)
    model.load(random_adapter(model))
    together = held_out_loss(model, ROWS)
    alone = [held_out_loss(model, [row]) for row in ROWS]
    assert together.loss == pytest.approx(
        sum(r.loss * r.tokens for r in alone) / sum(r.tokens for r in alone), rel=1e-7
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_several_adapters_together_lose_what_each_loses_alone(adapted, kind):
    model = adapted(kind)
    adapters = [random_adapter(model, seed) for seed in range(3)]
    rows = [ROWS, ROWS[:2], ROWS[1:]]
    together = row_losses(model, adapters, rows)
    for adapter, own, found in zip(adapters, rows, together, strict=True):
        (alone,) = row_losses(model, [adapter], [own])
        torch.testing.assert_close(found.sums, alone.sums, rtol=1e-12, atol=0)
        assert torch.equal(found.counts, alone.counts)
        assert torch.equal(found.correct, alone.correct)
    shares = [row_losses(model, adapters, rows, (k, 2)) for k in range(2)]
    for index, found in enumerate(together):
        assert torch.equal(found.sums, shares[0][index].sums + shares[1][index].sums)
    assert len({float(found.sums.sum()) for found in together}) == 3


def test_rows_without_targets_do_not_count(model, losses):
    silent = TokenRow(np.arange(9, dtype=np.int32), np.zeros(9, dtype=bool))
    with_silent = held_out_loss(model, [*ROWS, silent], [*CATEGORIES, "silent"])
    assert with_silent == held_out_loss(model, ROWS, CATEGORIES)


def test_nothing_moves_and_nothing_is_left(model, losses, keep_global_state):
    before = model.read()
    held_out_loss(model, ROWS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.read().items())
    assert all(parameter.grad is None for parameter in model.parameters.values())


def test_an_enormous_loss_has_a_perplexity():
    assert math.isfinite(LossReport(1e6, 1e6, 0.0, 1, 1).perplexity)


def test_categories_fit_their_rows(model, losses):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        held_out_loss(model, ROWS, ["a"])
