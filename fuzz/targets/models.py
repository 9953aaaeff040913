"""Base models that somebody published: GGUF files and the JSON files of model folders."""

import json
from functools import cache

from fedit.errors import ModelError
from fedit.model.sources import check_folder, fingerprint, weight_files
from fuzz.target import Target, promise, table_of
from fuzz.targets import scratch


@cache
def _ggufs() -> list[bytes]:
    import gguf
    import numpy as np

    path = scratch.folder() / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_embedding_length, 8),
        (writer.add_feed_forward_length, 16),
        (writer.add_block_count, 1),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 1),
        (writer.add_context_length, 32),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 1e4),
        (writer.add_vocab_size, 4),
        (writer.add_token_list, ["a", "b", "<s>", "</s>"]),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_bos_token_id, 2),
        (writer.add_eos_token_id, 3),
    ):
        add(value)
    shapes = {
        "token_embd.weight": (4, 8),
        "output_norm.weight": (8,),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_gate.weight": (16, 8),
        "blk.0.ffn_up.weight": (16, 8),
        "blk.0.ffn_down.weight": (8, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path.read_bytes()]


def _gguf(data: bytes) -> None:
    from fedit.model.gguf import llama_config, llama_tensors, open_gguf

    reader = open_gguf(scratch.file("model.gguf", data))
    config = llama_config(reader)
    for _ in llama_tensors(reader, config):
        pass


_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}
_INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


def _folder(data: bytes) -> None:
    """A model's folder whose JSON files are given as one object: name -> content."""
    value = table_of(data)
    folder = scratch.emptied("model")
    for name in ("config.json", "model.safetensors.index.json", "adapter_config.json"):
        if name in value:
            (folder / name).write_bytes(json.dumps(value[name]).encode())
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(b"\0" * 8)
    promise(
        all(path.parent == folder for path in weight_files(folder)),
        "a weight file lies outside of the model's folder",
    )
    check_folder(folder)
    fingerprint(folder)
    from fedit.model.loading import context_length
    from fedit.model.sources import ModelSource

    context_length(ModelSource("m", folder, "folder", "", ""))


TARGETS = (
    Target(
        "gguf",
        ("fedit.model.gguf",),
        _gguf,
        _ggufs,
        (ModelError,),
        "bytes",
        (b"GGUF", b"general.architecture", b"llama", b"blk.0.attn_q.weight", b"\xff" * 8, b"\0" * 8),
    ),
    Target(
        "model_folder",
        ("fedit.model.sources", "fedit.model.loading"),
        _folder,
        lambda: [
            json.dumps({"config.json": _CONFIG, "model.safetensors.index.json": _INDEX}).encode(),
            json.dumps(
                {"config.json": {**_CONFIG, "auto_map": {"a": "b"}}, "model.safetensors.index.json": _INDEX}
            ).encode(),
        ],
        (ModelError,),
        "json",
    ),
)
