"""The record of who holds which row: made once per run, saved, checked against the data, followed again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedit import files
from fedit.data.examples import Corpus, Example, fingerprint, row_id
from fedit.data.partition import find_scheme, locate, partition, read_assignment
from fedit.data.split import clean, split
from fedit.errors import DataError
from fedit.reading import parse_json

_FORMAT = "fedit-partition-1"
_MADE_FROM = "use the data it was made from, or make a new partition in a new run."


@dataclass(frozen=True, slots=True)
class Partition:
    """Who holds which row, and how that came about. Rows are named by `row_id`, in the data's order.

    removed:          rows that nobody holds, by reason: "duplicate", "prompt_in_held_out",
                      "prompt_in_validation" and "unassigned" (left out by the scheme).
    data_fingerprint: of the rows named here, whatever their order in the data and the rows beside them.
    """

    scheme: str
    options: Mapping[str, object]
    seed: int
    clients: dict[str, list[str]]
    validation: list[str]
    held_out: list[str]
    removed: dict[str, int]
    data_fingerprint: str

    @property
    def hash(self) -> str:
        """SHA-256 of the rows and who holds them; how they were drawn and where from does not count."""
        content = {
            "clients": {client: sorted(rows) for client, rows in self.clients.items()},
            "validation": sorted(self.validation),
            "held_out": sorted(self.held_out),
            "data": self.data_fingerprint,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_against(self, corpus: Corpus) -> None:
        """Make sure that every row named here is in the data, with the category and owner it had.

        Raises:
            DataError: a row is missing or has changed.
        """
        self._rows(corpus)

    def arrange(self, corpus: Corpus) -> Corpus:
        """Return the rows named here in their splits, in the data's order, whatever split they were in.

        Raises:
            DataError: a row is missing or has changed.
        """
        rows = self._rows(corpus)
        validation, held_out = set(self.validation), set(self.held_out)
        train = {identity for mine in self.clients.values() for identity in mine}
        return replace(
            corpus,
            examples=tuple(e for identity, e in rows.items() if identity in train),
            validation=tuple(e for identity, e in rows.items() if identity in validation),
            held_out=tuple(e for identity, e in rows.items() if identity in held_out),
        )

    def client_examples(self, corpus: Corpus) -> dict[str, tuple[Example, ...]]:
        """Return every client's training rows, in the data's order.

        Raises:
            DataError: a row is missing or has changed.
        """
        rows = self._rows(corpus)
        return {client: tuple(rows[identity] for identity in mine) for client, mine in self.clients.items()}

    def to_json(self) -> dict[str, object]:
        """Return the manifest as JSON values."""
        return {
            "format": _FORMAT,
            "hash": self.hash,
            "scheme": self.scheme,
            "options": dict(self.options),
            "seed": self.seed,
            "clients": self.clients,
            "validation": self.validation,
            "held_out": self.held_out,
            "removed": self.removed,
            "data_fingerprint": self.data_fingerprint,
        }

    @classmethod
    def from_json(cls, content: object) -> "Partition":
        """Read what `to_json` returned.

        Raises:
            DataError: it is something else, or its rows do not have the hash written beside them.
        """
        match content:
            case {
                "format": str(version),
                "hash": str(written),
                "scheme": str(scheme),
                "options": dict(options),
                "seed": int(seed),
                "clients": dict(clients),
                "validation": list(validation),
                "held_out": list(held_out),
                "removed": dict(removed),
                "data_fingerprint": str(data_fingerprint),
            } if version == _FORMAT and _are_ids(validation, held_out, *clients.values()):
                result = cls(scheme, options, seed, clients, validation, held_out, removed, data_fingerprint)
            case _:
                raise DataError(f"expected a partition saved by fedit ('format': '{_FORMAT}' and its fields).")
        if result.hash != written:
            raise DataError(
                f"the rows have hash {result.hash[:12]} and the file says {written[:12]}: it was edited. "
                "Partitions made by hand are followed with partitioner=manifest."
            )
        return result

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, atomically."""
        files.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Partition":
        """Read a saved manifest.

        Raises:
            DataError: the file cannot be read or is not a saved manifest.
        """
        try:
            return cls.from_json(parse_json(path.read_bytes()))
        except OSError as error:
            raise DataError(f"cannot read the partition {path}: {files.reason(error)}") from error
        except ValueError as error:  # of JSON or of UTF-8
            raise DataError(f"{path} is not a JSON file: {error}; expected a saved partition.") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def _rows(self, corpus: Corpus) -> dict[str, Example]:
        """Return the named rows by id, in the data's order, after checking them."""
        rows = _by_id(corpus)
        named = [*self.held_out, *self.validation, *(row for mine in self.clients.values() for row in mine)]
        missing = [identity for identity in named if identity not in rows]
        if missing:
            raise DataError(
                f"the data changed since the partition was made: {len(missing)} of its {len(named)} rows are "
                f"not in '{corpus.name}' any more (first: {missing[0]}); {_MADE_FROM}"
            )
        wanted = set(named)
        kept = {identity: example for identity, example in rows.items() if identity in wanted}
        if _fingerprint(kept) != self.data_fingerprint:
            raise DataError(
                f"the data changed since the partition was made: the {len(named)} rows are all in "
                f"'{corpus.name}', but some have another category or owner than they had; {_MADE_FROM}"
            )
        return kept


