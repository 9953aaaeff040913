"""Several devices for one client: processes that each hold the base and compute a share of every step's gradient.

This process leads. For every step it sends the rows and the adapter as they are, everybody works on its share of
the passes, and the gradients are added up here; optimizer, data and whatever a client keeps stay with the leader.
What is sent are tensors of `torch.distributed` (NCCL between GPUs, Gloo between processes of a CPU), on this
machine alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.errors import ConfigError, FeditError
from fedit.gradients import accumulate
from fedit.model.adapted import AdaptedModel
from fedit.model.hardware import is_out_of_memory, release_memory, visible_gpus
from fedit.process import allocator_settings

Store = Any
"""`torch.distributed.FileStore`, which PyTorch does not list among what it exports."""
MODULE = "fedit.follower_process"
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""The network interface that leads to this machine alone."""
READY = "ready"
"""Key under which followers that have loaded the model are counted."""
LONGEST_WAIT = timedelta(minutes=10)


class CrewError(FeditError):
    """A process that helps this one with a client's gradients cannot start or has ended."""


class Crew:
    """The leader's side: ``size`` processes, this one included, compute gradients of its clients together."""

    def __init__(
        self,
        model: AdaptedModel,
        size: int,
        hello: Mapping[str, object],
        environments: Sequence[Mapping[str, str]],
        module: str = MODULE,
    ) -> None:
        """Start the followers and wait until all have loaded the model.

        hello:        what a follower needs to load the same model, as JSON.
        environments: of each follower.

        Raises:
            CrewError: a follower cannot start.
        """
        self._model, self._size = model, size
        # A file, not a server: nothing listens but the libraries' own sockets on the loopback interface.
        self._folder = tempfile.TemporaryDirectory(prefix="fedit-crew-")
        path = str(Path(self._folder.name) / "store")
        store = _store(path, size)
        self._followers: list[subprocess.Popen[str]] = []
        for rank, environment in enumerate(environments, 1):
            follower = subprocess.Popen(
                [sys.executable, "-m", module], stdin=subprocess.PIPE, text=True, env=dict(environment)
            )
            assert follower.stdin is not None
            with suppress(OSError):  # if it is dead already, joining it will tell
                follower.stdin.write(json.dumps({**hello, "rank": rank, "size": size, "store": path}) + "\n")
                follower.stdin.flush()
            self._followers.append(follower)
        try:
            self._wait(store)
            _join(store, 0, size, model.device)
        except RuntimeError as error:
            raise self._failure(error) from error

    def gradients(self, rows: Sequence[TokenRow], most_rows: int, noise_seed: int) -> Tensor:
        """Fill the parameters' ``grad`` with the gradient of the rows' mean loss and return the summed loss, (1,).

        A pass has at most as many rows as give everybody one.

        Raises:
            torch.OutOfMemoryError: memory did not suffice for somebody; nothing is added up.
            CrewError: a follower has ended.
        """
        most_rows = min(most_rows, -(-len(rows) // self._size))
        parameters = self._model.parameters
        if not self._model.loaded_is_plain:
            raise ConfigError(
                "devices_per_client above 1 serves adapters of the run's own rank without a ledger; "
                "set devices_per_client to 1 or take another strategy."
            )
        trained = [name in parameters.trained for name in parameters]
        try:
            _send(_pack(rows, most_rows, noise_seed, trained), parameters.values_flat.buffer, self._model.device)
            return _work(self._model, rows, most_rows, noise_seed, (0, self._size))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._failure(error) from error

    def close(self) -> None:
        """Let the followers end."""
        for follower in self._followers:
            if follower.stdin is not None:
                with suppress(OSError):
                    follower.stdin.close()
            follower.kill()
            follower.wait()
        self._followers = []
        self._folder.cleanup()
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _wait(self, store: Store) -> None:
        """Wait until all followers have loaded the model; what ends before that would be waited for in vain."""
        while store.add(READY, 0) < self._size - 1:
            if any(follower.poll() is not None for follower in self._followers):
                raise RuntimeError("a process ended while it started")
            time.sleep(0.02)

    def _failure(self, error: Exception) -> CrewError:
        ended = []
        for rank, follower in enumerate(self._followers, 1):
            with suppress(subprocess.TimeoutExpired):
                ended.append(f"process {rank} ended with exit code {follower.wait(timeout=1)}")
        self.close()
        what = ", ".join(ended) or str(error).splitlines()[0]
        return CrewError(
            f"the {self._size} processes of devices_per_client cannot work together: {what}; what it wrote is "
            "above or in the log of the worker. devices_per_client=1 uses one device a client."
        )


def follower_environments(
    device: torch.device, size: int, num_threads: int, environ: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Return the environments of the processes beside the first, each with the one GPU that it sees.

    Raises:
        ConfigError: there are not as many devices.
    """
    environ = os.environ if environ is None else environ
    common = {**environ, **allocator_settings(environ), "OMP_NUM_THREADS": str(num_threads)}
    if device.type == "cpu":
        return [common] * (size - 1)
    if device.type != "cuda" or device.index is not None:
        raise ConfigError(
            f"devices_per_client is {size}, but device is '{device}'; several devices need device=cuda or cpu."
        )
    gpus = visible_gpus(environ, torch.cuda.device_count())
    if len(gpus) < size:
        raise ConfigError(f"devices_per_client is {size}, but {len(gpus)} GPUs are visible; lower it.")
    return [{**common, "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[1:size]]


def follow(model: AdaptedModel, rank: int, size: int, path: str) -> None:
    """Compute shares of gradients for the leader until the process is ended; path: where it is to be found."""
    store = _store(path, size)
    store.add(READY, 1)
    _join(store, rank, size, model.device)
    parameters = model.parameters
    model.train_mode(True)
    while True:
        packed = _receive(model.device, parameters.values_flat.buffer)
        rows, most_rows, noise_seed, trained = _unpack(packed)
        parameters.train([name for name, own in zip(parameters, trained, strict=True) if own])
        with suppress(torch.OutOfMemoryError):  # the leader has heard of it and sends less
            _work(model, rows, most_rows, noise_seed, (rank, size))


def _work(
    model: AdaptedModel, rows: Sequence[TokenRow], most_rows: int, noise_seed: int, share: tuple[int, int]
) -> Tensor:
    """Compute a share, learn whether everybody could, and add everybody's gradients up."""
    failed = False
    total = torch.zeros(1, dtype=torch.float64)
    try:
        total = accumulate(model, rows, most_rows, noise_seed, share)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if failed:
        release_memory(model.device)
    told = torch.cat([total.double().cpu(), torch.tensor([float(failed)], dtype=torch.float64)]).to(model.device)
    dist.all_reduce(told)
    if told[1] > 0:
        raise torch.OutOfMemoryError("out of memory in a process of the crew")
    dist.reduce(model.parameters.gradients, dst=0)
    return told[:1]


def _store(path: str, size: int) -> Store:
    """Return where the processes find each other."""
    return dist.FileStore(path, size)  # type: ignore[attr-defined]  # it is there, but PyTorch does not list it


def _join(store: Store, rank: int, size: int, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, LOOPBACK)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    dist.barrier()


# --- a step as one tensor of numbers ---


def _pack(rows: Sequence[TokenRow], most_rows: int, noise_seed: int, trained: Sequence[bool]) -> np.ndarray:
    """Return int64 numbers: counts, seed, lengths, ids, which tokens are targets, which factors are trained."""
    lengths = [len(row.ids) for row in rows]
    head = np.array([len(rows), most_rows, noise_seed, *lengths], dtype=np.int64)
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    supervised = np.concatenate([row.supervised for row in rows]).astype(np.int64)
    return np.concatenate([head, ids, supervised, np.array(trained, dtype=np.int64)])


def _unpack(packed: np.ndarray) -> tuple[list[TokenRow], int, int, list[bool]]:
    count, most_rows, noise_seed = (int(number) for number in packed[:3])
    ends = np.cumsum([0, *packed[3 : 3 + count]])
    tokens = int(ends[-1])
    start = 3 + count
    ids, supervised = packed[start : start + tokens], packed[start + tokens : start + 2 * tokens]
    rows = [TokenRow(ids[a:b].astype(np.int32), supervised[a:b].astype(np.bool_)) for a, b in pairwise(ends)]
    return rows, most_rows, noise_seed, [bool(number) for number in packed[start + 2 * tokens :]]


def _send(packed: np.ndarray, adapter: Tensor, device: torch.device) -> None:
    dist.broadcast(torch.tensor([len(packed)], device=device), src=0)
    dist.broadcast(torch.from_numpy(packed).to(device), src=0)
    dist.broadcast(adapter, src=0)


def _receive(device: torch.device, adapter: Tensor) -> np.ndarray:
    """Return the numbers that the leader sent; its adapter is written into ``adapter``."""
    length = torch.zeros(1, dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    packed = torch.zeros(int(length), dtype=torch.int64, device=device)
    dist.broadcast(packed, src=0)
    dist.broadcast(adapter, src=0)
    return np.asarray(packed.cpu().numpy())
