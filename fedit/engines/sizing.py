"""How many worker processes a run gets, on which device each, and in which environment."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from fedit.config import RunConfig
from fedit.model.hardware import choose_device, cores, visible_gpus
from fedit.process import allocator_settings

log = logging.getLogger(__name__)

_LIBRARIES = 1.5e9
"""Bytes that a worker takes beside the base: libraries, activations, the adapter and its optimizer."""
_SPREAD = 2
"""A base takes at most this many times its files' size: bfloat16 files may be computed in float32."""

_COPIES = 8
"""Copies of all weights in float32 where they are trained: those that run, gradients, two moments of AdamW, what
the run starts from, and what a client receives, ends with and sends."""


def num_workers(config: RunConfig, num_threads: int | None) -> int:
    """Return the setting, or one worker a core or GPU, but no more than a round or a comparison can use."""
    if config.num_workers is not None:
        return config.num_workers
    device = choose_device(config.device)
    if device.type == "cuda":
        import torch

        most = torch.cuda.device_count() // config.devices_per_client if device.index is None else 1
    elif device.type == "cpu":
        most = cores() // ((num_threads or 1) * config.devices_per_client)
    else:
        most = 1
    return max(min(most, _useful(config)), 1)


def fitting(workers: int, config: RunConfig, base: Path) -> int:
    """Return how many of the workers fit into memory together; a number that was asked for is left as it is.

    base: folder of the base model's files.
    """
    free = _free_memory()
    if config.num_workers is not None or workers == 1 or free is None:
        return workers
    if choose_device(config.device).type != "cpu":
        return workers
    weights = _SPREAD * sum(path.stat().st_size for path in base.glob("*.safetensors"))
    each = weights * (_COPIES if config.tuning == "full" else 1) + _LIBRARIES
    each *= config.devices_per_client
    fit = max(min(workers, int(free / each)), 1)
    if fit < workers:
        log.warning(
            "memory suffices for %d of %d worker processes (about %.1f GB each, %.1f GB free); "
            "num_threads=%d lets each use more cores",
            fit, workers, each / 1e9, free / 1e9, max(cores() // fit, 1),
        )  # fmt: skip
    return fit


def environments(
    config: RunConfig, workers: int, num_threads: int, environ: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Return each worker's environment: its threads, its allocator and, with several GPUs, those it sees."""
    environ = os.environ if environ is None else environ
    common = {**environ, **allocator_settings(environ), "OMP_NUM_THREADS": str(num_threads)}
    device = choose_device(config.device)
    if device.type != "cuda" or device.index is not None or workers == 1:
        return [common] * workers
    import torch

    gpus = visible_gpus(environ, torch.cuda.device_count())
    return [{**common, "CUDA_VISIBLE_DEVICES": own} for own in assign(workers, gpus, config.devices_per_client)]


def assign(workers: int, gpus: list[str], each: int = 1) -> list[str]:
    """Return the GPUs of each worker, in turns; each: how many a worker has.

    >>> assign(3, ["0", "1"])
    ['0', '1', '0']
    >>> assign(2, ["0", "1", "2", "3"], 2)
    ['0,1', '2,3']
    """
    groups = [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)] or [gpus]
    return [",".join(groups[number % len(groups)]) for number in range(workers)]


def _useful(config: RunConfig) -> int:
    """Return how many workers have something to do at once."""
    share = config.clients_per_round
    if isinstance(share, int):
        cohort = share
    elif config.num_clients is not None or config.partitioner not in ("natural", "manifest"):
        cohort = math.ceil(share * (config.num_clients or 10))
    else:
        return cores()
    arms = 2 * config.compare_clients * ("local" in config.compare) + ("centralised" in config.compare)
    return max(cohort, arms)


def _free_memory() -> float | None:
    try:
        import psutil  # type: ignore[import-untyped]  # ships no types; PEFT brings it
    except ImportError:
        return None
    return float(psutil.virtual_memory().available)
