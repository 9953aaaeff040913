"""All weights and other adapters than LoRA: plain transformers and PEFT are the oracle."""

import dataclasses
import json

import peft
import pytest
import torch
from oracle import batch_loss
from tiny import make_rows
from transformers import AutoModelForCausalLM

from fedit.config import RunConfig
from fedit.engines.inprocess import InProcess
from fedit.errors import ConfigError, ModelError
from fedit.evaluation.loss import row_losses
from fedit.launch import run
from fedit.model.export import save_adapter
from fedit.model.kinds import KINDS
from fedit.prepare import prepare
from fedit.rounds import run_rounds
from fedit.settings import load as load_settings
from fedit.strategies.base import Strategy, refuse_factors_only
from fedit.strategies.fedit import FedIT
from fedit.training import LocalJob, Trainer, batches
from fedit.types import LocalTraining, ServerState
from fedit.worker import Worker

OTHERS = sorted(set(KINDS) - {"lora"})
ADAPTERS = sorted(set(OTHERS) - {"full"})
ROWS = make_rows([19, 7, 30, 12, 25, 9])
PLAIN = [(row.ids.tolist(), row.supervised.tolist()) for row in ROWS]
HOW = LocalTraining(
    learning_rate=0.05, num_rounds=1, steps=3, batch_size=4, optimizer="sgd", momentum=0.9, max_grad_norm=0.0
)


def job(model, training=HOW, **changes):
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
    return LocalJob(ROWS, training, **options)


