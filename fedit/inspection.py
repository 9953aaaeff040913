"""A job's rows before training: as they come, as a run would use them, and why a run would refuse them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from fedit.config import RunConfig
from fedit.corpus import load_corpus
from fedit.data.check import QUANTILES, Audit, Piece, audit, show_example
from fedit.data.examples import Corpus, Example
from fedit.data.templates import get_template
from fedit.data.tokens import TokenTable
from fedit.errors import UserError
from fedit.job import Job
from fedit.model.loading import load_tokenizer
from fedit.model.sources import resolve_model
from fedit.objectives import rows_of
from fedit.prepare import prepare, tokens_of

ADVICE: Mapping[str, str] = {
    "empty_answers": "a run leaves rows without an answer out; fill them, or name the answers' column with "
    "columns.response=NAME",
    "nothing_supervised": "they teach nothing; correct their answers or raise max_length",
    "prompt_cut": "the beginning of these prompts is lost; raise max_length",
    "answer_cut": "the end of these answers is lost; raise max_length",
    "missing_eos": "these rows do not teach the model to stop; raise max_length, or correct the template",
    "duplicate_rows": "a run keeps the first of each",
    "ambiguous_prompts": "right for open questions; elsewhere correct the answers that contradict each other",
    "rows_of_several": "a run gives such a row to one of the clients only",
    "held_out_rows": "a run removes them from training, so that held-out results mean something",
    "same_answers": "they teach nothing; objective=dpo leaves them out",
    "held_out_prompts": "a run removes them from training, so that held-out results mean something",
}
"""What to do about each finding of an `Audit`, by its field."""

NO_CATEGORY = "(no category)"


@dataclass(frozen=True, slots=True)
class Shown:
    """A training row as it is learnt, and where it is from."""

    where: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a job's rows.

    audit:    of the rows as they come, before cleaning and splitting.
    job:      what a run would start with; None where it would refuse.
    refusal:  why it would.
    """

    audit: Audit
    examples: tuple[Shown, ...]
    job: Job | None
    refusal: UserError | None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Rows of one category and their tokens, each at `QUANTILES`; ``supervised`` is a share of all tokens."""

    training: int
    validation: int
    held_out: int
    tokens: int
    supervised: float
    quantiles: tuple[int, ...]


def inspect(config: RunConfig, *, examples: int) -> Inspection:
    """Audit a job's rows and decode some of them from the very tokens that training uses.

    Raises:
        UserError: the rows or the model cannot be read at all.
    """
    job, refusal = None, None
    try:
        job = prepare(config)
    except UserError as error:
        refusal = error
    corpus = load_corpus(config)
    tokenizer = job.tokenizer if job else load_tokenizer(resolve_model(config.model))
    table = _table(config, corpus, tokenizer)
    rows, tokens = (job.corpus.examples, job.table) if job else (corpus.examples, table)
    shown = tuple(_shown(rows, place, tokens, tokenizer) for place in _spread(len(rows), examples))
    return Inspection(audit(corpus, table, tokenizer), shown, job, refusal)


def first_example(job: Job) -> Shown:
    """Return the first training row, decoded from the very tokens that training uses."""
    return _shown(job.corpus.examples, 0, job.table, job.tokenizer)


def _shown(rows: Sequence[Example], place: int, tokens: TokenTable, tokenizer: PreTrainedTokenizerBase) -> Shown:
    return Shown(rows[place].where or f"row {place + 1}", show_example(tokens, place, tokenizer))


def _table(config: RunConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
    """Return the tokens of the training rows as they come; where some are no pairs, the answers' alone."""
    template = get_template(config.prompt_template, tokenizer)
    if any(example.rejected is None for example in corpus.examples):
        config = config.model_copy(update={"objective": "sft"})
    return tokens_of(config, corpus.examples, tokenizer, template)[0]


def lengths(job: Job) -> dict[str, Lengths]:
    """Return rows and tokens by category, those without one last."""
    splits = (job.corpus.examples, job.corpus.validation, job.corpus.held_out)
    names = {example.category for rows in splits for example in rows}
    known = sorted(name for name in names if name is not None)
    ordered: list[str | None] = [*known, *([None] if None in names else [])]
    return {
        NO_CATEGORY if name is None else name: _measure(
            job, [[example for example in rows if example.category == name] for rows in splits]
        )
        for name in ordered
    }


def total(job: Job) -> Lengths:
    """Return rows and tokens of all categories."""
    return _measure(job, [job.corpus.examples, job.corpus.validation, job.corpus.held_out])


def quantile_names() -> list[str]:
    """Return what `QUANTILES` are called."""
    special = {0.0: "min", 0.5: "median", 1.0: "max"}
    return [special.get(q, f"{q:.0%}") for q in QUANTILES]


def supervised_share(table: TokenTable) -> float:
    """Return which share of all tokens is learnt."""
    return float(table.supervised.mean()) if len(table.ids) else 0.0


def _measure(job: Job, splits: Sequence[Sequence[Example]]) -> Lengths:
    training, validation, held_out = splits
    rows = rows_of(job.learnt(training))
    sizes = [len(row.ids) for row in rows]
    learnt = sum(int(row.supervised.sum()) for row in rows)
    return Lengths(
        len(training),
        len(validation),
        len(held_out),
        sum(sizes),
        learnt / max(sum(sizes), 1),
        tuple(int(size) for size in np.quantile(sizes, QUANTILES, method="inverted_cdf")) if sizes else (),
    )


def _spread(rows: int, count: int) -> list[int]:
    """Return ``count`` places spread over ``rows`` rows, the first among them."""
    count = min(count, rows)
    return [index * rows // count for index in range(count)]
