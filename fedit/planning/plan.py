"""A job's plan: what its settings come to, how long it takes and what it holds, with what that rests on."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fedit.config import RunConfig
from fedit.engines.sizing import fitting, num_workers
from fedit.job import Job
from fedit.model.adapted import FAST_TOKENS
from fedit.model.hardware import choose_device, choose_dtype
from fedit.planning import memory
from fedit.planning.amounts import Amounts, Range, amounts_of
from fedit.planning.durations import durations, reference_tokens
from fedit.planning.measuring import Measured, measure
from fedit.prepare import prepare

_MEASURED_SPREAD = 1.3
_COMPUTED_SPREAD = 1.7
_KERNELS = 15e6
_MOST_PASSES = 50
"""On a CPU oneDNN keeps what it makes for a pass of so many rows in bfloat16, for some fifty of them; measured."""
_SPARE = 1.05
"""Memory that has to be left, as a share of what is needed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory at the peak.

    everything: of all processes of the run on this machine; server: of the one that aggregates; client: of one
                that trains. They are the same process where there is one worker.
    device:     of the GPU; None: none is used, or nothing was measured on one.
    free, device_free: what there is for them; None: unknown.
    """

    everything: Range
    server: int
    client: int
    device: Range | None
    free: int | None
    device_free: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the expected peak fits; None: unknown."""
        if self.device is not None and self.device_free is not None:
            return self.device.expected * _SPARE <= self.device_free
        return None if self.free is None else self.everything.expected * _SPARE <= self.free


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job takes.

    seconds:  by part, in the order of a run; empty: nothing was measured.
    workers:  processes that train.
    disk_free: bytes.
    advice:   what would help where something does not suffice; assumptions: what the numbers rest on.
    """

    job: Job
    amounts: Amounts
    measured: Measured | None
    seconds: Mapping[str, Range]
    memory: Memory
    workers: int
    disk_free: int
    advice: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def total_seconds(self) -> Range | None:
        """Return how long a run takes from its command to its end; None: unknown."""
        return sum(self.seconds.values(), Range.exactly(0.0)) if self.seconds else None

    def as_dict(self) -> dict[str, object]:
        """Return it by name; every number that is predicted as expected, low and high."""
        amounts, config = self.amounts, self.job.config
        total, epsilon = self.total_seconds, amounts.epsilon
        steps = amounts.steps_per_client
        return {
            "seconds": None if total is None else total.as_dict(whole=False),
            "peak_memory_bytes": self.memory.everything.as_dict(),
            "bytes_up": amounts.bytes_up.as_dict(),
            "bytes_down": amounts.bytes_down.as_dict(),
            "trainable_parameters": Range.exactly(amounts.trainable).as_dict(),
            "epsilon": None if epsilon is None else epsilon.as_dict(whole=False),
            "disk_bytes": amounts.disk.as_dict(),
            "steps": amounts.steps.as_dict(),
            "tokens": amounts.tokens.as_dict(),
            "steps_per_client_and_round": None if steps is None else {"smallest": steps[0], "largest": steps[1]},
            "bytes_per_client_and_round": {"up": round(amounts.client_up), "down": round(amounts.client_down)},
            "seconds_of": {part: span.as_dict(whole=False) for part, span in self.seconds.items()} or None,
            "memory": {
                "server_bytes": self.memory.server,
                "client_bytes": self.memory.client,
                "device_bytes": None if self.memory.device is None else self.memory.device.as_dict(),
                "free_bytes": self.memory.free,
                "device_free_bytes": self.memory.device_free,
                "fits": self.memory.fits,
            },
            "rounds": config.num_rounds,
            "clients": len(self.job.clients),
            "clients_per_round": self.job.cohort_size,
            "base_parameters": amounts.layers.base,
            "processes": self.workers,
            "measured": self.measured is not None,
            "advice": list(self.advice),
            "assumptions": list(self.assumptions),
        }


def plan(
    config: RunConfig,
    *,
    measured: bool = True,
    begun: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Return what a job takes, after a few seconds of its own work on this machine.

    measured: whether anything is run; without, times are unknown and memory is a rough guess.
    begun:    `time.perf_counter` when the command began: a run spends as long until then.
    say:      hears what is being done.

    Raises:
        UserError: settings, data or model cannot work together, as a run would say.
        RoundError: nobody is available in a round.
    """
    started = time.perf_counter() if begun is None else begun
    say("reading, tokenising and dealing rows …")
    here = time.perf_counter()
    job = prepare(config, say)
    preparing, starting = time.perf_counter() - here, time.perf_counter() - started
    amounts = amounts_of(job)
    workers = fitting(num_workers(config, job.num_threads), job.config, job.source.path)
    resident, free = memory.resident(), memory.available()
    computed = _computed(job, amounts, workers, resident)
    found = None
    if measured and _can_be_run(computed):
        found = measure(job, answers=bool(config.exact_match or config.compare), say=say)
    seconds = {} if found is None else durations(job, amounts, found, starting=starting, preparing=preparing)
    held = computed if found is None else _as_measured(job, amounts, found, resident, computed, free)
    disk_free = shutil.disk_usage(Path.cwd()).free
    return Plan(
        job,
        amounts,
        found,
        seconds,
        held,
        workers if found is None else found.workers,
        disk_free,
        tuple(_advice(job, amounts, held, workers, disk_free)),
        tuple(_assumptions(job, amounts, found, asked=measured)),
    )


