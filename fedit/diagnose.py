"""Is this machine able to run fedit? Checks that each say what was found and what to do about it."""

import importlib.metadata
import math
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from fedit.errors import FeditError
from fedit.files import cache_dir

# PyTorch and what builds on it are imported inside the checks: a broken installation is to be found, not died of.

_GIGABYTE = 1e9
_RUN_NEEDS = 2 * _GIGABYTE
"""Free disk and memory, in bytes, below which the default model is likely to fail."""

_NAME_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``advice`` says what to do unless ``status`` is "ok"."""

    group: Literal["versions", "hardware", "disk", "model", "network", "smoke run"]
    name: str
    status: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def checks(*, model: str | None = None, smoke: bool = True, say: Callable[[str], None]) -> Iterator[Check]:
    """Yield the outcome of every check, the slow ones last.

    model: the base model of the smoke run; None: the default one.
    say: hears what is being done before it takes time.
    """
    yield from versions()
    say("importing PyTorch …")
    yield from hardware()
    yield from disk()
    yield default_model()
    say("looking up the hub's name …")
    yield network()
    if smoke:
        yield from smoke_run(model, say)


def versions() -> Iterator[Check]:
    """Yield Python, fedit and its dependencies, as installed and as needed."""
    yield Check("versions", "python", "ok", f"{platform.python_version()} on {sys.platform} {platform.machine()}")
    try:
        fedit = importlib.metadata.distribution("fedit")
    except importlib.metadata.PackageNotFoundError:
        yield Check("versions", "fedit", "problem", "not installed", "pip install fedit, or pip install -e .")
        return
    yield Check("versions", "fedit", "ok", fedit.version)
    for line in fedit.requires or []:
        requirement = Requirement(line)
        extra = next((e for e in ("hub", "parquet", "quant") if _applies(requirement, e)), None)
        if _applies(requirement, "") or extra is not None:
            yield _package(requirement, extra)


def hardware() -> Iterator[Check]:
    """Yield processor, memory, threads and accelerators."""
    yield Check("hardware", "processor", "ok", f"{_processor()}, {_cores()} cores for this process")
    yield _memory()
    try:
        import torch

        from fedit.model.hardware import multiplies_bf16
    except Exception as error:  # a broken installation may raise anything
        yield Check(
            "hardware", "PyTorch", "problem", f"cannot be imported: {error}", "pip install --force-reinstall torch"
        )
        return
    bf16 = "bfloat16" if multiplies_bf16(torch.device("cpu")) else "float32 (no bfloat16 arithmetic)"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Check("hardware", "CPU precision", "ok", f"{bf16}, {capability}")
    yield _workers()
    yield from _accelerators()


def disk() -> Iterator[Check]:
    """Yield the free space and the rights of the cache and the working folder."""
    for name, folder in (("cache", cache_dir()), ("working folder", Path.cwd())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free
        found = f"{folder}: {free / _GIGABYTE:.1f} GB free"
        change = "set FEDIT_CACHE to another folder" if name == "cache" else "use --out with another folder"
        if not os.access(existing, os.W_OK):
            yield Check("disk", name, "problem", f"{folder} cannot be written", change)
        elif free < _RUN_NEEDS:
            yield Check("disk", name, "warning", found, f"free some space, or {change}")
        else:
            yield Check("disk", name, "ok", found)


def default_model() -> Check:
    """Return whether the default model is ready; nothing is downloaded."""
    from fedit.model.sources import DEFAULT_MODEL
    from fedit.model.wheel import GGUF_SHA256, VARIABLE

    folder = cache_dir() / "models" / f"{DEFAULT_MODEL}-{GGUF_SHA256[:16]}"
    if (folder / "fedit.json").is_file():
        return Check("model", DEFAULT_MODEL, "ok", f"converted, in {folder}")
    if given := os.environ.get(VARIABLE):
        if Path(given).expanduser().is_file():
            return Check("model", DEFAULT_MODEL, "ok", f"not converted yet; the first run takes it from {given}")
        return Check(
            "model", DEFAULT_MODEL, "problem", f"{VARIABLE} is {given}, which is no file", f"correct {VARIABLE}"
        )
    advice = f"the first run downloads 93 MB from the package index; without one, set {VARIABLE} to its wheel"
    return Check("model", DEFAULT_MODEL, "warning", "not here yet", advice)


def network() -> Check:
    """Return whether the hub's name resolves; nothing is sent to it."""
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_set(name)]
    if offline:
        return Check(
            "network", "hub", "ok", f"not used: {' and '.join(offline)} set; models come from the local cache"
        )
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""
    if _resolves(host):
        return Check("network", "hub", "ok", f"{host} resolves")
    advice = "hub models and data sets need a network; the default model, folders and files do not"
    return Check("network", "hub", "warning", f"{host} does not resolve", advice)


