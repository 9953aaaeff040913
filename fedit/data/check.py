"""What is wrong with rows before training on them: an audit, and one example as it is really learnt."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedit.data.examples import Corpus, Example, prompt_id, row_id
from fedit.data.tokens import ANSWER_CUT, PROMPT_CUT, TokenTable
from fedit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)
_PLACES = 5  # how many rows a finding or an error names


@dataclass(frozen=True, slots=True)
class Finding:
    """How many rows show one thing, and where the first few are."""

    title: str
    count: int
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What `audit` found in the training rows.

    empty_answers:      an answer (of any turn) without text.
    nothing_supervised: rows without any target.
    prompt_cut:         the oldest tokens are missing, because the row is longer than max_length.
    answer_cut:         the end of the answer is missing.
    missing_eos:        the last target is not the end of sequence, so the model is not taught to stop.
    duplicate_rows:     rows that repeat an earlier row.
    ambiguous_prompts:  rows whose prompt also occurs with another answer.
    rows_of_several:    rows that more than one client holds.
    held_out_rows:      rows that are held out (or for validation) as well.
    held_out_prompts:   rows whose prompt is held out as well, with the same or another answer.
    same_answers:       preferences whose two answers are the same.
    pairs:              rows that are preferences: they have a rejected answer.
    lengths:            tokens of a row at each of `QUANTILES`.
    supervised_lengths: targets of a row at each of `QUANTILES`.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    empty_answers: Finding
    nothing_supervised: Finding
    prompt_cut: Finding
    answer_cut: Finding
    missing_eos: Finding
    duplicate_rows: Finding
    ambiguous_prompts: Finding
    rows_of_several: Finding
    held_out_rows: Finding
    held_out_prompts: Finding
    same_answers: Finding
    pairs: int
    lengths: tuple[int, ...]
    supervised_lengths: tuple[int, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, also those with no rows, in a fixed order."""
        values = (getattr(self, name) for name in self.__slots__)
        return tuple(value for value in values if isinstance(value, Finding))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of decoded text whose tokens are all targets, or none is."""

    text: str
    supervised: bool


def audit(
    corpus: Corpus,
    table: TokenTable,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    clients: Mapping[str, Sequence[str]] | None = None,
) -> Audit:
    """Return what is wrong with the training rows of ``corpus``.

    Args:
        corpus: the rows; held-out and validation rows are compared with the training rows.
        table: the tokens of ``corpus.examples``, row by row.
        tokenizer: the one that made ``table``.
        clients: `row_id`s by client; None: the rows' owners, where they have one.
    """
    rows = corpus.examples
    ids, prompts = [row_id(row) for row in rows], [prompt_id(row) for row in rows]
    outside = (*corpus.validation, *corpus.held_out)
    outside_ids, outside_prompts = {row_id(row) for row in outside}, {prompt_id(row) for row in outside}
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for row, prompt in zip(ids, prompts, strict=True):
        answers[prompt].add(row)
    shared = _held_by_several(rows, ids, clients)

    def finding(title: str, found: Iterable[bool]) -> Finding:
        places = [place for place, hit in enumerate(found) if hit]
        return Finding(title, len(places), tuple(_where(rows, place) for place in places[:_PLACES]))

    counts = table.supervised_counts
    return Audit(
        rows=len(rows),
        tokens=int(table.lengths.sum()),
        supervised_tokens=int(counts.sum()),
        empty_answers=finding("empty answers", (_has_empty_answer(row) for row in rows)),
        nothing_supervised=finding("rows with nothing to learn", counts == 0),
        prompt_cut=finding("prompts cut to max_length", table.truncated == PROMPT_CUT),
        answer_cut=finding("answers cut to max_length", table.truncated == ANSWER_CUT),
        missing_eos=finding("answers without end of sequence", ~_ends(table, tokenizer)),
        duplicate_rows=finding("rows that repeat an earlier row", _repeats(ids)),
        ambiguous_prompts=finding(
            "prompts with different answers", (len(answers[prompt]) > 1 for prompt in prompts)
        ),
        rows_of_several=finding("rows held by several clients", (row in shared for row in ids)),
        held_out_rows=finding("rows that are held out as well", (row in outside_ids for row in ids)),
        held_out_prompts=finding(
            "prompts that are held out as well", (prompt in outside_prompts for prompt in prompts)
        ),
        same_answers=finding("preferences with two equal answers", (row.rejected == row.answer for row in rows)),
        pairs=sum(row.rejected is not None for row in rows),
        lengths=_quantiles(table.lengths),
        supervised_lengths=_quantiles(counts),
    )


def show_example(table: TokenTable, index: int, tokenizer: "PreTrainedTokenizerBase") -> tuple[Piece, ...]:
    """Return row ``index`` decoded from the very ids and mask that training uses."""
    row = table.row(index)
    ids = row.ids.tolist()
    borders = [0, *(np.flatnonzero(np.diff(row.supervised)) + 1).tolist(), len(ids)]
    pieces, before = [], ""
    for start, end in itertools.pairwise(borders):
        # The decoders of some tokenizers treat the first token specially, so text is a difference of texts.
        text = _decode(tokenizer, ids[:end])
        new = text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[start:end])
        pieces.append(Piece(new, bool(row.supervised[start])))
        before = text
    return tuple(piece for piece in pieces if piece.text)


def refuse_if_nothing_learnt(
    table: TokenTable, examples: Sequence[Example], clients: Mapping[str, Sequence[str]]
) -> None:
    """Make sure that every client has something to learn.

    Args:
        table: the tokens of ``examples``, row by row.
        examples: the training rows.
        clients: `row_id`s by client.

    Raises:
        DataError: none of a client's tokens is a target.
    """
    places = {row_id(example): place for place, example in enumerate(examples)}
    counts = table.supervised_counts
    for client, held in clients.items():
        rows = [places[row] for row in held if row in places]
        if any(counts[rows] > 0):
            continue
        if not rows:
            raise DataError(f"client '{client}' holds no training rows; use fewer clients or another partition.")
        named = ", ".join(_where(examples, place) for place in rows[:_PLACES])
        raise DataError(
            f"client '{client}' has no token to learn in its {len(rows)} rows ({named}); "
            "raise max_length, correct the answers, or give the client other rows."
        )


def refuse_without_rejected(examples: Sequence[Example]) -> None:
    """Make sure that every row is a preference.

    Raises:
        DataError: some have no rejected answer.
    """
    lacking = [place for place, example in enumerate(examples) if example.rejected is None]
    if lacking:
        raise DataError(
            f"objective=dpo learns from pairs of answers, and {len(lacking)} of {len(examples)} rows have no "
            f"rejected one ({', '.join(_where(examples, place) for place in lacking[:_PLACES])}); give rows with "
            "prompt, chosen and rejected, name the columns with columns.response=FIELD columns.rejected=FIELD, or "
            "use objective=sft."
        )


def _held_by_several(
    rows: Sequence[Example], ids: Sequence[str], clients: Mapping[str, Sequence[str]] | None
) -> set[str]:
    if clients is None:
        pairs = {(row.owner, id) for row, id in zip(rows, ids, strict=True) if row.owner is not None}
    else:
        pairs = {(client, id) for client, held in clients.items() for id in held}
    holders = Counter(id for _, id in pairs)
    return {id for id, count in holders.items() if count > 1}


def _has_empty_answer(row: Example) -> bool:
    return any(message.role == "assistant" and not message.content.strip() for message in row.messages)


def _ends(table: TokenTable, tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.bool_]:
    """Return which rows' last target is the end of sequence, (rows,) bool."""
    ends = np.zeros(len(table), dtype=np.bool_)
    for index in range(len(table)):
        row = table.row(index)
        targets = row.ids[row.supervised]
        ends[index] = len(targets) > 0 and targets[-1] == tokenizer.eos_token_id
    return ends


def _repeats(ids: Sequence[str]) -> list[bool]:
    seen: set[str] = set()
    repeats = []
    for id in ids:
        repeats.append(id in seen)
        seen.add(id)
    return repeats


def _quantiles(values: NDArray[np.int64]) -> tuple[int, ...]:
    if not len(values):
        return ()
    return tuple(int(value) for value in np.quantile(values, QUANTILES, method="inverted_cdf"))


def _where(rows: Sequence[Example], place: int) -> str:
    return rows[place].where or f"row {place + 1}"


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list of ids gives one text
    return text
