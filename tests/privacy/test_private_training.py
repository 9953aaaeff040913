"""DP-SGD inside a client: what a step is made of, alone, stacked, over factors that stand for something else."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import make_rows, random_adapter

from fedit import gradients, tensors
from fedit.data.pairs import PairRow
from fedit.data.tokens import TokenRow
from fedit.gradients import accumulate_clipped
from fedit.privacy.keystream import Keystream
from fedit.privacy.steps import PrivateSteps, sampling_rate, steps_of
from fedit.stacked import StackedTrainer
from fedit.strategies.fed_sb import FedSB
from fedit.training import LocalJob, Optimisation, Trainer
from fedit.types import LocalTraining

KEY = bytes(range(32))
SIZES = [19, 7, 30, 12, 5, 23]
PLAIN = LocalTraining(
    learning_rate=0.05, num_rounds=1, steps=4, batch_size=3, optimizer="sgd", momentum=0.5, max_grad_norm=0.0
)
EXACT = replace(PLAIN, example_clip=math.inf)
"""Neither clip nor noise."""


def job(model, training, key=KEY, rows=None, **changes):
    values = {
        "rows": make_rows(SIZES) if rows is None else rows,
        "training": training,
        "round": 1,
        "batches_seen": 0,
        "data_seed": 0,
        "noise_seed": 0,
        "trainable": list(model.parameters),
        "optimizer_state": {},
        "correct": lambda params, grads: None,
        "keystream": Keystream(key),
        **changes,
    }
    return LocalJob(**values)


def drawn(training):
    """Return the batches that a job with this key takes."""
    steps = PrivateSteps(training, len(SIZES), Keystream(KEY))
    return [steps.batch() for _ in range(training.steps)]


def trained_plainly(model, adapter, rows, batches, expected_batch):
    """Return the adapter after SGD steps on the sum of the examples' own losses over a fixed number."""
    model.load(adapter)
    parameters = model.parameters
    parameters.train(list(parameters))
    optimizer = torch.optim.SGD(parameters.values(), lr=PLAIN.learning_rate, momentum=PLAIN.momentum)
    for batch in batches:
        parameters.zero_gradients()
        for index in batch:
            scores = model.log_probabilities(model.collate([rows[index]]))
            (-scores.mean() / expected_batch).backward()
        optimizer.step()
    found = parameters.read()
    parameters.forget()
    return found


def assert_close(one, other, tolerance):
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"fast_path": False}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_without_clip_and_noise_it_is_plain_training_on_the_same_batches(adapted, options, micro_batch):
    model = adapted("llama", targets="all-linear", **options)
    adapter, rows = random_adapter(model, 1), make_rows(SIZES)
    batches = drawn(EXACT)
    assert len({len(batch) for batch in batches}) > 1, "Poisson batches differ in size"
    expected = trained_plainly(model, adapter, rows, batches, 3)
    progress, _, found = Trainer(model).train(job(model, replace(EXACT, micro_batch_size=micro_batch)), adapter)
    # The norms of transformers round to float32.
    assert_close(found, expected, 1e-10 if model.fast else 1e-7)
    assert progress.steps == 4
    assert (progress.tokens, progress.summed, progress.rows) == (0, 0.0, set()), "nothing is told of the batches"


def test_stacked_clients_get_what_they_get_alone(adapted):
    """Of one step over ranks, scales and data of their own, with clip and noise."""
    model = adapted("llama", targets="all-linear")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    training = replace(PLAIN, example_clip=0.5, example_noise=0.3)
    sizes = [SIZES, [9, 14], [40, 7, 7, 12]]

    def work():
        keys = [bytes([k]) * 32 for k in range(3)]
        return [job(model, training, k, make_rows(s)) for k, s in zip(keys, sizes, strict=True)]

    expected = [Trainer(model).train(own, a)[2] for own, a in zip(work(), adapters, strict=True)]
    for (_, _, found), own in zip(StackedTrainer(model).train(work(), adapters), expected, strict=True):
        assert_close(found, own, 1e-10)


def step_gradient(model, adapter, rows, training, trainable=None, key=KEY):
    """Return the flat gradient that the optimizer would see, from all rows (rate 1)."""
    model.load(adapter)
    own = Optimisation(
        job(model, replace(training, batch_size=len(rows)), key, rows, trainable=trainable or list(adapter)),
        model.parameters,
    )
    Trainer(model)._gradients(own, own.next_rows())
    return {name: model.parameters[name].grad.clone() for name in own.parameters}


