"""A CUDA device gives what the CPU gives: gradients, stacked clients, whole runs, answers, 4-bit bases."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_steps import steps
from gradients import FAMILIES, LENGTHS, distance, float64_norms, gradients, gradients_of_rows, with_prefix
from oracle import load
from tiny import CONFIGS, make_rows, random_adapter, save_model

from fedit.launch import resume, run
from fedit.model.adapted import AdaptedModel
from fedit.model.export import read_adapter
from fedit.model.fast import varlen
from fedit.model.fast.decode import Prompt
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.privacy.keystream import Keystream
from fedit.stacked import StackedTrainer
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def on_gpu(model_folder):
    def build(kind, dtype, **options):
        base = load_base(resolve_model(str(model_folder(kind))), device="cuda", dtype=dtype)
        return AdaptedModel(base, rank=4, alpha=8, **{"targets": "all-linear", **options})

    return build


@pytest.fixture
def exact(adapted, model_folder, float64_softmax):
    """Return (adapter, gradients) in float64 through transformers and PEFT on the CPU."""

    def of(kind, rows):
        adapter = random_adapter(adapted(kind, targets="all-linear"), 1)
        oracle = float64_norms(load(model_folder(kind), adapter, alpha=8))
        return adapter, gradients_of_rows(oracle, adapter, rows)[1]

    return of


ROWS = with_prefix(make_rows(LENGTHS, prompt=0.8), 9)


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_in_float32_are_those_of_transformers_in_float64(on_gpu, exact, kind):
    adapter, expected = exact(kind, ROWS)
    model = on_gpu(kind, "fp32")
    assert model.fast is not None, model.why_general
    model.load(adapter)
    assert distance(gradients(model, ROWS)[1], expected) < 1e-5


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_in_bfloat16_are_as_good_as_those_of_transformers(on_gpu, exact, kind):
    adapter, expected = exact(kind, ROWS)
    errors = []
    for fast in (True, False):
        model = on_gpu(kind, "bf16", fast_path=fast)
        assert (model.fast is not None) == fast, model.why_general
        if fast and kind != "gemma2":  # its scores have a cap, which the kernel does not know
            assert model.fast.kernel is varlen.flash
        model.load(adapter)
        errors.append(distance(gradients(model, ROWS)[1], expected))
    assert errors[0] <= 1.5 * errors[1]


def test_gradients_in_bfloat16_can_be_repeated_bit_for_bit(on_gpu):
    model = on_gpu("llama", "bf16")
    model.load(random_adapter(model, 1))
    rows = make_rows([400] * 40, prompt=0.2)
    first, *others = [gradients(model, rows)[1] for _ in range(4)]
    assert all(torch.equal(found[name], first[name]) for found in others for name in first)


def job(model, rows, seed):
    training = LocalTraining(1e-2, num_rounds=1, steps=3, batch_size=2)
    return LocalJob(rows, training, 1, 0, seed, 0, list(model.parameters), {}, lambda params, grads: None)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_stacked_clients_get_what_they_get_alone(on_gpu, dropout):
    model = on_gpu("llama", "fp32", dropout=dropout)
    jobs = [job(model, make_rows(lengths, s), s) for s, lengths in enumerate(([30, 7], [12], [9, 19, 5, 8]))]
    adapters = [random_adapter(model, seed) for seed in range(3)]
    stacked = StackedTrainer(model).train(jobs, adapters)
    for own, adapter, found in zip(jobs, adapters, stacked, strict=True):
        _, _, alone = Trainer(model).train(own, adapter)
        change = {name: alone[name] - adapter[name] for name in alone}
        assert distance({name: found[2][name] - adapter[name] for name in alone}, change) < 1e-4


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_can_be_repeated_and_resumed_bit_for_bit(make_config, tmp_path, dtype):
    config = make_config(device="cuda", dtype=dtype, client_optimizer="keep", num_rounds=3)

    def kill(event):
        if event["event"] == "round" and event["round"] == 2:
            raise Killed

    one = run(config, tmp_path / "one")
    with pytest.raises(Killed):
        run(config, tmp_path / "two", listener=kill)
    two = resume(tmp_path / "two")
    adapters = [read_adapter(result.adapter) for result in (one, two)]
    assert all(torch.equal(adapters[0][name], tensor) for name, tensor in adapters[1].items())


def test_a_run_in_float32_ends_where_the_cpu_ends(make_config, tmp_path):
    adapters = [read_adapter(run(make_config(device=d), tmp_path / d).adapter) for d in ("cpu", "cuda")]
    learnt = [{name: tensor for name, tensor in own.items() if name.endswith(".B")} for own in adapters]
    assert distance(learnt[1], learnt[0]) < 1e-2


def test_answers_are_those_of_the_cpu(on_gpu, adapted):
    models = [adapted("llama", dtype="fp32", targets="all-linear"), on_gpu("llama", "fp32")]
    adapters = [random_adapter(models[0], seed) for seed in range(2)]
    prompts = [Prompt([257, *range(5, 20)], 0), Prompt([65], 1), Prompt([100, 101, 102] * 15, 1)]
    answers = [model.decode(prompts, adapters, stops=[258], max_new_tokens=12) for model in models]
    assert answers[0] == answers[1]


def test_fused_steps_give_what_they_give_as_written():
    script = Path(__file__).parent / "compiled_steps.py"
    done = subprocess.run([sys.executable, str(script), "cuda"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(steps())


@pytest.mark.filterwarnings("ignore")
def test_a_4_bit_base_takes_the_fast_path_with_the_gradients_of_its_library(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(CONFIGS, "llama", {**CONFIGS["llama"], "hidden_size": 64, "intermediate_size": 128})
    save_model("llama", tmp_path / "wide")
    source = resolve_model(str(tmp_path / "wide"))
    found = []
    for fast in (True, False):
        base = load_base(source, device="cuda", dtype="fp32", bits=4)
        model = AdaptedModel(base, rank=4, alpha=8, targets="all-linear", fast_path=fast)
        assert (model.fast is not None) == fast, model.why_general
        model.load(random_adapter(model, 1))
        found.append(gradients(model, make_rows([40, 30, 22]))[1])
    assert distance(*found) < 1e-5


def test_private_training_with_examples_apart_ends_where_it_does_on_the_cpu(adapted, on_gpu):
    """Batched products of padded examples on the GPU, slices on the CPU; the same batches and noise."""
    how = LocalTraining(
        learning_rate=0.05, num_rounds=1, steps=2, batch_size=3, example_clip=0.5, example_noise=0.2
    )
    found = []
    for model in (adapted("llama", dtype="fp32", targets="all-linear"), on_gpu("llama", "fp32")):
        job = LocalJob(
            make_rows(LENGTHS),
            how,
            round=1,
            batches_seen=0,
            data_seed=0,
            noise_seed=0,
            trainable=list(model.parameters),
            optimizer_state={},
            correct=lambda params, grads: None,
            keystream=Keystream(bytes(32)),
        )
        adapter = random_adapter(model, 1)
        trained = Trainer(model).train(job, adapter)[2]
        found.append({name: trained[name] - adapter[name] for name in adapter})
    assert distance(*found) < 1e-2  # AdamW divides by gradients that are almost zero
