"""Exports that other programs load: their logits are fedit's, and nothing of this machine is in them."""

import json
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
from exporting import bpe_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedit import export as package
from fedit.errors import ConfigError, ModelError, RunFolderError, UnknownName
from fedit.export.formats import FORMATS, Options
from fedit.export.merged import write_model
from fedit.export.subject import Subject, find_clients, find_subject
from fedit.export.write import export
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.tuned import Tuned, find_tuned

IDS = torch.tensor([[60, 70, 80, 90, 100, 65, 66]])


def logits_of(tuned):
    """Return fedit's own logits of a tuned model."""
    base = load_base(resolve_model(tuned.model), device="cpu", dtype="fp32")
    model = AdaptedModel(base, rank=tuned.rank, alpha=tuned.alpha, rslora=tuned.rslora, fast_path=False)
    model.load(tuned.adapter, scale=tuned.scale)
    with torch.no_grad():
        return model._model(IDS).logits[0]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits[0].float()


@pytest.mark.parametrize(
    "changes", [{}, {"strategy": "fedex_lora", "use_rslora": True}], ids=["plain", "with a ledger"]
)
def test_a_peft_folder_gives_the_same_logits(finished, bpe, tmp_path, changes):
    """A ledger's rank adds to the adapter's: exact, not truncated."""
    done = export(finished(**changes), "peft", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(bpe(), dtype=torch.float32)
    before = logits(base)
    found = logits(peft.PeftModel.from_pretrained(base, str(tmp_path / "out")))
    torch.testing.assert_close(found, logits_of(find_tuned(finished(**changes))), rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 0.01
    assert (done.record["rank"] > 4) == bool(changes)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("auto", 1e-5), ("fp16", 0.01), ("bf16", 0.1)])