@pytest.mark.parametrize("trained", ["AB", "B"])
def test_an_example_moves_the_sum_by_its_clip_norm_at_most(adapted, trained):
    """However strange it is; and where it is within the norm, by its own gradient."""
    model = adapted("llama")
    adapter, rows = random_adapter(model, 1), make_rows(SIZES)
    names = [name for name in adapter if name[-1] in trained]
    alone = [
        tensors.norm(step_gradient(model, adapter, [row], replace(PLAIN, example_clip=math.inf), names))
        for row in rows
    ]
    clip = sorted(alone)[2] * 1.001
    training = replace(PLAIN, example_clip=clip)
    for row, norm in zip(rows, alone, strict=True):
        found = step_gradient(model, adapter, [row], training, names)
        assert tensors.norm(found) == pytest.approx(min(norm, clip), rel=2e-6)
        assert tensors.norm(found) <= clip
    together = step_gradient(model, adapter, rows, training, names)
    without = step_gradient(model, adapter, rows[:-1], training, names)
    moved = tensors.sub(tensors.scaled(together, len(rows)), tensors.scaled(without, len(rows) - 1))
    assert tensors.norm(moved) == pytest.approx(min(alone[-1], clip), rel=1e-5)


def test_rows_with_one_beginning_are_kept_apart(adapted):
    """A prompt's beginning that rows share is computed once in plain training; here it is every example's own."""
    model = adapted("llama", targets="all-linear")
    head = make_rows([40])[0].ids[:20]
    rows = []
    for seed in range(3):
        row = make_rows([40], seed, prompt=0.6)[0]
        ids = row.ids.copy()
        ids[:20] = head
        rows.append(TokenRow(ids, row.supervised))
    adapter = random_adapter(model, 1)
    for clip in (math.inf, 0.1):
        training = replace(PLAIN, example_clip=clip)
        alone = [step_gradient(model, adapter, [row], training) for row in rows]
        together = step_gradient(model, adapter, rows, training)
        mean = {name: sum(own[name] for own in alone) / 3 for name in together}
        assert_close(together, mean, 1e-11)


def test_a_pair_is_one_example(adapted):
    model = adapted("llama")
    rows = make_rows([20, 24, 18, 12], prompt=0.4)
    pairs = [PairRow(rows[0], rows[1], 0.3), PairRow(rows[2], rows[3], -0.2)]
    adapter = random_adapter(model, 1)
    training = replace(PLAIN, example_clip=math.inf, objective="dpo")
    found = step_gradient(model, adapter, pairs, training)
    model.parameters.train(list(adapter))
    gradients.accumulate(
        model, pairs, 2, 0, objective=Optimisation(job(model, training), model.parameters).objective
    )
    assert_close(found, {name: p.grad for name, p in model.parameters.items()}, 1e-11)
    clipped = step_gradient(model, adapter, pairs, replace(training, example_clip=1e-3))
    assert tensors.norm(clipped) <= 1e-3


def test_an_example_that_breaks_the_numbers_counts_as_zero(adapted):
    model = adapted("llama")
    adapter, rows = random_adapter(model, 1), make_rows([12, 9])
    model.load(adapter)
    model.parameters.train(list(adapter))
    found = model.example_gradients([row.rows for row in rows], lambda scores: scores.sum())
    for own in found.of.values():
        own[0] *= math.nan
    expected = {name: own[1].clone() for name, own in found.of.items()}
    found.add_clipped(model.parameters, 1e9)
    assert_close({name: p.grad for name, p in model.parameters.items()}, expected, 1e-12)


def test_the_noise_is_what_was_stated(adapted):
    """Its deviation on every kind of factor, over an empty batch too; it differs from step to step."""
    model = adapted("llama", rank=16, targets="all-linear")
    training = replace(PLAIN, example_clip=0.5, example_noise=2.0, batch_size=3)
    own = Optimisation(job(model, training), model.parameters)
    steps = []
    for _ in range(2):
        own.forget_gradients()
        Trainer(model)._gradients(own, [])
        steps.append({name: p.grad.clone() for name, p in model.parameters.items()})
    stated = 2.0 * 0.5 / 3
    for kind in ("A", "B"):
        values = torch.cat([grad.flatten() for name, grad in steps[0].items() if name.endswith(kind)])
        assert float(values.std()) == pytest.approx(stated, rel=4 / math.sqrt(2 * len(values)))
        assert abs(float(values.mean())) < 4 * stated / math.sqrt(len(values))
    one, other = (torch.cat([g.flatten() for g in step.values()]) for step in steps)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4 / math.sqrt(len(one))


