"""The client half of a round: a task becomes an update. The same object wherever clients run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

from torch import Tensor

from fedit import lora, seeds, tensors
from fedit.crew import Crew
from fedit.data.pairs import PairRow
from fedit.errors import DamagedPayload
from fedit.model.adapted import AdaptedModel
from fedit.objectives import Learnt, reference_gaps
from fedit.privacy.keystream import Keystream
from fedit.privacy.secagg.members import Members
from fedit.stacked import StackedTrainer, Trained
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.training import LocalJob, Progress, Trainer, TrainingFailed
from fedit.transforms.base import Transform
from fedit.transforms.chain import Downlink, send
from fedit.types import (
    ClientFailure,
    ClientInfo,
    ClientState,
    ClientTask,
    ClientUpdate,
    LocalResult,
    LocalTraining,
    Phase,
    Tensors,
    own_adapter,
)

Correct = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]
"""(parameters, gradients) -> None: changes gradients before a step."""

WEIGHTINGS: dict[str, Callable[[int, Progress], float]] = {
    "examples": lambda num_examples, progress: float(num_examples),
    "tokens": lambda num_examples, progress: float(progress.supervised_tokens),
    "uniform": lambda num_examples, progress: 1.0,
}
"""What a client's update weighs: the paper's number of examples, the tokens it was supervised on, or 1."""


class Worker:
    """Holds the data of its clients and the one resident model; trains whichever client a task names."""

    def __init__(
        self,
        model: AdaptedModel,
        data: Mapping[str, Sequence[Learnt]],
        strategy: Strategy,
        *,
        seed: int,
        weighting: str = "examples",
        transforms: Sequence[Transform] = (),
        store: ClientStore | None = None,
        crew: Crew | None = None,
        describe: Callable[[str, int], ClientInfo] = ClientInfo,
        keystream: Callable[[], Keystream] = Keystream,
        members: Members | None = None,
    ) -> None:
        """Take the model, the clients' rows and the algorithm.

        members:  make its clients' part of secure aggregation, without which no update leaves then.
        describe: (client, number of rows) -> what the server knows of it.
        keystream:  where private training takes batches and noise from; a test gives one it knows.
        """
        self._trainer = Trainer(model, crew)
        self._model = model
        self._data = data
        self._strategy = strategy.settled(model.shapes)
        self._seed = seed
        self._weigh = WEIGHTINGS[weighting]
        self._transforms = transforms
        self._store = store or ClientStore()
        self._describe = describe
        self._keystream = keystream
        self._members = members

    def clients(self) -> list[ClientInfo]:
        """Return the clients whose data is here, in the order of their ids."""
        return [self._describe(client_id, len(self._data[client_id])) for client_id in sorted(self._data)]

    def train(
        self, task: ClientTask, on_step: Callable[[Progress], None] = lambda progress: None
    ) -> ClientUpdate | ClientFailure:
        """Train one client for one round; a failure that is the client's own becomes data."""
        (result,) = self.train_together([task], lambda index, progress: on_step(progress))
        return result

    def train_together(
        self, tasks: Sequence[ClientTask], on_step: Callable[[int, Progress], None] = lambda index, progress: None
    ) -> list[ClientUpdate | ClientFailure]:
        """Train the clients of several tasks, stacked where the model can; return a result for each.

        Where a round has several phases, all clients are through with one before the next begins.

        on_step: hears the index of a task and its progress after each of its steps.
        """
        if self._members is not None:
            return self._members.answer(tasks, partial(self._train_all, on_step))
        return self._train_all(on_step, tasks)

    def _train_all(
        self, on_step: Callable[[int, Progress], None], tasks: Sequence[ClientTask]
    ) -> list[ClientUpdate | ClientFailure]:
        down = Downlink(self._transforms)
        clients = [self._start(task, down) for task in tasks]
        for number in range(max((len(client.phases) for client in clients), default=0)):
            due = [i for i, client in enumerate(clients) if client.failure is None and number < len(client.phases)]
            phases = [(clients[i], clients[i].phases[number]) for i in due]
            jobs = [self._job(client, phase) for client, phase in phases]
            ledgers = [
                phase.ledger if phase.ledger is not None else c.task.broadcast.ledger for c, phase in phases
            ]
            outcomes = self._train(jobs, ledgers, partial(_tell, on_step, due))
            for (client, phase), outcome in zip(phases, outcomes, strict=True):
                client.take(phase, outcome)
        return [self._finish(client) for client in clients]

    def _train(
        self,
        jobs: Sequence[tuple[LocalJob, Tensors]],
        ledgers: Sequence[Tensors],
        on_step: Callable[[int, Progress], None],
    ) -> list[Trained | TrainingFailed]:
        if len(jobs) > 1 and self._model.fast is not None and not _noise_on_factors(jobs):
            return StackedTrainer(self._model).train(
                [job for job, _ in jobs], [adapter for _, adapter in jobs], on_step, ledgers
            )
        return [
            self._alone(job, adapter, partial(on_step, index), ledgers[index])
            for index, (job, adapter) in enumerate(jobs)
        ]

    def _start(self, task: ClientTask, down: Downlink) -> "_Client":
        try:
            task = replace(task, broadcast=down.arrived(task.broadcast))
        except DamagedPayload as error:
            return _Client.failed(task, f"what the server sent cannot be read: {error}")
        state = self._store.read(task.client_id, task.round)
        adapter = task.broadcast.adapter
        if state.private:
            adapter = {**adapter, **state.private}
        adapter = lora.completed(adapter, self._initial)
        scale = task.broadcast.scale
        if scale is None:
            scale = self._model.scale_of(adapter)
        whole = replace(task, broadcast=replace(task.broadcast, adapter=adapter, scale=scale))
        phases = self._strategy.phases(whole, state)
        rows = self._data[task.client_id]
        if task.training.objective == "dpo":
            rows, state = self._with_reference(rows, state)
        return _Client(task, rows, adapter, scale, state, phases)

    def _with_reference(self, rows: Sequence[Learnt], state: ClientState) -> tuple[Sequence[Learnt], ClientState]:
        """Return a client's preferences with what the reference model says of them, and the state that keeps it.

        The reference is what the run starts from: the frozen base, with the initial adapter.
        """
        pairs = [row for row in rows if isinstance(row, PairRow)]
        if not state.reference:
            begin = self._strategy.init(self._model.initial(self._seed))
            adapter = self._strategy.factors(begin.adapter)
            self._model.load({name: tensor.detach() for name, tensor in adapter.items()}, begin.ledger)
            state = replace(state, reference={"gaps": reference_gaps(self._model, pairs)})
        gaps = state.reference["gaps"].tolist()
        return [replace(pair, reference=gap) for pair, gap in zip(pairs, gaps, strict=True)], state

    @cached_property
    def _initial(self) -> Tensors:
        """What the run starts from, which the seed gives: tensors that no broadcast has to carry."""
        return self._strategy.init(self._model.initial(self._seed)).adapter

    def _begin(self, client: "_Client", phase: Phase) -> Tensors:
        """Return the adapter that a phase begins with."""
        if not phase.own:
            return client.adapter
        kept = own_adapter(client.state.memory, phase.name)
        return kept or lora.cut_to(self._initial, client.start)

    def _alone(
        self, job: LocalJob, adapter: Tensors, on_step: Callable[[Progress], None], ledger: Tensors
    ) -> Trained | TrainingFailed:
        try:
            return self._trainer.train(job, adapter, on_step, ledger)
        except TrainingFailed as error:
            return error

    def _finish(self, client: "_Client") -> ClientUpdate | ClientFailure:
        """Keep what stays with the client and return what leaves it."""
        task, state, progress = client.task, client.state, client.progress
        if client.failure is not None:
            return ClientFailure(task.client_id, task.round, client.failure)
        trained = client.adapter
        if tensors.is_finite(trained):  # decompositions do not take NaN
            trained = self._strategy.align(client.start, trained, task.round)
        delta = tensors.sub(trained, client.start)
        if not (tensors.is_finite(delta) and tensors.is_finite(client.kept)):
            return ClientFailure(task.client_id, task.round, "the trained adapter is not finite (NaN or infinity)")
        metrics = client.metrics()
        result = LocalResult(delta, progress.steps, metrics, tuple(progress.learning_rates))
        # In one order, so that a resumed run writes the same bytes.
        remembered = dict(sorted({**state.memory, **client.kept}.items())) if client.kept else state.memory
        extra, memory = self._strategy.finish(task, result, remembered)
        private = {name: tensor for name, tensor in trained.items() if not self._strategy.shares(name)}
        num_examples = len(client.rows)
        uploads = partial(self._strategy.uploads, round=task.round)
        # A flat delta stays flat where all of it leaves.
        shared = delta if all(map(uploads, delta)) else {n: t for n, t in delta.items() if uploads(n)}
        weight = self._weigh(num_examples, progress)
        update = ClientUpdate(
            task.client_id, task.round, num_examples, weight, shared, extra, metrics, client.scale
        )
        seed = seeds.derive(self._seed, "transforms", task.round, task.client_id)
        sent, owed = send(self._transforms, update, state.transforms, seed)
        kept = ClientState(
            state.batches_seen + progress.steps, private, memory, client.optimizer, owed, state.reference
        )
        self._store.write(task.client_id, task.round, kept)
        return sent

    def _job(self, client: "_Client", phase: Phase) -> tuple[LocalJob, Tensors]:
        """Return what a phase trains and the adapter that it begins with."""
        task = client.task
        correct, after = self._corrections(client, phase)
        adapter = self._begin(client, phase)
        trained = [name for name in adapter if self._strategy.trains(name, task.round) and phase.trains(name)]
        job = LocalJob(
            client.rows,
            share_of(task.training, phase.share, len(client.rows)),
            round=task.round,
            # An adapter of the client's own sees the rows of the round; it does not move them on.
            batches_seen=client.state.batches_seen + (0 if phase.own else client.progress.steps),
            data_seed=seeds.derive(self._seed, "data", task.client_id),
            noise_seed=seeds.derive(task.seed, "phase", phase.name) if phase.name else task.seed,
            trainable=trained,
            optimizer_state=own_adapter(client.state.optimizer, phase.name)
            if phase.own
            else client.state.optimizer,
            correct=correct,
            correct_after=after,
            factors=self._strategy.factors if self._strategy.composes else None,
            scale=task.broadcast.scale if phase.scale is None else phase.scale,
            keystream=None if task.training.example_clip is None else self._keystream(),
        )
        return job, adapter

    def _corrections(
        self, client: "_Client", phase: Phase
    ) -> tuple[Correct, Callable[[Mapping[str, Tensor], float], None] | None]:
        """Return what changes a phase's gradients before every step, and its parameters after it."""
        if phase.own or phase.correct is not None:
            return phase.correct or _nothing, None
        if not self._strategy.corrects:
            return _nothing, None
        # On the device once a round: every step needs what the client was sent and what it remembers.
        sent, device = client.task.broadcast, self._model.on_device
        near = replace(sent, adapter=device(sent.adapter), extra=device(sent.extra))
        task, memory = replace(client.task, broadcast=near), device(client.state.memory)
        strategy = self._strategy
        return (
            lambda params, grads: strategy.correct_gradients(task, params, grads, memory),
            lambda params, rate: strategy.correct_parameters(task, params, rate, memory),
        )