def smoke_run(model: str | None, say: Callable[[str], None]) -> Iterator[Check]:
    """Train two clients for one step in a temporary folder and look at what comes out."""
    say("training two clients for a moment …")
    overrides = [
        *("dataset=skills", "max_examples=8", "held_out=1", "validation=1", "max_length=256"),
        *("num_clients=2", "num_rounds=1", "local_steps=1", "batch_size=4", "lora_r=4"),
        *([f"model={model}"] if model else []),
    ]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedit-doctor-", ignore_cleanup_errors=True) as scratch:
        try:
            from fedit import settings
            from fedit.launch import run
            from fedit.model.export import read_adapter

            result = run(settings.load(None, overrides).config, Path(scratch) / "run")
            adapter = read_adapter(result.adapter)
        except FeditError as error:
            yield Check("smoke run", "training", "problem", str(error), "see the message")
            return
        except Exception as error:  # whatever it is, it is the diagnosis
            advice = "see where with: fedit --debug run " + " ".join(overrides)
            yield Check("smoke run", "training", "problem", f"{type(error).__name__}: {error}", advice)
            return
    seconds = time.perf_counter() - started
    yield Check("smoke run", "training", "ok", f"2 clients, 1 round of 1 step in {seconds:.0f} s")
    yield _finite(result.summary)
    moved = sum(float(factor.abs().sum()) for name, factor in adapter.items() if name.endswith(".B"))
    if math.isfinite(moved) and moved > 0:
        yield Check("smoke run", "adapter", "ok", f"{len(adapter)} factors changed")
    else:
        yield Check("smoke run", "adapter", "problem", "did not change", "report it with this output")


def _finite(summary: object) -> Check:
    match summary:
        case {"held_out": {"before": {"loss": float(before)}, "after": {"loss": float(after)}}}:
            return Check("smoke run", "held-out loss", "ok", f"{before:.3f}, after one step {after:.3f}")
    advice = "try another precision: fedit run … dtype=fp32"
    return Check("smoke run", "held-out loss", "problem", "is not finite", advice)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement, extra: str | None) -> Check:
    needed = f"{requirement.name}{requirement.specifier}"
    optional = extra is not None and not _applies(requirement, "")
    command = f"pip install 'fedit[{extra}]'" if optional else f"pip install '{needed}'"
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if optional:
            return Check("versions", requirement.name, "ok", f"not installed; optional: {command}")
        return Check("versions", requirement.name, "problem", "not installed", command)
    if requirement.specifier.contains(found, prereleases=True):
        return Check("versions", requirement.name, "ok", found + (f" (optional, {extra})" if optional else ""))
    return Check("versions", requirement.name, "warning", f"{found}; {needed} is expected", command)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> Check:
    try:
        import psutil  # type: ignore[import-untyped]  # ships no types; PEFT brings it
    except ImportError:
        return Check("hardware", "memory", "ok", "unknown: psutil is not installed")
    memory = psutil.virtual_memory()
    found = f"{memory.total / _GIGABYTE:.1f} GB, {memory.available / _GIGABYTE:.1f} GB available"
    if memory.available < _RUN_NEEDS:
        return Check("hardware", "memory", "warning", found, "close other programs, or set micro_batch_size=1")
    return Check("hardware", "memory", "ok", found)


def _workers() -> Check:
    return Check(
        "hardware", "workers", "ok", f"a run uses up to {_cores()} processes (num_workers), a thread each"
    )


def _accelerators() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            yield Check("hardware", "GPU", "ok", "Apple GPU (mps)")
        elif shutil.which("nvidia-smi"):
            advice = "install a CUDA build of PyTorch: https://pytorch.org/get-started/locally"
            yield Check(
                "hardware",
                "GPU",
                "warning",
                f"there is a driver, but PyTorch {torch.__version__} sees none",
                advice,
            )
        else:
            yield Check("hardware", "GPU", "ok", "none; the CPU computes")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        found = (
            f"{torch.cuda.get_device_name(index)}, {total / _GIGABYTE:.0f} GB, "
            f"{free / _GIGABYTE:.0f} GB free, {bf16}"
        )
        if free < _RUN_NEEDS:
            yield Check("hardware", f"cuda:{index}", "warning", found, "end what uses it, or run with device=cpu")
        else:
            yield Check("hardware", f"cuda:{index}", "ok", found)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _resolves(host: str) -> bool:
    """Whether the name has an address. Resolvers have no time limit of their own, so a thread may stay behind."""
    found: list[bool] = []

    def look_up() -> None:
        try:
            found.append(bool(socket.getaddrinfo(host, 443)))
        except OSError:
            found.append(False)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_NAME_SECONDS)
    return bool(found and found[0])
