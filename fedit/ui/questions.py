"""Questions as the page puts them to several models: first turns, drawn in an order of chance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedit import seeds
from fedit.evaluation import questions as sets


@dataclass(frozen=True, slots=True)
class Question:
    """One question. ``id`` is "" for one that a person typed, ``category`` "" where there is none."""

    id: str
    text: str
    category: str = ""


def first_turns(questions: Iterable[sets.Question]) -> list[Question]:
    """Return what is asked first in each question of a set."""
    return [Question(own.question_id, own.turns[0].strip(), own.category or "") for own in questions]


def shuffled(questions: Sequence[Question], seed: int) -> list[Question]:
    """Return the questions in the order that ``seed`` draws."""
    order = np.random.default_rng(seeds.derive(seed, "questions")).permutation(len(questions))
    return [questions[index] for index in order]
