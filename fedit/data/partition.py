"""The table of partition schemes, and one call that checks what a scheme needs before it deals."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedit.data import schemes
from fedit.data.examples import Example, row_id
from fedit.errors import ConfigError, DataError, UnknownName
from fedit.files import reason
from fedit.reading import parse_json
from fedit.seeds import derive

Clients = schemes.Clients


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to deal rows to clients.

    needs: what every row must have; "manifest" is a file that names the rows.
    about: what it does where the function's own description says it of something else.
    """

    name: str
    function: Callable[..., Clients]
    needs: Literal["category", "owner", "clusters", "manifest"] | None = None
    about: str = ""

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that this scheme reads."""
        return frozenset(self.option_types())

    def option_types(self) -> dict[str, type]:
        """Option name -> float, int or str."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """What the scheme does, in one line."""
        return self.about or (inspect.getdoc(self.function) or "").splitlines()[0]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Rows as a fixed manifest names them: by row id (str) or by position in the data (int)."""

    clients: dict[str, list[str | int]]
    validation: list[str | int]
    held_out: list[str | int]


def manifest(examples: Sequence[Example], num_clients: int | None, *, path: str) -> Clients:
    """Follow a manifest file that names every client's rows.

    Raises:
        DataError: the file is unreadable, names a row that is not among ``examples`` or names one
            twice, or has another number of clients than asked for.
    """
    assignment = read_assignment(Path(path))
    if num_clients is not None and num_clients != len(assignment.clients):
        raise DataError(
            f"{num_clients} clients are asked for and {path} has {len(assignment.clients)}; "
            "leave out the number of clients."
        )
    position = {identity: index for index, identity in reversed(list(enumerate(map(row_id, examples))))}
    clients: Clients = {}
    holder: dict[int, str] = {}
    for client, references in sorted(assignment.clients.items()):
        rows = [locate(reference, position, len(examples), path) for reference in references]
        for row in rows:
            if row in holder:
                raise DataError(
                    f"{path} gives row {row} ({row_id(examples[row])}) to '{holder[row]}' and to '{client}'; "
                    "a row belongs to one client, once."
                )
            holder[row] = client
        clients[client] = sorted(rows)
    return clients


PARTITIONS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("iid", schemes.iid),
        Scheme("shepherd_shards", schemes.shepherd_shards, "category"),
        Scheme("shepherd_dirichlet", schemes.shepherd_dirichlet, "category"),
        Scheme("dirichlet", schemes.dirichlet, "category"),
        Scheme("label_count", schemes.label_count, "category"),
        Scheme("quantity", schemes.quantity),
        Scheme("natural", schemes.natural, "owner"),
        Scheme(
            "cluster",
            schemes.dirichlet,
            "clusters",
            "Split every cluster of similar rows by Dir(alpha), for data without categories.",
        ),
        Scheme("manifest", manifest, "manifest"),
    )
}


def partition(
    examples: Sequence[Example],
    scheme: str,
    *,
    num_clients: int | None,
    seed: int,
    options: Mapping[str, object],
    clusters: Sequence[int] | np.ndarray | None = None,
) -> Clients:
    """Deal training rows to clients.

    ``clusters`` is one label per row, read by the scheme "cluster" alone. The result depends on
    the rows, their order and ``seed`` only. Client ids are "client-0", "client-1", … padded so
    that they sort, the owners themselves ("natural") or the manifest's names.

    Raises:
        UnknownName: there is no such scheme.
        ConfigError: an option is unknown to the scheme or has a value that cannot work.
        DataError: the rows cannot be dealt as asked; the message says what would be possible.
    """
    chosen = find_scheme(scheme)
    checked = _check_options(chosen, options)
    if not examples:
        raise DataError("there is no row to train on, so nothing to give to clients.")
    if num_clients is not None and num_clients < 1:
        raise ConfigError(f"the number of clients is {num_clients}; at least 1 is needed.")
    if num_clients is not None and num_clients > len(examples):
        raise DataError(
            f"{num_clients} clients are asked for and there are {len(examples)} training rows; every client "
            f"needs at least one, so use {len(examples)} clients or fewer."
        )
    if chosen.needs == "manifest":
        return chosen.function(examples, num_clients, **checked)
    if num_clients is None and chosen.needs != "owner":
        raise ConfigError(
            f"partition '{scheme}' needs the number of clients; only 'natural' finds it in the data."
        )
    rng = np.random.default_rng(derive(seed, "partition"))
    return chosen.function(_labels(chosen, examples, clusters), num_clients, rng, **checked)


