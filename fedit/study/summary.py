"""What a study found: every arm's numbers with intervals over rows and seeds, and its differences to others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from fedit.config import ArmKind
from fedit.data.statistics import per_client_loss, summary
from fedit.errors import RunFolderError
from fedit.evaluation.intervals import Array, Interval, nested_bootstrap, ratio_of_sums
from fedit.files import read_json
from fedit.study.clientloss import SUMMARIES, ClientTable
from fedit.study.items import Items, metrics_of
from fedit.study.personal import read_personal
from fedit.study.plan import BASE, Training, file_name

ORDER = get_args(ArmKind)
"""In which arms are listed."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One finished seed: results by role, and what the arms took.

    arms: role -> the arm's name at this seed.
    """

    seed: int
    folder: Path
    items: dict[str, Items]
    arms: dict[str, str]
    record: dict[str, object]
    category_counts: dict[str, dict[str, int]]


def read_seeds(folder: Path, seeds: Sequence[int]) -> list[Seed]:
    """Return the finished seeds of a study.

    Raises:
        RunFolderError: a file is missing or broken.
    """
    found = []
    for seed in seeds:
        own = folder / f"seed-{seed}"
        record = read_json(own / "seed.json")
        arms = {role: arm for arm, role in record["roles"].items()}
        if (own / "items" / f"{BASE}.json").is_file():
            arms = {BASE: BASE, **arms}
        items = {role: Items.read(own / "items" / f"{file_name(arm)}.json") for role, arm in arms.items()}
        found.append(Seed(seed, own, items, arms, record, read_json(own / "clients.json")))
    return found


def chosen_folders(study: Path) -> dict[str, Path]:
    """Return role -> folder of the arms of a study's first finished seed, each at the rate that it chose.

    Raises:
        RunFolderError: no seed is finished, or a file is broken.
    """
    done = sorted(study.glob("seed-*/seed.json"), key=lambda path: int(path.parent.name.removeprefix("seed-")))
    if not done:
        raise RunFolderError(f"no seed of the study in {study} is finished; go on with the command that began it.")
    record, seed = read_json(done[0]), int(done[0].parent.name.removeprefix("seed-"))
    rates = record["learning_rates"]
    found = {role: Training(seed, arm, rates[arm]).folder(study) for arm, role in record["roles"].items()}
    return {role: found[role] for role in in_order(found)}


def training_folder(seed: Seed, role: str) -> Path:
    """Return where an arm was trained with a seed, at the rate that it chose."""
    rates = _mapping(seed.record["learning_rates"])
    return Training(seed.seed, seed.arms[role], rates[seed.arms[role]]).folder(seed.folder.parent)


def summarise(
    seeds: Sequence[Seed], *, resamples: int, strategies: Sequence[str] = ()
) -> dict[str, dict[str, object]]:
    """Return the arms of ``summary.json``: role -> numbers, intervals and differences to base and federation.

    strategies: of the federations, in their order; differences are to the first.
    """
    present = {role for seed in seeds for role in seed.items}
    roles = in_order(present, strategies)
    federations = [role for role in roles if role.startswith("federated")]
    return {role: _arm(role, seeds, federations[:1], resamples) for role in roles}


def in_order(roles: Iterable[str], strategies: Sequence[str] = ()) -> list[str]:
    """Return roles as they are listed: base, clients alone, all rows in one place, federations in their order."""
    places = {strategy: place for place, strategy in enumerate(strategies)}

    def key(role: str) -> tuple[int, int, str]:
        kind, _, rest = role.partition(":")
        return ORDER.index(kind.partition("-")[0]), places.get(rest, len(places)), role

    return sorted(roles, key=key)


def _arm(role: str, seeds: Sequence[Seed], federations: Sequence[str], resamples: int) -> dict[str, object]:
    own = [seed for seed in seeds if role in seed.items]
    metrics = metrics_of(own[0].items[role])
    intervals = {metric: _interval([s.items[role] for s in own], metric, resamples) for metric in metrics}
    others = [other for other in (BASE, *federations) if other != role and all(other in s.items for s in own)]
    categories = sorted({c for seed in own for c in seed.items[role].categories if c is not None})
    result: dict[str, object] = {metric: interval.estimate for metric, interval in intervals.items()}
    result |= {
        "perplexity": float(np.exp(min(intervals["loss"].estimate, 700.0))),
        "ci": {metric: interval.bounds() for metric, interval in intervals.items()},
        "seeds": len(own),
        "per_seed": {metric: [_value(s.items[role], metric) for s in own] for metric in metrics},
        "per_category": {name: _category(name, role, others, own, resamples) for name in categories},
        "clients": [seed.arms[role] for seed in own] if ":" in own[0].arms[role] else [],
        **_cost(role, own),
        "per_client": _clients(role, own, resamples),
    }
    for other in others:
        pairs = [(seed.items[role], seed.items[other]) for seed in own]
        differences = {metric: difference(pairs, metric, resamples) for metric in metrics}
        result[_versus(other)] = differences | _client_differences(role, other, own, resamples)
    return result


def _versus(other: str) -> str:
    return f"vs_{other.partition(':')[0]}"


def _interval(items: Sequence[Items], metric: str, resamples: int) -> Interval:
    return nested_bootstrap([own.column(metric) for own in items], ratio_of_sums, resamples=resamples)


def _value(items: Items, metric: str) -> float:
    return float(ratio_of_sums(items.column(metric)[np.newaxis])[0])


def difference(pairs: Sequence[tuple[Items, Items]], metric: str, resamples: int) -> dict[str, object]:
    """Return the first's number minus the second's on the same rows, with its interval; pairs: one a seed."""
    columns = [np.concatenate([one.column(metric), other.column(metric)], axis=1) for one, other in pairs]
    return _as_difference(nested_bootstrap(columns, _difference_of_ratios, resamples=resamples))


def _as_difference(interval: Interval) -> dict[str, object]:
    return {"difference": interval.estimate, "ci": interval.bounds()}


def _difference_of_ratios(samples: Array) -> Array:
    return np.asarray(ratio_of_sums(samples[:, :, :2]) - ratio_of_sums(samples[:, :, 2:]))


def _category(
    category: str, role: str, others: Sequence[str], seeds: Sequence[Seed], resamples: int
) -> dict[str, object]:
    """Return an arm's numbers in one category, with intervals and its differences to other arms."""
    held = [seed for seed in seeds if category in seed.items[role].categories]
    own = [seed.items[role].of_category(category) for seed in held]
    found: dict[str, object] = {}
    bounds: dict[str, list[float]] = {}
    for metric in metrics_of(own[0]):
        interval = _interval(own, metric, resamples)
        found[metric], bounds[metric] = interval.estimate, interval.bounds()
    found["ci"] = bounds
    for other in others:
        pairs = [(mine, seed.items[other].of_category(category)) for mine, seed in zip(own, held, strict=True)]
        found[_versus(other)] = {metric: difference(pairs, metric, resamples) for metric in bounds}
    return found


