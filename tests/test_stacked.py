"""Stacked clients: each gets what it would get alone, whatever the others have, do or suffer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_rows, random_adapter

from fedit import stacked as module
from fedit.model.adapted import FAST_TOKENS
from fedit.model.fast.layout import lay_out
from fedit.prepare import prepare
from fedit.stacked import StackedTrainer, stacks, width
from fedit.training import LocalJob, Trainer, TrainingFailed
from fedit.types import LocalTraining

HOW = LocalTraining(learning_rate=0.05, num_rounds=1, steps=3, batch_size=2, max_grad_norm=0.5)
SIZES = [[19, 7, 30, 12], [9, 14], [22, 5, 5, 17, 40]]


def jobs(trainable, how=(HOW, HOW, HOW), **changes):
    return [
        LocalJob(
            make_rows(sizes, seed=index),
            training,
            round=1,
            batches_seen=index,
            data_seed=index,
            noise_seed=10 + index,
            trainable=trainable,
            optimizer_state={},
            correct=lambda params, grads: None,
            **changes,
        )
        for index, (sizes, training) in enumerate(zip(SIZES, how, strict=True))
    ]


def alone(model, work, adapters):
    results = []
    for job, adapter in zip(work, adapters, strict=True):
        results.append(Trainer(model).train(job, adapter))
    return results


def assert_alike(found, expected, tolerance):
    for (progress, state, adapter), (own_progress, own_state, own_adapter) in zip(found, expected, strict=True):
        assert (progress.steps, progress.tokens, progress.rows) == (
            own_progress.steps,
            own_progress.tokens,
            own_progress.rows,
        )
        assert progress.loss == pytest.approx(own_progress.loss, rel=tolerance)
        for one, other in ((adapter, own_adapter), (state, own_state)):
            assert set(one) == set(other)
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3", "phi3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_every_client_ends_where_it_would_alone(adapted, kind, dtype, tolerance):
    """Unequal data, numbers of steps, epochs against steps, optimizers: nothing is shared but the base."""
    model = adapted(kind, dtype=dtype, targets="all-linear")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    how = (
        HOW,
        LocalTraining(learning_rate=0.1, num_rounds=1, epochs=2, batch_size=1, optimizer="sgd", momentum=0.9),
        LocalTraining(learning_rate=0.02, num_rounds=1, tokens=150, batch_size=3, keep_optimizer=True),
    )
    work = jobs(list(model.parameters), how)
    assert_alike(StackedTrainer(model).train(work, adapters), alone(model, work, adapters), tolerance)


def test_float32_gradients_agree_to_a_millionth(adapted):
    model = adapted("llama", dtype="fp32", targets="all-linear")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    rows = [make_rows(sizes, seed=index) for index, sizes in enumerate(SIZES)]
    parameters = [model.parameters_of(adapter) for adapter in adapters]
    together = model.stacked_log_probabilities(rows, parameters, [0, 0, 0])
    torch.stack([scores.sum() for scores in together]).sum().backward()
    for own, adapter, parameters_of in zip(rows, adapters, parameters, strict=True):
        model.load(adapter)
        for parameter in model.parameters.values():
            parameter.grad = None
        model.log_probabilities(model.collate(own)).sum().backward()
        for name, parameter in model.parameters.items():
            difference = (parameters_of[name].grad - parameter.grad).norm()
            assert difference <= 1e-6 * parameter.grad.norm()


def test_ranks_may_differ(adapted):
    """A stack may hold adapters of several ranks, each at the scale of its own."""
    small, large = adapted("llama", rank=2, alpha=8), adapted("llama", rank=5, alpha=8)
    adapters = [random_adapter(small, 1), random_adapter(large, 2)]
    work = jobs(list(small.parameters))[:2]
    expected = [alone(model, [job], [a])[0] for model, job, a in zip((small, large), work, adapters, strict=True)]
    assert_alike(StackedTrainer(small).train(work, adapters), expected, 1e-10)


def test_dropout_drops_what_it_would_alone(adapted):
    model = adapted("llama", targets="attention", dropout=0.3)
    adapters = [random_adapter(model, seed) for seed in range(3)]
    work = jobs(list(model.parameters))
    assert_alike(StackedTrainer(model).train(work, adapters), alone(model, work, adapters), 1e-10)


def test_a_client_that_fails_does_not_touch_the_others(adapted):
    model = adapted("llama")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    work = jobs(list(model.parameters))
    expected = alone(model, work, adapters)
    adapters[1] = {name: tensor * float("nan") for name, tensor in adapters[1].items()}
    found = StackedTrainer(model).train(work, adapters)
    assert isinstance(found[1], TrainingFailed)
    assert "loss became nan" in str(found[1])
    assert_alike([found[0], found[2]], [expected[0], expected[2]], 1e-10)


def test_the_loaded_adapter_stays_as_it_is(adapted):
    model = adapted("llama")
    loaded = random_adapter(model, 9)
    model.load(loaded)
    StackedTrainer(model).train(jobs(list(model.parameters)), [random_adapter(model, s) for s in range(3)])
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.read().items())


def test_without_enough_memory_clients_train_one_after_the_other(adapted, monkeypatch, caplog):
    model = adapted("llama")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    work = jobs(list(model.parameters))
    expected = alone(model, work, adapters)

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "stacked_log_probabilities", full)
    assert_alike(StackedTrainer(model).train(work, adapters), expected, 0)
    assert "one after the other" in caplog.text


def test_clients_really_share_passes(adapted, monkeypatch):
    model = adapted("llama")
    seen = []

    def spy(rows, **options):
        seen.append(len(rows))
        return lay_out(rows, **options)

    monkeypatch.setattr("fedit.model.fast.model.lay_out", spy)
    StackedTrainer(model).train(jobs(list(model.parameters)), [random_adapter(model, s) for s in range(3)])
    assert seen == [3, 3, 3]


def test_every_step_is_told_with_its_client(adapted):
    model = adapted("llama")
    told = []
    StackedTrainer(model).train(
        jobs(list(model.parameters)),
        [random_adapter(model, s) for s in range(3)],
        lambda index, progress: told.append((index, progress.steps)),
    )
    assert told == [(index, step) for step in (1, 2, 3) for index in range(3)]


@given(st.integers(0, 200), st.integers(1, 20))
@settings(max_examples=60)
def test_stacks_cover_all_clients_once_and_are_even(count, most):
    found = stacks(count, most)
    assert [i for own in found for i in own] == list(range(count))
    sizes = {len(own) for own in found}
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)


def test_clients_are_stacked_until_a_pass_is_full():
    assert width(FAST_TOKENS["cpu"] / 4) == 4
    assert width(1) == width(0) == module.MOST_CLIENTS["cpu"]
    assert width(FAST_TOKENS["cpu"] * 0.6) == 1
    assert width(10_000) == 1
    assert width(256, "cuda") == FAST_TOKENS["cuda"] // 256


def test_a_round_has_a_stack_for_every_core(make_config, monkeypatch):
    """One wide stack would keep one core busy and leave the others idle."""
    monkeypatch.setattr("fedit.job.places", lambda device, threads: 2)
    widths = {n: prepare(make_config(num_clients=n, num_workers=w)).stack_width for n, w in ((3, 1), (6, 2))}
    assert widths == {3: 2, 6: 3}
    assert prepare(make_config(stack_clients=5)).stack_width == 5
    monkeypatch.setattr("fedit.job.places", lambda device, threads: 64)
    assert prepare(make_config()).stack_width == 1
