"""What a model makes of canaries: exposure and extraction, by the loss on their codes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedit import seeds
from fedit.data.canaries import Canary
from fedit.data.examples import Example, Message
from fedit.data.rendering import Rendered, Template, digest
from fedit.data.tokens import TokenRow, tokenize
from fedit.errors import ConfigError
from fedit.evaluation.intervals import bootstrap
from fedit.evaluation.loss import row_losses
from fedit.job import Job
from fedit.privacy.audit.exposure import exposures, extrapolated

FEWEST_FOR_INTERVAL = 3
"""Canaries from which the mean of their exposures has an interval."""


@dataclass(frozen=True, slots=True)
class OnlyCode:
    """A template of which the code of a canary alone is to be predicted."""

    inner: Template

    @property
    def name(self) -> str:
        """That of the template."""
        return self.inner.name

    @property
    def fingerprint(self) -> str:
        """Hash of the template's, and of what is left of it."""
        return digest("code", self.inner.fingerprint)

    def render(self, example: Example) -> Rendered:
        """Return the conversation, and where its code is."""
        whole = self.inner.render(example)
        code = code_of(example)
        start = whole.text.index(code, whole.spans[-1][0])
        return Rendered(whole.text, ((start, start + len(code)),), whole.literals)

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        """Return the template's prompt."""
        return self.inner.prompt(messages, context)


@dataclass(frozen=True, slots=True)
class Secrets:
    """Canaries with their references, as tokens.

    rows: canary -> its own row, then its references', each with the tokens of its code as targets.
    """

    canaries: Sequence[Canary]
    rows: Sequence[Sequence[TokenRow]]

    @property
    def references(self) -> int:
        """How many references a canary has."""
        return len(self.rows[0]) - 1 if self.rows else 0

    @property
    def tokens(self) -> int:
        """About how many tokens measuring them takes: what references share is computed once."""
        return sum(len(rows[0].ids) + sum(int(row.supervised.sum()) + 1 for row in rows) for rows in self.rows)


@dataclass(frozen=True, slots=True)
class Known:
    """What a model knows of a canary.

    loss:         of its code, in nats; exposure: in bits, by rank; extrapolated: by a fitted distribution, None
                  where it does not fit; extracted: whether the likeliest token is the code's at every place.
    """

    canary: Canary
    loss: float
    exposure: float
    extracted: bool
    extrapolated: float | None


def secrets_of(job: Job, canaries: Sequence[Canary], references: int) -> Secrets:
    """Return canaries, each with so many references, as tokens.

    Raises:
        ConfigError: a row does not fit into max_length.
    """
    rows: list[list[TokenRow]] = []
    for canary in canaries:
        codes = [canary.code, *canary.references(references, job.config.seed)]
        table = tokenize(
            [canary.with_code(code) for code in codes],
            job.tokenizer,
            OnlyCode(job.template),
            max_length=job.config.max_length,
        )
        if table.truncated.any():
            raise ConfigError(
                f"canaries do not fit into max_length {job.config.max_length}; raise it in a new run."
            )
        rows.append([table.row(index) for index in range(len(table))])
    return Secrets(canaries, rows)


def known_of(job: Job, adapter: Mapping[str, Tensor], secrets: Secrets, *, extrapolate: bool) -> list[Known]:
    """Return what ``adapter`` knows of every canary."""
    found = []
    for canary, rows in zip(secrets.canaries, secrets.rows, strict=True):
        (losses,) = row_losses(job.model, [adapter], [rows])
        sums: NDArray[np.float64] = losses.sums.numpy()
        (exposure,) = exposures(sums[:1], sums[np.newaxis, 1:])
        found.append(
            Known(
                canary,
                float(sums[0]),
                float(exposure),
                # Given the code so far the next token is the likeliest one, at each: a greedy answer is the code.
                bool(losses.correct[0] == losses.counts[0]),
                extrapolated(float(sums[0]), sums[1:]) if extrapolate else None,
            )
        )
    return found


def by_repetitions(known: Sequence[Known], times: Mapping[str, int], seed: int) -> list[dict[str, object]]:
    """Return means over the canaries that were planted so often, for JSON; times: name -> times trained on."""
    found: list[dict[str, object]] = []
    for repetitions in sorted({one.canary.repetitions for one in known}):
        mine = [one for one in known if one.canary.repetitions == repetitions]
        bits = [one.exposure for one in mine]
        interval = bootstrap(bits, resamples=2000, seed=seeds.derive(seed, repetitions))
        found.append(
            {
                "repetitions": repetitions,
                "canaries": len(mine),
                "times_trained_on": sum(times.get(one.canary.name, 0) for one in mine) / len(mine),
                "exposure_mean": interval.estimate,
                "exposure_interval": interval.bounds() if len(mine) >= FEWEST_FOR_INTERVAL else None,
                "exposure_median": float(np.median(bits)),
                "exposure_highest": max(bits),
                "extracted": sum(one.extracted for one in mine),
            }
        )
    return found


def code_of(example: Example) -> str:
    """Return the code that a canary's answer ends with."""
    return example.answer.removesuffix(".").rpartition(" ")[2]
