"""Where a job's work is done: in this process, or shared out over worker processes. The results are the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from fedit import lora, seeds
from fedit.arms import Arm, ArmRows
from fedit.card import write_adapter
from fedit.data.examples import Example, row_id
from fedit.engines.base import Engine
from fedit.engines.frames import Header
from fedit.engines.inprocess import InProcess
from fedit.engines.messages import WorkerError
from fedit.engines.pool import Event, Lost, Pool, Reply, Request
from fedit.engines.processes import Processes
from fedit.estimate import seconds_per_token
from fedit.evaluation.generate import answers
from fedit.evaluation.likeness import likeness
from fedit.evaluation.loss import RowLosses, row_losses
from fedit.job import Job
from fedit.model.fast.decode import Prompt
from fedit.privacy.secagg.members import Members
from fedit.scaling import lora_scale
from fedit.store import ClientStore
from fedit.types import ClientTask, Running, Tensors, with_ledger
from fedit.worker import Worker

Part = Literal["held_out", "validation", "held_out_rejected", "validation_rejected"]
"""Rows that are evaluated: a property of `Job`, with the chosen or, of preferences, the rejected answers."""
OnStep = Callable[[ClientTask, Event], None]
OnBatch = Callable[[int], None]
WHOLE = (0, 1)
QUESTIONS = 16
"""Models of questions that are made at once."""
_ROW_LOSSES = (torch.float64, torch.int64, torch.int64)
SHARES = 4
"""Shares of an evaluation for each worker, so that none waits long for another at the end."""


@dataclass(frozen=True, slots=True)
class ArmWork:
    """An arm that is to be trained to its end in one place.

    tokens:        of every round of the federation, from which baselines take their budgets.
    learning_rate: where it is not the job's; label: what its events are said to be about, where not its name.
    graded:        whether it then answers the held-out prompts.
    """

    name: str
    folder: Path
    tokens: Mapping[int, int]
    learning_rate: float | None = None
    label: str | None = None
    graded: bool = True

    def as_header(self) -> dict[str, object]:
        """Return the fields as JSON knows them."""
        tokens = [[round, count] for round, count in self.tokens.items()]
        return {**asdict(self), "folder": str(self.folder.absolute()), "tokens": tokens}

    @classmethod
    def from_header(cls, header: Header) -> "ArmWork":
        """Return what `as_header` was asked of."""
        names = [own.name for own in fields(cls)]
        values: dict[str, Any] = {name: header[name] for name in names}
        return cls(**{**values, "folder": Path(values["folder"]), "tokens": dict(values["tokens"])})


class Compute(Protocol):
    """All that a run needs the model for."""

    workers: int

    def initial(self) -> Tensors:
        """Return the adapter before training."""
        ...

    def engine(self, arm: Arm, folder: Path, on_step: OnStep) -> Engine:
        """Return where the arm's clients train; what they keep between rounds is in ``folder``."""
        ...

    def losses(self, adapters: Sequence[Tensors], part: Part) -> list[RowLosses]:
        """Return the losses of every adapter on every row of ``part``."""
        ...

    def likened_losses(self, client: str, running: Running, part: Part) -> RowLosses:
        """Return the losses of the rows of ``part``, each under the model that a client has for its question."""
        ...

    def answers(
        self,
        adapters: Sequence[Tensors],
        prompts: Sequence[Prompt],
        on_batch: OnBatch = lambda done: None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Return the answer to every prompt by the adapter it names; ``on_batch`` hears how many there are yet.

        max_new_tokens: None: the job's.
        """
        ...

    def export(self, adapter: Tensors, round: int, folder: Path) -> None:
        """Write the adapter of a round as a PEFT folder."""
        ...

    def seconds_per_token(self) -> float:
        """Return the time that one worker takes to train on one token."""
        ...

    def why_general(self) -> str | None:
        """Return why the fast path was wanted and is not used; None where it is used or was not wanted."""
        ...


class Here:
    """All work in this process, over one resident model."""

    workers = 1

    def __init__(self, job: Job) -> None:
        self._job = job

    def initial(self) -> Tensors:
        """Return the adapter before training."""
        return self._job.model.initial(self._job.config.seed)

    def engine(self, arm: Arm, folder: Path, on_step: OnStep) -> Engine:
        """Return where the arm's clients train; what they keep between rounds is in ``folder``."""
        return InProcess(
            self.worker(arm, folder),
            lambda task, progress: on_step(task, progress.as_event()),
            width=self._job.stack_width,
        )

    def worker(self, arm: Arm, folder: Path) -> Worker:
        """Return what trains the arm's clients."""
        job = self._job
        return Worker(
            job.model,
            ArmRows(job, arm.clients),
            arm.strategy,
            seed=job.config.seed,
            weighting=job.config.weighting,
            transforms=arm.transforms,
            store=ClientStore(folder / "clients"),
            crew=job.crew,
            describe=arm.describe,
            members=None if arm.secure is None else Members(arm.secure.options, folder / "secure"),
        )

    def losses(self, adapters: Sequence[Tensors], part: Part, share: tuple[int, int] = WHOLE) -> list[RowLosses]:
        """Return the losses of every adapter on every row of ``part``, or on those of a share of the passes."""
        examples = getattr(self._job, part.removesuffix("_rejected"))
        rows = (self._job.rejected_tokens if part.endswith("_rejected") else self._job.tokens)(examples)
        return row_losses(self._job.model, adapters, [rows] * len(adapters), share)

    def likened_losses(
        self, client: str, running: Running, part: Part, share: tuple[int, int] = WHOLE
    ) -> RowLosses:
        """Return the losses of the rows of ``part``, or of every n-th, each under the model of its question."""
        job, likened = self._job, running.likened
        if likened is None:
            raise ValueError("this client runs one model for all questions")
        examples = getattr(job, part)
        mine = range(len(examples))[share[0] :: share[1]]
        found = RowLosses(*(torch.zeros(len(examples), dtype=kind) for kind in _ROW_LOSSES))
        weights = question_weights(job, client, running, [examples[i] for i in mine]) if mine else torch.zeros(0)
        for start in range(0, len(mine), QUESTIONS):
            places = mine[start : start + QUESTIONS]
            own = [at_weight(running, weight) for weight in weights[start : start + QUESTIONS].tolist()]
            rows = [[row] for row in job.tokens([examples[i] for i in places])]
            for i, losses in zip(
                places, row_losses(job.model, [runnable(job, o) for o in own], rows), strict=True
            ):
                found.sums[i], found.counts[i], found.correct[i] = (
                    losses.sums[0],
                    losses.counts[0],
                    losses.correct[0],
                )
        return found

    def answers(
        self,
        adapters: Sequence[Tensors],
        prompts: Sequence[Prompt],
        on_batch: OnBatch = lambda done: None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Return the answer to every prompt by the adapter it names; ``on_batch`` hears how many there are yet.

        max_new_tokens: None: the job's.
        """
        texts = self.some_answers(adapters, prompts, WHOLE, on_batch, max_new_tokens)
        return [texts[index] for index in range(len(texts))]

    def some_answers(
        self,
        adapters: Sequence[Tensors],
        prompts: Sequence[Prompt],
        share: tuple[int, int],
        on_batch: OnBatch = lambda done: None,
        max_new_tokens: int | None = None,
    ) -> dict[int, str]:
        """Return the answers in a share of the batches, by the prompt's index."""
        job = self._job
        return answers(
            job.model,
            job.tokenizer,
            prompts,
            adapters,
            stop=job.stops(),
            max_new_tokens=max_new_tokens or job.config.max_new_tokens,
            places=job.places,
            share=share,
            on_batch=on_batch,
        )

    def export(self, adapter: Tensors, round: int, folder: Path) -> None:
        """Write the adapter of a round as a PEFT folder."""
        write_adapter(self._job, adapter, round, folder)

    def seconds_per_token(self) -> float:
        """Return the time that one worker takes to train on one token."""
        return seconds_per_token(self._job)

    def why_general(self) -> str | None:
        """Return why the fast path was wanted and is not used; None where it is used or was not wanted."""
        return self._job.model.why_general


class Workers:
    """All work in a pool of worker processes; this one loads no base model."""

    def __init__(self, job: Job, pool: Pool) -> None:
        self._job = job
        self._pool = pool
        self.workers = len(pool)

    def initial(self) -> Tensors:
        """Return the adapter before training."""
        return self._ask("initial").tensors

    def engine(self, arm: Arm, folder: Path, on_step: OnStep) -> Engine:
        """Return where the arm's clients train; workers find the arm by its name and the folder in the run's."""
        rows = ArmRows(self._job, arm.clients)
        clients = [arm.describe(client, len(rows[client])) for client in sorted(rows)]
        return Processes(self._pool, clients, on_step, width=self._job.stack_width, arm=arm.name)

    def losses(self, adapters: Sequence[Tensors], part: Part) -> list[RowLosses]:
        """Return the losses of every adapter on every row of ``part``."""
        parts = [read_losses(reply.tensors) for reply in self._shared("losses", adapters, part=part)]
        return [sum(own[1:], own[0]) for own in zip(*parts, strict=True)]

    def likened_losses(self, client: str, running: Running, part: Part) -> RowLosses:
        """Return the losses of the rows of ``part``, each under the model that a client has for its question."""
        if running.likened is None:
            raise ValueError("this client runs one model for all questions")
        general = running.likened.general
        fields = {
            "part": part,
            "client": client,
            "scale": general.scale,
            "most": running.likened.most,
            "examples": running.likened.examples,
        }
        replies = self._shared("likened", [running.adapter, general.adapter, general.ledger], **fields)
        parts = [read_losses(reply.tensors)[0] for reply in replies]
        return sum(parts[1:], parts[0])

    def answers(
        self,
        adapters: Sequence[Tensors],
        prompts: Sequence[Prompt],
        on_batch: OnBatch = lambda done: None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Return the answer to every prompt by the adapter it names; ``on_batch`` hears how many there are yet.

        max_new_tokens: None: the job's.
        """
        texts: dict[int, str] = {}
        asked = [[prompt.adapter, list(prompt.ids)] for prompt in prompts]
        for reply in self._shared("answers", adapters, prompts=asked, longest=max_new_tokens):
            texts |= dict(cast(list[tuple[int, str]], reply.header["texts"]))
            on_batch(len(texts))
        return [texts[index] for index in range(len(texts))]

    def export(self, adapter: Tensors, round: int, folder: Path) -> None:
        """Write the adapter of a round as a PEFT folder."""
        self._ask("export", adapter, round=round, folder=str(folder.absolute()))

    def seconds_per_token(self) -> float:
        """Return the time that one worker takes to train on one token."""
        return cast(float, self._ask("measure").header["seconds"])

    def why_general(self) -> str | None:
        """Return why the fast path was wanted and is not used; None where it is used or was not wanted."""
        return cast("str | None", self._ask("path").header["why_general"])

    def train_arms(self, work: Sequence[ArmWork], listener: Callable[[Event], None]) -> None:
        """Train whole arms side by side; ``listener`` hears their events."""
        requests = [Request({"do": "arm", **one.as_header()}) for one in work]
        for answer in self._pool.run(requests, lambda index, event: listener(event)):
            _delivered(answer)

    def _ask(self, what: str, adapter: Tensors | None = None, **fields: object) -> Reply:
        sets = {} if adapter is None else {"adapter": adapter}
        return _delivered(self._pool.ask(Request({"do": what, **fields}, sets)))

    def _shared(self, what: str, adapters: Sequence[Tensors], **fields: object) -> Iterator[Reply]:
        shares = SHARES * self.workers
        sets = {str(index): adapter for index, adapter in enumerate(adapters)}
        requests = [Request({"do": what, "share": share, "of": shares, **fields}, sets) for share in range(shares)]
        return map(_delivered, self._pool.run(requests))


def runnable(job: Job, running: Running) -> Tensors:
    """Return what is run as tensors for a model that multiplies B A by its own scale at that rank.

    What holds no factors has no scale, and is run as it is.
    """
    rank = lora.rank_of(running.adapter)
    if rank == 0:
        return dict(running.adapter)
    own = lora_scale(job.config.lora_alpha, rank, rslora=job.config.use_rslora)
    adapter = running.adapter
    if running.scale != own:
        factor = running.scale / own
        adapter = {name: t * factor if name.endswith(".B") else t for name, t in adapter.items()}
    return dict(with_ledger(adapter, running.ledger))


def at_weight(running: Running, weight: float) -> Running:
    """Return the model of a question at which the client's own adapter has ``weight``."""
    general = running.likened.general if running.likened else running
    ledger = lora.with_product(general.ledger, general.adapter, (1 - weight) * general.scale)
    return Running(running.adapter, ledger, weight * general.scale)


def question_weights(job: Job, client: str, running: Running, questions: Sequence[Example]) -> Tensor:
    """Return what the client's own adapter weighs for each question, float64 (questions,)."""
    likened = running.likened
    if likened is None:
        raise ValueError("this client runs one model for all questions")
    ranked = sorted(
        job.clients[client], key=lambda row: seeds.derive(job.config.seed, "likened", client, row_id(row))
    )
    alone = Running(running.adapter, likened.general.ledger, likened.general.scale)
    job.model.load(runnable(job, alone))
    known = job.prompts(ranked[: likened.examples])
    return likened.most * likeness(job.model, job.prompts(questions), known).clamp(min=0, max=1)


def losses_as_tensors(losses: Sequence[RowLosses]) -> Tensors:
    """Return the losses of several adapters as one set of tensors."""
    found: Tensors = {}
    for index, own in enumerate(losses):
        found |= {f"{index}/sums": own.sums, f"{index}/counts": own.counts, f"{index}/correct": own.correct}
    return found


def read_losses(tensors: Tensors) -> list[RowLosses]:
    """Return what `losses_as_tensors` was given."""
    parts = ("sums", "counts", "correct")
    return [RowLosses(*(tensors[f"{i}/{part}"] for part in parts)) for i in range(len(tensors) // len(parts))]


def _delivered(answer: Reply | Lost) -> Reply:
    if isinstance(answer, Lost):
        raise WorkerError(f"{answer.reason}, twice at the same work; num_workers=1 does all work in one process.")
    return answer
