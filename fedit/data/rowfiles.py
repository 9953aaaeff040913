"""Rows from one file: JSON, JSON lines, CSV or Parquet, with the place of every mistake."""

import csv
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit.errors import DataError, did_you_mean
from fedit.files import reason
from fedit.reading import Unreadable, parse_json


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row and its place, "file:line" where the file has lines, else "file, row n"."""

    fields: Mapping[str, object]
    where: str


def read_rows(path: Path) -> list[PlacedRow]:
    """Return the rows of ``path``, read as its suffix says.

    Raises:
        DataError: the file is missing, empty, broken, not UTF-8 or of an unknown kind.
    """
    if not path.is_file():
        raise DataError(missing(path))
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: cannot read '{path.suffix}' files; expected one of {', '.join(READERS)}.")
    try:
        rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    if not rows:
        raise DataError(f"{path} holds no rows.")
    return rows


def missing(path: Path) -> str:
    """Return the message for a path that is not there, with the nearest name that is."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: the folder {folder} does not exist."
    near = did_you_mean(path.name, [entry.name for entry in folder.iterdir()])
    if near != ".":
        return f"there is no file {path}{near}"
    return f"there is no file {path}; looked in {folder.resolve()}, since paths count from where the command runs."


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "ISO-8859-1"
        raise DataError(
            f"{path}:{line}: byte {error.start} is not UTF-8; convert the file, "
            f"for example: iconv -f {guess} -t UTF-8 {path.name}"
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


def _read_json(path: Path) -> list[PlacedRow]:
    try:
        value: object = parse_json(_read_text(path))
    except Unreadable as error:
        hint = "; one JSON value per line is a .jsonl file" if error.reason == "Extra data" else ""
        raise DataError(f"{path}:{error.line or 1}: broken JSON{_column(error)}: {error.reason}{hint}.") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        found = f"an object with {', '.join(value) or 'no fields'}" if isinstance(value, dict) else "one value"
        raise DataError(f'{path}: found {found}, expected a list of rows or {{"data": [...]}}.')
    return [_placed(row, f"{path.name}, row {number}") for number, row in enumerate(value, 1)]


def _read_jsonl(path: Path) -> list[PlacedRow]:
    rows = []
    # Only newlines end a line: JSON text may hold U+2028 and others that str.splitlines splits at.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: object = parse_json(line)
        except Unreadable as error:
            hint = "; a file that is one JSON value is a .json file" if number == 1 else ""
            raise DataError(f"{path}:{number}: broken JSON{_column(error)}: {error.reason}{hint}.") from error
        rows.append(_placed(row, f"{path.name}:{number}"))
    return rows


def _read_csv(path: Path) -> list[PlacedRow]:
    # The default limit of 128 KiB a field is below long contexts; C long is 32 bits on Windows.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), restkey="", strict=True)
    rows = []
    line = 1  # where the row starts: a quoted field may run over many lines
    try:
        header = reader.fieldnames or []
        line = reader.line_num + 1
        for row in reader:
            if "" in row and "" not in header:
                raise DataError(
                    f"{path}:{line}: more fields than the {len(header)} of the header; "
                    "put text that contains commas in double quotes."
                )
            rows.append(PlacedRow(dict(row), f"{path.name}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: broken CSV: {error}.") from error
    return rows


def _read_parquet(path: Path) -> list[PlacedRow]:
    try:
        import pyarrow  # type: ignore[import-untyped]  # ships no types
        import pyarrow.parquet  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'fedit[parquet]'") from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # texts that are no UTF-8 among them
        raise DataError(f"{path}: broken Parquet: {error}") from error
    return [PlacedRow(row, f"{path.name}, row {number}") for number, row in enumerate(rows, 1)]


def _column(error: Unreadable) -> str:
    return f" at column {error.column}" if error.column else ""


def _placed(row: object, where: str) -> PlacedRow:
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object with named fields.")
    return PlacedRow(row, where)


READERS: Mapping[str, Callable[[Path], list[PlacedRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
