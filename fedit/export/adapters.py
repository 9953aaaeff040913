"""The adapter as folders of PEFT, of vLLM's many adapters over one base, and of MLX."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedit.errors import ModelError
from fedit.export.merged import tokenizer_of
from fedit.export.subject import Subject, config_of, source_of
from fedit.files import read_json, safe_name
from fedit.model.export import CONFIG, TRANSPOSED, WEIGHTS, plain_config, public_name, write_adapter_files

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank; 16 unless it is told."""

MLX_WEIGHTS = "adapters.safetensors"
_LAYER = re.compile(r"(?P<path>.*\.layers)\.(?P<number>\d+)\.(?P<key>.+)")


def write_peft(subject: Subject, folder: Path, *, with_tokenizer: bool = True) -> None:
    """Write the adapter as a PEFT folder, with the tokenizer whose chat template asks as the training did.

    Frozen corrections of the base are part of it: they make it an adapter of a higher rank, exactly. Other kinds
    than LoRA are copied from the run.

    Raises:
        ModelError: all weights were trained, so that there is no adapter.
    """
    if subject.kind == "full":
        raise ModelError("all weights were trained (tuning=full), so there is no adapter; use --to merged.")
    source = source_of(subject)
    if subject.kind == "lora":
        tuned = subject.tuned
        kind = config_of(subject).model_type
        config = plain_config(tuned.adapter, source, kind, tuned.rank, tuned.alpha, rslora=tuned.rslora)
        write_adapter_files(folder, tuned.adapter, config, tuned.scale)
    else:
        assert subject.folder is not None  # of every other kind there is one
        config = read_json(subject.folder / CONFIG)
        config["base_model_name_or_path"] = public_name(source)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / WEIGHTS).write_bytes((subject.folder / WEIGHTS).read_bytes())
    if with_tokenizer:
        tokenizer_of(subject)[0].save_pretrained(folder)


def write_vllm(subjects: Sequence[Subject], folder: Path) -> dict[str, object]:
    """Write the adapters side by side, and the command that serves them over one base; return what it needs.

    Raises:
        ModelError: what was trained is no LoRA, or of a rank that vLLM does not take.
    """
    for subject in subjects:
        if subject.kind != "lora":
            raise ModelError(f"vLLM serves LoRA adapters, and this is tuning={subject.kind}; use --to merged.")
    rank = max(subject.tuned.rank for subject in subjects)
    most = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if most is None:
        raise ModelError(
            f"the adapter has rank {rank} with its frozen corrections folded in, and vLLM takes at most "
            f"{VLLM_RANKS[-1]}; use --to merged, which vLLM serves as any model."
        )
    names = {safe_name(subject.name): subject for subject in subjects}
    for name, subject in names.items():
        (folder / "adapters" / name).mkdir(parents=True)
        write_peft(subject, folder / "adapters" / name, with_tokenizer=False)
    tokenizer, _ = tokenizer_of(subjects[0])
    (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    command = [
        "--enable-lora",
        "--max-lora-rank",
        str(most),
        "--max-loras",
        str(min(len(names), 8)),
        "--chat-template",
        "chat_template.jinja",
        "--host",
        "127.0.0.1",
        "--lora-modules",
        *(f"{name}=adapters/{name}" for name in names),
    ]
    base = public_name(source_of(subjects[0]))
    script = _SERVE.format(base=shlex.quote(base), arguments=shlex.join(command))
    (folder / "serve.sh").write_text(script, encoding="utf-8")
    return {
        "adapters": list(names),
        "max_lora_rank": most,
        "command": shlex.join(["vllm", "serve", base, *command]),
    }


_SERVE = """#!/bin/sh
# Serves the base model with every adapter here: a request's "model" names one of them.
# BASE names another copy of the base model; whatever follows this script's name is handed to vLLM.
cd "$(dirname "$0")" || exit 1
[ -n "$BASE" ] || BASE={base}
exec vllm serve "$BASE" {arguments} "$@"
"""


def write_mlx(subject: Subject, folder: Path) -> None:
    """Write the adapter as mlx-lm's ``--adapter-path`` takes it.

    Raises:
        ModelError: what was trained is no LoRA of the model's numbered layers.
    """
    if subject.kind != "lora":
        raise ModelError(f"MLX adapters are LoRA, and this is tuning={subject.kind}; use --to merged.")
    factors = subject.tuned.adapter
    base = config_of(subject)
    if base.model_type in TRANSPOSED:
        raise ModelError(
            f"model '{subject.tuned.model}' stores its weights transposed, which is not exported to MLX."
        )
    keys: set[str] = set()
    weights: dict[str, Tensor] = {}
    for name, tensor in sorted(factors.items()):
        module, _, letter = name.rpartition(".")
        found = _LAYER.fullmatch(module)
        if found is None:
            raise ModelError(f"'{module}' is not in one of the model's layers, where mlx-lm looks for adapters.")
        keys.add(found["key"])
        weights[f"{module}.lora_{letter.lower()}"] = tensor.float().T.contiguous()
    config = {
        "fine_tune_type": "lora",
        "num_layers": 1 + max(int(_layer_of(name)) for name in factors),
        "lora_parameters": {
            "rank": subject.tuned.rank,
            "scale": subject.tuned.scale,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }
    _check_complete(factors, keys, int(base.num_hidden_layers))
    safetensors.torch.save_file(weights, folder / MLX_WEIGHTS, metadata={"format": "mlx"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer, _ = tokenizer_of(subject)
    (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")


def _layer_of(name: str) -> str:
    found = _LAYER.fullmatch(name)
    assert found is not None  # looked at before
    return found["number"]


def _check_complete(factors: Mapping[str, Tensor], keys: set[str], layers: int) -> None:
    """Make sure that every numbered layer has all of ``keys``: mlx-lm adapts whole layers from the last on."""
    found = {(int(_layer_of(name)), _LAYER.fullmatch(name.rpartition(".")[0])["key"]) for name in factors}  # type: ignore[index]
    if len(found) != layers * len(keys):
        raise ModelError(
            "the adapter has factors in some of the model's layers only, which is not exported to MLX; "
            "use --to merged."
        )
