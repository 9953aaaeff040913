"""Adapted models of nine architectures against plain PEFT: losses, gradients, packing, padding."""

import warnings

import numpy as np
import pytest
import torch
from oracle import batch_loss, gradients, load, row_loss
from tiny import CONFIGS, make_rows, random_adapter

from fedit.data.tokens import TokenRow
from fedit.errors import ModelError
from fedit.model.adapted import canonical_name
from fedit.model.batch import collate
from fedit.objectives import negative_log_likelihood
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining

KINDS = sorted(CONFIGS)
# The others compute a norm, a softmax or rotary angles in float32 whatever the dtype.
ALL_FLOAT64 = {"gpt2", "opt"}
CANNOT_PACK = {"bloom", "opt"}  # ALiBi counts from the mask; OPT looks positions up by the mask
ROWS = make_rows([19, 7, 30, 12])


def plain(rows):
    return [(row.ids.tolist(), row.supervised.tolist()) for row in rows]


@pytest.fixture(scope="module")
def models(adapted, model_folder):
    """Return (fedit's model, the oracle) of an architecture, both with the same random adapter in float64."""
    made = {}

    def get(kind):
        if kind not in made:
            model = adapted(kind)
            adapter = random_adapter(model)
            made[kind] = model, adapter, load(model_folder(kind), adapter, alpha=8)
        model, adapter, oracle = made[kind]
        model.load(adapter)
        return model, oracle

    return get


