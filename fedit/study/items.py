"""What an arm makes of every held-out row: the numbers that intervals resample."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedit.data.examples import Example, row_id
from fedit.errors import RunFolderError
from fedit.evaluation.grading import grade, reference_check
from fedit.evaluation.loss import RowLosses
from fedit.evaluation.rouge import rouge_l
from fedit.files import write_json
from fedit.reading import parse_json, shown


@dataclass(frozen=True, slots=True)
class Items:
    """One arm's results at one seed, row by row; answers and what follows from them may be missing.

    rows:       ids; categories, owners: of each row, None where it has none.
    nll:        summed negative log-likelihood of the answer's tokens, nats; tokens: how many; correct: of them.
    texts:      generated answers; right: whether they meet the row's check or reference; rouge: ROUGE-L to it.
    """

    rows: tuple[str, ...]
    categories: tuple[str | None, ...]
    owners: tuple[str | None, ...]
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    correct: tuple[int, ...]
    texts: tuple[str, ...] | None = None
    right: tuple[bool, ...] | None = None
    rouge: tuple[float, ...] | None = None

    @classmethod
    def of(cls, examples: Sequence[Example], losses: RowLosses, texts: Sequence[str] | None) -> "Items":
        """Return the results of ``examples``."""
        return cls(
            tuple(row_id(example) for example in examples),
            tuple(example.category for example in examples),
            tuple(example.owner for example in examples),
            tuple(losses.sums.tolist()),
            tuple(losses.counts.tolist()),
            tuple(losses.correct.tolist()),
            None if texts is None else tuple(texts),
            None
            if texts is None
            else tuple(grade(e.check or reference_check(e), t) for e, t in zip(examples, texts, strict=True)),
            None if texts is None else tuple(rouge_l(t, e.answer) for e, t in zip(examples, texts, strict=True)),
        )

    @classmethod
    def read(cls, path: Path) -> "Items":
        """Return what `write` wrote.

        Raises:
            RunFolderError: the file is missing or broken.
        """
        try:
            values = parse_json(path.read_bytes())
            columns: dict[str, Any] = {name: value and tuple(value) for name, value in values.items()}
            items = cls(**columns)
            items.check()
            return items
        except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise RunFolderError(f"cannot read {path}: {error}; delete it and run the study again.") from error

    def check(self) -> None:
        """Make sure that every column is as long as the rows, and of one type.

        Raises:
            ValueError: one is not.
        """
        kinds: dict[str, Any] = {"nll": float, "tokens": int, "correct": int, "right": bool, "rouge": float}
        answered = {(self.texts is None), (self.right is None), (self.rouge is None)}
        if len(answered) > 1:
            raise ValueError("texts, right and rouge are there together or not at all")
        for name in Items.__slots__:  # its fields
            column = getattr(self, name)
            if column is None and name in ("texts", "right", "rouge"):
                continue
            kind = kinds.get(name, str)
            accepted = (int, float) if kind is float else kind
            optional = (type(None),) if name in ("categories", "owners") else ()
            if not isinstance(column, tuple) or len(column) != len(self.rows):
                raise ValueError(f"{name} is {shown(column)}; expected one a row, {len(self.rows)}")
            for value in column:
                wrong = isinstance(value, bool) and kind is not bool
                if wrong or not isinstance(
                    value, (*optional, *(accepted if isinstance(accepted, tuple) else (accepted,)))
                ):
                    raise ValueError(f"{name} has {shown(value)}")

    def write(self, path: Path) -> None:
        """Write all fields as JSON."""
        write_json(path, asdict(self))

    def of_category(self, category: str) -> "Items":
        """Return the results of the rows of one category."""
        chosen = [index for index, own in enumerate(self.categories) if own == category]
        columns: dict[str, Any] = {
            name: value and tuple(value[index] for index in chosen) for name, value in asdict(self).items()
        }
        return Items(**columns)

    def column(self, metric: str) -> np.ndarray:
        """Return a metric's numbers, float64 (rows, 2): what is added up, and by what the sum is divided."""
        ones = np.ones(len(self.rows))
        tokens = np.asarray(self.tokens, dtype=np.float64)
        values: dict[str, tuple[Sequence[float] | None, np.ndarray]] = {
            "loss": (self.nll, tokens),
            "token_accuracy": (self.correct, tokens),
            "exact_match": (self.right, ones),
            "rouge_l": (self.rouge, ones),
        }
        top, bottom = values[metric]
        if top is None:
            raise ValueError(f"{metric} needs generated answers")
        return np.stack([np.asarray(top, dtype=np.float64), bottom], axis=1)


METRICS = {"loss": "lowest", "token_accuracy": "highest", "exact_match": "highest", "rouge_l": "highest"}
"""Metric -> which of its values is best."""


def metrics_of(items: Items) -> list[str]:
    """Return the metrics that there are numbers for."""
    return [name for name in METRICS if items.texts is not None or name in ("loss", "token_accuracy")]
