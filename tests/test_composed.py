"""Training what stands for factors: gradients against autograd through an explicit forward, alone and stacked."""

from dataclasses import dataclass

import pytest
import torch
from gradients import float64_norms
from oracle import batch_loss, load
from tiny import make_rows, random_adapter

from fedit.lora import modules
from fedit.model.adapted import AdaptedModel
from fedit.stacked import StackedTrainer
from fedit.strategies.base import Strategy
from fedit.strategies.fed_sb import FedSB
from fedit.strategies.ravan import Ravan
from fedit.training import LocalJob, Trainer, TrainingFailed
from fedit.types import LocalTraining

ROWS = [make_rows([19, 7, 30, 12]), make_rows([9, 14, 21], 1), make_rows([22, 5, 17], 2)]
SGD = LocalTraining(learning_rate=1.0, num_rounds=1, steps=1, batch_size=8, optimizer="sgd", max_grad_norm=0.0)


@dataclass(frozen=True)
class Rescales(Strategy):
    """Trains A, B and a vector between them: factors that are trained themselves beside one that is not."""

    def factors(self, adapter):
        found = {}
        for m in modules(adapter):
            found[f"{m}.A"], found[f"{m}.B"] = adapter[f"{m}.A"], adapter[f"{m}.B"] * adapter[f"{m}.d"]
        return found


def explicit(kind, adapter):
    """Return {m: (A, B)} of what a strategy trains, written out without its code."""
    found = {}
    for m in modules(adapter):
        a, b = adapter[f"{m}.A"], adapter[f"{m}.B"]
        if kind == "fed_sb":
            found[m] = a, b @ adapter[f"{m}.R"]
        elif kind == "ravan":
            two = [
                adapter[f"{m}.s"][i] * b[:, 2 * i : 2 * i + 2] @ adapter[f"{m}.H"][2 * i : 2 * i + 2]
                for i in (0, 1)
            ]
            found[m] = a, torch.cat(two, 1)
        else:
            found[m] = a, b @ torch.diag(adapter[f"{m}.d"])
    return found


STRATEGIES = {"fed_sb": FedSB(), "ravan": Ravan(heads=2), "rescales": Rescales()}
TRAINED = {"fed_sb": ".R", "ravan": (".H", ".s"), "rescales": (".A", ".B", ".d")}


def trained_names(kind, adapter):
    return [name for name in adapter if name.endswith(TRAINED[kind])]


def start_of(model, kind, seed=0):
    """Return what a strategy trains, all of it far from where it starts."""
    adapter = random_adapter(model, seed, 0.3)
    if kind == "rescales":
        adapter = dict(adapter)
        adapter |= {f"{m}.d": torch.ones(4, dtype=torch.float64) for m in modules(adapter)}
    start = STRATEGIES[kind].init(adapter).adapter
    generator = torch.Generator().manual_seed(seed)
    moved = set(trained_names(kind, start))
    return {
        n: t + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) * (n in moved)
        for n, t in start.items()
    }


def job(kind, start, rows, how=SGD, **changes):
    options = {"correct": lambda params, grads: None, "optimizer_state": {}, **changes}
    return LocalJob(
        rows,
        how,
        round=1,
        batches_seen=0,
        data_seed=0,
        noise_seed=0,
        trainable=trained_names(kind, start),
        factors=STRATEGIES[kind].factors,
        **options,
    )


class Written:
    """A PEFT model whose factors are made from leaves in every pass."""

    def __init__(self, folder, kind, start):
        self.kind = kind
        self.leaves = {n: t.clone().requires_grad_(n in trained_names(kind, start)) for n, t in start.items()}
        plain = {
            f"{m}.{f}": t.detach() for m, pair in self._pairs().items() for f, t in zip("AB", pair, strict=True)
        }
        self.model = float64_norms(load(folder, plain, alpha=8))

    def _pairs(self):
        return explicit(self.kind, self.leaves)

    def __call__(self, input_ids):
        made = {
            f"base_model.model.{m}.lora_{factor}.default.weight": tensor
            for m, pair in self._pairs().items()
            for factor, tensor in zip("AB", pair, strict=True)
        }
        return torch.func.functional_call(self.model, made, kwargs={"input_ids": input_ids})

    def trained(self):
        return {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}

    def gradients(self, rows):
        own = self.trained()
        plain = [(row.ids.tolist(), row.supervised.tolist()) for row in rows]
        found = torch.autograd.grad(batch_loss(self, plain), list(own.values()))
        return dict(zip(own, found, strict=True))


