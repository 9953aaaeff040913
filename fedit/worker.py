"""The client half of a round: a task becomes an update. The same object wherever clients run."""

from collections.abc import Callable, Mapping, Sequence

from fedit import seeds, tensors
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.training import Progress, Trainer, TrainingFailed
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
        data: Mapping[str, Sequence[TokenRow]],
        strategy: Strategy,
        *,
        seed: int,
        weighting: str = "examples",
        store: ClientStore | None = None,
    ) -> None:
        self._trainer = Trainer(model)
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
        state = self._store.read(task.client_id, task.round)
        received = {**task.broadcast.adapter, **state.private}
        rows = self._data[task.client_id]
        try:
            progress, optimizer = self._optimise(task, rows, received, state, on_step)
        except TrainingFailed as error:
            return ClientFailure(task.client_id, task.round, str(error))
        trained = self._model.read()
        delta = tensors.sub(trained, received)
        if not tensors.is_finite(delta):
            return ClientFailure(task.client_id, task.round, "the trained adapter is not finite (NaN or infinity)")
        metrics = {
            "loss": progress.loss,
            "steps": float(progress.steps),
            "tokens": float(progress.tokens),
            "supervised_tokens": float(progress.supervised_tokens),
            "rows": float(len(progress.rows)),
        }
        result = LocalResult(delta, progress.steps, metrics)
        extra, memory = self._strategy.finish(task, result, state.memory)
        private = {name: tensor for name, tensor in trained.items() if not self._strategy.shares(name)}
        self._store.write(
            task.client_id,
            task.round,
            ClientState(state.batches_seen + progress.steps, private, memory, optimizer),
        )
        num_examples = len(rows)
        shared = {name: tensor for name, tensor in delta.items() if self._strategy.shares(name)}
        weight = self._weigh(num_examples, progress)
        return ClientUpdate(task.client_id, task.round, num_examples, weight, shared, extra, metrics)

    def _optimise(
        self,
        task: ClientTask,
        rows: Sequence[TokenRow],
        received: Tensors,
        state: ClientState,
        on_step: Callable[[Progress], None],
    ) -> tuple[Progress, Tensors]:
        self._model.load(received)
        return self._trainer.train(
            rows,
            task.training,
            round=task.round,
            batches_seen=state.batches_seen,
            data_seed=seeds.derive(self._seed, "data", task.client_id),
            noise_seed=task.seed,
            trainable=[name for name in received if self._strategy.trains(name, task.round)],
            optimizer_state=state.optimizer,
            correct=lambda params, grads: self._strategy.correct_gradients(task, params, grads, state.memory),
            on_step=on_step,
        )
