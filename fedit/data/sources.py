"""Rows from a file, a folder of client files or the hub, as one corpus."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedit.data.examples import Corpus, Example
from fedit.data.rowfiles import READERS, PlacedRow, read_rows
from fedit.data.schemas import choose_schema
from fedit.errors import ConfigError, DataError
from fedit.seeds import derive

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CLIENT_FILE = re.compile(r"local_training_(\d+)\.json")
_HELD_OUT_FILE = "global_test.json"


def load_rows(
    dataset: str,
    *,
    columns: Mapping[str, str],
    data_format: str = "auto",
    split: str = "train",
    partition_by: str | None = None,
    max_examples: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Return the rows of ``dataset`` as examples.

    Args:
        dataset: a .json, .jsonl, .csv or .parquet file; a folder of ``local_training_<n>.json``
            (Shepherd's layout; ``global_test.json`` becomes the held-out rows and client n owns
            the rows of file n); or ``owner/name`` on the hub.
        columns: the user's own field names for instruction, context, response, category, check.
        data_format: "auto" or a name of `fedit.data.schemas.SCHEMAS`.
        split: which split of a hub data set.
        partition_by: the field whose value owns the row.
        max_examples: keep a random sample of this many rows, in their order.
        seed: root seed of that sample.

    Raises:
        DataError: rows are missing, broken or lack fields; the message says where and what to do.
        ConfigError: a setting has no meaning.
    """
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples is {max_examples}; expected at least 1.")
    held_out: tuple[Example, ...] = ()
    path = Path(dataset).expanduser()
    if path.is_dir():
        folder = _client_folder(path)
        rows, owners = _client_rows(folder)
        if (folder / _HELD_OUT_FILE).is_file():
            held_out = _examples(read_rows(folder / _HELD_OUT_FILE), data_format, columns)
    else:
        rows = read_rows(path) if _names_a_file(dataset) else _hub_rows(dataset, split)
        owners = [None] * len(rows)
    if partition_by is not None:
        owners = _owners(rows, partition_by)
    examples = tuple(
        dataclasses.replace(example, owner=owner)
        for example, owner in zip(_examples(rows, data_format, columns), owners, strict=True)
    )
    return Corpus(dataset, _sample(examples, max_examples, seed), held_out=held_out)


def _examples(rows: Sequence[PlacedRow], data_format: str, columns: Mapping[str, str]) -> tuple[Example, ...]:
    schema = choose_schema(rows[0].fields, data_format, columns, rows[0].where)
    return tuple(schema.read(row.fields, row.where) for row in rows)


def _names_a_file(dataset: str) -> bool:
    path = Path(dataset).expanduser()
    return path.is_file() or path.suffix.lower() in READERS or not _HUB_NAME.fullmatch(dataset)


def _client_folder(path: Path) -> Path:
    """Return the folder that holds the client files: ``path`` or its one numbered sub-folder."""
    if _client_files(path):
        return path
    nested = [f for f in sorted(path.iterdir()) if f.is_dir() and f.name.isdecimal() and _client_files(f)]
    if len(nested) == 1:
        return nested[0]
    if nested:
        raise DataError(
            f"{path} holds several partitions ({', '.join(f.name for f in nested)}); "
            f"name one of them, for example {nested[0]}."
        )
    files = [f.name for f in sorted(path.iterdir()) if f.suffix.lower() in READERS]
    found = f"; to read one of its files, name it: {', '.join(files[:5])}" if files else ""
    raise DataError(f"the folder {path} has no local_training_<n>.json, one file per client{found}.")


def _client_files(folder: Path) -> dict[int, Path]:
    """Return the client files by number, in order."""
    matches = [(match, file) for file in folder.iterdir() if (match := _CLIENT_FILE.fullmatch(file.name))]
    return dict(sorted((int(match[1]), file) for match, file in matches))


def _client_rows(folder: Path) -> tuple[list[PlacedRow], list[str | None]]:
    files = _client_files(folder)
    absent = sorted(set(range(max(files) + 1)) - set(files))
    if absent:
        names = ", ".join(f"local_training_{number}.json" for number in absent[:5])
        raise DataError(f"{folder} has {len(files)} client files up to number {max(files)}, but not {names}.")
    rows: list[PlacedRow] = []
    owners: list[str | None] = []
    for number, file in files.items():
        found = read_rows(file)
        rows += found
        owners += [f"client_{number}"] * len(found)
    return rows, owners


def _hub_rows(name: str, split: str) -> list[PlacedRow]:
    local = f"There is no file or folder {name} here"
    try:
        import datasets  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise DataError(
            f"{local}, and to fetch it from the hub the package datasets is needed: pip install 'fedit[hub]'"
        ) from error
    try:
        table = datasets.load_dataset(name, split=split).to_list()
    except Exception as error:  # the hub client raises errors of half a dozen libraries
        raise DataError(
            f"{local}, and the hub gave no split '{split}' of it: {type(error).__name__}: {error}. "
            "Check the name, the split and the network, or download the data and give the path of a file."
        ) from error
    rows = [PlacedRow(row, f"{name} ({split}), row {number}") for number, row in enumerate(table, 1)]
    if not rows:
        raise DataError(f"the split '{split}' of {name} holds no rows.")
    return rows


def _owners(rows: Sequence[PlacedRow], field: str) -> list[str | None]:
    fields = list(dict.fromkeys(name for row in rows for name in row.fields))
    if field not in fields:
        raise DataError(f"partition_by names the field '{field}', which no row has; fields: {', '.join(fields)}.")
    values = [row.fields.get(field) for row in rows]
    unusable = [
        row.where
        for row, value in zip(rows, values, strict=True)
        if value is None or isinstance(value, list | dict)
    ]
    if unusable:
        raise DataError(
            f"partition_by: {len(unusable)} of {len(rows)} rows have no single value in '{field}' "
            f"({', '.join(unusable[:5])}); every row needs an owner: fill the field or remove the rows."
        )
    return [str(value) for value in values]


def _sample(examples: tuple[Example, ...], count: int | None, seed: int) -> tuple[Example, ...]:
    if count is None or count >= len(examples):
        return examples
    generator = np.random.default_rng(derive(seed, "max_examples"))
    kept = generator.choice(len(examples), size=count, replace=False)
    return tuple(examples[index] for index in sorted(kept.tolist()))
