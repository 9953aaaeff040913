"""A step's gradient: passes over its rows, added up; or a share of them, where several processes work together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fedit import seeds
from fedit.model.adapted import AdaptedModel
from fedit.objectives import Learnt, Objective, SupervisedTuning, num_supervised, passes, rows_of

SUPERVISED: Objective = SupervisedTuning()


def accumulate(
    model: AdaptedModel,
    examples: Sequence[Learnt],
    most: int,
    noise_seed: int,
    share: tuple[int, int] = (0, 1),
    objective: Objective = SUPERVISED,
) -> Tensor:
    """Add the gradient of the examples' mean loss to the parameters' ``grad``.

    most:  examples of a pass.
    share: (k, n): only every n-th pass from the k-th on; the shares' gradients add up to the whole.

    Returns the summed loss (nats) of these passes and the sums of the objective's measures, (1 + measures,).
    """
    count = objective.count(examples)
    total = torch.zeros(1 + len(objective.measures), dtype=torch.float64)
    for index, members in enumerate(passes(model, examples, most)):
        if index % share[1] != share[0]:
            continue
        chosen = [examples[i] for i in members]
        batch = model.collate(rows_of(chosen))
        if len(batch.targets) == 0:
            continue
        with _dropout_seed(model, seeds.derive(noise_seed, index)):
            sums = objective.sums(model.log_probabilities(batch), chosen)
            (sums[0] / count).backward()
        total = total.to(sums.device) + sums.detach()  # read once a step: a GPU need not wait for every pass
    return total


def accumulate_clipped(
    model: AdaptedModel,
    examples: Sequence[Learnt],
    most: int,
    noise_seed: int,
    clip_norm: float,
    objective: Objective = SUPERVISED,
) -> None:
    """Add to the parameters' ``grad`` the sum of the examples' gradients, each clipped to ``clip_norm``.

    An example's gradient is that of its own mean loss, over all trained factors together. ``most`` is as in
    `accumulate`; losses are not returned, since whoever reads one learns about its examples.
    """
    learnt = learning(examples)
    for index, members in enumerate(passes(model, learnt, most, apart=True)):
        chosen = [learnt[i] for i in members]
        with _dropout_seed(model, seeds.derive(noise_seed, index)):
            found = model.example_gradients(
                [example.rows for example in chosen], partial(_summed_losses, objective, chosen)
            )
        found.add_clipped(model.parameters, clip_norm)


def learning(examples: Sequence[Learnt]) -> list[Learnt]:
    """Return the examples from which something is learnt: the others' gradients are zero."""
    return [example for example in examples if num_supervised([example]) > 0]


def _summed_losses(objective: Objective, examples: Sequence[Learnt], scores: Tensor) -> Tensor:
    return objective.losses(scores, examples).sum()


@contextmanager
def _dropout_seed(model: AdaptedModel, seed: int) -> Iterator[None]:
    """Seed PyTorch's generators for dropout inside the block and restore them after it."""
    if model.dropout == 0:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
