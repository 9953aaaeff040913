"""The fast path against the autograd of transformers and PEFT, in every family it knows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gradients import FAMILIES, LENGTHS, distance, float64_norms, gradients, gradients_of_rows, with_prefix
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import load
from tiny import CONFIGS, make_rows, random_adapter
from torch import nn
from transformers import GenerationConfig

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.fast import architecture
from fedit.model.fast.layout import lay_out, shared_prefixes
from fedit.model.fast.model import FastModel
from fedit.model.fast.probe import first_difference

pytestmark = pytest.mark.usefixtures("float64_softmax")


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_gradients_are_those_of_transformers_and_peft(adapted, model_folder, kind, targets):
    model = adapted(kind, targets=targets)
    assert model.fast is not None
    adapter = random_adapter(model, 1)
    model.load(adapter)
    oracle = float64_norms(load(model_folder(kind), adapter, alpha=8))
    for rows in (make_rows(LENGTHS), with_prefix(make_rows(LENGTHS, prompt=0.8), 9), make_rows([1, 5, 2, 1])):
        expected_loss, expected = gradients_of_rows(oracle, adapter, rows)
        loss, found = gradients(model, rows)
        assert loss == pytest.approx(expected_loss, rel=1e-9)
        assert distance(found, expected) < 1e-9


@pytest.mark.parametrize("kind", FAMILIES)
def test_float32_gradients_are_those_of_transformers_and_peft(adapted, model_folder, kind):
    model = adapted(kind, dtype="fp32", targets="all-linear")
    adapter = random_adapter(model, 1)
    model.load(adapter)
    rows = with_prefix(make_rows(LENGTHS, prompt=0.8), 9)
    oracle = load(model_folder(kind), adapter, alpha=8, dtype=torch.float32)
    assert distance(gradients(model, rows)[1], gradients_of_rows(oracle, adapter, rows)[1]) < 1e-5


@pytest.mark.parametrize("kind", FAMILIES)
def test_bfloat16_is_as_close_to_float32_as_transformers_is(adapted, model_folder, kind):
    exact = adapted(kind, dtype="fp32", targets="all-linear")
    adapter = random_adapter(exact, 1)
    rows = make_rows(LENGTHS)
    exact.load(adapter)
    expected = gradients(exact, rows)[1]
    coarse = adapted(kind, dtype="bf16", targets="all-linear")
    coarse.load(adapter)
    assert coarse.fast is not None
    theirs = gradients_of_rows(load(model_folder(kind), adapter, alpha=8, dtype=torch.bfloat16), adapter, rows)[1]
    assert distance(gradients(coarse, rows)[1], expected) < 1.5 * distance(theirs, expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_recomputing_changes_nothing(adapted, kind):
    rows = with_prefix(make_rows(LENGTHS, prompt=0.8), 9)
    results = []
    for recompute in (False, True):
        model = adapted(kind, targets="all-linear", gradient_checkpointing=recompute)
        model.load(random_adapter(model, 1))
        results.append(gradients(model, rows)[1])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "phi3"])
def test_a_sliding_window_hides_what_lies_before_it(model_folder, kind, tmp_path):
    from transformers import AutoConfig

    from fedit.model.loading import load_base
    from fedit.model.sources import resolve_model

    folder = tmp_path / kind
    folder.mkdir()
    for path in model_folder(kind).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = AutoConfig.from_pretrained(folder)
    config.sliding_window = 16
    config.save_pretrained(folder)
    model = AdaptedModel(load_base(resolve_model(str(folder)), device="cpu", dtype="fp64"), rank=4, alpha=8)
    adapter = random_adapter(model, 1)
    model.load(adapter)
    assert model.fast is not None
    oracle = float64_norms(load(folder, adapter, alpha=8))
    wide = float64_norms(load(model_folder(kind), adapter, alpha=8))
    for rows in (make_rows(LENGTHS), with_prefix(make_rows(LENGTHS, prompt=0.8), 9)):
        expected = gradients_of_rows(oracle, adapter, rows)[1]
        assert distance(gradients(model, rows)[1], expected) < 1e-9
        if kind != "gemma2":
            assert distance(gradients_of_rows(wide, adapter, rows)[1], expected) > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom"])
def test_other_architectures_go_the_general_way_and_say_why(adapted, kind):
    model = adapted(kind)
    assert model.fast is None
    assert model.why_general == f"models of type {kind} are not known to it"


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_a_model_whose_numbers_differ_is_left_to_the_general_path(adapted, monkeypatch, dtype):
    monkeypatch.setitem(architecture.ACTIVATIONS, "silu", architecture.ACTIVATIONS["gelu"])
    model = adapted("llama", dtype=dtype)
    assert model.fast is None
    assert model.why_general == "its numbers differ from the model's own: layer 0"


@pytest.mark.parametrize(
    ("part", "where"),
    [("embed", "the embedding"), ("norm", "the head"), ("layers", "layer 1"), ("rotary", "layer 0")],
)
@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
def test_a_difference_is_found_where_it_is(adapted, part, where, dtype):
    model = adapted("llama", dtype=dtype)
    parts = model.fast.architecture
    last = parts.layers[1]
    changed = {
        "embed": lambda: torch.nn.Embedding.from_pretrained(parts.embed.weight * 1.2),
        "norm": lambda: replace(parts.norm, weight=parts.norm.weight * 1.2),
        "layers": lambda: (parts.layers[0], replace(last, heads=replace(last.heads, scale=2 * last.heads.scale))),
        "rotary": lambda: type(parts.rotary)(
            model.base.model.config.__class__(**{**CONFIGS["llama"], "rope_theta": 9})
        ),
    }[part]()
    fast = FastModel(replace(parts, **{part: changed}))
    rows = model._probe_rows((5, 17, 29), prefix=9)
    assert first_difference(model.base.model, fast, rows, model.parameters, model.scale) == where
    assert first_difference(model.base.model, model.fast, rows, model.parameters, model.scale) is None


def test_the_fast_path_can_be_switched_off(adapted):
    model = adapted("llama", fast_path=False)
    assert model.fast is model.why_general is None
    fast = adapted("llama")
    for each in (model, fast):
        each.load(random_adapter(each, 1))
    rows = make_rows(LENGTHS)
    assert distance(gradients(fast, rows)[1], gradients(model, rows)[1]) < 1e-6  # transformers' norms are float32


@pytest.mark.parametrize("frozen", ["A", "B", "layers.0"])
def test_frozen_factors_get_no_gradient_and_change_no_other(adapted, frozen):
    model = adapted("llama", targets="all-linear")
    model.load(random_adapter(model, 1))
    rows = make_rows(LENGTHS)
    everything = gradients(model, rows)[1]
    for name, parameter in model.parameters.items():
        parameter.requires_grad_(not (name.endswith(f".{frozen}") or frozen in name.split("self_attn")[0]))
    some = gradients(model, rows)[1]
    assert set(some) == {n for n, p in model.parameters.items() if p.requires_grad}
    assert 0 < len(some) < len(everything)
    assert all(torch.equal(some[name], everything[name]) for name in some)


def test_only_some_layers_may_be_adapted(adapted, model_folder):
    model = adapted("llama", targets=["down_proj", "v_proj"])
    adapter = random_adapter(model, 1)
    model.load(adapter)
    rows = make_rows(LENGTHS)
    oracle = float64_norms(load(model_folder("llama"), adapter, alpha=8))
    assert distance(gradients(model, rows)[1], gradients_of_rows(oracle, adapter, rows)[1]) < 1e-9


def test_scores_without_gradient_are_the_same(adapted):
    model = adapted("llama", dtype="fp64")
    model.load(random_adapter(model, 1))
    batch = model.collate(make_rows(LENGTHS))
    scores, likeliest = model.target_scores(batch)
    assert not scores.requires_grad
    assert torch.equal(scores, model.log_probabilities(batch).detach())
    assert scores[likeliest].numel() < len(scores)


def test_the_likeliest_tokens_are_those_of_greedy_generation(adapted):
    model = adapted("llama", dtype="fp64")
    model.load(random_adapter(model, 1))
    prompt = torch.from_numpy(make_rows([6])[0].ids.astype(np.int64)).unsqueeze(0)
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    ids = model.generate(prompt, torch.ones_like(prompt), greedy)[0].numpy().astype(np.int32)
    ids[-1] = (ids[-1] + 1) % 256
    row = TokenRow(ids, np.arange(len(ids)) >= 6)
    assert model.target_scores(model.collate([row]))[1].tolist() == [True] * 7 + [False]


def test_dropout_is_off_outside_training(adapted):
    model = adapted("llama", dtype="fp64", dropout=0.5)
    model.load(random_adapter(model, 1))
    prompt = torch.from_numpy(make_rows([6])[0].ids.astype(np.int64)).unsqueeze(0)
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    answers = [model.generate(prompt, torch.ones_like(prompt), greedy) for _ in range(3)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_joined_weights_are_the_models_own(adapted):
    """Generation runs through the model itself: it must see the same memory, and no second copy may exist."""
    model = adapted("llama")
    layer = model.base.model.model.layers[0]
    joined = model.fast.architecture.layers[0].qkv.weight
    for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        weight = getattr(part, "base_layer", part).weight
        assert weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()


class _Recorded(nn.Module):
    """Stands in for PEFT's dropout: a given mask over the packed tokens."""

    def __init__(self, mask, rate):
        super().__init__()
        self.mask, self.rate = mask, rate

    def forward(self, x):
        return x * self.mask / (1 - self.rate)


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_is_pefts_with_the_same_masks(adapted, model_folder, monkeypatch, recompute):
    from fedit.model.fast import linear

    model = adapted("llama", targets="attention", dropout=0.25, gradient_checkpointing=recompute)
    adapter = random_adapter(model, 1)
    model.load(adapter)
    rows = make_rows([40])
    drawn = []
    real = linear.Dropout.masks

    def spy(self, *args):
        drawn.append(real(self, *args))
        return drawn[-1]

    monkeypatch.setattr(linear.Dropout, "masks", spy)
    found = gradients(model, rows)[1]
    kept = torch.cat([mask.flatten() for masks in drawn for mask in masks]).double().mean()
    assert 0.6 < float(kept) < 0.9
    oracle = float64_norms(load(model_folder("llama"), adapter, alpha=8))
    oracle.train()
    for index, layer in enumerate(oracle.base_model.model.model.layers):
        attention = layer.self_attn
        masks = [*drawn[2 * index], *drawn[2 * index + 1]]
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for projection, mask in zip(projections, masks, strict=True):
            projection.lora_dropout["default"] = _Recorded(mask.double(), 0.25)
    assert distance(found, gradients_of_rows(oracle, adapter, rows)[1]) < 1e-9


