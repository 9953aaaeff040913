"""Preference pairs as tokens: one prompt with the answer that was preferred and the one that was not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedit.data.encoding import encoder_of
from fedit.data.examples import Example, Message
from fedit.data.rendering import Template
from fedit.data.tokens import ANSWER_CUT, PROMPT_CUT, WHOLE, TokenRow, TokenTable, tokenize, with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNCUT = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class PairRow:
    """One preference; in both rows the targets are the tokens of the last answer alone.

    reference: log-probability of the chosen answer minus that of the rejected one under the reference model, in
               nats; None until it is known.
    """

    chosen: TokenRow
    rejected: TokenRow
    reference: float | None = None

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """What the model runs: the chosen row, then the rejected one."""
        return (self.chosen, self.rejected)


def tokenize_pairs(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_length: int,
    cache_dir: Path | None = None,
) -> tuple[TokenTable, TokenTable]:
    """Return the tokens of the chosen and of the rejected answers of ``examples``, each after its prompt.

    A pair that is too long loses the oldest tokens of its prompt first, the same ones on both sides, so that the
    two answers are answers to one prompt; then the end of an answer.

    Args:
        examples: rows with a rejected answer.
        tokenizer: a fast tokenizer.
        template: from `fedit.data.templates.get_template`, with this tokenizer.
        max_length: longest row, in tokens.
        cache_dir: as for `fedit.data.tokens.tokenize`, whose errors may be raised.
    """
    sides = [
        tokenize(side, tokenizer, template, max_length=_UNCUT, cache_dir=cache_dir)
        for side in (examples, [_rejected(example) for example in examples])
    ]
    encoder = encoder_of(tokenizer)
    chosen, rejected = _Rows(), _Rows()
    for index in range(len(examples)):
        rows = [side.row(index) for side in sides]
        kept = with_bos(rows[0].ids, encoder)[1]
        firsts = [_last_answer(row) for row in rows]
        longest = max(len(row.ids) for row in rows)
        # One token stays before the answers, from which their first tokens are predicted.
        cut = min(max(longest - max_length, 0), max(min(firsts) - max(kept, 1), 0))
        for row, first, table in zip(rows, firsts, (chosen, rejected), strict=True):
            table.add(row.ids, first, kept, cut, max_length)
    return chosen.table(), rejected.table()


def _rejected(example: Example) -> Example:
    """Return the row that ends with the rejected answer."""
    answer = Message("assistant", example.rejected or "")
    return replace(example, messages=(*example.messages[:-1], answer), rejected=None)


def _last_answer(row: TokenRow) -> int:
    """Return where the last run of targets starts: that of the last answer."""
    places = np.flatnonzero(row.supervised)
    if not len(places):
        return len(row.ids)
    breaks = np.flatnonzero(np.diff(places) > 1)
    return int(places[breaks[-1] + 1] if len(breaks) else places[0])


class _Rows:
    """Rows that become a table."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        self._supervised: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
        self._truncated: list[int] = []

    def add(self, ids: NDArray[np.int32], first: int, kept: int, cut: int, max_length: int) -> None:
        """Add a row without ``cut`` tokens after the first ``kept``; its answer starts at ``first``."""
        left = np.concatenate([ids[:kept], ids[kept + cut :]])[:max_length] if cut else ids[:max_length]
        supervised = np.zeros(len(left), dtype=np.bool_)
        supervised[first - cut :] = True
        self._ids.append(left)
        self._supervised.append(supervised)
        shortened = len(ids) - cut > max_length
        self._truncated.append(ANSWER_CUT if shortened else PROMPT_CUT if cut else WHOLE)

    def table(self) -> TokenTable:
        """Return all rows, one after the other."""
        return TokenTable(
            np.concatenate(self._ids),
            np.concatenate(self._supervised),
            np.cumsum([len(ids) for ids in self._ids], dtype=np.int64),
            np.array(self._truncated, dtype=np.uint8),
        )