def build(
    corpus: Corpus,
    scheme: str,
    *,
    num_clients: int | None,
    seed: int,
    options: Mapping[str, object],
    held_out: int | float,
    validation: int | float,
    clusters: Sequence[int] | np.ndarray | None = None,
) -> tuple[Partition, Corpus]:
    """Clean the data, split it and deal the training rows to clients.

    Returns the record and the rows it names, in their splits. ``held_out`` and ``validation`` are
    as in `fedit.data.split.split`; a manifest that is followed decides the splits itself, and
    what it does not name as validation or held-out is the data's own, if the data has such
    splits. ``clusters`` is one label per row of ``corpus.examples`` as given here.

    Raises:
        UnknownName, ConfigError, DataError: as `split` and `partition` do.
    """
    if find_scheme(scheme).needs == "manifest":
        cleaned, removed, clients = _follow(corpus, num_clients, seed, options)
    else:
        by_owner = find_scheme(scheme).needs == "owner"
        cleaned, removed = clean(corpus)
        cleaned = split(cleaned, held_out=held_out, validation=validation, seed=seed, by_owner=by_owner)
        labels = None if clusters is None else _labels_of(cleaned.examples, corpus.examples, clusters)
        dealt = partition(
            cleaned.examples, scheme, num_clients=num_clients, seed=seed, options=options, clusters=labels
        )
        ids = [row_id(example) for example in cleaned.examples]
        clients = {client: [ids[row] for row in rows] for client, rows in dealt.items()}
        removed["unassigned"] = len(ids) - sum(map(len, clients.values()))
    validation_ids = [row_id(example) for example in cleaned.validation]
    held_out_ids = [row_id(example) for example in cleaned.held_out]
    wanted = {*validation_ids, *held_out_ids, *(row for mine in clients.values() for row in mine)}
    named = {identity: e for identity, e in _by_id(cleaned).items() if identity in wanted}
    result = Partition(
        scheme, dict(options), seed, clients, validation_ids, held_out_ids, removed, _fingerprint(named)
    )
    return result, result.arrange(cleaned)


def _follow(
    corpus: Corpus, num_clients: int | None, seed: int, options: Mapping[str, object]
) -> tuple[Corpus, dict[str, int], dict[str, list[str]]]:
    """Return the cleaned splits, the counts of removed rows and each client's rows as a manifest has them."""
    pool = corpus.all()
    dealt = partition(pool, "manifest", num_clients=num_clients, seed=seed, options=options)
    path = Path(str(options["path"]))
    owner = {row: client for client, rows in dealt.items() for row in rows}
    named = _named_splits(corpus, sorted(owner), path)
    cleaned, removed = clean(named)
    removed["unassigned"] = len(pool) - len(named.all())
    # Of identical rows the first stays, as in `clean`.
    holder = {row_id(pool[row]): owner[row] for row in sorted(owner, reverse=True)}
    clients: dict[str, list[str]] = {client: [] for client in dealt}
    for example in cleaned.examples:
        clients[holder[row_id(example)]].append(row_id(example))
    empty = [client for client, rows in clients.items() if not rows]
    if empty:
        raise DataError(
            f"{path}: client '{empty[0]}' has only rows that others hold or whose prompts are in held_out or "
            "validation; give it other rows or remove it."
        )
    return cleaned, removed, clients


def _named_splits(corpus: Corpus, train: Sequence[int], path: Path) -> Corpus:
    """Return the splits a manifest names; a split it does not name is the data's own.

    ``train`` are the positions in ``corpus.all()`` of all clients' rows.
    """
    pool = corpus.all()
    own = {
        "validation": range(len(corpus.examples), len(pool) - len(corpus.held_out)),
        "held_out": range(len(pool) - len(corpus.held_out), len(pool)),
    }
    strictest_first = (*own["held_out"], *own["validation"], *range(len(corpus.examples)))
    position = {row_id(pool[index]): index for index in reversed(strictest_first)}
    assignment = read_assignment(path)
    taken = dict.fromkeys(train, "a client")
    named: dict[str, list[int]] = {}
    for name, references in (("held_out", assignment.held_out), ("validation", assignment.validation)):
        rows = sorted({locate(reference, position, len(pool), path) for reference in references})
        if crossed := [row for row in rows if row in taken]:
            raise DataError(
                f"{path} gives row {crossed[0]} to {taken[crossed[0]]} and to {name}; remove it from one."
            )
        named[name] = rows
        taken |= dict.fromkeys(rows, name)
    for name, rows in named.items():
        rows.extend([] if rows else (row for row in own[name] if row not in taken))
    return Corpus(
        corpus.name,
        tuple(pool[row] for row in train),
        tuple(pool[row] for row in named["validation"]),
        tuple(pool[row] for row in named["held_out"]),
    )


def _labels_of(
    rows: Sequence[Example], labelled: Sequence[Example], labels: Sequence[int] | np.ndarray
) -> list[int]:
    if len(labels) != len(labelled):
        raise DataError(f"there are {len(labels)} cluster labels for {len(labelled)} rows; give one per row.")
    by_id = {row_id(example): int(label) for example, label in zip(labelled, labels, strict=True)}
    return [by_id[row_id(example)] for example in rows]


def _are_ids(*lists: object) -> bool:
    return all(isinstance(rows, list) and all(isinstance(row, str) for row in rows) for rows in lists)


def _by_id(corpus: Corpus) -> dict[str, Example]:
    """Return rows by id in the data's order; of identical rows the first of the strictest split."""
    strictest: dict[str, Example] = {}
    for example in (*corpus.held_out, *corpus.validation, *corpus.examples):
        strictest.setdefault(row_id(example), example)
    return {identity: strictest[identity] for identity in map(row_id, corpus.all())}


def _fingerprint(rows: Mapping[str, Example]) -> str:
    return fingerprint(rows[identity] for identity in sorted(rows))
