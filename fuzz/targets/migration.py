"""Files of other frameworks, as fedit import reads them."""

import io
import json
import zipfile
from functools import cache

from fedit.errors import ModelError, UserError
from fedit.migration.arguments import complete, read_command
from fedit.migration.shepherd import DEFAULTS, SCRIPTS
from fedit.migration.tools import import_from
from fedit.migration.torchfile import read_torch_file
from fuzz.target import Target, table_of
from fuzz.targets import scratch


@cache
def _torch_files() -> list[bytes]:
    import torch

    content = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4).half()[1:]}, content)
    return [content.getvalue()]


def _programs() -> list[bytes]:
    """Return the pickles alone: an archive's checksum would hide all but the first of their mistakes."""
    with zipfile.ZipFile(io.BytesIO(_torch_files()[0])) as archive:
        return [archive.read("archive/data.pkl")]


def _torch_program(data: bytes) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", b"\0" * 24)
        archive.writestr("x/data/1", b"\0" * 8)
    read_torch_file(scratch.file("weights.bin", content.getvalue()))


def _script(data: bytes) -> None:
    complete(read_command(scratch.file("run.sh", data), SCRIPTS), DEFAULTS)


def _import(tool: str, name: str, data: bytes) -> None:
    path = scratch.file(f"import-{tool}/{name}", data)
    out = scratch.emptied("imported") / tool
    import_from(tool, [path], out)


def _adapter(data: bytes) -> None:
    """An adapter's config beside good weights."""
    folder = scratch.emptied("adapter")
    (folder / "adapter_config.json").write_bytes(json.dumps(table_of(data)).encode())
    (folder / "adapter_model.bin").write_bytes(_weights())
    import_from("shepherd", [folder], scratch.emptied("imported") / "adapter")


@cache
def _weights() -> bytes:
    import torch

    content = io.BytesIO()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    torch.save({name.format("A"): torch.zeros(2, 4), name.format("B"): torch.zeros(4, 2)}, content)
    return content.getvalue()


_ARGS = {
    "script_args": {"learning_rate": 2e-5, "max_steps": 10, "use_peft": True, "template": "alpaca"},
    "fed_args": {"fed_alg": "fedprox", "num_clients": 3, "sample_clients": 2, "prox_mu": 0.1},
}
_SPLIT = {
    "a": [{"instruction": "q", "response": "r"}],
    "b": [{"instruction": "p", "response": "s"}, {"instruction": "t", "response": "u"}],
}
_TALK = {"u": [{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}]}
_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
_TOML = b"""[tool.flwr.app.config]
model.name = "m"
model.quantization = 4
model.lora.peft-lora-r = 8
model.lora.peft-lora-alpha = 16
dataset.name = "d"
train.learning-rate-max = 5e-5
train.learning-rate-min = 1e-6
train.training-arguments.max-steps = 10
strategy.fraction-fit = 0.2
num-server-rounds = 3
[tool.flwr.federations]
default = "s"
[tool.flwr.federations.s]
options.num-supernodes = 5
"""
_SH = b"""lr=1e-4 # rate
CUDA_VISIBLE_DEVICES=0 python main.py --global_model 'm' \\
  --local_learning_rate $lr --lora_target_modules='[q_proj,v_proj]' --train_on_inputs --num_clients=3
"""

TARGETS = (
    Target(
        "torch_file",
        ("fedit.migration.torchfile",),
        lambda data: read_torch_file(scratch.file("weights.bin", data)),
        _torch_files,
        (ModelError,),
        "bytes",
        (b"PK\x03\x04", b"data.pkl", b"torch._utils", b"\xff" * 4),
    ),
    Target(
        "torch_program",
        ("fedit.migration.torchfile",),
        _torch_program,
        _programs,
        (ModelError,),
        "bytes",
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nFloatStorage\n",
            b"cos\nsystem\n",
            b"R",
            b"Q",
            b"(",
            b"t",
        ),
    ),
    Target(
        "shell_script", ("fedit.migration.arguments",), _script, lambda: [_SH], (UserError,), "text", (b"$", b"--")
    ),
    Target(
        "openfedllm_arguments",
        ("fedit.migration.openfedllm",),
        lambda data: _import("openfedllm", "args.json", data),
        lambda: [json.dumps(_ARGS).encode()],
        (UserError,),
        "json",
    ),
    Target(
        "fedllm_bench_split",
        ("fedit.migration.fedllm_bench", "fedit.migration.base"),
        lambda data: _import("fedllm-bench", "split.json", data),
        lambda: [json.dumps(_SPLIT).encode(), json.dumps(_TALK).encode()],
        (UserError,),
        "json",
    ),
    Target(
        "flowertune_project",
        ("fedit.migration.flowertune",),
        lambda data: _import("flowertune", "pyproject.toml", data),
        lambda: [_TOML],
        (UserError,),
        "text",
        (b"[tool.flwr.app.config]", b"true", b"1e999", b"static.", b'""'),
    ),
    Target(
        "foreign_adapter",
        ("fedit.migration.adapters",),
        _adapter,
        lambda: [json.dumps(_CONFIG).encode()],
        (UserError,),
        "json",
    ),
)
