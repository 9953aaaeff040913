"""What makes a folder a run: its settings, who may work in it, and the identity that a resume must find again."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from fedit import settings
from fedit.config import RunConfig
from fedit.data.examples import fingerprint
from fedit.errors import RunFolderError
from fedit.files import read_json, reason
from fedit.job import Job
from fedit.reading import parse_yaml

LOCK = "run.lock"
PACKAGES = ("fedit", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


@contextmanager
def only_worker(folder: Path) -> Iterator[None]:
    """Hold the folder while the block lasts; a lock dies with its process.

    Raises:
        RunFolderError: another process works in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another process is working in {folder}; wait for it or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)


def read_config(folder: Path) -> RunConfig:
    """Return the settings of the run in ``folder``.

    Raises:
        RunFolderError: they cannot be read.
    """
    path = folder / "resolved.yaml"
    try:
        values, _ = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} holds no settings.")
    return settings.from_values(values, str(path))


def read_summary(folder: Path) -> dict[str, object] | None:
    """Return the content of ``summary.json``; None while the run is not finished."""
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else None


def environment() -> dict[str, object]:
    """Return versions and machine, as they bear on results."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "packages": versions,
    }


def identity_of(job: Job) -> dict[str, object]:
    """Return fingerprints of all that must be the same when a run goes on."""
    return {
        "version": 1,
        "fedit": version("fedit"),
        "settings": settings_hash(job.config),
        "data": fingerprint(job.corpus.all()),
        "model": job.source.fingerprint,
        "template": job.template.fingerprint,
        "strategy": _own_code(job.config.strategy),
        "transforms": [code for item in job.config.transforms for name in item if (code := _own_code(name))],
        "pace": _pace_files(job.config),
        "num_threads": job.num_threads,
        "stack_width": job.stack_width,
    }


def read_identity(folder: Path) -> dict[str, object]:
    """Return the identity that the run in ``folder`` began with.

    Raises:
        RunFolderError: the folder holds no run.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise RunFolderError(f"{folder} holds no run: there is no {path.name} in it.")
    return read_json(path)


def settings_hash(config: RunConfig) -> str:
    """Return the SHA-256 of all settings that bear on results."""
    values = config.model_dump(mode="json", exclude={"num_threads", "num_workers", "report_to"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def to_yaml(config: RunConfig) -> str:
    """Return all settings as a job file."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def refuse_taken(folder: Path) -> None:
    """Make sure that ``folder`` holds no run yet.

    Raises:
        RunFolderError: it does.
    """
    if (folder / "run.json").exists():
        raise RunFolderError(
            f"{folder} already holds a run; go on with: fedit resume {folder}, or choose another --out. "
            "--replace deletes the old one first."
        )


def refuse_unwritable(folder: Path) -> None:
    """Make sure that ``folder`` could be made and written to; nothing is.

    Raises:
        RunFolderError: it could not.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RunFolderError(f"cannot write to {folder}: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFolderError(f"cannot write to {folder}: {there} may not be written to.")


def check_writable(folder: Path) -> None:
    """Make the folder and try to write in it.

    Raises:
        RunFolderError: that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunFolderError(f"cannot write to {folder}: {reason(error)}") from error


def _pace_files(config: RunConfig) -> dict[str, str] | None:
    """Return setting -> SHA-256 of a file that says who takes part and when; None: there is none."""
    found: dict[str, str] = {}
    for setting in ("selection", "devices", "stragglers", "availability"):
        if (code := _own_code(getattr(config, setting))) is not None:
            found[setting] = code
        file = getattr(config, f"{setting}_options").get("file")
        if isinstance(file, str) and Path(file).is_file():
            found[f"{setting}_options.file"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found or None


def _own_code(name: str) -> str | None:
    """Return the SHA-256 of the file of a strategy or a transform where the user gave one."""
    path = Path(name.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if ".py:" in name else None