def test_what_is_frozen_gets_no_noise(adapted):
    model = adapted("llama")
    adapter = random_adapter(model, 1)
    trainable = [name for name in adapter if name.endswith(".B")]
    training = replace(PLAIN, example_clip=0.5, example_noise=1.0)
    _, _, found = Trainer(model).train(job(model, training, trainable=trainable), adapter)
    assert all(torch.equal(found[name], adapter[name]) for name in adapter if name.endswith(".A"))
    assert all(not torch.equal(found[name], adapter[name]) for name in trainable)


def test_noise_goes_on_factors_and_from_there_to_what_they_stand_for(adapted):
    """What stands between is public: mapping a private gradient of the factors back is post-processing."""
    model = adapted("llama")
    strategy = FedSB()
    begin = strategy.init(model.initial(0)).adapter
    training = replace(PLAIN, example_clip=0.5, example_noise=1.0, steps=1)
    trainable = [name for name in begin if strategy.trains(name, 1)]
    options = {"trainable": trainable, "factors": strategy.factors}
    _, _, one = Trainer(model).train(job(model, training, rows=make_rows(SIZES), **options), begin)
    parameters = model.parameters_of(begin)
    parameters.train(trainable)
    made = strategy.factors(parameters)
    model.load({name: t.detach() for name, t in made.items()})
    moving = [name for name, t in made.items() if t.requires_grad]
    model.parameters.train(moving)
    steps = PrivateSteps(training, len(SIZES), Keystream(KEY))
    rows = make_rows(SIZES)
    accumulate_clipped(model, [rows[i] for i in steps.batch()], 9, 0, 0.5)
    steps.finish(model.parameters.trained_gradients())
    torch.autograd.backward([made[n] for n in moving], [model.parameters[n].grad for n in moving])
    for name in trainable:
        torch.testing.assert_close(
            one[name], begin[name] - PLAIN.learning_rate * parameters[name].grad, rtol=1e-9, atol=1e-12
        )


def test_every_example_joins_a_step_on_its_own():
    """Frequencies of examples and of pairs of them, and the sizes' spread, are those of independent coins."""
    training = replace(PLAIN, example_clip=1.0, batch_size=5)
    count, draws = 20, 4000
    steps = PrivateSteps(training, count, Keystream(KEY))
    joined = torch.zeros(draws, count, dtype=torch.float64)
    for own in joined:
        own[steps.batch()] = 1
    rate = sampling_rate(5, count)
    assert rate == 0.25
    deviation = math.sqrt(rate * (1 - rate) / draws)
    assert (joined.mean(0) - rate).abs().max() < 4 * deviation
    pairs = (joined.T @ joined / draws)[~torch.eye(count, dtype=torch.bool)]
    assert (pairs - rate**2).abs().max() < 5 * math.sqrt(rate**2 / draws)
    assert float(joined.sum(1).var()) == pytest.approx(count * rate * (1 - rate), rel=0.1)


def test_a_small_client_uses_everything_and_epochs_become_steps():
    training = replace(PLAIN, example_clip=1.0, batch_size=8, steps=None, epochs=3)
    assert PrivateSteps(training, 5, Keystream(KEY)).batch() == [0, 1, 2, 3, 4]
    assert (steps_of(training, 5), steps_of(training, 17), steps_of(PLAIN, 17)) == (3, 9, 4)


def test_nobody_draws_the_same_twice():
    """Fresh keys differ; one key repeats; and its keystream does not."""
    fresh = [Keystream().seed() for _ in range(8)]
    assert len(set(fresh)) == 8
    one, two = Keystream(KEY), Keystream(KEY)
    assert [one.seed() for _ in range(8)] == [two.seed() for _ in range(8)]
    assert len({one.seed() for _ in range(1000)}) == 1000


def test_a_keystream_that_is_used_up_goes_on_under_a_new_key(monkeypatch):
    monkeypatch.setattr("fedit.privacy.keystream._MOST", 96)
    keystream = Keystream(KEY)
    assert len({keystream.seed() for _ in range(100)}) == 100
