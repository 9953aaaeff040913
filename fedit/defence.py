"""What a server can do after the federation: tune the final adapter on rows that it trusts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedit import seeds
from fedit.crew import Crew
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.training import LocalJob, Progress, Trainer
from fedit.types import LEDGER, LocalTraining, Tensors, with_ledger


def tune_afterwards(
    model: AdaptedModel,
    tuned: Mapping[str, Tensor],
    rows: Sequence[TokenRow],
    training: LocalTraining,
    *,
    steps: int,
    seed: int,
    crew: Crew | None = None,
) -> tuple[Tensors, Progress]:
    """Train the final adapter on trusted rows, as a client would; return it, with its ledger, and the progress.

    Poisoned rows give updates that look like honest ones, so rules on updates do not see them; tuning afterwards
    on rows of the agreed behaviour is what answers them (Ye et al., 2024, arXiv:2406.10630).

    tuned:    what the server's model runs: factors, and a ledger's under "ledger/m.A", which stays as it is.
    training: how clients train; its schedule does not apply, the learning rate stays what it is. Nor does its
              objective: what is trusted are answers, not preferences; nor its privacy: the rows are the server's.

    Raises:
        TrainingFailed: the loss is not finite, or memory does not suffice for one row.
    """
    how = replace(
        training,
        num_rounds=1,
        steps=steps,
        epochs=None,
        tokens=None,
        schedule="constant",
        warmup_ratio=0.0,
        objective="sft",
        example_clip=None,
    )
    ledger = {name.removeprefix(LEDGER): t for name, t in tuned.items() if name.startswith(LEDGER)}
    adapter = {name: tensor for name, tensor in tuned.items() if not name.startswith(LEDGER)}
    job = LocalJob(
        rows,
        how,
        round=1,
        batches_seen=0,
        data_seed=seeds.derive(seed, "defence"),
        noise_seed=seeds.derive(seed, "defence", "noise"),
        trainable=list(adapter),
        optimizer_state={},
        correct=lambda params, grads: None,
    )
    progress, _, adapter = Trainer(model, crew).train(job, adapter, ledger=ledger)
    return dict(with_ledger(adapter, ledger)), progress