def grads_of(model, rows, *, packed):
    for parameter in model.parameters.values():
        parameter.grad = None
    nll = negative_log_likelihood(model, collate(rows, packed=packed))
    nll.backward()
    return float(nll.detach()), {name: p.grad.clone() for name, p in model.parameters.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_adapting_warns_of_nothing(adapted, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What transformers announces about itself is silenced where libraries are, not here.
        warnings.filterwarnings("ignore", category=FutureWarning)
        adapted(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_used_exactly_where_it_can_serve(adapted, kind):
    assert adapted(kind, dtype="fp64").packs == (kind not in CANNOT_PACK)
    assert adapted(kind, dtype="bf16").packs == (kind not in CANNOT_PACK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_loss_and_gradient_of_its_rows_one_by_one(models, kind):
    model, oracle = models(kind)
    count = sum(row_loss(oracle, row)[1] for row in plain(ROWS))
    expected_loss = float(batch_loss(oracle, plain(ROWS)).detach()) * count
    expected = gradients(oracle, plain(ROWS))
    for packed in (False, True) if model.packs else (False,):
        loss, grads = grads_of(model, ROWS, packed=packed)
        assert loss == pytest.approx(expected_loss, rel=1e-12 if kind in ALL_FLOAT64 else 1e-7)
        for name in expected:
            difference = float((grads[name] / count - expected[name]).norm() / expected[name].norm())
            assert difference < (1e-12 if kind in ALL_FLOAT64 else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_never_leaks_between_rows(models, kind):
    model, _ = models(kind)
    first, second = make_rows([25, 18], seed=3)
    other = TokenRow((first.ids + 7) % 256, first.supervised)
    with torch.no_grad():
        for packed in (False, True) if model.packs else (False,):
            after = [
                model.log_probabilities(collate([before, second], packed=packed)) for before in (first, other)
            ]
            size = int(second.supervised[1:].sum())
            torch.testing.assert_close(after[0][-size:], after[1][-size:], rtol=0, atol=1e-12)
            assert (after[0][:-size] - after[1][:-size]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_only_columns_with_targets_go_through_the_head_and_nothing_changes(models, kind, monkeypatch):
    model, _ = models(kind)
    batch = collate(ROWS, packed=model.packs)
    with torch.no_grad():
        short, likely = model.target_scores(batch)
        monkeypatch.setattr(model, "_keeps_logits", False)
        whole, likely_whole = model.target_scores(batch)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)
    assert torch.equal(likely, likely_whole)


def test_the_head_sees_few_columns(models):
    model, _ = models("llama")
    (row,) = make_rows([100], prompt=0.95)
    seen = []
    hook = model.base.model.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[1])
    )
    with torch.no_grad():
        model.target_scores(collate([row], packed=True))
    hook.remove()
    assert seen == [int(row.supervised.sum())]


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_changes_nothing_without_dropout(models, kind):
    model, _ = models(kind)
    batch = collate(ROWS, packed=model.packs)
    with torch.no_grad():
        calm = model.log_probabilities(batch)
        model.train_mode(True)
        busy = model.log_probabilities(batch)
        model.train_mode(False)
    assert torch.equal(calm, busy)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(adapted, kind):
    results = []
    for checkpointing in (False, True):
        model = adapted(kind, gradient_checkpointing=checkpointing)
        model.load(random_adapter(model))
        model.train_mode(True)
        results.append(grads_of(model, ROWS, packed=model.packs))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for name, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained(adapted, kind):
    model = adapted(kind)
    before = {n: p.detach().clone() for n, p in model.base.model.named_parameters() if "lora_" not in n}
    trainable = [n for n, p in model.base.model.named_parameters() if p.requires_grad]
    assert len(trainable) == len(model.parameters)
    assert all("lora_" in name for name in trainable)
    model.load(model.initial(0))
    how = LocalTraining(learning_rate=0.1, num_rounds=1, steps=2, batch_size=2)
    run(Trainer(model), how)
    after = dict(model.base.model.named_parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def run(trainer, training, **changes):
    options = {
        "round": 1,
        "batches_seen": 0,
        "data_seed": 0,
        "noise_seed": 0,
        "trainable": list(trainer.model.parameters),
        "optimizer_state": {},
        "correct": lambda params, grads: None,
        **changes,
    }
    return trainer.train(LocalJob(ROWS, training, **options), trainer.model.read())


def test_a_sliding_window_and_packing_go_together(models):
    """Rows longer than Gemma's window of 32, packed, against one by one."""
    model, oracle = models("gemma2")
    rows = make_rows([80, 60, 3], seed=5)
    expected = [row_loss(oracle, row)[0] for row in plain(rows)]
    loss, _ = grads_of(model, rows, packed=True)
    assert loss == pytest.approx(float(sum(expected).detach()), rel=1e-7)


def test_row_by_row_scores_belong_to_their_rows(models):
    model, oracle = models("llama")
    batch = collate(ROWS, packed=True)
    with torch.no_grad():
        scores = -model.log_probabilities(batch)
    for index, row in enumerate(plain(ROWS)):
        own = float(scores[batch.row_of_target == index].sum())
        assert own == pytest.approx(float(row_loss(oracle, row)[0].detach()), rel=1e-7)


# --- the adapter as tensors ---


def test_a_fresh_adapter_changes_nothing_and_is_drawn_as_peft_draws_it(adapted):
    model = adapted("llama", rank=16)
    fresh = model.initial(3)
    assert list(fresh) == sorted(fresh)
    for name, tensor in fresh.items():
        if name.endswith(".B"):
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert tensor.abs().max() <= bound
            assert float(tensor.std()) == pytest.approx(bound / 3**0.5, rel=0.15)
            assert abs(float(tensor.mean())) < 0.15 * bound
    batch = collate(ROWS, packed=True)
    model.load(fresh)
    with torch.no_grad():
        scores = model.log_probabilities(batch)
        with model._model.disable_adapter():
            base = model.log_probabilities(batch)
    assert torch.equal(scores, base)


def test_a_fresh_adapter_depends_on_its_seed_alone(shared_model, keep_global_state):
    one, two, other = shared_model.initial(1), shared_model.initial(1), shared_model.initial(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith(".A"))
    distinct = {tuple(one[name][0, :4].tolist()) for name in one if name.endswith(".A")}
    assert len(distinct) == len(one) // 2


def test_reading_gives_a_copy_of_what_was_loaded(shared_model):
    adapter = random_adapter(shared_model, 5)
    shared_model.load(adapter)
    found = shared_model.read()
    assert all(torch.equal(found[name], adapter[name]) for name in adapter)
    found["model.layers.0.self_attn.q_proj.A"].zero_()
    assert shared_model.read()["model.layers.0.self_attn.q_proj.A"].any()


@pytest.mark.parametrize(
    ("dtype", "kept"), [("bf16", torch.float32), ("fp32", torch.float32), ("fp64", torch.float64)]
)
def test_factors_keep_their_precision_over_a_coarser_base(adapted, dtype, kept):
    model = adapted("llama", dtype=dtype)
    assert {tensor.dtype for tensor in model.initial(0).values()} == {kept}
    assert {parameter.dtype for parameter in model.parameters.values()} == {kept}
    fine = {name: tensor + 1e-6 for name, tensor in model.initial(0).items()}
    model.load(fine)
    assert all(torch.equal(fine[name], tensor) for name, tensor in model.read().items())


def test_shapes_are_rank_by_in_and_out_by_rank(adapted):
    llama = {
        n.removeprefix("model.layers.0.self_attn."): tuple(t.shape) for n, t in adapted("llama").initial(0).items()
    }
    assert (llama["q_proj.A"], llama["q_proj.B"]) == ((4, 32), (32, 4))
    assert (llama["k_proj.A"], llama["k_proj.B"]) == ((4, 32), (16, 4))  # grouped heads: half as many keys
    gpt2 = {n: tuple(t.shape) for n, t in adapted("gpt2").initial(0).items()}
    assert gpt2["transformer.h.0.attn.c_attn.A"] == (4, 32)  # Conv1D keeps weights (in, out)
    assert gpt2["transformer.h.0.attn.c_attn.B"] == (96, 4)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_alpha_over_rank_or_over_its_root(adapted, rslora):
    model = adapted("llama", rank=4, alpha=6.0, rslora=rslora, targets=["q_proj"])
    assert model.scale == (3.0 if rslora else 1.5)
    layer = model.base.model.model.layers[0].self_attn.q_proj
    model.load(random_adapter(model))
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    adapter = model.read()
    a, b = adapter["model.layers.0.self_attn.q_proj.A"], adapter["model.layers.0.self_attn.q_proj.B"]
    with torch.no_grad():
        torch.testing.assert_close(layer(x) - layer.base_layer(x), model.scale * x @ a.T @ b.T)


def test_an_adapter_that_does_not_fit_is_refused(shared_model):
    good = shared_model.initial(0)
    name = next(iter(good))
    with pytest.raises(ModelError, match="missing"):
        shared_model.load({n: t for n, t in good.items() if n != name})
    with pytest.raises(ModelError, match=r"unknown.*extra\.A"):
        shared_model.load({**good, "extra.A": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"is \(2, 2\)"):
        shared_model.load({**good, name: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.x.lora_embedding_A.default",
        "x.weight",
        "base_model.model.x.lora_magnitude_vector.default.weight",
    ],
)
def test_what_is_no_factor_of_a_linear_layer_is_refused(name):
    with pytest.raises(ModelError, match="not a LoRA factor"):
        canonical_name(name)


def test_hidden_states_are_the_bases_and_padding_does_not_count(models):
    model, oracle = models("llama")
    found = model.mean_hidden(collate(ROWS, packed=False))
    for index, (ids, _) in enumerate(plain(ROWS)):
        with torch.no_grad(), oracle.disable_adapter():
            hidden = oracle(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(found[index], hidden[0].float().mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="padded"):
        model.mean_hidden(collate(ROWS, packed=True))


def test_the_state_at_the_last_token_is_that_of_what_is_loaded(models):
    model, oracle = models("llama")
    found = model.last_hidden(collate(ROWS, packed=False))
    for index, (ids, _) in enumerate(plain(ROWS)):
        with torch.no_grad():
            hidden = oracle(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(found[index], hidden[0, -1].float(), rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_has_no_loss(models):
    model, _ = models("llama")
    silent = TokenRow(np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool))
    with torch.no_grad():
        assert float(negative_log_likelihood(model, collate([silent], packed=True))) == 0