def _cost(role: str, seeds: Sequence[Seed]) -> dict[str, object]:
    """Return tokens, bytes and seconds of a seed's training on average, and the learning rate.

    Only federations send anything: the others train in one place, though by the same loop.
    """
    names = ("rounds", "tokens", "bytes_up", "bytes_down", "seconds")
    if role == BASE:
        return {**dict.fromkeys(names, 0), "learning_rate": None}
    totals = [_mapping(_mapping(seed.record["totals"])[seed.arms[role]]) for seed in seeds]
    rates = [_mapping(seed.record["learning_rates"])[seed.arms[role]] for seed in seeds]
    means: dict[str, object] = {name: float(np.mean([own[name] for own in totals])) for name in names}
    if not role.startswith("federated"):
        means |= {"bytes_up": 0, "bytes_down": 0}
    return {**means, "learning_rate": rates[0]}


def _clients(role: str, seeds: Sequence[Seed], resamples: int) -> dict[str, object]:
    """Return the mean and the worst decile over clients of their expected loss, averaged over seeds.

    Under "ci" their intervals over seeds and rows; none where clients run models of their own, since no losses of
    single rows are kept of these, or where an arm diverged.
    """
    known = [summary(own) for own in (client_losses(seed, role) for seed in seeds) if own]
    if not known:
        return {}
    found: dict[str, object] = {name: float(np.mean([own[name] for own in known])) for name in SUMMARIES}
    tables = [table for seed in seeds if (table := _client_table(seed, role)) is not None]
    if len(tables) == len(known):
        found["ci"] = {name: _over_clients(name, tables, None, resamples).bounds() for name in SUMMARIES}
    return found


def _client_differences(role: str, other: str, seeds: Sequence[Seed], resamples: int) -> dict[str, object]:
    """Return the differences of the clients' mean and worst decile to those of another arm on the same rows."""
    mine, theirs = ([_client_table(seed, name) for seed in seeds] for name in (role, other))
    tables, others = ([table for table in own if table is not None] for own in (mine, theirs))
    if not len(tables) == len(others) == len(seeds):
        return {}
    intervals = {name: _over_clients(name, tables, others, resamples) for name in SUMMARIES}
    return {f"clients_{name}": _as_difference(interval) for name, interval in intervals.items()}


def _over_clients(
    name: str, tables: Sequence[ClientTable], others: Sequence[ClientTable] | None, resamples: int
) -> Interval:
    statistics = [own.statistic(name, others[i] if others else None) for i, own in enumerate(tables)]
    return nested_bootstrap([own.places for own in tables], statistics, resamples=resamples)


def _client_table(seed: Seed, role: str) -> ClientTable | None:
    """Return the rows as clients see them; None where clients do not run what the rows were measured with."""
    if role != BASE and read_personal(training_folder(seed, role)) is not None:
        return None
    return ClientTable.of(seed.items[role], _mapping(seed.record["sizes"]), seed.category_counts)


def client_losses(seed: Seed, role: str) -> dict[str, float]:
    """Return each client's held-out loss: on its own rows where rows have owners, else expected under its mix.

    Of what it runs: where clients have models of their own, that is not the server's.
    """
    personal = None if role == BASE else read_personal(training_folder(seed, role))
    if personal is not None:
        return dict(personal.losses)
    items = seed.items[role]
    sizes = _mapping(seed.record["sizes"])
    if any(owner in sizes for owner in items.owners):
        return _by(items, items.owners)
    return per_client_loss(_by(items, items.categories), seed.category_counts)


def _by(items: Items, labels: Sequence[str | None]) -> dict[str, float]:
    found: dict[str, float] = {}
    for label in sorted({own for own in labels if own is not None}):
        rows = items.column("loss")[[own == label for own in labels]]
        if rows[:, 1].sum():
            found[label] = float(rows[:, 0].sum() / rows[:, 1].sum())
    return found


def _mapping(value: object) -> Mapping[str, float]:
    assert isinstance(value, dict)
    return value