def assert_close(one, two, tolerance):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance)


def assert_near(one, two, tolerance):
    """Compare by the size of each tensor: entries that cancel round as the large ones do."""
    assert set(one) == set(two)
    for name in one:
        assert (one[name] - two[name]).norm() <= tolerance * two[name].norm(), name


def moved(after, start, kind):
    still = [name for name in start if name not in trained_names(kind, start)]
    assert all(torch.equal(after[name], start[name]) for name in still)
    return {name: start[name] - after[name] for name in trained_names(kind, start)}


# GPT-2 takes the general path, Llama the fast one.
PATHS = ["gpt2", "llama"]


@pytest.mark.parametrize("architecture", PATHS)
@pytest.mark.parametrize("kind", sorted(STRATEGIES))
@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.usefixtures("float64_softmax")
def test_a_step_follows_the_gradient_of_what_is_trained(adapted, model_folder, architecture, kind, micro):
    model = adapted(architecture, targets="all-linear")
    assert (model.fast is None) == (architecture == "gpt2")
    start = start_of(model, kind)
    how = LocalTraining(**{**{f: getattr(SGD, f) for f in SGD.__slots__}, "micro_batch_size": micro})
    _, _, after = Trainer(model).train(job(kind, start, ROWS[0], how), start)
    expected = Written(model_folder(architecture), kind, start).gradients(ROWS[0])
    assert_near(moved(after, start, kind), expected, 1e-9)


@pytest.mark.parametrize("kind", sorted(STRATEGIES))
@pytest.mark.usefixtures("float64_softmax")
def test_stacked_clients_follow_their_own_gradients(adapted, model_folder, kind):
    model = adapted("llama", targets="all-linear")
    starts = [start_of(model, kind, seed) for seed in range(3)]
    work = [job(kind, start, rows) for start, rows in zip(starts, ROWS, strict=True)]
    for start, rows, one, (_, _, after) in zip(
        starts, ROWS, work, StackedTrainer(model).train(work, starts), strict=True
    ):
        expected = Written(model_folder("llama"), kind, start).gradients(rows)
        assert_near(moved(after, start, kind), expected, 1e-9)
        assert_close(after, Trainer(model).train(one, start)[2], 1e-10)


@pytest.mark.parametrize("kind", sorted(STRATEGIES))
def test_several_steps_are_those_of_a_plain_loop(adapted, model_folder, kind):
    """Factors are made anew after every step, clipping is by the norm of what is trained."""
    model = adapted("gpt2")
    start = start_of(model, kind)
    how = LocalTraining(learning_rate=0.05, num_rounds=1, steps=4, batch_size=4, max_grad_norm=0.3)
    progress, _, after = Trainer(model).train(job(kind, start, ROWS[0], how), start)
    written = Written(model_folder("gpt2"), kind, start)
    own = list(written.trained().values())
    optimizer = torch.optim.AdamW(own, lr=0.05, weight_decay=0.0)
    for _ in range(4):
        for leaf, gradient in zip(own, written.gradients(ROWS[0]).values(), strict=True):
            leaf.grad = gradient
        torch.nn.utils.clip_grad_norm_(own, 0.3)
        optimizer.step()
    assert progress.steps == 4
    assert_close(after, {name: leaf.detach() for name, leaf in written.leaves.items()}, 1e-7)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_ledger_is_part_of_the_model_that_is_trained(adapted, model_folder, architecture):
    model = adapted(architecture)
    start = start_of(model, "fed_sb")
    factors = FedSB().factors(start)
    # A ledger that takes the adapter away again leaves another gradient than the adapter alone.
    ledger = {n: t * (-model.scale if n.endswith(".B") else 1) for n, t in factors.items()}
    alone = Trainer(model).train(job("fed_sb", start, ROWS[0]), start)[2]
    after = Trainer(model).train(job("fed_sb", start, ROWS[0]), start, ledger=ledger)[2]
    zero = {n: torch.zeros_like(t) if n.endswith(".R") else t for n, t in start.items()}
    base = Trainer(model).train(job("fed_sb", zero, ROWS[0]), zero)[2]
    assert_close(moved(after, start, "fed_sb"), moved(base, zero, "fed_sb"), 1e-5)
    assert any((alone[name] - after[name]).abs().max() > 1e-3 for name in alone)


