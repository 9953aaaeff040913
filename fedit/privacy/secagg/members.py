"""The clients of a place in their sessions: what they keep between stages, and what they answer to tasks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedit.errors import ProtocolError, RunFolderError
from fedit.files import safe_name, write_text
from fedit.privacy.secagg import client
from fedit.privacy.secagg.client import Session
from fedit.privacy.secagg.crypto import Words
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.messages import (
    AskKeys,
    AskMasked,
    AskShares,
    AskUnmask,
    Masked,
    Message,
)
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.privacy.secagg.vectors import VECTOR, encoded
from fedit.types import ClientFailure, ClientTask, ClientUpdate

Result = ClientUpdate | ClientFailure


@dataclass
class Members:
    """Answers the stages of secure aggregation for the clients whose updates are made here.

    A round is opened for one set of clients: asked to open it for another one, after a server's restart or by a
    server that takes the difference of two sums, a client reveals nothing.

    folder: where sessions are kept, which only their owner may read; None: in memory.
    """

    options: SecureAggregation
    folder: Path | None = None
    _known: dict[str, "_Memory"] = field(default_factory=dict)

    def answer(
        self, tasks: Sequence[ClientTask], train: Callable[[Sequence[ClientTask]], list[Result]]
    ) -> list[Result]:
        """Return an answer for each task; those that ask for masked vectors are trained by ``train`` together."""
        answers: dict[int, Result] = {}
        training: dict[int, tuple[ClientTask, AskMasked, _Memory]] = {}
        for index, task in enumerate(tasks):
            try:
                if task.stage == "masked":
                    training[index] = (task, *self._accept(task))
                else:
                    answers[index] = _answer(task, self._reply(task))
            except ProtocolError as error:
                answers[index] = ClientFailure(task.client_id, task.round, str(error))
        results = train([task for task, _, _ in training.values()]) if training else []
        for (index, (task, asked, memory)), result in zip(training.items(), results, strict=True):
            answers[index] = (
                result if isinstance(result, ClientFailure) else self._masked(task, asked, memory, result)
            )
        return [answers[index] for index in range(len(tasks))]

    def _reply(self, task: ClientTask) -> Message:
        memory = self._read(task.client_id)
        answer: Message
        if task.stage == "keys":
            session, answer = client.begin(task.client_id, task.round, AskKeys.read(task.message))
            if memory.session is not None and memory.session.session == session.session:
                raise ProtocolError("this session has begun already")
        elif task.stage == "shares":
            asked = AskShares.read(task.message)
            session, answer = client.hand_out(memory.in_round(task.round), asked, self.options.threshold)
        elif task.stage == "unmask":
            opening = AskUnmask.read(task.message)
            before = memory.opened.get(task.round)
            if before not in (None, opening.cohort.hex()):
                raise ProtocolError(f"round {task.round} was opened for another set of clients already")
            session, answer = client.reveal(memory.in_round(task.round), opening, self.options.threshold)
            memory = replace(memory, opened={**memory.opened, task.round: opening.cohort.hex()})
        else:
            raise ProtocolError("this job aggregates securely: no update leaves on its own")
        # On the disk before the answer leaves: what was revealed once is never revealed in another way.
        self._write(task.client_id, replace(memory, session=session))
        return answer

    def _accept(self, task: ClientTask) -> tuple[AskMasked, "_Memory"]:
        memory, asked = self._read(task.client_id), AskMasked.read(task.message)
        session = client.accept(memory.in_round(task.round), asked, self.options.threshold)
        if FixedPoint(asked.limit, asked.bits, asked.heaviest).overflows(asked.clients) or not asked.limit > 0:
            raise ProtocolError("sums on the grid that it is told may overflow")
        if self.options.noise == "distributed" and asked.noise == 0:
            raise ProtocolError("this job's clients add noise, and the server asks for none")
        memory = replace(memory, session=session)
        self._write(task.client_id, memory)
        return asked, memory

    def _masked(self, task: ClientTask, asked: AskMasked, memory: "_Memory", update: ClientUpdate) -> Result:
        try:
            vector, extras = encoded(update, asked)
            session = client.mask(memory.in_round(task.round), vector)
        except ProtocolError as error:
            return ClientFailure(task.client_id, task.round, str(error))
        self._write(task.client_id, replace(memory, session=session))
        return _answer(task, Masked(extras), vector)

    # --- what is kept ---

    def _read(self, client_id: str) -> "_Memory":
        if self.folder is None:
            return self._known.get(client_id, _Memory())
        path = self._path(client_id)
        if not path.is_file():
            return _Memory()
        try:
            return _Memory.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"the session kept in {path} cannot be read: {error}") from error

    def _write(self, client_id: str, memory: "_Memory") -> None:
        if self.folder is None:
            self._known[client_id] = memory
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(self._path(client_id), json.dumps(memory.as_json()))

    def _path(self, client_id: str) -> Path:
        if self.folder is None:
            raise ValueError("these sessions are kept in memory")
        return self.folder / f"{safe_name(f'c-{client_id}')}.json"


@dataclass(frozen=True, slots=True)
class _Memory:
    """session: the newest one; opened: round -> digest of the clients for whom it was opened."""

    session: Session | None = None
    opened: Mapping[int, str] = field(default_factory=dict)

    def in_round(self, round: int) -> Session:
        if self.session is None or self.session.round != round:
            raise ProtocolError(f"no session of round {round} has begun here")
        return self.session

    def as_json(self) -> dict[str, object]:
        return {
            "session": None if self.session is None else self.session.as_json(),
            "opened": {str(round): cohort for round, cohort in self.opened.items()},
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "_Memory":
        opened = {int(round): str(cohort) for round, cohort in said["opened"].items()}
        return cls(None if said["session"] is None else Session.from_json(said["session"]), opened)


def _answer(task: ClientTask, message: Message, vector: Words | None = None) -> ClientUpdate:
    extra = {} if vector is None else {VECTOR: torch.from_numpy(vector.view(np.int64))}
    return ClientUpdate(task.client_id, task.round, 0, 0.0, {}, extra, message=message.as_json())
