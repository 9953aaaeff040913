"""Losses: what a client minimises."""

from torch import Tensor

from fedit.model.adapted import AdaptedModel
from fedit.model.batch import Batch
from fedit.model.fast.layout import Layout


def negative_log_likelihood(model: AdaptedModel, batch: Batch | Layout) -> Tensor:
    """Return the summed negative log-likelihood of the supervised tokens (nats), a scalar with gradient.

    The caller divides by the supervised tokens of the whole optimizer step, so the size of
    a micro-batch does not change the result.
    """
    return -model.log_probabilities(batch).sum()