def test_strategies_correct_the_gradient_of_what_is_trained(adapted):
    seen = {}

    def nothing(params, grads):
        seen.update({name: grad.clone() for name, grad in grads.items()})
        for grad in grads.values():
            grad.zero_()

    model = adapted("llama")
    starts = [start_of(model, "fed_sb", seed) for seed in (0, 1)]
    work = [job("fed_sb", start, rows, correct=nothing) for start, rows in zip(starts, ROWS, strict=False)]
    found = [Trainer(model).train(work[0], starts[0]), *StackedTrainer(model).train(work, starts)]
    for (_, _, after), start in zip(found, [starts[0], *starts], strict=True):
        assert_close(after, start, 0)
    assert set(seen) == set(trained_names("fed_sb", starts[0]))
    assert all(grad.any() for grad in seen.values())


def test_a_step_that_ran_out_of_memory_is_done_again_with_the_same_gradient(adapted, monkeypatch):
    model = adapted("gpt2")
    start = start_of(model, "ravan")
    whole = Trainer(model).train(job("ravan", start, ROWS[0]), start)[2]
    real = AdaptedModel.log_probabilities
    failures = []

    def full(model, batch):
        result = real(model, batch)
        if batch.ids.shape[0] * batch.ids.shape[1] > 40:
            failures.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(AdaptedModel, "log_probabilities", full)
    assert_close(Trainer(model).train(job("ravan", start, ROWS[0]), start)[2], whole, 1e-12)
    assert failures


def test_a_client_that_fails_leaves_the_next_its_gradients(adapted):
    model = adapted("llama")
    start = start_of(model, "fed_sb")
    clean = Trainer(model).train(job("fed_sb", start, ROWS[0]), start)[2]
    broken = {name: tensor * float("nan") for name, tensor in start.items()}
    with pytest.raises(TrainingFailed):
        Trainer(model).train(job("fed_sb", broken, ROWS[0]), broken)
    assert_close(Trainer(model).train(job("fed_sb", start, ROWS[0]), start)[2], clean, 0)
    plain = FedSB().factors(start)
    assert all(p.requires_grad and p.grad is None for p in model.parameters.values())
    model.load(plain)


def test_dropout_falls_on_the_factors_as_it_would_alone(adapted):
    model = adapted("llama", dropout=0.3)
    starts = [start_of(model, "ravan", seed) for seed in range(3)]
    work = [job("ravan", start, rows) for start, rows in zip(starts, ROWS, strict=True)]
    for one, start, (_, _, after) in zip(work, starts, StackedTrainer(model).train(work, starts), strict=True):
        assert_close(after, Trainer(model).train(one, start)[2], 1e-10)


def test_a_kept_optimizer_goes_on_as_if_never_stopped(adapted):
    model = adapted("llama")
    start = start_of(model, "fed_sb")
    how = {"learning_rate": 0.05, "num_rounds": 1, "batch_size": 2, "keep_optimizer": True}
    whole = Trainer(model).train(job("fed_sb", start, ROWS[0], LocalTraining(steps=4, **how)), start)[2]
    half, state, middle = _half(model, start, LocalTraining(steps=2, **how))
    assert half.steps == 2
    rest = LocalJob(
        ROWS[0],
        LocalTraining(steps=2, **how),
        round=1,
        batches_seen=2,
        data_seed=0,
        noise_seed=0,
        trainable=trained_names("fed_sb", start),
        optimizer_state=state,
        correct=lambda params, grads: None,
        factors=FedSB().factors,
    )
    assert_close(Trainer(model).train(rest, middle)[2], whole, 0)


def _half(model, start, how):
    return Trainer(model).train(job("fed_sb", start, ROWS[0], how), start)
