"""The parts of the fast path that are made for a GPU, as far as a CPU can show that they are right."""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compiled_steps import steps
from gradients import FAMILIES, LENGTHS, distance, float64_norms, gradients, gradients_of_rows, with_prefix
from oracle import load
from tiny import CONFIGS, make_rows, random_adapter, save_model

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.fast import fused, varlen
from fedit.model.fast.attention import Heads
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model

CAPPED = {"gemma2"}

pytestmark = pytest.mark.usefixtures("float64_softmax")


def reference(q, k, v, bounds, heads):
    """Stand in for the GPU's kernel: every row on its own, by the definition."""
    outputs = []
    offsets = bounds.offsets.tolist()
    assert bounds.longest == max(b - a for a, b in pairwise(offsets))
    for start, end in pairwise(offsets):
        share = heads.queries // heads.keys
        own_k, own_v = (x[start:end].repeat_interleave(share, 1).transpose(0, 1) for x in (k, v))
        scores = heads.scale * q[start:end].transpose(0, 1) @ own_k.transpose(1, 2)
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if heads.window is not None:
            seen &= ~torch.ones_like(seen).tril(-heads.window)
        outputs.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ own_v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - CAPPED))
def test_attention_over_rows_of_any_lengths_has_the_gradients_of_transformers(
    adapted, model_folder, kind, monkeypatch
):
    monkeypatch.setattr(varlen, "choose", lambda heads, dtype, device: reference)
    model = adapted(kind, targets="all-linear", gradient_checkpointing=kind == "llama")
    assert model.fast.kernel is reference
    adapter = random_adapter(model, 1)
    model.load(adapter)
    oracle = float64_norms(load(model_folder(kind), adapter, alpha=8))
    for rows in (with_prefix(make_rows(LENGTHS, prompt=0.8), 9), make_rows([1, 5, 2, 1])):
        loss, found = gradients(model, rows)
        expected_loss, expected = gradients_of_rows(oracle, adapter, rows)
        assert loss == pytest.approx(expected_loss, rel=1e-9)
        assert distance(found, expected) < 1e-9


def test_rows_of_any_lengths_may_be_of_several_clients(adapted, monkeypatch):
    monkeypatch.setattr(varlen, "choose", lambda heads, dtype, device: reference)
    model = adapted("llama", targets="all-linear")
    adapters = [random_adapter(model, seed) for seed in range(3)]
    rows = [make_rows(lengths, seed) for seed, lengths in enumerate(([30, 7], [12], [19, 5, 8]))]
    parameters = [model.parameters_of(adapter) for adapter in adapters]
    scores = model.stacked_log_probabilities(rows, parameters, [0, 0, 0])
    torch.stack([own.sum() for own in scores]).sum().backward()
    for own, adapter, found in zip(rows, adapters, parameters, strict=True):
        model.load(adapter)
        expected = gradients(model, own)[1]
        assert distance({name: -p.grad for name, p in found.items()}, expected) < 1e-12


def test_a_cpu_attends_in_blocks():
    heads = [Heads(queries=4, keys=2, dim=8, scale=1.0, window=None, softcap=None)]
    assert varlen.choose(heads, torch.bfloat16, torch.device("cpu")) is None


@pytest.mark.parametrize("changes", [{"softcap": 30.0}, {"dim": 512}, {"dim": 12}])
def test_heads_that_the_kernel_does_not_know_attend_in_blocks(changes):
    heads = Heads(**{"queries": 4, "keys": 2, "dim": 8, "scale": 1.0, "window": None, "softcap": None, **changes})
    assert varlen.choose([heads], torch.bfloat16, torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("window", [None, 7])
def test_the_kernel_of_a_gpu_is_the_reference(window):
    torch.manual_seed(0)
    heads = Heads(queries=4, keys=2, dim=64, scale=0.125, window=window, softcap=None)
    bounds = varlen.Bounds.of([5, 40, 1, 23], torch.device("cuda"))
    results = []
    for kernel, dtype in ((varlen.flash, torch.bfloat16), (reference, torch.float32)):
        torch.manual_seed(1)
        q, k, v = (torch.randn(69, n, 64).to("cuda", torch.bfloat16).to(dtype).requires_grad_() for n in (4, 2, 2))
        output = (
            kernel(q, k, v, bounds, heads)
            if kernel is varlen.flash
            else reference_on(kernel, q, k, v, bounds, heads)
        )
        results.append([output, *torch.autograd.grad(output.float().square().sum(), (q, k, v))])
    for found, expected in zip(*results, strict=True):
        assert (found.float() - expected).norm() <= 2e-2 * expected.norm()


def reference_on(kernel, q, k, v, bounds, heads):
    with torch.device(q.device):
        return kernel(q, k, v, bounds, heads)


# --- 4-bit bases ---


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """A tiny Llama whose layers are wide enough for blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("wide") / "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "llama", {**CONFIGS["llama"], "hidden_size": 64, "intermediate_size": 128})
        save_model("llama", folder)
    return folder


def quantised(folder, dtype, bits, **options):
    base = load_base(resolve_model(str(folder)), device="cpu", dtype=dtype, bits=bits)
    return AdaptedModel(base, rank=4, alpha=8, targets="all-linear", **options)


@pytest.mark.filterwarnings("ignore")
def test_a_4_bit_base_takes_the_fast_path_with_the_gradients_of_its_library(wide_folder):
    pytest.importorskip("bitsandbytes")
    rows = make_rows([40, 30, 22])
    model, theirs = quantised(wide_folder, "fp32", 4), quantised(wide_folder, "fp32", 4, fast_path=False)
    exact = quantised(wide_folder, "fp32", 16)
    assert model.fast is not None
    found = []
    for each in (model, theirs, exact):
        each.load(random_adapter(exact, 1))
        found.append(gradients(each, rows)[1])
    assert distance(found[0], found[1]) < 1e-5
    assert distance(found[2], found[1]) > 1e-2  # 4 bits are another model


@pytest.mark.filterwarnings("ignore")
def test_an_8_bit_base_is_left_to_its_library(wide_folder):
    pytest.importorskip("bitsandbytes")
    model = quantised(wide_folder, "fp32", 8)
    assert model.fast is None
    assert model.why_general == "of quantised bases it knows those of 4 bits"


# --- fused steps ---


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_steps_give_what_they_give_as_written():
    script = Path(__file__).parents[1] / "compiled_steps.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(steps())


def test_steps_run_as_written_on_a_cpu(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled on a CPU")

    monkeypatch.setattr(torch, "compile", refuse)
    for function, arguments in steps().values():
        function(*arguments)


def test_compiling_can_be_switched_off(monkeypatch):
    fused.can_compile.cache_clear()
    monkeypatch.setenv(fused.COMPILE, "0")
    assert not fused.can_compile()
    fused.can_compile.cache_clear()


def test_a_row_with_one_token_does_not_stop_the_kernel(adapted, monkeypatch):
    monkeypatch.setattr(varlen, "choose", lambda heads, dtype, device: reference)
    model = adapted("llama")
    rows = [TokenRow(make_rows([1])[0].ids, make_rows([1])[0].supervised), *make_rows([9])]
    assert len(model.log_probabilities(model.collate(rows))) == sum(int(r.supervised[1:].sum()) for r in rows)
