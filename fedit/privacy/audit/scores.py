"""Scores by which an attacker guesses whether a row was trained on: higher means more likely so."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedit.evaluation.tokenscores import TokenScores

Numbers = NDArray[np.float64]

ABOUT: Mapping[str, str] = {
    "loss": "low loss",
    "reference": "loss fell against a reference model",
    "zlib": "low loss for how well the text compresses",
    "min_k": "the least likely tokens are likely (Min-K%)",
    "min_k_plus_plus": "the same, against all tokens at their place (Min-K%++)",
    "lira": "shadow models with and without the row (LiRA-lite)",
    "lira_offline": "shadow models without the row (offline LiRA-lite)",
}
"""Score -> what it goes by."""

SHARE = 0.2
"""Of a row's tokens, those that Min-K% looks at."""


def membership_scores(
    own: Sequence[TokenScores], reference: Sequence[TokenScores] | None, answers: Sequence[str]
) -> dict[str, Numbers]:
    """Return every score of every row, (rows,).

    own:       of the model that is attacked; reference: of one that did not see the rows, where there is one (the
               base, or what a client was sent); answers: what the rows' targets say.
    """
    losses = np.array([row.loss for row in own])
    found = {"loss": -losses}
    if reference is not None:
        found["reference"] = np.array([row.loss for row in reference]) - losses
    found["zlib"] = -losses / [len(zlib.compress(text.encode())) for text in answers]
    found["min_k"] = np.array([lowest(row.log_probability) for row in own])
    found["min_k_plus_plus"] = np.array([lowest(standardised(row)) for row in own])
    return found


def lowest(values: Numbers, share: float = SHARE) -> float:
    """Return the mean of the lowest ``share`` of the values, at least one: Min-K% (arXiv:2310.16789)."""
    count = max(1, int(share * len(values)))
    return float(np.sort(values)[:count].mean())


def standardised(row: TokenScores) -> Numbers:
    """Return (ln p - mean) / deviation of every token, as Min-K%++ takes it (arXiv:2404.02936)."""
    # Where one token is certain, nothing deviates; it is then neither more nor less likely than expected.
    return np.asarray((row.log_probability - row.mean) / np.maximum(row.deviation, 1e-6))


def lira(confidence: Numbers, shadows: Numbers, inside: NDArray[np.bool_]) -> dict[str, Numbers]:
    """Return the likelihood ratio of every row (rows,), with shadows that saw it and without (arXiv:2112.03570).

    confidence: (rows,) of the model that is attacked, higher for rows that it knows; shadows: (models, rows), the
    same of models that were trained on random halves; inside: (models, rows), which of them saw which row. A row
    has a median of its own, and as few models are trained all share one variance.
    """
    with_row, spread_in = _fitted(shadows, inside)
    without, spread_out = _fitted(shadows, ~inside)
    z_in, z_out = (confidence - with_row) / spread_in, (confidence - without) / spread_out
    return {"lira": (z_out**2 - z_in**2) / 2 + np.log(spread_out / spread_in), "lira_offline": z_out}


def _fitted(shadows: Numbers, chosen: NDArray[np.bool_]) -> tuple[Numbers, float]:
    """Return each row's median over the chosen models, and the deviation of all from theirs."""
    known = np.where(chosen, shadows, np.nan)
    medians = np.nanmedian(known, axis=0)
    return medians, max(float(np.sqrt(np.nanmean((known - medians) ** 2))), 1e-6)
