"""Adapters that other tools saved with PEFT, as a folder that PEFT opens today and fedit reads."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch

from fedit.errors import ModelError
from fedit.files import new_folder
from fedit.migration.base import Draft
from fedit.migration.torchfile import read_torch_file
from fedit.model.adapted import canonical_name
from fedit.model.export import CONFIG, WEIGHTS, lora_settings, scale_in_config, write_adapter_files
from fedit.reading import shown
from fedit.types import Tensors

BINARIES = ("adapter_model.bin", "pytorch_model.bin")
FOLDER = "adapter"
_KEPT = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "fan_in_fan_out",
    "use_rslora",
    "base_model_name_or_path",
)
_OTHERWISE = ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "modules_to_save", "enable_lora")
"""What makes an adapter something else than one pair of factors a layer at one scale."""


def weights_in(folder: Path) -> Path | None:
    """Return the file with an adapter's weights in ``folder``, safetensors before others; None: there is none."""
    return next((folder / name for name in (WEIGHTS, *BINARIES) if (folder / name).is_file()), None)


def newest_round(folder: Path, prefix: str = "") -> Path | None:
    """Return the sub-folder "PREFIXn" with the largest n that holds an adapter; None: there is none."""
    numbered = [
        (int(place.name.removeprefix(prefix)), place)
        for place in folder.iterdir()
        if place.is_dir() and place.name.startswith(prefix) and place.name.removeprefix(prefix).isdecimal()
    ]
    return next((place for _, place in sorted(numbered, reverse=True) if weights_in(place)), None)


def take_adapter(draft: Draft, folder: Path) -> dict[str, object]:
    """Add the adapter in ``folder`` to an import, as adapter/; return its config.

    The config may lie up to two levels above the weights, where Shepherd writes it.

    Raises:
        ModelError: there is no LoRA adapter, or one that is damaged or not plain.
    """
    weights = weights_in(folder)
    if weights is None:
        raise ModelError(f"{folder} has no adapter: none of {WEIGHTS}, {', '.join(BINARIES)} is there.")
    config = _config_of(folder)
    adapter = _factors(weights)
    written = {name: config[name] for name in _KEPT if name in config} | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
    }
    written.setdefault("target_modules", sorted({name.split(".")[-2] for name in adapter}))
    _check_factors(adapter, config["r"], weights)
    scale = scale_in_config(config, folder)

    def save(place: Path) -> None:
        with new_folder(place) as temporary:
            write_adapter_files(temporary, adapter, written, scale)

    draft.files[FOLDER] = save
    if weights.suffix == ".bin":
        draft.differs.append(
            f"{weights.name} is a pickle; its tensors were read without unpickling it and are safetensors now"
        )
    draft.open.append(
        f"{draft.place(FOLDER)} is the adapter: fedit chat {draft.place(FOLDER)} --model BASE, or PEFT. A run "
        "begins with a fresh one"
    )
    return written


def _check_factors(adapter: Tensors, rank: object, weights: Path) -> None:
    """Make sure that every module has both factors, of the rank that the config names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.items()}
    for module in sorted({name.rpartition(".")[0] for name in adapter}):
        a, b = shapes.get(f"{module}.A"), shapes.get(f"{module}.B")
        if a is None or b is None or not a[0] == b[1] == rank:
            raise ModelError(f"{weights}: the factors of {module} are {a} and {b}; expected both, of rank {rank}.")


def _config_of(folder: Path) -> Mapping[str, object]:
    places = (folder, folder.resolve().parent, folder.resolve().parent.parent)
    path = next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)
    if path is None:
        raise ModelError(f"{folder} has weights, but neither there nor in the two folders above is {CONFIG}.")
    config = lora_settings(path)
    targets = config.get("target_modules", [])
    if not isinstance(targets, str | list) or not all(isinstance(name, str) for name in targets):
        raise ModelError(f"{path} has target_modules {shown(targets)}; expected names of layers.")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path} trains biases ({config['bias']}); expected factors alone.")
    for name in _OTHERWISE:
        if config.get(name):
            raise ModelError(f"{path} sets {name}; expected plain LoRA, one rank and one alpha for all.")
    scale_in_config(config, path.parent)
    return config


def _factors(weights: Path) -> Tensors:
    try:
        held = safetensors.torch.load_file(weights) if weights.suffix != ".bin" else read_torch_file(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{weights} cannot be read: {error}") from error
    adapter: Tensors = {}
    for name, tensor in held.items():
        module, factor = canonical_name(name)
        if tensor.ndim != 2:
            raise ModelError(f"{weights}: '{name}' has the shape {tuple(tensor.shape)}; expected a matrix.")
        adapter[f"{module}.{factor}"] = tensor.float()
    if not adapter:
        raise ModelError(f"{weights} holds no tensors.")
    return dict(sorted(adapter.items()))
