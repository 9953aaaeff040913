"""Which rows are trained on, which choose settings and which are only ever measured."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedit.data.examples import Corpus, Example, prompt_id, row_id
from fedit.errors import ConfigError, DataError
from fedit.seeds import derive

MIN_OWNER_ROWS = 5
"""A client of fewer rows gives none away: it trains on all of them."""

_TRIES = 100
"""Orders of the prompt groups that are tried before an exact number of rows counts as unreachable."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Training rows that share one prompt; they move together."""

    rows: tuple[int, ...]
    per_stratum: Mapping[str, int]


def clean(corpus: Corpus) -> tuple[Corpus, dict[str, int]]:
    """Remove repeated rows, then rows whose prompt a stricter split holds.

    Held-out is stricter than validation, validation than training. Of identical rows the first
    of the strictest split stays. Returns the corpus and how many rows went for which reason:
    "duplicate", "prompt_in_held_out" and "prompt_in_validation".
    """
    removed = {"duplicate": 0, "prompt_in_held_out": 0, "prompt_in_validation": 0}
    seen: set[str] = set()
    prompts: dict[str, set[str]] = {}
    kept: dict[str, tuple[Example, ...]] = {}
    for split_name in ("held_out", "validation", "examples"):
        rows: tuple[Example, ...] = getattr(corpus, split_name)
        stay = []
        for example in rows:
            identity, prompt = row_id(example), prompt_id(example)
            crossed = next((name for name, taken in prompts.items() if prompt in taken), None)
            if identity in seen:
                removed["duplicate"] += 1
            elif crossed:
                removed[f"prompt_in_{crossed}"] += 1
            else:
                stay.append(example)
            seen.add(identity)
        kept[split_name] = tuple(stay)
        prompts[split_name] = {prompt_id(example) for example in stay}
    cleaned = replace(corpus, examples=kept["examples"], validation=kept["validation"], held_out=kept["held_out"])
    return cleaned, removed


def split(corpus: Corpus, *, held_out: int | float, validation: int | float, seed: int, by_owner: bool) -> Corpus:
    """Take held-out and validation rows from the training rows; splits that are filled stay as they are.

    An integer is the rows per category (rows in all where no row has a category); a float is a
    fraction of every category, rounded. With ``by_owner`` only fractions are taken, from every
    owner of at least `MIN_OWNER_ROWS` rows and at least one row of it; smaller owners keep all
    their rows, and where all owners are small the fraction is of all rows. Rows with the same
    prompt stay on one side, so a fraction is met as nearly as they allow without exceeding it.
    Rows keep their order.

    Raises:
        ConfigError: an amount is negative, or leaves nothing to train on whatever the data.
        DataError: a category has too few rows, or its prompts repeat too often, for what is asked.
    """
    _check_amounts(held_out, validation, by_owner)
    amounts = {
        "held_out": 0 if corpus.held_out else held_out,
        "validation": 0 if corpus.validation else validation,
    }
    if not any(amounts.values()):
        return corpus
    if not corpus.examples:
        raise DataError(f"data set '{corpus.name}' has no training row to hold out from.")
    strata = _strata(corpus.examples, by_owner)
    counts = Counter(strata)
    if by_owner:
        eligible = {name: n for name, n in counts.items() if n >= MIN_OWNER_ROWS}
        if eligible:
            counts = Counter(eligible)
        else:
            strata = ["all rows"] * len(strata)
            counts = Counter(strata)
    _check_enough(counts, amounts)
    groups = _groups(corpus.examples, strata)
    chosen: dict[str, set[int]] = {}
    for name, amount in amounts.items():
        need = {s: _rows_of(n, amount, at_least=int(by_owner and amount > 0)) for s, n in counts.items()}
        rng = np.random.default_rng(derive(seed, "split", name))
        taken = _choose(groups, need, rng, name=name, amount=amount)
        groups = [group for group in groups if not taken.intersection(group.rows)]
        chosen[name] = taken
    return _apply(corpus, chosen)


