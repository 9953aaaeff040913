"""A step's gradient: passes over its rows, added up; or a share of them, where several processes work together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedit import seeds
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.objectives import negative_log_likelihood


def num_supervised(rows: Sequence[TokenRow]) -> int:
    """Return how many tokens of ``rows`` are targets."""
    return sum(int(row.supervised[1:].sum()) for row in rows)


def accumulate(
    model: AdaptedModel, rows: Sequence[TokenRow], most_rows: int, noise_seed: int, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """Add the gradient of the mean loss over the rows' supervised tokens to the parameters' ``grad``.

    share: (k, n): only every n-th pass from the k-th on; the shares' gradients add up to the whole.

    Returns the summed loss (nats) of these passes, a scalar.
    """
    supervised = num_supervised(rows)
    total = torch.zeros((), dtype=torch.float64)
    for index, members in enumerate(model.passes(rows, most_rows)):
        if index % share[1] != share[0]:
            continue
        batch = model.collate([rows[i] for i in members])
        if len(batch.targets) == 0:
            continue
        with _dropout_seed(model, seeds.derive(noise_seed, index)):
            nll = negative_log_likelihood(model, batch)
            (nll / supervised).backward()
        total = total.to(nll.device) + nll.detach()  # read once a step: a GPU need not wait for every pass
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