class _Client:
    """A client in its round: what it began with, what it is to train, and what it has trained so far.

    start:     what it was sent with what it keeps for itself; scale: that its B A is multiplied by.
    adapter:   that of the round, as trained so far; progress: of the phases that trained it.
    own:       name of a phase that trained an adapter of the client's own -> its progress.
    kept:      those adapters, "phase/m.A"; optimizer: what is left of all optimizers.
    failure:   why it cannot go on.
    """

    def __init__(
        self,
        task: ClientTask,
        rows: Sequence[Learnt],
        start: Tensors,
        scale: float,
        state: ClientState,
        phases: Sequence[Phase],
    ) -> None:
        self.task, self.rows, self.state, self.scale = task, rows, state, scale
        self.start = self.adapter = start
        self.phases = phases
        self.progress = Progress()
        self.own: dict[str, Progress] = {}
        self.kept: Tensors = {}
        self.optimizer: Tensors = {}
        self.failure: str | None = None

    @classmethod
    def failed(cls, task: ClientTask, reason: str) -> "_Client":
        """Return a client that cannot even begin."""
        client = cls(task, (), {}, 1.0, ClientState(), ())
        client.failure = reason
        return client

    def metrics(self) -> dict[str, float]:
        """Return what is told of the training; of a private one its steps alone, each of which was paid for."""
        progress, own = self.progress, self.own
        if self.task.training.example_clip is not None:
            return {"steps": float(progress.steps + sum(other.steps for other in own.values()))}
        return {
            "loss": progress.loss,
            "steps": float(progress.steps),
            "tokens": float(progress.tokens + sum(other.tokens for other in own.values())),
            "supervised_tokens": float(progress.supervised_tokens),
            "rows": float(len(progress.rows.union(*(other.rows for other in own.values())))),
            **{f"{name}_loss": other.loss for name, other in own.items()},
            **progress.measures,
        }

    def take(self, phase: Phase, outcome: Trained | TrainingFailed) -> None:
        """Take note of what a phase came to."""
        if isinstance(outcome, TrainingFailed):
            self.failure = str(outcome)
            return
        progress, optimizer, trained = outcome
        if phase.own:
            self.own[phase.name] = progress
            self.kept |= {f"{phase.name}/{name}": tensor for name, tensor in trained.items()}
            self.optimizer |= {f"{phase.name}/{name}": tensor for name, tensor in optimizer.items()}
        else:
            self.progress.add(progress)
            self.adapter = trained
            self.optimizer |= optimizer


def _noise_on_factors(jobs: Sequence[tuple[LocalJob, Tensors]]) -> bool:
    """Return whether a private step's noise goes on factors that are not what is trained."""
    return any(job.factors is not None and job.training.example_clip is not None for job, _ in jobs)


def share_of(training: LocalTraining, share: float, num_rows: int) -> LocalTraining:
    """Return local training of ``share`` as many steps or tokens, at least one; epochs become steps."""
    if share == 1:
        return training
    if training.tokens is not None:
        return replace(training, tokens=max(1, round(share * training.tokens)))
    steps = training.steps or (training.epochs or 1) * math.ceil(num_rows / training.batch_size)
    return replace(training, steps=max(1, round(share * steps)), epochs=None)


def _tell(on_step: Callable[[int, Progress], None], due: Sequence[int], at: int, progress: Progress) -> None:
    on_step(due[at], progress)


def _nothing(params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
    """Leave gradients as they are."""
