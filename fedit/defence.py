"""What a server can do after the federation: tune the final adapter on rows that it trusts."""

from collections.abc import Sequence
from dataclasses import replace

from fedit import seeds
from fedit.crew import Crew
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.training import LocalJob, Progress, Trainer
from fedit.types import LocalTraining, ServerState, Tensors


def tune_afterwards(
    model: AdaptedModel,
    server: ServerState,
    rows: Sequence[TokenRow],
    training: LocalTraining,
    *,
    steps: int,
    seed: int,
    crew: Crew | None = None,
) -> tuple[Tensors, Progress]:
    """Train both factors of the server's adapter on trusted rows, as a client would; return adapter and progress.

    Poisoned rows give updates that look like honest ones, so rules on updates do not see them; tuning afterwards
    on rows of the agreed behaviour is what answers them (Ye et al., 2024, arXiv:2406.10630).

    training: how clients train; its schedule does not apply, the learning rate stays what it is.

    Raises:
        TrainingFailed: the loss is not finite, or memory does not suffice for one row.
    """
    how = replace(
        training, num_rounds=1, steps=steps, epochs=None, tokens=None, schedule="constant", warmup_ratio=0.0
    )
    job = LocalJob(
        rows,
        how,
        round=1,
        batches_seen=0,
        data_seed=seeds.derive(seed, "defence"),
        noise_seed=seeds.derive(seed, "defence", "noise"),
        trainable=list(server.adapter),
        optimizer_state={},
        correct=lambda params, grads: None,
        scale=server.scale,
    )
    progress, _, adapter = Trainer(model, crew).train(job, server.adapter, ledger=server.ledger)
    return adapter, progress