def _check_amounts(held_out: int | float, validation: int | float, by_owner: bool) -> None:
    for name, amount in (("held_out", held_out), ("validation", validation)):
        if isinstance(amount, bool) or not 0 <= amount < (1 if isinstance(amount, float) else float("inf")):
            raise ConfigError(
                f"{name} is {amount!r}; give a number of rows (0, 1, …) or a fraction below 1.0, such as 0.1."
            )
        if by_owner and isinstance(amount, int) and amount > 0:
            raise ConfigError(
                f"{name} is {amount} rows per category, but the clients are the owners of the rows and each "
                f"gives a share of its own; give {name} as a fraction, such as 0.1."
            )
    if isinstance(held_out, float) and isinstance(validation, float) and held_out + validation >= 1:
        raise ConfigError(
            f"held_out {held_out} and validation {validation} leave no row to train on; their sum must be below 1."
        )


def _strata(examples: Iterable[Example], by_owner: bool) -> list[str]:
    if by_owner:
        return ["(no owner)" if e.owner is None else e.owner for e in examples]
    categories = [e.category for e in examples]
    if all(category is None for category in categories):
        return ["all rows"] * len(categories)
    return ["(no category)" if category is None else category for category in categories]


def _check_enough(counts: Mapping[str, int], amounts: Mapping[str, int | float]) -> None:
    asked = sum(amount for amount in amounts.values() if isinstance(amount, int))
    for stratum, rows in sorted(counts.items()):
        if asked >= rows:
            raise DataError(
                f"'{stratum}' has {rows} rows and {asked} of them are to be held out or to validate, which "
                "leaves none to train on; lower held_out or validation, or give them as fractions."
            )


def _rows_of(rows: int, amount: int | float, at_least: int) -> int:
    if isinstance(amount, int):
        return amount
    return min(max(round(amount * rows), at_least), rows - 1)


def _groups(examples: Iterable[Example], strata: list[str]) -> list[_Group]:
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(prompt_id(example), []).append(index)
    return [_Group(tuple(rows), Counter(strata[row] for row in rows)) for rows in members.values()]


def _choose(
    groups: list[_Group], need: Mapping[str, int], rng: np.random.Generator, *, name: str, amount: int | float
) -> set[int]:
    """Return rows of whole groups that fill ``need`` (stratum -> rows) and never exceed it."""
    if not amount:
        return set()
    wanted = sum(need.values())
    best: list[int] = []
    for _ in range(_TRIES):
        taken = _fill(groups, need, rng)
        if len(taken) > len(best):
            best = taken
        # A fraction is met as nearly as whole groups allow; one order of them is as good as another.
        if best and (len(best) == wanted or isinstance(amount, float)):
            return set(best)
    if not wanted:
        raise DataError(
            f"{name} {amount} of {sum(len(g.rows) for g in groups)} rows is not one row; give more rows, or set "
            f"{name} to a number of rows, or to 0."
        )
    raise DataError(
        f"{name} {amount} asks for {wanted} of {sum(len(g.rows) for g in groups)} rows in {len(need)} parts, "
        f"and {len(best)} is the most that could be taken without parting rows of the same prompt "
        f"({len(groups)} different prompts); choose another {name} or give more data."
    )


def _fill(groups: list[_Group], need: Mapping[str, int], rng: np.random.Generator) -> list[int]:
    left = dict(need)
    taken: list[int] = []
    for position in rng.permutation(len(groups)):
        group = groups[position]
        if all(n <= left.get(stratum, 0) for stratum, n in group.per_stratum.items()):
            taken.extend(group.rows)
            for stratum, n in group.per_stratum.items():
                left[stratum] -= n
    return taken


def _apply(corpus: Corpus, chosen: Mapping[str, set[int]]) -> Corpus:
    rows = list(enumerate(corpus.examples))
    gone = set().union(*chosen.values())
    return replace(
        corpus,
        examples=tuple(e for i, e in rows if i not in gone),
        held_out=corpus.held_out or tuple(e for i, e in rows if i in chosen["held_out"]),
        validation=corpus.validation or tuple(e for i, e in rows if i in chosen["validation"]),
    )