# --- the layout ---


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=8), min_size=1, max_size=3), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_a_layout_predicts_every_target_from_the_token_before_it(clients, prefix):
    rows = [with_prefix(make_rows(sizes, i), min(prefix, min(sizes))) for i, sizes in enumerate(clients)]
    layout = lay_out(rows)
    flat = [row for own in rows for row in own]
    expected = [
        (index, int(row.ids[i - 1]), int(row.ids[i]), i - 1)
        for index, row in enumerate(flat)
        for i in range(1, len(row.ids))
        if row.supervised[i]
    ]
    owners, before = layout.row_of_target.tolist(), layout.ids[layout.at].tolist()
    found = zip(owners, before, layout.targets.tolist(), layout.positions[layout.at].tolist(), strict=True)
    assert list(found) == expected
    assert layout.tokens == sum(len(row.ids) for row in flat)
    assert layout.spans[-1][1] == len(layout.ids)
    for own, (start, end) in zip(rows, layout.spans, strict=True):
        saved = sum(length * (len(members) - 1) for length, members in shared_prefixes(own))
        assert end - start == sum(len(row.ids) for row in own) - saved


def test_a_target_is_never_predicted_from_a_shared_token():
    """What follows the last shared token differs from row to row."""
    rows = with_prefix(make_rows([30, 30, 30]), 20)  # supervised from token 15 on
    assert shared_prefixes(rows) == [(14, [0, 1, 2])]
    assert shared_prefixes(rows[:1]) == []
    assert shared_prefixes(with_prefix(make_rows([30, 30], prompt=1.0), 5)) == []


