"""A generated instruction set: Dolly's eight categories, every answer verifiable, nothing to download.

What a small model learns here is mostly the form of each category's answer; the facts are common knowledge
or stand in the prompt. Rows of different splits share no entity and no phrasing: held-out rows measure
whether the forms carry over to words and questions that were not trained on.
"""

from fedit.data.examples import Corpus, Example, Message, prompt_id
from fedit.data.skills.phrasings import PHRASINGS, Phrasing
from fedit.data.skills.rows import COUNTS, SKILLS, shuffled
from fedit.data.skills.words import HELD_OUT, TRAINING, VALIDATION, Words
from fedit.errors import DataError
from fedit.seeds import derive

CATEGORIES = tuple(SKILLS)


def load_skills(
    *,
    per_category: int = 200,
    seed: int = 0,
    validation_per_category: int = 8,
    held_out_per_category: int = 8,
) -> Corpus:
    """Generate the skills set: training rows, and validation and held-out rows with other words and phrasings.

    In each split all categories have the same number of rows, and every run of eight rows from the start
    holds each category once. With the same ``seed``, asking for more rows keeps the first ones.

    Raises:
        DataError: more rows were asked for than the word lists can make without repeating a prompt.
    """
    training = {category: phrasings.training for category, phrasings in PHRASINGS.items()}
    validation = {category: phrasings.validation for category, phrasings in PHRASINGS.items()}
    held_out = {category: phrasings.held_out for category, phrasings in PHRASINGS.items()}
    return Corpus(
        name="skills",
        examples=_split("training", per_category, TRAINING, training, seed),
        validation=_split("validation", validation_per_category, VALIDATION, validation, seed),
        held_out=_split("held_out", held_out_per_category, HELD_OUT, held_out, seed),
    )


def _split(
    split: str, per_category: int, words: Words, phrasings: dict[str, tuple[Phrasing, ...]], seed: int
) -> tuple[Example, ...]:
    _check_size(split, per_category, words, phrasings)
    rows = {
        category: _examples(
            category, per_category, words, phrasings[category], derive(seed, "skills", split, category)
        )
        for category in CATEGORIES
    }
    order = [
        (category, index)
        for index in range(per_category)
        for category in shuffled(CATEGORIES, derive(seed, "skills", split, "order", index))
    ]
    return tuple(rows[category][index] for category, index in order)


def _examples(
    category: str, count: int, words: Words, phrasings: tuple[Phrasing, ...], seed: int
) -> list[Example]:
    """Return ``count`` rows of one category, no two with the same prompt, the phrasings in turn."""
    every = PHRASINGS[category]
    numbered = every.training + every.validation + every.held_out
    skill = SKILLS[category](words, seed)
    examples: dict[str, Example] = {}
    while len(examples) < count:
        phrasing = phrasings[len(examples) % len(phrasings)]
        row = skill(phrasing)
        example = Example(
            messages=(Message("user", row.instruction), Message("assistant", row.answer)),
            context=row.context,
            category=category,
            check=row.check,
            keys=(
                *(f"entity:{entity}" for entity in row.entities),
                f"phrasing:{category}:{numbered.index(phrasing)}",
            ),
            where=f"skills {category}:{len(examples) + 1}",
        )
        # The phrasing stays until it gets a prompt of its own; decks deal every entity, so there is one.
        examples.setdefault(prompt_id(example), example)
    return list(examples.values())


def _check_size(split: str, asked: int, words: Words, phrasings: dict[str, tuple[Phrasing, ...]]) -> None:
    """Refuse a size that open_qa or brainstorming, which combine least, cannot fill without repetition."""
    most = min(
        len(words.capitals) * len(phrasings["open_qa"]),
        len(words.topics) * len(COUNTS) * len(phrasings["brainstorming"]),
    )
    least = 1 if split == "training" else 0
    if not least <= asked <= most:
        setting = "per_category" if split == "training" else f"{split}_per_category"
        raise DataError(
            f"the skills set cannot make {asked} {split} rows for each category: '{setting}' must be from "
            f"{least} to {most}, the most that its words allow without repeating a prompt."
        )
