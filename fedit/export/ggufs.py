"""GGUF files for llama.cpp and what is built on it: the adapter beside a base, and the merged model."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from fedit.errors import ModelError
from fedit.export.ggufmodel import Names, add_numbers
from fedit.export.ggufvocabulary import add_vocabulary
from fedit.export.merged import merge, tokenizer_of
from fedit.export.subject import Subject, config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL, ADAPTER = "model.gguf", "adapter.gguf"

TYPES: Mapping[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""How matrices are stored; vectors are always float32."""

_Q8_BLOCK = 32
_LARGEST_FP16 = 65504.0


def write_gguf_model(subject: Subject, path: Path, *, dtype: str = "auto", say: Callable[[str], None]) -> str:
    """Write the merged model as one GGUF file and return how it is stored; "auto" is fp16, as llama.cpp's own.

    Raises:
        ModelError: llama.cpp does not compute this architecture, or it was never compared with it here.
    """
    chosen = "fp16" if dtype == "auto" else dtype
    names = names_of(subject)  # refused before anything is loaded
    tokenizer, stops = tokenizer_of(subject)
    say("adding what was learnt to the weights")
    model, _ = merge(subject, "fp32")
    config = model.config.get_text_config().to_dict()
    writer = gguf.GGUFWriter(path, names.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(subject.name)
    writer.add_file_type(TYPES[chosen][1])
    add_numbers(writer, config, subject.tuned.model)
    add_vocabulary(writer, tokenizer, int(config["vocab_size"]), stops, subject.tuned.model)
    say(f"writing {path.name}")
    for name, values in _weights(model):
        data, kind = _stored(names.rows(name, values), chosen, name)
        writer.add_tensor(names.of(name), data, raw_dtype=kind)
    _finish(writer)
    return chosen


def write_gguf_adapter(subject: Subject, path: Path) -> None:
    """Write the adapter as a GGUF file that llama.cpp loads beside the base model (``--lora``), in float32.

    Raises:
        ModelError: it has other factors than of linear layers, or is no LoRA.
    """
    if subject.kind != "lora":
        raise ModelError(f"GGUF adapters are LoRA; what was trained here is {subject.kind}.")
    names, factors = names_of(subject), subject.tuned.adapter
    writer = gguf.GGUFWriter(path, names.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(subject.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp multiplies by alpha / rank.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, subject.tuned.scale * subject.tuned.rank)
    for factor, tensor in sorted(factors.items()):
        module, _, letter = factor.rpartition(".")
        weight = f"{module}.weight"
        values = tensor.float().numpy()
        if letter == "B":
            values = names.rows(weight, values)
        writer.add_tensor(f"{names.of(weight)}.lora_{letter.lower()}", np.ascontiguousarray(values))
    _finish(writer)


def names_of(subject: Subject) -> Names:
    """Return llama.cpp's names for the base of ``subject``.

    Raises:
        ModelError: it is of an architecture that was not compared.
    """
    return Names(config_of(subject).to_dict(), subject.tuned.model)


def _weights(model: "PreTrainedModel") -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.float().numpy()


def _stored(
    values: np.ndarray[Any, Any], dtype: str, name: str
) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    kind = TYPES[dtype][0]
    if values.ndim < 2 or (dtype == "q8_0" and values.shape[-1] % _Q8_BLOCK):
        kind = gguf.GGMLQuantizationType.F32
    if dtype == "fp16" and np.abs(values).max() > _LARGEST_FP16:
        raise ModelError(f"'{name}' has numbers that fp16 cannot hold; export with --dtype bf16 or fp32.")
    return gguf.quantize(np.ascontiguousarray(values), kind), kind


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
