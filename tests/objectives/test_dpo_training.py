"""Direct preference optimisation: the loss, its gradients, what is compared, and a federation that learns it."""

import dataclasses
import itertools
import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import factors, load, row_loss
from tiny import make_rows, random_adapter

from fedit import worker as worker_module
from fedit.data.pairs import PairRow
from fedit.errors import ConfigError
from fedit.gradients import accumulate
from fedit.launch import resume, run
from fedit.objectives import PreferenceOptimisation, objective_of, reference_gaps, row_sums
from fedit.seeds import derive
from fedit.settings import load as load_settings
from fedit.stacked import StackedTrainer
from fedit.store import ClientStore
from fedit.strategies.fedit import FedIT
from fedit.training import LocalJob, Trainer
from fedit.types import Broadcast, ClientTask, ClientUpdate, LocalTraining
from fedit.worker import Worker

DPO = PreferenceOptimisation(0.3)
HOW = LocalTraining(
    learning_rate=0.5,
    num_rounds=1,
    steps=1,
    batch_size=4,
    optimizer="sgd",
    max_grad_norm=0.0,
    objective="dpo",
    dpo_beta=0.3,
)


def make_pairs(sizes, seed=0, reference=None):
    """Return pairs of a common prompt and two random answers; sizes: (prompt, chosen, rejected) tokens."""
    rng = np.random.default_rng(seed)
    pairs = []
    for index, (prompt, *answers) in enumerate(sizes):
        head = rng.integers(0, 256, size=prompt)
        rows = []
        for answer in answers:
            ids = np.concatenate([head, rng.integers(0, 256, size=answer)]).astype(np.int32)
            rows.append(dataclasses.replace(make_rows([1])[0], ids=ids, supervised=np.arange(len(ids)) >= prompt))
        pairs.append(PairRow(*rows, reference=None if reference is None else reference[index]))
    return pairs


SIZES = [(9, 5, 7), (14, 3, 11), (6, 12, 4), (20, 6, 6)]
REFERENCE = [0.7, -1.3, 0.0, 2.2]
PAIRS = make_pairs(SIZES, seed=3, reference=REFERENCE)


def log_probability(model, row):
    loss, _ = row_loss(model, (row.ids.tolist(), row.supervised.tolist()))
    return -loss


def oracle_loss(model, pairs, beta, smoothing=0.0):
    """Equation 7 of arXiv:2305.18290 by its words, one row after the other."""
    total = 0.0
    for pair in pairs:
        gap = log_probability(model, pair.chosen) - log_probability(model, pair.rejected) - pair.reference
        right = torch.log(1 / (1 + torch.exp(-beta * gap)))
        wrong = torch.log(1 / (1 + torch.exp(beta * gap)))
        total = total - (1 - smoothing) * right - smoothing * wrong
    return total / len(pairs)


def job(model, pairs=PAIRS, training=HOW, **changes):
    options = {
        "round": 1,
        "batches_seen": 0,
        "data_seed": 0,
        "noise_seed": 0,
        "trainable": list(model.parameters),
        "optimizer_state": {},
        "correct": lambda params, grads: None,
        **changes,
    }
    return LocalJob(pairs, training, **options)


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


# --- the loss ---


