"""The client half of a round: a task becomes an update. The same object wherever clients run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from fedit import lora, seeds, tensors
from fedit.crew import Crew
from fedit.data.pairs import PairRow
from fedit.model.adapted import AdaptedModel
from fedit.objectives import Learnt, reference_gaps
from fedit.stacked import StackedTrainer, Trained
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.training import LocalJob, Progress, Trainer, TrainingFailed
from fedit.types import ClientFailure, ClientInfo, ClientState, ClientTask, ClientUpdate, LocalResult, Tensors

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
        store: ClientStore | None = None,
        crew: Crew | None = None,
    ) -> None:
        self._trainer = Trainer(model, crew)
        self._model = model
        self._data = data
        self._strategy = strategy
        self._seed = seed
        self._weigh = WEIGHTINGS[weighting]
        self._store = store or ClientStore()

    def clients(self) -> list[ClientInfo]:
        """Return the clients whose data is here, in the order of their ids."""
        return [ClientInfo(client_id, len(self._data[client_id])) for client_id in sorted(self._data)]

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

        on_step: hears the index of a task and its progress after each of its steps.
        """
        starts = [self._start(task) for task in tasks]
        if len(starts) > 1 and self._model.fast is not None:
            outcomes = StackedTrainer(self._model).train(
                [self._job(start) for start in starts],
                [start.adapter for start in starts],
                on_step,
                [start.task.broadcast.ledger for start in starts],
            )
            return [self._finish(start, outcome) for start, outcome in zip(starts, outcomes, strict=True)]
        return [
            self._finish(start, self._alone(start, partial(on_step, index))) for index, start in enumerate(starts)
        ]

    def _start(self, task: ClientTask) -> "_Start":
        state = self._store.read(task.client_id, task.round)
        adapter = task.broadcast.adapter
        if state.private:
            adapter = {**adapter, **state.private}
        missing = {n: t for n, t in self._initial.items() if n not in adapter}
        if missing:
            adapter = {**lora.cut_to(missing, adapter), **adapter}
        rows = self._data[task.client_id]
        if task.training.objective == "dpo":
            rows, state = self._with_reference(rows, state)
        return _Start(task, rows, adapter, state)

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

    def _alone(self, start: "_Start", on_step: Callable[[Progress], None]) -> Trained | TrainingFailed:
        try:
            return self._trainer.train(self._job(start), start.adapter, on_step, start.task.broadcast.ledger)
        except TrainingFailed as error:
            return error

    def _finish(self, start: "_Start", outcome: Trained | TrainingFailed) -> ClientUpdate | ClientFailure:
        """Keep what stays with the client and return what leaves it."""
        task, state = start.task, start.state
        if isinstance(outcome, TrainingFailed):
            return ClientFailure(task.client_id, task.round, str(outcome))
        progress, optimizer, trained = outcome
        delta = tensors.sub(trained, start.adapter)
        if not tensors.is_finite(delta):
            return ClientFailure(task.client_id, task.round, "the trained adapter is not finite (NaN or infinity)")
        metrics = {
            "loss": progress.loss,
            "steps": float(progress.steps),
            "tokens": float(progress.tokens),
            "supervised_tokens": float(progress.supervised_tokens),
            "rows": float(len(progress.rows)),
            **progress.measures,
        }
        result = LocalResult(delta, progress.steps, metrics, tuple(progress.learning_rates))
        extra, memory = self._strategy.finish(task, result, state.memory)
        private = {name: tensor for name, tensor in trained.items() if not self._strategy.shares(name)}
        self._store.write(
            task.client_id,
            task.round,
            ClientState(state.batches_seen + progress.steps, private, memory, optimizer, state.reference),
        )
        num_examples = len(start.rows)
        uploads = partial(self._strategy.uploads, round=task.round)
        # A flat delta stays flat where all of it leaves.
        shared = delta if all(map(uploads, delta)) else {n: t for n, t in delta.items() if uploads(n)}
        weight = self._weigh(num_examples, progress)
        scale = task.broadcast.scale
        if scale is None:
            scale = self._model.scale_of(start.adapter)
        return ClientUpdate(task.client_id, task.round, num_examples, weight, shared, extra, metrics, scale)

    def _job(self, start: "_Start") -> LocalJob:
        task, memory = start.task, start.state.memory
        return LocalJob(
            start.rows,
            task.training,
            round=task.round,
            batches_seen=start.state.batches_seen,
            data_seed=seeds.derive(self._seed, "data", task.client_id),
            noise_seed=task.seed,
            trainable=[name for name in start.adapter if self._strategy.trains(name, task.round)],
            optimizer_state=start.state.optimizer,
            correct=lambda params, grads: self._strategy.correct_gradients(task, params, grads, memory),
            factors=self._strategy.factors if self._strategy.composes else None,
            scale=task.broadcast.scale,
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """A client at the start of its round: ``adapter`` is what it was sent with what it keeps for itself."""

    task: ClientTask
    rows: Sequence[Learnt]
    adapter: Tensors
    state: ClientState
