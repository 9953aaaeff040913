"""Generated preferences: the skills' answers, each beside one that is worse in a way that can be named.

Three faults take turns, so that a small model can learn from a few hundred pairs what they have in common: an
answer that hedges before it answers, one that says everything twice, and the right answer to another question of
the same category.
"""

from dataclasses import replace

from fedit.data.examples import Corpus, Example
from fedit.seeds import derive

HEDGES = (
    "Well, I am not really sure, but maybe it could be this: {answer}",
    "That is a good question. Let me think about it for a while. {answer}",
    "As far as I know, and please do check it yourself, {answer}",
)
FAULTS = ("hedges", "repeats", "other")


def with_rejected(corpus: Corpus, seed: int) -> Corpus:
    """Return the rows of the skills set as preferences; the answer stays the chosen one."""
    return replace(
        corpus,
        name="preferences",
        examples=_pairs(corpus.examples, seed),
        validation=_pairs(corpus.validation, seed),
        held_out=_pairs(corpus.held_out, seed),
    )


def _pairs(examples: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    by_category: dict[str | None, list[Example]] = {}
    for example in examples:
        by_category.setdefault(example.category, []).append(example)
    worse: dict[int, str] = {}
    for rows in by_category.values():
        for index, example in enumerate(rows):
            draw = derive(seed, "preferences", example.where)
            others = [row.answer for row in rows[index + 1 :] + rows[:index] if row.answer != example.answer]
            worse[id(example)] = _worse(example.answer, others, FAULTS[index % len(FAULTS)], draw)
    return tuple(replace(example, rejected=worse[id(example)]) for example in examples)


def _worse(answer: str, others: list[str], fault: str, draw: int) -> str:
    if fault == "other" and others:
        return others[0]
    if fault == "repeats":
        return f"{answer}\n{answer}"
    return HEDGES[draw % len(HEDGES)].format(answer=answer)