@given(
    gaps=st.lists(st.floats(-50, 50), min_size=1, max_size=6),
    shift=st.floats(-20, 20),
    beta=st.floats(0.01, 2),
    smoothing=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_loss_margin_and_accuracy_have_their_closed_form(gaps, shift, beta, smoothing):
    objective = PreferenceOptimisation(beta, smoothing)
    found = objective.sums_of(torch.tensor(gaps, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64))
    margins = [beta * (gap - shift) for gap in gaps]
    loss = sum((1 - smoothing) * np.logaddexp(0, -m) + smoothing * np.logaddexp(0, m) for m in margins)
    assert float(found[0]) == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert float(found[1]) == pytest.approx(sum(margins), rel=1e-9, abs=1e-9)
    assert float(found[2]) == sum(0.5 if m == 0 else float(m > 0) for m in margins)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ConfigError, match="objective is 'ppo'; expected one of sft, dpo"):
        objective_of(dataclasses.replace(HOW, objective="ppo"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen3"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_follows_the_gradient_of_the_papers_loss(adapted, model_folder, kind, smoothing, float64_softmax):
    """On the fast path (Llama, Qwen) and on the general one."""
    model = adapted(kind)
    assert (model.fast is None) == (kind in ("gpt2", "opt"))
    start = random_adapter(model, 1)
    oracle = load(model_folder(kind), start, alpha=8)
    loss = oracle_loss(oracle, PAIRS, 0.3, smoothing)
    own = factors(oracle)
    grads = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    training = dataclasses.replace(HOW, dpo_label_smoothing=smoothing)
    progress, _, after = Trainer(model).train(job(model, training=training), start)
    # The norms of Llama and Qwen compute in float32 in transformers, whatever they are given.
    assert_close(after, {n: start[n] - 0.5 * grads[n] for n in start}, 1e-12 if model.fast is None else 1e-6)
    assert progress.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert (progress.examples, progress.counted, progress.supervised_tokens) == (4, 4, 54)
    assert progress.tokens == sum(2 * prompt + one + two for prompt, one, two in SIZES)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_micro_batch_changes_nothing(adapted, kind):
    model = adapted(kind)
    start = random_adapter(model)
    results = []
    for micro in (1, 2, 3, None):
        how = dataclasses.replace(HOW, micro_batch_size=micro)
        results.append(Trainer(model).train(job(model, training=how), start))
    for progress, _, adapter in results[1:]:
        assert_close(adapter, results[0][2], 1e-6 if kind == "llama" else 1e-12)
        assert progress.measures == pytest.approx(results[0][0].measures, rel=1e-6)
    assert results[0][0].measures["preference_accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=9), most=st.sampled_from([None, 1, 2]))
def test_the_two_rows_of_a_pair_are_never_parted(shared_model, lengths, most):
    rows = make_rows([length for length in lengths for _ in range(2)])
    passes = shared_model.passes(rows, most, 2)
    assert sorted(itertools.chain(*passes)) == list(range(len(lengths)))
    assert most is None or max(map(len, passes)) <= most


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp64", 1e-10), ("fp32", 1e-4)])
def test_stacked_clients_end_where_they_would_alone(adapted, dtype, tolerance):
    model = adapted("llama", dtype=dtype, targets="all-linear")
    own = [PAIRS, make_pairs(SIZES[:2], seed=8, reference=[0.1, 0.2]), make_pairs(SIZES[1:], 9, [0, 1, 2])]
    how = dataclasses.replace(HOW, steps=3, batch_size=2, optimizer="adamw", learning_rate=0.01)
    jobs = [job(model, pairs, how, data_seed=i) for i, pairs in enumerate(own)]
    adapters = [random_adapter(model, seed) for seed in range(3)]
    together = StackedTrainer(model).train(jobs, adapters)
    for found, work, adapter in zip(together, jobs, adapters, strict=True):
        progress, _, expected = Trainer(model).train(work, adapter)
        assert found[0].measures == pytest.approx(progress.measures, rel=tolerance)
        assert found[0].loss == pytest.approx(progress.loss, rel=tolerance)
        assert_close(found[2], expected, 10 * tolerance)


def test_a_share_of_the_passes_is_that_share_of_the_gradient(adapted):
    model = adapted("gpt2")
    model.load(random_adapter(model))

    def gradient(share):
        model.parameters.train(list(model.parameters))
        sums = accumulate(model, PAIRS, 1, 0, share, DPO)
        return sums, model.parameters.gradients.clone()

    whole, parts = gradient((0, 1)), [gradient((k, 2)) for k in (0, 1)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(parts[0][1] + parts[1][1], whole[1])


# --- the reference ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_reference_is_the_base_where_b_is_zero(adapted, model_folder, kind, float64_softmax):
    model = adapted(kind)
    model.load(model.initial(0))
    base = load(model_folder(kind), model.initial(0), alpha=8)
    with torch.no_grad():
        expected = [float(log_probability(base, p.chosen) - log_probability(base, p.rejected)) for p in PAIRS]
    assert reference_gaps(model, PAIRS).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_rows_log_probability_is_the_sum_of_its_own_targets():
    scores = torch.arange(12.0)
    assert row_sums(scores, [PAIRS[0].chosen, PAIRS[0].rejected]).tolist() == [10.0, 56.0]


@dataclass(frozen=True)
class StartsElsewhere(FedIT):
    """The adapter that the run starts from is not the base."""

    def init(self, adapter):
        state = super().init(adapter)
        return dataclasses.replace(state, adapter={n: t + 0.05 for n, t in state.adapter.items()})


@pytest.fixture(scope="module")
def model(adapted):
    return adapted("gpt2")


CLIENTS = {"a": make_pairs(SIZES, seed=1), "b": make_pairs(SIZES[:3], seed=2)}


def task(model, client, round=1, adapter=None, **changes):
    how = dataclasses.replace(HOW, steps=2, batch_size=2, learning_rate=0.05, **changes)
    sent = model.initial(0) if adapter is None else adapter
    return ClientTask(round, client, Broadcast(sent), how, derive(0, "train", round, client))


def test_a_client_computes_its_reference_once_and_keeps_it(model, tmp_path, monkeypatch):
    calls = []
    real = worker_module.reference_gaps

    def counted(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(worker_module, "reference_gaps", counted)
    first = Worker(model, CLIENTS, FedIT(), seed=0, store=ClientStore(tmp_path))
    updates = [first.train(task(model, client, round)) for round in (1, 2) for client in "ab"]
    assert all(isinstance(update, ClientUpdate) for update in updates)
    assert len(calls) == 2
    # Another process of the same run, or the run resumed, finds it.
    again = Worker(model, CLIENTS, FedIT(), seed=0, store=ClientStore(tmp_path))
    again.train(task(model, "a", 3))
    assert len(calls) == 2
    kept = ClientStore(tmp_path).read("a", 3).reference["gaps"]
    assert kept.dtype == torch.float64
    assert len(kept) == len(CLIENTS["a"])


def test_the_reference_does_not_follow_what_the_client_is_sent(model):
    moved = random_adapter(model, 5)
    stores = [ClientStore(), ClientStore()]
    for store, adapter in zip(stores, (None, moved), strict=True):
        Worker(model, CLIENTS, FedIT(), seed=0, store=store).train(task(model, "a", adapter=adapter))
    one, two = (store.read("a", 2).reference["gaps"] for store in stores)
    assert torch.equal(one, two)


def test_the_reference_has_the_initial_adapter(model):
    store = ClientStore()
    Worker(model, CLIENTS, StartsElsewhere(), seed=0, store=store).train(task(model, "a"))
    model.load(StartsElsewhere().init(model.initial(0)).adapter)
    assert torch.equal(store.read("a", 2).reference["gaps"], reference_gaps(model, CLIENTS["a"]))
    model.load(model.initial(0))
    assert not torch.equal(store.read("a", 2).reference["gaps"], reference_gaps(model, CLIENTS["a"]))


def test_at_the_reference_nothing_is_preferred(model):
    once = Worker(model, CLIENTS, FedIT(), seed=0)
    how = {"learning_rate": 1e-12}
    update = once.train(dataclasses.replace(task(model, "a"), training=dataclasses.replace(HOW, **how)))
    assert update.metrics["loss"] == pytest.approx(math.log(2))
    assert update.metrics["reward_margin"] == pytest.approx(0, abs=1e-12)


# --- settings ---


@pytest.mark.parametrize("setting", ["train_on_inputs=true", "devices_per_client=2"])
def test_settings_that_mean_nothing_for_pairs_are_refused(setting):
    with pytest.raises(ConfigError, match="objective=dpo"):
        load_settings(None, ["objective=dpo", setting])


# --- a federation ---


@pytest.fixture
def preferences(make_config):
    return make_config(
        dataset="preferences",
        objective="dpo",
        dpo_beta=0.5,
        max_examples=6,
        held_out=2,
        validation=1,
        num_rounds=3,
        local_steps=5,
        batch_size=6,
        lora_target_modules="all-linear",
        max_length=256,
        eval_every=3,
    )


def evaluations(result):
    from fedit.events import EventLog

    return [event for event in EventLog(result.folder).history() if event["event"] == "evaluation"]


def test_a_federation_learns_what_is_preferred(preferences, tmp_path):
    before, after = evaluations(run(preferences, tmp_path / "run"))
    assert before["preference_accuracy"] == 0.5
    assert before["dpo_loss"] == pytest.approx(math.log(2))
    assert before["validation_loss"] == pytest.approx(math.log(2))
    assert after["preference_accuracy"] > 0.7
    assert after["reward_margin"] > 0
    assert after["dpo_loss"] < before["dpo_loss"]


def test_a_run_that_lost_its_last_round_ends_with_the_same_bits(preferences, tmp_path):
    config = preferences.model_copy(update={"num_rounds": 2, "local_steps": 2, "eval_every": 1})
    folder = run(config, tmp_path / "run").folder
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    last = evaluations(run(config, tmp_path / "again"))[-1]
    (folder / "summary.json").unlink()  # it says that the run is done
    shutil.rmtree(sorted((folder / "server").glob("round-*"))[-1])
    shutil.rmtree(folder / "adapter")
    again = evaluations(resume(folder))[-1]
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert all(again[name] == last[name] for name in ("dpo_loss", "reward_margin", "preference_accuracy", "loss"))


def test_stacked_clients_end_with_the_same_preferences(preferences, tmp_path):
    ends = []
    for name, width in (("alone", 1), ("stacked", 3)):
        config = preferences.model_copy(update={"stack_clients": width, "num_rounds": 1, "eval_every": 1})
        ends.append(evaluations(run(config, tmp_path / name))[-1])
    for name in ("dpo_loss", "reward_margin", "loss"):
        assert ends[0][name] == pytest.approx(ends[1][name], rel=1e-2)
