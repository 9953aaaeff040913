"""Base models in memory: frozen, without dropout of their own, and never with weights that nobody trained."""

import json

import pytest
import safetensors.torch
import torch
from tiny import CONFIGS, save_model

from fedit.errors import ConfigError, ModelError
from fedit.model.hardware import choose_device, choose_dtype, is_out_of_memory
from fedit.model.loading import context_length, load_base, load_tokenizer
from fedit.model.sources import resolve_model


def load(folder, **options):
    return load_base(resolve_model(str(folder)), device="cpu", **options)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_base_is_frozen_and_calm(model_folder, kind):
    base = load(model_folder(kind), dtype="fp32")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    values = base.model.config.to_dict()
    noisy = {n: v for n, v in values.items() if isinstance(v, float) and ("drop" in n) and v > 0}
    assert noisy == {}
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)]
)
def test_a_base_has_the_precision_asked_for(tiny, name, dtype):
    base = load(tiny, dtype=name)
    assert base.dtype == dtype
    assert {parameter.dtype for parameter in base.model.parameters()} == {dtype}
    assert base.device == torch.device("cpu")


def test_a_base_is_read_as_it_was_written(tiny):
    stored = safetensors.torch.load_file(tiny / "model.safetensors")
    found = load(tiny, dtype="fp32").model.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor)


def test_missing_weights_are_not_made_up(tmp_path):
    """Invented weights would differ from machine to machine."""
    folder = tmp_path / "model"
    save_model("llama", folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load(folder)


def test_weights_of_another_shape_are_a_model_error(tmp_path):
    folder = tmp_path / "model"
    save_model("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError, match="model"):
        load(folder)


def test_damaged_weights_are_a_model_error(tmp_path):
    folder = tmp_path / "model"
    save_model("llama", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(folder)):
        load(folder)


def test_an_unknown_architecture_is_a_model_error(tmp_path):
    folder = tmp_path / "model"
    save_model("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_a_folder_without_tokenizer_is_a_model_error(tmp_path):
    folder = tmp_path / "model"
    save_model("llama", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="tokenizer of model"):
        load_tokenizer(resolve_model(str(folder)))


def test_the_tokenizer_comes_with_its_chat_template(tiny, tokenizer):
    found = load_tokenizer(resolve_model(str(tiny)))
    assert found.chat_template == tokenizer.chat_template
    assert found.eos_token == "<|im_end|>"
    assert found("héllo\n")["input_ids"] == tokenizer("héllo\n")["input_ids"]
    assert len(found) == 260


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_context_is_known_where_the_config_says(model_folder, kind):
    assert context_length(resolve_model(str(model_folder(kind)))) == (None if kind == "bloom" else 512)


def test_devices_and_precisions_that_do_not_exist_are_config_errors():
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("tpu9", "cuda:99", ""):
        with pytest.raises(ConfigError, match="is not available here"):
            choose_device(name)
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected
