"""A step's gradient: passes over its rows, added up; or a share of them, where several processes work together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedit import seeds
from fedit.model.adapted import AdaptedModel
from fedit.objectives import Learnt, Objective, SupervisedTuning, passes, rows_of

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


@contextmanager
def _dropout_seed(model: AdaptedModel, seed: int) -> Iterator[None]:
    """Seed PyTorch's generators for dropout inside the block and restore them after it."""
    if model.dropout == 0:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