# --- memory ---


def _computed(job: Job, amounts: Amounts, workers: int, resident: int) -> Memory:
    """Return what a run will hold by the shapes of model and rows, from what this process holds by now."""
    training = memory.training_bytes(job, amounts.layers.base, amounts.trainable)
    growth = _growth(amounts)
    free, device_free = memory.available(), memory.available_on_device(job)
    free = None if free is None else free + resident
    if device_free is not None:
        device = Range.within(training, _COMPUTED_SPREAD)
        return Memory(
            Range.within(resident * 2 + growth, _COMPUTED_SPREAD),
            resident + growth,
            resident,
            device,
            free,
            device_free,
        )
    own = resident + growth
    if workers == 1:
        everything = own + training
        return Memory(Range.within(everything, _COMPUTED_SPREAD), own, everything, None, free, None)
    each = resident + training
    return Memory(Range.within(own + workers * each, _COMPUTED_SPREAD), own, each, None, free, None)


def _as_measured(
    job: Job, amounts: Amounts, found: Measured, resident: int, computed: Memory, free: int | None
) -> Memory:
    """Return what was watched, with what the server's state grows by after the rounds that were."""
    peaks = found.peaks
    if peaks is None:
        return computed
    growth = _growth(amounts)
    kernels = _kernels(job, amounts, found)
    everything = peaks.everything + growth + found.workers * kernels
    alone = found.workers == 1 and job.config.devices_per_client == 1
    spread = Range(everything, everything / _MEASURED_SPREAD, everything * _MEASURED_SPREAD)
    device = None
    if peaks.device is not None and computed.device is not None:
        device = Range(peaks.device, peaks.device / _MEASURED_SPREAD, peaks.device * _MEASURED_SPREAD)
    return Memory(
        spread,
        resident + growth if alone else peaks.own + growth,
        (peaks.own if alone else peaks.other) + kernels,
        device,
        None if free is None else free + resident,
        computed.device_free,
    )


def _growth(amounts: Amounts) -> int:
    """Return how much larger the server's largest state is than its first, twice: before and after a round."""
    largest = max([amounts.played.first_state, *(one.state for one in amounts.played.rounds)])
    return 2 * (largest - amounts.played.first_state)


