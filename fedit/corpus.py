"""The rows of a job, before they are split and dealt: loaded, and read as the objective reads them."""

from collections.abc import Sequence
from dataclasses import replace

from fedit.config import RunConfig
from fedit.data.check import refuse_without_rejected
from fedit.data.examples import Corpus, Example
from fedit.data.partition import find_scheme
from fedit.data.skills import load_skills
from fedit.data.skills.preferences import with_rejected
from fedit.data.sources import load_rows
from fedit.errors import ConfigError, DataError

MOST_UNLABELLED_HELD_OUT = 200


def load_corpus(config: RunConfig) -> Corpus:
    """Return the rows that ``dataset`` names, before cleaning and splitting.

    Raises:
        DataError: they cannot be had.
    """
    if config.dataset in ("skills", "preferences"):
        amounts: dict[str, int] = {}
        for name, value in (
            ("per_category", config.max_examples),
            ("held_out_per_category", config.held_out),
            ("validation_per_category", config.validation),
        ):
            if isinstance(value, float):
                setting = name.removesuffix("_per_category")
                raise ConfigError(
                    f"{setting} is {value}; the {config.dataset} data takes a whole number of rows a category."
                )
            if value is not None:
                amounts[name] = value
        skills = load_skills(seed=config.seed, **amounts)
        return with_rejected(skills, config.seed) if config.dataset == "preferences" else skills
    return load_rows(
        config.dataset,
        columns=config.columns.given(),
        data_format=config.data_format,
        split=config.dataset_split,
        partition_by=config.partition_by,
        max_examples=config.max_examples,
        seed=config.seed,
    )


def without_empty_answers(corpus: Corpus) -> tuple[Corpus, int]:
    """Return the rows that have an answer to learn, and how many training rows had none.

    Raises:
        DataError: none has one.
    """
    kept = tuple(example for example in corpus.examples if example.answer.strip())
    if not kept:
        raise DataError(
            f"data set '{corpus.name}' has nothing to learn: all {len(corpus.examples)} training rows "
            "have an empty answer. Name the column that holds the answers with columns.response=NAME."
        )
    return replace(corpus, examples=kept), len(corpus.examples) - len(kept)


def for_objective(corpus: Corpus, objective: str) -> tuple[Corpus, int]:
    """Return the rows as the objective reads them, and how many training rows teach it nothing.

    Without preferences to learn, rejected answers are no part of a row; with them, two equal answers prefer none.

    Raises:
        DataError: a row is no pair, or all pairs have two equal answers.
    """
    if objective == "dpo":
        refuse_without_rejected(corpus.all())

    def read(examples: Sequence[Example]) -> tuple[Example, ...]:
        if objective == "dpo":
            return tuple(e for e in examples if e.rejected != e.answer)
        return tuple(e if e.rejected is None else replace(e, rejected=None) for e in examples)

    kept = replace(
        corpus,
        examples=read(corpus.examples),
        validation=read(corpus.validation),
        held_out=read(corpus.held_out),
    )
    if not kept.examples:
        raise DataError(f"data set '{corpus.name}' has nothing to learn: all pairs have two equal answers.")
    return kept, len(corpus.examples) - len(kept.examples)


def held_out_amount(config: RunConfig, corpus: Corpus) -> int | float:
    """Return the held-out setting with its default applied to this data."""
    if config.held_out is not None:
        return config.held_out
    if find_scheme(config.partitioner).needs == "owner":
        return 0.1
    if corpus.examples and all(example.category is not None for example in corpus.examples):
        return 10
    return min(0.1, MOST_UNLABELLED_HELD_OUT / max(len(corpus.examples), 1))