def test_a_merged_folder_gives_the_same_logits(finished, tmp_path, dtype, tolerance):
    run = finished(strategy="fedex_lora", use_rslora=True)
    done = export(run, "merged", tmp_path / "out", options=Options(dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (
        str(model.dtype).removeprefix("torch.")
        in ({"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[str(done.record["dtype"])])
    )
    found = logits(model.float())
    own = logits_of(find_tuned(run))
    assert (found - own).abs().max() <= tolerance * own.abs().max()


def test_a_merged_folder_ends_answers_and_asks_as_the_training_did(finished, tmp_path):
    export(finished(prompt_template="alpaca"), "merged", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    )
    assert text.startswith("Below is an instruction")
    assert text.endswith("### Instruction:\nWhy?\n\n### Response:\n")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0  # some read only the first
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == bpe_tokenizer().eos_token_id


def test_stretched_positions_are_read_the_same_from_either_place(bpe, tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0}
    tuned = Tuned({}, str(bpe("llama", rope_parameters=rope)), "chat", 4, 8.0)
    write_model(Subject("base", tuned), tmp_path, say=lambda text: None)
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"]["factor"] == 2.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


@pytest.mark.parametrize("to", ["peft", "merged", "vllm", "mlx"])
def test_nothing_of_this_machine_is_in_an_export(finished, tmp_path, to):
    run = finished(strategy="ditto")
    export(run, to, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(run.parent).encode() not in path.read_bytes(), path
            assert str(tmp_path.parent.parent).encode() not in path.read_bytes(), path
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| auto |" not in card
    for text in ("rows.jsonl", "ditto", "## Results", "## Settings", "| all |", "2, rows dealt by iid"):
        assert text in card
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == to


def test_vllm_gets_every_client_and_a_command_with_their_rank(finished, bpe, tmp_path):
    run = finished(strategy="ditto", lora_r=9)
    done = export(run, "vllm", tmp_path / "out")
    assert done.record["adapters"] == ["first", "client-0", "client-1"]
    assert done.record["max_lora_rank"] == 16
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    told = subprocess.run(
        ["sh", tmp_path / "out" / "serve.sh", "--port", "9"],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin", "BASE": "some base"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    folder, _, base, *flags = told
    assert (base, flags[-2:]) == ("some base", ["--port", "9"])
    assert flags[flags.index("--max-lora-rank") + 1] == "16"
    modules = flags[flags.index("--lora-modules") + 1 : -2]
    found = {}
    for module in modules:
        name, _, path = module.partition("=")
        model = AutoModelForCausalLM.from_pretrained(bpe(), dtype=torch.float32)
        found[name] = logits(peft.PeftModel.from_pretrained(model, f"{folder}/{path}"))
    subject = find_subject(run)
    for own in (subject, *find_clients(subject)):
        torch.testing.assert_close(found[own.name], logits_of(own.tuned), rtol=1e-5, atol=1e-5)
    assert (found["client-0"] - found["client-1"]).abs().max() > 1e-3


def test_one_clients_own_model_is_exported(finished, tmp_path):
    run = finished(strategy="ditto")
    done = export(run, "peft", tmp_path / "out", clients=["client-1"])
    assert done.record["name"] == "client-1"
    assert "## Results" not in (tmp_path / "out" / "README.md").read_text()  # they are of the federated model
    (own,) = find_clients(find_subject(run), ["client-1"])
    assert all(torch.equal(find_tuned(tmp_path / "out").adapter[n], t) for n, t in own.tuned.adapter.items())
    with pytest.raises(ModelError, match="no client 'client-7'"):
        export(run, "peft", tmp_path / "other", clients=["client-7"])
    with pytest.raises(ConfigError, match="use --to vllm"):
        export(run, "peft", tmp_path / "other", clients=["all"])


def test_a_rank_beyond_vllms_is_refused(finished, monkeypatch, tmp_path):
    subject = find_subject(finished())
    large = replace(subject, tuned=replace(subject.tuned, rank=600))
    monkeypatch.setattr("fedit.export.write.find_subject", lambda *args, **options: large)
    with pytest.raises(ModelError, match="rank 600"):
        export(finished(), "vllm", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_failing_export_leaves_nothing_and_an_older_one_stays(finished, monkeypatch, tmp_path):
    export(finished(), "peft", tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_bytes()

    def fail(*args, **options):
        raise ModelError("no")

    monkeypatch.setattr("fedit.export.write.write_card", fail)
    for out in ("out", "new"):
        with pytest.raises(ModelError, match="no"):
            export(finished(), "merged", tmp_path / out, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "export.json").read_bytes() == before


def test_what_is_there_is_replaced_only_when_told_and_only_if_it_is_an_export(finished, tmp_path):
    export(finished(), "peft", tmp_path / "out")
    with pytest.raises(RunFolderError, match="--replace"):
        export(finished(), "mlx", tmp_path / "out")
    export(finished(), "mlx", tmp_path / "out", replace=True)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match="holds no export"):
        export(finished(), "peft", tmp_path / "mine", replace=True)


def test_options_of_other_formats_are_refused(finished, tmp_path):
    for to, options, why in (
        ("peft", Options("bf16"), "always stores float32"),
        ("merged", Options("q8_0"), "expected auto, fp32"),
        ("merged", Options(adapter_only=True), "belongs to --to gguf"),
    ):
        with pytest.raises(ConfigError, match=why):
            export(finished(), to, tmp_path / "out", options=options)
    with pytest.raises(UnknownName, match="unknown format 'ggml'"):
        export(finished(), "ggml", tmp_path / "out")


@pytest.mark.parametrize(
    ("tuning", "works"),
    [("dora", {"peft", "merged"}), ("full", {"merged"}), ("prefix", {"peft"})],
)
def test_other_kinds_go_where_they_can(finished, bpe, tmp_path, tuning, works):
    run = finished(tuning=tuning)
    for to in ("peft", "merged", "vllm", "mlx"):
        if to not in works:
            with pytest.raises(ModelError, match=r"use --to|merged"):
                export(run, to, tmp_path / to)
            continue
        export(run, to, tmp_path / to)
    found = {}
    if "merged" in works:
        found["merged"] = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    if "peft" in works:
        base = AutoModelForCausalLM.from_pretrained(bpe())
        found["peft"] = logits(peft.PeftModel.from_pretrained(base, str(tmp_path / "peft")))
    if tuning == "full":
        found["run"] = logits(AutoModelForCausalLM.from_pretrained(run / "adapter"))
    first, *others = found.values()
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)
    assert (first - logits(AutoModelForCausalLM.from_pretrained(bpe()))).abs().max() > 1e-3


def test_a_quantised_base_is_merged_as_it_computed(finished, monkeypatch, tmp_path):
    """What is merged is the base that was trained over, 4 bits and all, not the one in the model's folder."""
    pytest.importorskip("bitsandbytes")
    run = finished(load_in_4bit=True)
    tuned = find_tuned(run)
    export(run, "merged", tmp_path / "out", options=Options("fp32"))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32))
    base = load_base(resolve_model(tuned.model), device="cpu", dtype="fp32", bits=4)
    model = AdaptedModel(base, rank=tuned.rank, alpha=tuned.alpha, fast_path=False)
    model.load(tuned.adapter, scale=tuned.scale)
    with torch.no_grad():
        own = model._model(IDS).logits[0]
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
    assert (found - logits_of(tuned)).abs().max() > 0.01
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_mlx_weights_are_transposed_factors(finished, tmp_path):
    import safetensors.torch

    export(finished(), "mlx", tmp_path / "out")
    weights = safetensors.torch.load_file(tmp_path / "out" / "adapters.safetensors")
    adapter = find_tuned(finished()).adapter
    assert len(weights) == len(adapter)
    name = "model.layers.1.self_attn.q_proj"
    assert torch.equal(weights[f"{name}.lora_a"], adapter[f"{name}.A"].T)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["num_layers"] == 2
    assert config["lora_parameters"]["scale"] == 2.0
    assert config["lora_parameters"]["keys"] == [f"self_attn.{k}_proj" for k in "koqv"]


def test_an_adapter_from_elsewhere_is_exported_too(finished, bpe, tmp_path):
    export(finished(), "peft", tmp_path / "one")
    done = export(tmp_path / "one", "merged", tmp_path / "two", model=str(bpe()))
    assert done.record["name"] == "one"
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "two"))
    torch.testing.assert_close(found, logits_of(find_tuned(finished())), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_package_names_what_it_offers_and_loads_it_late():
    code = (
        "import sys, fedit.export; assert 'torch' not in sys.modules; "
        "from fedit.export import FORMATS, Exported, Options, export; print(*FORMATS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(FORMATS)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018


def test_the_command_speaks_json_and_names_mistakes(finished, tmp_path):
    from typer.testing import CliRunner

    from fedit.cli.app import app
    from fedit.cli.export import To

    told = CliRunner().invoke(
        app, ["export", str(finished()), "--to", "peft", "--out", str(tmp_path / "a"), "--json"]
    )
    assert told.exit_code == 0
    assert json.loads(told.stdout)["files"]["adapter_model.safetensors"] > 1000
    assert [to.value for to in To] == list(FORMATS)