def _kernels(job: Job, amounts: Amounts, found: Measured) -> int:
    """Return the bytes by which a process grows after it was measured, as it meets passes of other sizes."""
    device = choose_device(job.config.device)
    if device.type != "cpu" or choose_dtype(job.config.dtype, device) != torch.bfloat16:
        return 0
    full = FAST_TOKENS["cpu"]
    passes = max(amounts.steps.expected / found.stack, amounts.tokens.expected / full)
    passes += amounts.evaluated / full + 2 * reference_tokens(job, amounts) / full
    more = min(passes / found.workers, _MOST_PASSES) - min(found.passes, _MOST_PASSES)
    return round(_KERNELS * max(more, 0))


def _can_be_run(computed: Memory) -> bool:
    """Return whether a few rounds can be tried without risking the machine."""
    if computed.device is not None and computed.device_free is not None:
        return computed.device.low <= computed.device_free
    return computed.free is None or computed.everything.low <= computed.free


# --- what is said ---


def _advice(job: Job, amounts: Amounts, held: Memory, workers: int, disk_free: int) -> list[str]:
    config, found = job.config, []
    if amounts.disk.expected > disk_free:
        found.append(
            f"the run's folder takes {_size(amounts.disk.expected)} and {_size(disk_free)} are free here: set "
            "keep_rounds=1, or take another --out"
        )
    if held.fits is not False:
        return found
    if held.device is not None and held.device_free is not None:
        need, there, what = held.device.expected, held.device_free, "GPU memory"
    else:
        need, there, what = held.everything.expected, held.free or 0, "memory"
    found.append(f"{what} will not suffice: about {_size(need)} are needed, {_size(there)} are free")
    base = memory.base_bytes(job, amounts.layers.base)
    if workers > 1 and held.device is None:
        found.append(f"num_workers=1 holds the base once and not {workers} times: about {_size(held.client)}")
    if (config.micro_batch_size or config.batch_size) > 1:
        found.append("micro_batch_size=1 makes passes smaller, with the same result")
    if not config.gradient_checkpointing and config.tuning != "prefix":
        found.append("gradient_checkpointing=true recomputes activations in the backward pass: slower, smaller")
    if config.bits == 16 and config.tuning != "full":
        found.append(f"load_in_4bit=true holds the base in about {_size(base * 0.3)} instead of {_size(base)}")
    if config.max_length > 256:
        found.append("a smaller max_length cuts the longest rows")
    if config.tuning == "full":
        found.append("tuning=lora trains factors and not all weights, with their gradients and moments")
    found.append("or take a smaller base model")
    return found


def _assumptions(job: Job, amounts: Amounts, found: Measured | None, *, asked: bool) -> list[str]:
    played, lines = amounts.played, []
    if found is not None:
        lines.append(
            f"measured for {found.seconds:.0f} s: short rounds of {found.clients} clients in {found.workers} "
            f"{'process' if found.workers == 1 else 'processes'}, {found.tokens:,.0f} tokens in the timed one; "
            "other programs take as much of this machine during the run as they did now"
        )
        if found.why_general:
            lines.append(
                f"trains through transformers and PEFT, slower than fedit's fast path: {found.why_general}"
            )
    elif asked:
        lines.append("nothing was measured, since memory would not suffice; times are unknown, memory is computed")
    else:
        lines.append("nothing was measured: times are unknown, memory is computed from shapes")
    if job.config.privacy == "client":
        lines.append("who takes part is secret: steps and bytes are those that are expected")
    elif not played.foreseen:
        lines.append("who takes part depends on losses or durations: cohorts are as they come without them")
    if not played.whole:
        lines.append(f"{len(played.rounds)} of {played.of} rounds were gone through; the others are as these")
    if job.transforms:
        lines.append("bytes after transforms are those of noise of the same size and shapes")
    if job.secure is not None:
        lines.append("masked entries have 64 bits; keys and shares are within the range")
    if job.config.exact_match or job.config.compare:
        lines.append("answers end at half of max_new_tokens on average")
    if job.config.early_stopping:
        lines.append("early stopping never stops the run")
    lines.append("every client that is asked delivers, and nothing is resumed")
    return lines


def _size(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"