def find_scheme(name: str) -> Scheme:
    """Return a scheme by its name.

    Raises:
        UnknownName: there is none.
    """
    if name not in PARTITIONS:
        raise UnknownName("partition", name, PARTITIONS)
    return PARTITIONS[name]


def read_assignment(path: Path) -> Assignment:
    """Read who has which row from JSON: a saved partition or ``{"clients": {"a": [0, 5]}}`` by row number.

    "held_out" and "validation" beside "clients" are lists of rows too, and may be absent.

    Raises:
        DataError: the file cannot be read or is of another form.
    """
    expected = 'expected {"clients": {"name": [row, …], …}, "held_out": [row, …]}'
    try:
        content: object = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {reason(error)}") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise DataError(f"{path} is not a JSON file: {error}; {expected}.") from error
    clients = content.get("clients") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(clients, dict) or not clients:
        raise DataError(f"{path} names no clients; {expected}.")
    assignment = Assignment(
        clients={str(name): _references(rows, f"{path}: client '{name}'") for name, rows in clients.items()},
        validation=_references(content.get("validation", []), f"{path}: validation"),
        held_out=_references(content.get("held_out", []), f"{path}: held_out"),
    )
    for name, rows in assignment.clients.items():
        if not rows:
            raise DataError(f"{path} gives client '{name}' no rows; remove it or give it some.")
    return assignment


def locate(reference: str | int, position: Mapping[str, int], rows: int, path: str | Path) -> int:
    """Return where the row is that a manifest names; ``position`` is row id -> index.

    Raises:
        DataError: there is no such row.
    """
    if isinstance(reference, int):
        if 0 <= reference < rows:
            return reference
        raise DataError(
            f"{path} names row {reference}, and the data has rows 0 to {rows - 1}; is it another data set?"
        )
    if reference in position:
        return position[reference]
    raise DataError(
        f"{path} names row '{reference}', which is not in the data ({rows} rows); it was made from "
        "another data set, or the row's text has changed since."
    )


def _references(rows: object, where: str) -> list[str | int]:
    if not isinstance(rows, list):
        raise DataError(f"{where} is {type(rows).__name__}; expected a list of row ids or row numbers.")
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, str | int):
            raise DataError(f"{where} has {row!r}; expected a row id (text) or a row number.")
    return rows


def _labels(scheme: Scheme, examples: Sequence[Example], clusters: Sequence[int] | np.ndarray | None) -> list[str]:
    if scheme.needs == "clusters":
        if clusters is None:
            raise DataError(
                f"partition '{scheme.name}' needs one cluster label per row and got none; "
                "run k-means over the rows first."
            )
        if len(clusters) != len(examples):
            raise DataError(
                f"there are {len(clusters)} cluster labels for {len(examples)} rows; give one per row."
            )
        return [str(label) for label in clusters]
    if scheme.needs is None:
        return [""] * len(examples)
    values = [e.category if scheme.needs == "category" else e.owner for e in examples]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        first = examples[values.index(None)].where or f"row {values.index(None)}"
        missing = len(values) - len(known)
        raise DataError(
            f"partition '{scheme.name}' needs the {scheme.needs} of every row and {missing} of {len(values)} "
            f"rows have none (first: {first}); {_REMEDY[scheme.needs]}"
        )
    return known


_REMEDY = {
    "category": "name the field that holds it, or set partitioner=cluster, which groups similar rows.",
    "owner": "set partition_by to a field that every row has, or choose another partitioner, such as iid.",
}


def _check_options(scheme: Scheme, options: Mapping[str, object]) -> dict[str, object]:
    types = scheme.option_types()
    for name, value in options.items():
        if name not in types:
            raise ConfigError(
                f"partition '{scheme.name}' does not read '{name}'; "
                + (f"its options are {', '.join(sorted(types))}." if types else "it has no options.")
            )
        if types[name] is str:
            good = isinstance(value, str) and value != ""
        else:
            accepted = int if types[name] is int else (int, float)
            good = isinstance(value, accepted) and not isinstance(value, bool) and 0 < value < float("inf")
        if not good:
            kind = {int: "a whole number from 1", float: "a number above 0", str: "a file"}[types[name]]
            raise ConfigError(f"partition option {name} is {value!r}; expected {kind}.")
    if scheme.needs == "manifest" and "path" not in options:
        raise ConfigError(
            "partition 'manifest' needs the option path: the JSON file that names each client's rows."
        )
    return dict(options)