def moved(model, seed=0):
    """Return an adapter near the initial one, so that nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in model.initial(seed).items()
    }


def exported(model, adapter, folder):
    save_adapter(model, adapter, folder, facts={"rounds": "1"}, settings_yaml="seed: 0\n")
    return folder


def plain(model_folder, kind, folder, tuning):
    """Return the exported model as transformers and PEFT alone load it, in float64, to be trained."""
    if tuning == "full":
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    else:
        base = AutoModelForCausalLM.from_pretrained(model_folder(kind), dtype=torch.float64)
        # PEFT will not load a prefix for training; it is freed by hand.
        loaded = peft.PeftModel.from_pretrained(
            base, folder, is_trainable=tuning != "prefix", autocast_adapter_dtype=False
        )
        if tuning == "prefix":
            loaded.prompt_encoder.default.embedding.weight.requires_grad_(True)
        for parameter in loaded.parameters():
            parameter.data = parameter.data.double()
        for buffer in loaded.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.double()
    for name in loaded.config.to_dict():
        if "dropout" in name or name.endswith("_pdrop"):
            setattr(loaded.config, name, 0.0)
    loaded.eval()
    return loaded


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance, msg=name)


# --- the tensors ---


@pytest.mark.parametrize("tuning", OTHERS)
def test_the_initial_tensors_follow_from_the_seed_and_move_no_generator(adapted, tuning, keep_global_state):
    one, two = adapted("llama", tuning=tuning, seed=3), adapted("llama", tuning=tuning, seed=3)
    two.load(moved(two))
    first, again = one.initial(3), two.initial(3)
    assert set(first) == set(one.shapes)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert tuple(tensor.shape) == one.shapes[name]


@pytest.mark.parametrize("tuning", sorted(set(OTHERS) - {"prefix"}))
def test_the_initial_tensors_leave_the_base_as_it_is(adapted, model_folder, tuning):
    model = adapted("gpt2", tuning=tuning)
    model.load(model.initial(0))
    base = AutoModelForCausalLM.from_pretrained(model_folder("gpt2"), dtype=torch.float64).eval()
    losses = row_losses(model, [model.initial(0)], [ROWS])[0].report().loss
    with torch.no_grad():
        assert losses == pytest.approx(float(batch_loss(base, PLAIN)), rel=1e-10)


def test_names_are_the_modules_and_what_they_have(adapted):
    def names(tuning, **options):
        return sorted(name for name in adapted("llama", tuning=tuning, **options).shapes if "layers.1" not in name)

    q = "model.layers.0.self_attn.q_proj"
    assert names("dora", targets=["q_proj"]) == [f"{q}.A", f"{q}.B", f"{q}.magnitude"]
    assert names("vera", targets=["q_proj"]) == [f"{q}.lambda_b", f"{q}.lambda_d"]
    assert names("ia3", targets=["q_proj"]) == [f"{q}.ia3"]
    assert names("full", targets=["q_proj"]) == [f"{q}.weight"]
    assert names("prefix") == ["prefix"]
    assert "model.embed_tokens.weight" in names("full")


@pytest.mark.parametrize("tuning", OTHERS)
def test_what_does_not_fit_is_refused(adapted, tuning):
    model = adapted("llama", tuning=tuning)
    start = dict(model.initial(0))
    name, tensor = next(iter(start.items()))
    with pytest.raises(ModelError, match="adapter does not fit"):
        model.load({**start, name: tensor[:-1]})
    with pytest.raises(ModelError, match="missing"):
        model.load({n: t for n, t in start.items() if n != name})
    with pytest.raises(ModelError, match="ledger corrects"):
        model.load(start, {"m.A": torch.zeros(1, 1), "m.B": torch.zeros(1, 1)})


# --- training ---


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("tuning", OTHERS)
def test_training_and_export_are_those_of_transformers_and_peft(adapted, model_folder, kind, tuning, tmp_path):
    """The oracle starts from an exported folder, trains as PEFT does, and ends where the client ends."""
    options = {"targets": ["k_proj", "v_proj", "fc2"]} if (kind, tuning) == ("opt", "ia3") else {}
    model = adapted(kind, tuning=tuning, **options)
    start = moved(model)
    oracle = plain(model_folder, kind, exported(model, start, tmp_path / "start"), tuning)
    own = [parameter for parameter in oracle.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(own, lr=0.05, momentum=0.9)
    losses = []
    for _, chosen in zip(range(3), batches(len(ROWS), 4, 0, 0), strict=False):
        optimizer.zero_grad()
        loss = batch_loss(oracle, [PLAIN[i] for i in chosen])
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), sum(sum(PLAIN[i][1][1:]) for i in chosen)))
    progress, _, after = Trainer(model).train(job(model), start)
    assert progress.loss == pytest.approx(sum(x * n for x, n in losses) / sum(n for _, n in losses), rel=1e-9)
    again = plain(model_folder, kind, exported(model, after, tmp_path / "after"), tuning)
    found = {n: p for n, p in again.named_parameters() if p.requires_grad}
    expected = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    # PEFT rounds a prefix to float32 when it loads one.
    assert_close(found, expected, 1e-7 if tuning == "prefix" else 1e-9)
    assert any(not torch.equal(after[name], start[name]) for name in start)


@pytest.mark.parametrize("tuning", OTHERS)
def test_the_micro_batch_changes_nothing(adapted, tuning):
    model = adapted("gpt2", tuning=tuning)
    start = moved(model)
    results = [
        Trainer(model).train(job(model, dataclasses.replace(HOW, micro_batch_size=micro)), start)[2]
        for micro in (1, 2, None)
    ]
    for other in results[1:]:
        assert_close(other, results[0], 1e-10)


@pytest.mark.parametrize("tuning", OTHERS)
def test_a_federation_of_one_ends_where_its_client_does(adapted, tuning):
    model = adapted("gpt2", tuning=tuning)
    strategy = FedIT()
    worker = Worker(model, {"a": ROWS}, strategy, seed=0)
    how = dataclasses.replace(HOW, momentum=0.0)
    rounds = run_rounds(
        ServerState(0, model.initial(0), scale=model.scale),
        InProcess(worker),
        strategy,
        rounds=2,
        cohort=lambda clients, number: ["a"],
        training=lambda number: how,
        seed=0,
    )
    *_, (server, record) = rounds
    assert record.aggregated
    from fedit.seeds import derive

    seed = derive(0, "data", "a")
    _, _, alone = Trainer(model).train(
        job(model, dataclasses.replace(how, steps=6), data_seed=seed), model.initial(0)
    )
    assert_close(server.adapter, alone, 1e-9)


# --- settings, strategies, runs ---


@dataclasses.dataclass(frozen=True)
class LooksAtNames(Strategy):
    """Made for factors."""


@pytest.mark.parametrize("tuning", OTHERS)
def test_strategies_made_for_factors_refuse_other_tensors(tuning):
    with pytest.raises(ConfigError, match=f"LooksAtNames works on LoRA's factors A and B, and tuning={tuning}"):
        refuse_factors_only(LooksAtNames(), tuning)
    refuse_factors_only(LooksAtNames(), "lora")
    refuse_factors_only(FedIT(), tuning)


def test_a_job_whose_strategy_cannot_average_is_refused(make_config, tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    path.write_text(
        '"""Own."""\nfrom dataclasses import dataclass\nfrom fedit.strategies.base import Strategy\n\n\n'
        '@dataclass(frozen=True)\nclass Own(Strategy):\n    """Own."""\n'
    )
    with pytest.raises(ConfigError, match="works on LoRA's factors"):
        prepare(make_config(tuning="ia3", strategy=f"{path}:Own"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tuning=full", "load_in_4bit=true"], "cannot be quantised"),
        (["tuning=full", "dtype=bf16"], "small steps are not lost"),
        (["tuning=prefix", "gradient_checkpointing=true"], "tuning=prefix"),
        (["tuning=dora", "devices_per_client=2"], "serves tuning=lora"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        load_settings(None, settings)


@pytest.mark.parametrize("tuning", OTHERS)
def test_a_run_trains_and_leaves_what_loads_without_fedit(make_config, tiny, tmp_path, tuning):
    config: RunConfig = make_config(tuning=tuning, num_rounds=1, virtual_tokens=4, max_length=64)
    result = run(config, tmp_path / "run")
    folder = result.folder / "adapter"
    if tuning == "full":
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    else:
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] != "LORA" or tuning == "dora"
    job = prepare(config)
    rows = job.tokens(job.held_out)
    loaded.eval()
    with torch.no_grad():
        loss = float(batch_loss(loaded, [(row.ids.tolist(), row.supervised.tolist()) for row in rows]))
    assert loss == pytest.approx(result.summary["held_out"]["after"]["loss"], rel=1e-4)
