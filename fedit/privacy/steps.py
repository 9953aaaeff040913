"""DP-SGD (arXiv:1607.00133) as one client's training takes its steps: Poisson batches, and noise on clipped sums.

A step uses every example with probability q = batch size / examples on its own, clips each one's gradient to norm
C, adds N(0, (z C)²) to their sum and divides by the expected batch q n, which is the same for every batch. So a
step is a Poisson-subsampled Gaussian mechanism of noise multiplier z at rate q, also where its batch is empty;
what an optimizer makes of its result is post-processing.
"""

from collections.abc import Sequence

from torch import Tensor

from fedit.privacy.keystream import Keystream
from fedit.types import LocalTraining


def sampling_rate(batch_size: int, num_examples: int) -> float:
    """Return the probability with which a step uses an example."""
    return min(1.0, batch_size / num_examples)


def steps_of(training: LocalTraining, num_examples: int) -> int:
    """Return how many steps a client takes in one round; it must not depend on what the batches hold."""
    if training.tokens is not None:
        raise ValueError("a number of tokens is no fixed number of steps")
    return training.steps or (training.epochs or 1) * -(-num_examples // training.batch_size)


class PrivateSteps:
    """What makes one client's steps private in one round.

    clip_norm: that each example's gradient is clipped to.
    """

    def __init__(self, training: LocalTraining, num_examples: int, keystream: Keystream) -> None:
        if training.example_clip is None:
            raise ValueError("this training has no clip norm for examples")
        self.clip_norm = training.example_clip
        self.dropout_seed = keystream.seed()
        self._rate = sampling_rate(training.batch_size, num_examples)
        self._num_examples = num_examples
        self._noise = training.example_noise
        self._keystream = keystream

    def batch(self) -> list[int]:
        """Return the examples of the next step, ascending; there may be none."""
        return self._keystream.coins(self._num_examples, self._rate)

    def finish(self, gradients: Sequence[Tensor]) -> None:
        """Turn sums of clipped gradients into the step's noisy mean, in place."""
        if self._noise > 0:
            self._keystream.add_normal(gradients, self._noise * self.clip_norm)
        for gradient in gradients:
            gradient.div_(self._rate * self._num_examples)
