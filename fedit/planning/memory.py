"""Memory: what processes held while they were watched, what will do where nothing was run, and what there is."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from fedit.job import Job
from fedit.model.adapted import FAST_TOKENS, GENERAL_TOKENS
from fedit.model.hardware import choose_device, choose_dtype

try:
    import psutil  # type: ignore[import-untyped]  # ships no types; PEFT brings it
except ImportError:
    psutil = None

_EVERY = 0.01
_LIBRARIES = 0.7e9
"""Bytes of a process that has loaded PyTorch and transformers, where it cannot be asked."""
_KEPT_A_TOKEN = 34
"""Numbers of the hidden width that a layer keeps of a token for its backward pass, attention included."""
_RECOMPUTED_A_TOKEN = 2
_LOGITS = 3
"""Copies of a token's logits in float32 that its loss has."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most bytes that were resident at once.

    everything: of this process and those it started, together; own: of this one; other: of the largest of those.
    device:     that GPUs had given out beyond what they had before; None: there are none.
    """

    everything: int
    own: int
    other: int
    device: int | None


class Watch:
    """Notes what this process and those that it starts hold, a hundred times a second; a context manager."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._free_before = _free_on_gpus()
        self._peaks = Peaks(0, 0, 0, None if self._free_before is None else 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peaks(self) -> Peaks | None:
        """What was found; None where nothing can be."""
        return self._peaks if psutil is not None else None

    def _look(self) -> None:
        if psutil is None:
            return
        me = psutil.Process()
        others: list[psutil.Process] = []
        asked = 0.0
        while not self._over.is_set():
            if time.monotonic() > asked + 0.2:  # asking who there is takes longer than asking them
                others, asked = me.children(recursive=True), time.monotonic()
            self._note(me.memory_info().rss, [held for one in others if (held := _resident(one))])
            self._over.wait(_EVERY)

    def _note(self, own: int, others: list[int]) -> None:
        before, device = self._peaks, None
        if self._free_before is not None:
            taken = sum(self._free_before) - sum(_free_on_gpus() or [])
            device = max(before.device or 0, taken)
        self._peaks = Peaks(
            max(before.everything, own + sum(others)),
            max(before.own, own),
            max([before.other, *others]),
            device,
        )


def available() -> int | None:
    """Return the bytes of memory that programs can still have; None where that cannot be known."""
    return None if psutil is None else int(psutil.virtual_memory().available)


def available_on_device(job: Job) -> int | None:
    """Return the free bytes of the GPU that the job computes on; None where it computes on the CPU."""
    device = choose_device(job.config.device)
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def resident() -> int:
    """Return the bytes that this process holds now."""
    return int(_LIBRARIES) if psutil is None else int(psutil.Process().memory_info().rss)


def base_bytes(job: Job, parameters: int) -> int:
    """Return the bytes of the base's weights in memory; of quantised ones with their scales."""
    device = choose_device(job.config.device)
    precise = job.config.tuning == "full" and job.config.dtype == "auto"
    each: float = choose_dtype("fp32" if precise else job.config.dtype, device).itemsize
    if job.config.bits < 16:
        each = job.config.bits / 8 * 1.1
    return round(parameters * each)


def training_bytes(job: Job, parameters: int, trainable: int) -> int:
    """Return about how many bytes one process takes beside libraries and data: base, adapters, activations."""
    config = job.config
    device = choose_device(config.device)
    width = max(job.stack_width, 1)
    number = 8 if config.dtype == "fp64" else 4
    # Values, gradients, two moments, and what was received and is sent.
    adapters = trainable * number * 6 * width
    if config.tuning == "full":
        adapters = trainable * number * 6
    return base_bytes(job, parameters) + adapters + activation_bytes(job, device)


def activation_bytes(job: Job, device: torch.device) -> int:
    """Return about how many bytes the activations and logits of the largest pass take."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(job.source.path, local_files_only=True).get_text_config()
    config = job.config
    budget = (FAST_TOKENS if config.fast_path and config.tuning == "lora" else GENERAL_TOKENS)[device.type]
    longest = int(job.table.lengths.max()) if len(job.table) else 1
    rows = min(config.micro_batch_size or config.batch_size, config.batch_size)
    tokens = max(min(budget, rows * longest * max(job.stack_width, 1)), longest)
    kept = _RECOMPUTED_A_TOKEN if config.gradient_checkpointing else _KEPT_A_TOKEN
    number = choose_dtype(config.dtype, device).itemsize
    layers, hidden = int(shape.num_hidden_layers), int(shape.hidden_size)
    # Only targets have logits.
    targets = tokens * float(job.table.supervised.mean()) if len(job.table.ids) else tokens
    return round(tokens * layers * hidden * kept * number + targets * int(shape.vocab_size) * 4 * _LOGITS)


def _resident(process: "psutil.Process") -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0  # it has ended


def _free_on_gpus() -> list[int] | None:
    if not torch.cuda.is_available():
        return None
    return [int(torch.cuda.mem_get_info(index)[0]) for index in range(torch.cuda.device_count())]
