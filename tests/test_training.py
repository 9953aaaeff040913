"""One client's optimisation against a plain PyTorch loop, and what it does when memory or numbers give out."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gradients, load, read, train
from tiny import make_rows, random_adapter

from fedit.model import adapted as adapted_module
from fedit.model.adapted import AdaptedModel
from fedit.training import LocalJob, Trainer, TrainingFailed, batches
from fedit.types import LocalTraining

ROWS = make_rows([19, 7, 30, 12, 25, 9, 14, 22])
log_probabilities = AdaptedModel.log_probabilities
PLAIN = [(row.ids.tolist(), row.supervised.tolist()) for row in ROWS]


@pytest.fixture(scope="module")
def model(adapted):
    """GPT-2 computes everything in float64 when asked to; most others keep parts in float32."""
    return adapted("gpt2")


@pytest.fixture
def start(model):
    return random_adapter(model, 1)


@pytest.fixture
def oracle(model_folder, start):
    return load(model_folder("gpt2"), start, alpha=8)


def how(**changes):
    options = {"learning_rate": 0.01, "num_rounds": 1, "steps": 1, "batch_size": 8, "max_grad_norm": 0.0}
    options |= {"optimizer": "sgd"} | changes
    if options.get("epochs") or options.get("tokens"):
        options["steps"] = None
    return LocalTraining(**options)


def fit(model, start, training, *, trainer=None, rows=ROWS, **changes):
    """Train from ``start`` and return (adapter, progress, optimizer state)."""
    model.load(start)
    options = {
        "round": 1,
        "batches_seen": 0,
        "data_seed": 0,
        "noise_seed": 0,
        "trainable": list(start),
        "optimizer_state": {},
        "correct": lambda params, grads: None,
        **changes,
    }
    on_step = options.pop("on_step", lambda progress: None)
    job = LocalJob(rows, training, **options)
    progress, state, trained = (trainer or Trainer(model)).train(job, start, on_step)
    return trained, progress, state


def assert_close(one, two, tolerance):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name].double(), two[name].double(), rtol=0, atol=tolerance)


def assert_same(one, two):
    assert_close(one, two, 0)


# --- the step ---


@pytest.mark.parametrize("micro", [1, 2, 3, None])
def test_a_step_follows_the_gradient_of_the_mean_over_the_batchs_tokens(model, start, oracle, micro):
    expected = gradients(oracle, PLAIN)
    after, progress, _ = fit(model, start, how(learning_rate=1.0, micro_batch_size=micro))
    assert_close(after, {name: start[name] - expected[name] for name in start}, 1e-12)
    assert progress.supervised_tokens == sum(sum(mask) for _, mask in PLAIN)
    assert progress.tokens == sum(len(ids) for ids, _ in PLAIN)
    assert progress.examples == 8


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_micro_batch_changes_nothing(adapted, kind, monkeypatch):
    model = adapted(kind)
    start = random_adapter(model)
    results = [fit(model, start, how(learning_rate=1.0, micro_batch_size=micro))[0] for micro in (1, 2, None)]
    for budget in (adapted_module.GENERAL_TOKENS, adapted_module.FAST_TOKENS):
        monkeypatch.setitem(budget, "cpu", 40)
    results.append(fit(model, start, how(learning_rate=1.0))[0])
    for other in results[1:]:
        assert_close(results[0], other, 1e-6 if kind == "llama" else 1e-12)  # Llama's norms are float32


@pytest.mark.parametrize("norm", [0.0, 0.05, 100.0])
@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.01)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        ),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
        (
            {"optimizer": "adamw", "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95},
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
        ),
    ],
    ids=["sgd", "momentum and decay", "adamw", "adamw with decay and betas"],
)
def test_steps_are_those_of_a_plain_loop(model, start, oracle, norm, options, make):
    order = list(itertools.islice(batches(8, 3, 0, 0), 5))
    losses = train(oracle, [[PLAIN[i] for i in chosen] for chosen in order], make, max_norm=norm)
    after, progress, _ = fit(model, start, how(steps=5, batch_size=3, max_grad_norm=norm, **options))
    # AdamW divides by a root, which enlarges rounding where gradients are tiny.
    assert_close(after, read(oracle), 1e-9 if "adamw" in options.values() else 1e-12)
    weights = [sum(sum(PLAIN[i][1]) for i in chosen) for chosen in order]
    mean = sum(loss * w for loss, w in zip(losses, weights, strict=True)) / sum(weights)
    assert progress.loss == pytest.approx(mean, rel=1e-8)


def test_training_lowers_the_loss(model, start):
    _, progress, _ = fit(
        model, start, how(steps=15, optimizer="adamw", learning_rate=0.02), on_step=lambda p: None
    )
    _, first, _ = fit(model, start, how(steps=1, optimizer="adamw", learning_rate=0.02))
    assert progress.loss < 0.9 * first.loss


def test_only_the_named_factors_train_and_the_others_come_back(model, start):
    only_b = [name for name in start if name.endswith(".B")]
    after, _, state = fit(
        model, start, how(steps=2, optimizer="adamw", weight_decay=0.5, keep_optimizer=True), trainable=only_b
    )
    for name in start:
        assert torch.equal(after[name], start[name]) == (name not in only_b)
    assert {name.rpartition(".")[0] for name in state} == set(only_b)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters.values())


def test_a_strategy_may_correct_gradients_before_they_are_clipped(model, start):
    def nothing(params, grads):
        for grad in grads.values():
            grad.zero_()

    after, _, _ = fit(model, start, how(steps=2), correct=nothing)
    assert_same(after, start)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_strategy_may_correct_parameters_after_each_step(model, start, optimizer):
    rates = []

    def back(params, rate):
        rates.append(rate)
        for name, param in params.items():
            param.copy_(start[name])

    training = how(steps=3, optimizer=optimizer, schedule="linear")
    after, progress, _ = fit(model, start, training, correct_after=back)
    assert_same(after, start)
    assert rates == progress.learning_rates
    assert len(set(rates)) == 3


def test_every_step_is_told(model, start):
    told = []
    fit(model, start, how(steps=3, batch_size=2), on_step=lambda p: told.append((p.steps, p.examples)))
    assert told == [(1, 2), (2, 4), (3, 6)]


# --- how long ---


def test_epochs_see_every_row_as_often(model, start):
    _, progress, _ = fit(model, start, how(epochs=2, batch_size=3))
    assert (progress.steps, progress.examples, len(progress.rows)) == (6, 16, 8)


@pytest.mark.parametrize("tokens", [1, 60, 300])
def test_tokens_are_reached_and_passed_by_less_than_a_batch(model, start, tokens):
    _, progress, _ = fit(model, start, how(tokens=tokens, batch_size=2))
    assert tokens <= progress.tokens < tokens + 30 + 25


def test_learning_rates_go_on_over_rounds(model, start):
    how_long = {"steps": 2, "num_rounds": 3, "schedule": "linear", "learning_rate": 0.6}
    rates = [fit(model, start, how(**how_long), round=r)[1].learning_rates for r in (1, 2, 3)]
    assert [rate for one in rates for rate in one] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    "options", [{"optimizer": "adamw"}, {"momentum": 0.9}, {}], ids=["adamw", "momentum", "sgd"]
)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_a_kept_optimizer_goes_on_as_if_never_stopped(adapted, options, dtype):
    model = adapted("gpt2", dtype=dtype)
    start = random_adapter(model)
    whole, _, _ = fit(model, start, how(steps=6, batch_size=3, keep_optimizer=True, **options))
    half, _, state = fit(model, start, how(steps=3, batch_size=3, keep_optimizer=True, **options))
    rest, _, _ = fit(
        model,
        half,
        how(steps=3, batch_size=3, keep_optimizer=True, **options),
        batches_seen=3,
        optimizer_state=state,
    )
    assert_same(rest, whole)


def test_an_optimizer_that_is_not_kept_leaves_nothing(model, start):
    assert fit(model, start, how(optimizer="adamw"))[2] == {}


def test_a_kept_state_is_a_copy(model, start):
    options = how(optimizer="adamw", keep_optimizer=True)
    half, _, state = fit(model, start, options)
    before = {name: tensor.clone() for name, tensor in state.items()}
    fit(model, half, options, optimizer_state=state)
    assert_same(state, before)


# --- the stream of rows ---


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=50)
def test_an_epoch_is_every_row_exactly_once(rows, size, seed):
    per_epoch = math.ceil(rows / size)
    stream = list(itertools.islice(batches(rows, size, seed, 0), 3 * per_epoch))
    for epoch in range(3):
        own = [i for batch in stream[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch]
        assert sorted(own) == list(range(rows))
    assert {len(batch) for batch in stream} <= {size, rows % size or size, min(size, rows)}


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 10**6), st.integers(0, 40))
@settings(max_examples=50)
def test_a_stream_goes_on_where_it_stopped(rows, size, seed, seen):
    whole = list(itertools.islice(batches(rows, size, seed, 0), seen + 7))
    assert list(itertools.islice(batches(rows, size, seed, seen), 7)) == whole[seen:]


def test_epochs_and_clients_have_orders_of_their_own():
    first, second = itertools.islice(batches(40, 40, 1, 0), 2)
    (other,) = itertools.islice(batches(40, 40, 2, 0), 1)
    assert first != second
    assert first != other
    assert first != sorted(first)


def test_every_row_is_as_likely_to_come_first():
    counts = [0] * 10
    for seed in range(1000):
        counts[next(batches(10, 1, seed, 0))[0]] += 1
    assert sum((count - 100) ** 2 for count in counts) / 100 < 30  # 9 degrees of freedom


# --- dropout ---


@pytest.fixture(scope="module")
def noisy(adapted):
    return adapted("gpt2", dropout=0.3)


def test_dropout_is_seeded_and_moves_no_global_generator(noisy, start, keep_global_state):
    training = how(steps=2, batch_size=4)
    one, two, other = (fit(noisy, start, training, noise_seed=seed)[0] for seed in (1, 1, 2))
    assert_same(one, two)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_dropout_does_not_listen_to_the_global_seed(noisy, start):
    training = how(steps=2, batch_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one, _, _ = fit(noisy, start, training)
        torch.manual_seed(2)
        two, _, _ = fit(noisy, start, training)
    assert_same(one, two)


def test_every_step_drops_something_else(noisy, start):
    after = []
    for step in range(3):
        # The same rows, no movement: only the noise of the step differs.
        seen = []
        fit(
            noisy,
            start,
            how(steps=step + 1, learning_rate=1e-300),
            on_step=lambda p, seen=seen: seen.append(p.summed),
        )
        after = seen
    losses = [late - early for early, late in itertools.pairwise([0.0, *after])]
    assert len({round(loss, 9) for loss in losses}) == 3


def test_dropout_is_off_after_training(noisy, start):
    noisy.load(start)
    fit(noisy, start, how())
    assert not any(part.training for part in noisy.base.model.modules())


# --- memory ---


def short_of_memory(monkeypatch, most_rows, make=lambda: torch.OutOfMemoryError("CUDA out of memory")):
    """Let passes of more than ``most_rows`` rows fail; return the sizes that were tried."""
    tried = []

    def limited(model, batch):
        rows = len(batch.row_of_target.unique())
        tried.append(rows)
        if rows > most_rows:
            raise make()
        return log_probabilities(model, batch)

    monkeypatch.setattr(AdaptedModel, "log_probabilities", limited)
    return tried


ERRORS = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_step_without_enough_memory_is_done_again_in_smaller_passes(model, start, monkeypatch, kind, most):
    training = how(steps=3, learning_rate=0.5)
    undisturbed, calm, _ = fit(model, start, training)
    tried = short_of_memory(monkeypatch, most, ERRORS[kind])
    after, progress, _ = fit(model, start, training)
    assert_close(after, undisturbed, 1e-12)
    assert (progress.steps, progress.examples) == (calm.steps, calm.examples)
    assert progress.loss == pytest.approx(calm.loss, rel=1e-12)
    assert max(tried) > most


def test_how_a_batch_is_cut_does_not_depend_on_who_trained_before(model, start, monkeypatch):
    """Smaller passes round differently, so every client finds out about memory for itself, once."""
    trainer = Trainer(model)
    tried = short_of_memory(monkeypatch, 2)
    fit(model, start, how(), trainer=trainer)
    first = list(tried)
    tried.clear()
    fit(model, start, how(), trainer=trainer)
    assert tried == first
    assert tried.count(max(tried)) == 1


def test_memory_that_gives_out_in_the_middle_of_a_step_leaves_no_half_gradient(model, start, monkeypatch):
    undisturbed, _, _ = fit(model, start, how(learning_rate=0.5, micro_batch_size=4))
    calls = itertools.count()

    def second_fails(model, batch):
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return log_probabilities(model, batch)

    monkeypatch.setattr(AdaptedModel, "log_probabilities", second_fails)
    after, _, _ = fit(model, start, how(learning_rate=0.5, micro_batch_size=4))
    assert_close(after, undisturbed, 1e-12)


def test_one_example_that_does_not_fit_ends_the_clients_round(model, start, monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(TrainingFailed, match="out of memory on a single example of up to 30 tokens"):
        fit(model, start, how())
    monkeypatch.undo()
    assert_same(fit(model, start, how())[0], fit(model, start, how())[0])


def test_other_errors_are_not_taken_for_memory(model, start, monkeypatch):
    def broken(model, batch):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(AdaptedModel, "log_probabilities", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        fit(model, start, how())


# --- numbers ---


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_loss_that_is_not_finite_ends_the_clients_round(model, start, norm):
    broken = {name: tensor * float("nan") for name, tensor in start.items()}
    with pytest.raises(TrainingFailed, match="loss became nan"):
        fit(model, broken, how(max_grad_norm=norm))


def test_a_gradient_that_is_not_finite_ends_the_clients_round(model, start):
    def poison(params, grads):
        next(iter(grads.values())).fill_(float("inf"))

    with pytest.raises(TrainingFailed, match="gradient became inf at step 1"):
        fit(model, start, how(max_grad_norm=1.0), correct=poison)


def test_a_batch_without_targets_is_told(model, start):
    with pytest.raises(TrainingFailed, match="no supervised token"):
        fit(model, start, how(batch_size=1), rows=make_rows([6], prompt=1.0))