def variants():
    """Return rows of two variants of a template, one that was cut, and one of another template."""
    rows = make_rows([90, 80, 70, 85, 60, 75, 50], prompt=0.8)
    head, one, two = rows[0].ids[:10], rows[1].ids[:30], rows[2].ids[:38]
    begin = {0: (head, one), 1: (head, two), 3: (head, one), 4: (head, two), 5: (head, one)}
    return [
        TokenRow(np.concatenate([*begin[i], row.ids[sum(map(len, begin[i])) :]]), row.supervised)
        if i in begin
        else row
        for i, row in enumerate(rows)
    ]


def test_variants_of_a_template_share_a_prefix_each():
    assert shared_prefixes(variants()) == [(40, [0, 3, 5]), (47, [1, 4])]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_rows_of_several_templates_have_the_gradients_of_transformers(adapted, model_folder, kind):
    model = adapted(kind, targets="all-linear")
    adapter = random_adapter(model, 1)
    model.load(adapter)
    oracle = float64_norms(load(model_folder(kind), adapter, alpha=8))
    assert len(model.collate(variants()).ids) == sum(len(row.ids) for row in variants()) - 2 * 40 - 47
    found = gradients(model, variants())[1]
    assert distance(found, gradients_of_rows(oracle, adapter, variants())[1]) < 1e-9


def test_rows_of_similar_length_share_a_group_and_others_do_not():
    layout = lay_out([make_rows([100, 95, 40])])
    assert [(group.count, group.length) for group in layout.groups] == [(2, 100), (1, 40)]
    assert len(layout.padding) == 5
    assert lay_out([make_rows([50, 50])]).slots is None
