"""A pool of worker processes: requests go to whoever is free, answers come in the order of the requests."""

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from fedit.engines.frames import Header
from fedit.types import Tensors

AHEAD = 2
"""Requests begun or answered, for each worker, beyond the first whose answer has not been taken."""

Event = dict[str, object]
Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker is asked. ``sets`` are tensors it refers to; each content is sent once to a worker."""

    header: Mapping[str, object]
    sets: Mapping[str, Tensors] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's answer."""

    header: Header
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class Lost:
    """A request that ended two workers; ``reason`` is the end of the second."""

    reason: str


class WorkerDied(Exception):
    """A worker ended before it answered; the text says how."""


class Process(Protocol):
    """One worker process, as the pool sees it."""

    def begin(self, header: Mapping[str, object]) -> None:
        """Send what to prepare, now and after every restart; does not wait."""
        ...

    def ask(self, request: Request, keys: "Keys", tell: Tell) -> Reply:
        """Return the answer to one request, of a new process if the last one ended; ``tell`` hears its events.

        Raises:
            WorkerDied: the process ended.
            WorkerError: it cannot start, or failed; another FeditError where the work raised that.
        """
        ...

    def kill(self) -> None:
        """End the process, at once; whoever waits for its answer finds it dead."""
        ...

    def stop(self) -> None:
        """End the process and forget it; nobody may be waiting for its answer."""
        ...


class Pool:
    """Worker processes of one run. A context manager that stops them."""

    def __init__(self, workers: Sequence[Process]) -> None:
        self._workers = list(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._workers)

    def begin(self, header: Mapping[str, object], workers: int) -> None:
        """Let at most ``workers`` workers prepare what ``header`` says; the others are stopped."""
        for surplus in self._workers[workers:]:
            surplus.stop()
        del self._workers[workers:]
        for worker in self._workers:
            worker.begin(header)

    def run(
        self, requests: Sequence[Request], tell: Callable[[int, Event], None] = lambda index, event: None
    ) -> Generator[Reply | Lost, None, None]:
        """Yield one answer a request, in their order; memory grows with the workers, not with the requests.

        tell: hears (index of the request, event) in the caller's thread, while it waits for an answer.

        Raises:
            FeditError: a worker cannot start, or a request failed in another way than by ending its worker.
        """
        shift = _Shift(self._workers[: len(requests)], requests)
        try:
            yield from shift.answers(tell)
        finally:
            shift.end()

    def ask(self, request: Request) -> Reply | Lost:
        """Return the answer to one request."""
        (answer,) = self.run([request])
        return answer

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            worker.stop()


class _Shift:
    """One pass of all workers over a list of requests: a thread a worker that asks and waits."""

    def __init__(self, workers: Sequence[Process], requests: Sequence[Request]) -> None:
        self._workers = workers
        self._requests = requests
        self._keys = Keys()
        self._next = iter(range(len(requests)))
        self._lock = threading.Lock()
        self._room = threading.Semaphore(AHEAD * len(workers))
        self._over = False
        self._busy: list[Process] = []
        self._heard: queue.SimpleQueue[tuple[int, Event | Reply | Lost | BaseException]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()

    def answers(self, tell: Callable[[int, Event], None]) -> Iterator[Reply | Lost]:
        early: dict[int, Reply | Lost] = {}
        for index in range(len(self._requests)):
            while index not in early:
                at, what = self._heard.get()
                if isinstance(what, BaseException):
                    raise what
                if isinstance(what, dict):
                    tell(at, what)
                else:
                    early[at] = what
            yield early.pop(index)
            self._room.release()

    def end(self) -> None:
        """Let the threads finish; workers that are still at something nobody waits for are ended."""
        with self._lock:
            self._over = True
            unwanted = list(self._busy)
        for _ in self._workers:
            self._room.release()
        for worker in unwanted:
            worker.kill()
        for thread in self._threads:
            thread.join()
        for worker in unwanted:
            worker.stop()

    def _work(self, worker: Process) -> None:
        while True:
            self._room.acquire()
            with self._lock:
                index = None if self._over else next(self._next, None)
                if index is None:
                    return
                self._busy.append(worker)
            try:
                answer: Reply | Lost | BaseException = self._do(worker, index)
            except BaseException as error:
                answer = error
            with self._lock:
                self._busy.remove(worker)
                self._over |= isinstance(answer, BaseException)
            self._heard.put((index, answer))

    def _do(self, worker: Process, index: int) -> Reply | Lost:
        reason = ""
        for _ in range(2):
            try:
                return worker.ask(self._requests[index], self._keys, lambda event: self._heard.put((index, event)))
            except WorkerDied as death:
                reason = str(death)
                if self._over:
                    break
        return Lost(reason)


class Keys:
    """Names for contents of tensors: equal contents, equal keys; the same tensors are read only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, int], ...], tuple[str, Tensors]] = {}
        self._lock = threading.Lock()

    def of(self, tensors: Tensors) -> str:
        """Return the key of ``tensors``."""
        identity = tuple((name, id(tensor)) for name, tensor in tensors.items())
        with self._lock:
            if identity not in self._known:
                # The tensors are kept, so that no other ones get their identities.
                self._known[identity] = (_digest(tensors), dict(tensors))
            return self._known[identity][0]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
