"""What this machine can do: device, precision, memory that was not enough."""

import os
from collections.abc import Mapping

import torch

from fedit.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' is not available here; expected auto, cpu, cuda or mps.") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the frozen base; "auto" takes bfloat16 where the hardware multiplies in it."""
    known = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
    if name in known:
        return known[name]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def multiplies_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run natively, not emulated, on ``device``."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        if not capability.startswith("AVX512"):
            return False
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def visible_gpus(environ: Mapping[str, str], count: int) -> list[str]:
    """Return the names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES knows them."""
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(index) for index in range(count)]


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places(device: torch.device, num_threads: int) -> int:
    """Return how many processes could work side by side: on cores of their own, or GPUs where none is named."""
    if device.type == "cpu":
        return max(cores() // num_threads, 1)
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back, so that a smaller attempt has room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
