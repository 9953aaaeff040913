"""The report of a study, from what its folder holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit.config import RunConfig
from fedit.errors import RunFolderError
from fedit.events import Event, EventLog
from fedit.files import read_json
from fedit.report.charts.spec import HeatMap
from fedit.report.document import (
    Block,
    Column,
    Document,
    Fact,
    Facts,
    Figure,
    Headline,
    Note,
    Row,
    Section,
    Table,
    Text,
)
from fedit.report.numbers import Estimate, estimate_text, number_text
from fedit.report.record import BASE, bounds, mapping, number, numbers, read_settings
from fedit.report.run_report import arm_curve, client_losses
from fedit.report.sections.clients import Holding, clients_section, partition_section
from fedit.report.sections.curves import curves_section
from fedit.report.sections.results import ComparisonRow, Metric, comparison_section
from fedit.report.sections.rounds import communication_section, rounds_section
from fedit.report.sections.setup import settings_section
from fedit.study.examples import held_out_examples, question_examples, question_sets_section
from fedit.study.judged import judged_section, votes_section
from fedit.study.strategies import strategies_section
from fedit.study.summary import Seed, in_order, read_seeds, training_folder
from fedit.study.summary import client_losses as losses_of_clients

METRICS = (
    Metric("loss", "held-out loss", ".3f", "lowest"),
    Metric("exact_match", "exact match", ".1%", "highest"),
    Metric("rouge_l", "ROUGE-L", ".3f", "highest"),
)
CLIENTS = (
    Metric("clients_mean", "clients, mean loss", ".3f", "lowest"),
    Metric("clients_worst_decile", "worst tenth", ".3f", "lowest"),
)
MORE = (
    Metric("token_accuracy", "token accuracy", ".1%", "highest"),
    Metric("perplexity", "perplexity", ".2f", "lowest"),
    *CLIENTS,
)
FEDERATION = "vs_federated"
VERSUS = {"vs_base": "the base model", FEDERATION: "the first federation"}
"""Fields of an arm that hold its differences to another, and that one in words."""
COSTS = (
    Metric("tokens", "tokens", ",d"),
    Metric("bytes_up", "up", "bytes"),
    Metric("bytes_down", "down", "bytes"),
    Metric("seconds", "time", "duration"),
    Metric("learning_rate", "learning rate", "g"),
)
ABOUT_ARMS = (
    "local-1, local-2 … are clients that train alone for as many steps as in the federation had they always been "
    "chosen; local_total-… and centralised train on as many tokens as the whole federation. Every arm took the "
    "learning rate with the lowest loss on validation rows, which are no held-out rows."
)


def study_report(folder: Path) -> Document:
    """Return the report on the finished study in ``folder``.

    Raises:
        RunFolderError: it holds no finished study, or a file of it cannot be read.
    """
    if not (folder / "study.json").is_file():
        raise RunFolderError(f"{folder} holds no study: there is no study.json in it.")
    if not (folder / "summary.json").is_file():
        raise RunFolderError(f"the study in {folder} is not finished; go on with the command that began it.")
    summary = read_json(folder / "summary.json")
    identity, settings = read_json(folder / "study.json"), read_settings(folder / "resolved.yaml")
    seeds = read_seeds(folder, [int(number(seed) or 0) for seed in summary["seeds"]])
    arms = {name: mapping(summary["arms"][name]) for name in in_order(summary["arms"], summary["strategies"])}
    sections = [
        _headline(arms, seeds),
        _setup(folder, summary, identity, settings, seeds),
        _comparison(arms, seeds),
        strategies_section(summary, arms, seeds),
        _differences(arms),
        _categories(arms),
        judged_section(folder),
        votes_section(folder),
        *_first_seed(folder, seeds[0], arms, settings),
        _rates(seeds[0]),
        held_out_examples(seeds[0], list(arms)),
        question_sets_section(mapping(summary.get("question_sets")), list(arms)),
        question_examples(folder),
        _privacy(folder),
    ]
    subtitle = f"{summary['model']} on {Path(str(summary['dataset'])).name}, {_count(len(seeds), 'seed')}"
    return Document(folder.resolve().name, subtitle, tuple(section for section in sections if section is not None))


def _headline(arms: Mapping[str, Mapping[str, object]], seeds: Sequence[Seed]) -> Section:
    """Return what the federation reached beside the others, in a sentence and a few numbers."""
    federated = next((name for name in arms if name.startswith("federated")), None)
    best = min(arms, key=lambda name: number(arms[name]["loss"]) or float("inf"))
    if federated is None:
        sentence = f"{best} has the lowest held-out loss, {_of(arms[best], 'loss', '.3f')}."
        return Section("Summary", "summary", (Headline(sentence, ()),))
    own = arms[federated]
    sentence = f"The federation reached a held-out loss of {_of(own, 'loss', '.3f')}"
    if BASE in arms:
        sentence += f", the base model {number_text(number(arms[BASE]['loss']), '.3f')}"
    said = [
        f"{words} {min(found, key=lambda pair: pair[0])[1]}"
        for words, start in (
            ("the best client alone", "local-"),
            ("the best of them at the federation's tokens", "local_total"),
            ("training in one place", "centralised"),
        )
        if (found := [_loss(arm) for name, arm in arms.items() if name.startswith(start)])
    ]
    sentence += f"; {', '.join(said)}." if said else "."
    facts = [_fact(own, metric) for metric in METRICS if metric.name in own]
    facts.append(Fact("training tokens", number_text(number(own["tokens"]), "compact"), "of a federation"))
    blocks: list[Block] = [Headline(sentence, tuple(facts))]
    if len(seeds) == 1:
        blocks.append(Note("One seed: intervals are over held-out rows and say nothing about other seeds."))
    return Section("Summary", "summary", tuple(blocks))


def _fact(arm: Mapping[str, object], metric: Metric) -> Fact:
    estimate = _estimate(arm, metric.name)
    low, high = (number_text(bound, metric.form) for bound in (estimate.low, estimate.high))
    return Fact(metric.title, number_text(estimate.value, metric.form), f"95 % interval {low} to {high}")


def _loss(arm: Mapping[str, object]) -> tuple[float, str]:
    loss = number(arm["loss"])
    return (float("inf") if loss is None else loss, number_text(loss, ".3f"))


def _of(arm: Mapping[str, object], metric: str, form: str) -> str:
    return estimate_text(_estimate(arm, metric), form)


def _estimate(arm: Mapping[str, object], metric: str) -> Estimate:
    low, high = bounds(mapping(arm["ci"]).get(metric))
    return Estimate(number(arm.get(metric)) or 0.0, low, high)


def _comparison(arms: Mapping[str, Mapping[str, object]], seeds: Sequence[Seed]) -> Section:
    rows = [
        ComparisonRow(name, _numbers(name, arm), emphasis=name.startswith("federated"))
        for name, arm in arms.items()
    ]
    over = "held-out rows" if len(seeds) == 1 else f"{len(seeds)} seeds and the held-out rows of each"
    about = f"Intervals are 95 % bootstrap intervals over {over}; each seed deals the rows and trains anew."
    section = comparison_section(rows, _used(METRICS, rows), notes=[ABOUT_ARMS, *_who(seeds[0]), about])
    tables = [
        comparison_section(rows, _used(metrics, rows), caption=caption).blocks[0]
        for metrics, caption in (
            (
                MORE,
                "Tokens and clients; a client's loss is that of its own categories, or rows where it owns some",
            ),
            (COSTS, "What training took, on average over seeds"),
        )
    ]
    return Section(section.title, section.anchor, (*section.blocks, *tables))


def _who(seed: Seed) -> list[str]:
    """Return which clients train alone at a seed, and what they hold."""
    said = []
    for role, arm in sorted(seed.arms.items()):
        kind, _, client = arm.partition(":")
        if kind == "local" or (kind == "local_total" and arm.replace("_total", "", 1) not in seed.arms.values()):
            held = ", ".join(name for name, rows in seed.category_counts[client].items() if rows)
            said.append(f"{role} is {client}{f' ({held})' if held else ''}")
    return [f"At seed {seed.seed} {'; '.join(said)}."] if said else []


def _numbers(name: str, arm: Mapping[str, object]) -> dict[str, Estimate]:
    """Return all numbers of an arm by the names of `METRICS`, `MORE` and `COSTS`."""
    metrics = {m.name: _estimate(arm, m.name) for m in (*METRICS, *MORE) if m.name in arm}
    clients = mapping(arm.get("per_client"))
    intervals = mapping(clients.get("ci"))
    for key, value in numbers({key: value for key, value in clients.items() if key != "ci"}).items():
        if value is not None:
            metrics[f"clients_{key}"] = Estimate(value, *bounds(intervals.get(key)))
    costs = {} if name == BASE else numbers({cost.name: arm.get(cost.name) for cost in COSTS})
    return {**metrics, **{key: Estimate(value) for key, value in costs.items() if value is not None}}


def _used(metrics: Sequence[Metric], rows: Sequence[ComparisonRow]) -> list[Metric]:
    return [metric for metric in metrics if any(metric.name in row.metrics for row in rows)]


def _differences(arms: Mapping[str, Mapping[str, object]]) -> Section | None:
    """Return each arm's differences on the same rows: they are surer than the intervals side by side look."""
    tables: list[Block] = []
    for metrics, of in ((METRICS, ""), (CLIENTS, ", losses of the clients")):
        for key, words in VERSUS.items():
            known = [m for m in metrics if any(m.name in mapping(arm.get(key)) for arm in arms.values())]
            rows = [
                Row((name, *(_difference(own.get(m.name)) for m in known)), name.startswith("federated"))
                for name, arm in arms.items()
                if (own := mapping(arm.get(key)))
            ]
            if known:
                columns = [Column("arm"), *(Column(m.title, "interval", f"+{m.form}") for m in known)]
                tables.append(Table(f"Each arm minus {words}, on the same rows{of}", tuple(columns), tuple(rows)))
    if not tables:
        return None
    text = "An interval without 0 is a difference that rows and seeds do not explain. A lower loss is better."
    return Section("Differences", "differences", (Text(text), *tables))


def _difference(found: object) -> Estimate | None:
    """Return a difference with its interval; None where there is none."""
    own = mapping(found)
    value = number(own.get("difference"))
    return None if value is None else Estimate(value, *bounds(own.get("ci")))


def _categories(arms: Mapping[str, Mapping[str, object]]) -> Section | None:
    names = list(dict.fromkeys(name for arm in arms.values() for name in mapping(arm.get("per_category"))))
    if not names:
        return None
    blocks: list[Block] = []
    for metric in METRICS:
        values = [
            [number(mapping(mapping(arm.get("per_category")).get(name)).get(metric.name)) for name in names]
            for arm in arms.values()
        ]
        if all(value is None for row in values for value in row):
            continue
        if metric.name == "loss":
            chart = HeatMap(
                "arm", "category", metric.title, tuple(arms), tuple(names), tuple(map(tuple, values)), metric.form
            )
            alt = "; ".join(
                f"{name}: lowest {_least(row, names, metric.form)}" for name, row in zip(arms, values, strict=True)
            )
            caption = "Darker is higher. Every category has the same number of held-out rows or nearly so."
            blocks.append(Figure("arm-categories", "Held-out loss by category", chart, alt, caption))
        columns = (Column("arm"), *(Column(name, "interval", metric.form, metric.better) for name in names))
        rows = [
            Row((name, *(_category_cell(arm, category, metric.name) for category in names)))
            for name, arm in arms.items()
        ]
        blocks.append(Table(f"{metric.title}, by category", columns, tuple(rows), folded=True))
        blocks += _category_differences(arms, names, metric)
    return Section("By category", "categories", tuple(blocks))


def _category_differences(
    arms: Mapping[str, Mapping[str, object]], names: Sequence[str], metric: Metric
) -> list[Block]:
    """Return each arm's differences to the first federation in every category; nothing where there are none."""
    rows = []
    for arm, values in arms.items():
        own = mapping(values.get("per_category"))
        found = [mapping(mapping(own.get(name)).get(FEDERATION)).get(metric.name) for name in names]
        if any(found):
            rows.append(Row((arm, *map(_difference, found)), arm.startswith("federated")))
    if not rows:
        return []
    columns = (Column("arm"), *(Column(name, "interval", f"+{metric.form}") for name in names))
    caption = f"{metric.title}, by category: each arm minus {VERSUS[FEDERATION]}, on the same rows"
    return [Table(caption, columns, tuple(rows), folded=True)]


def _category_cell(arm: Mapping[str, object], category: str, metric: str) -> Estimate | None:
    own = mapping(mapping(arm.get("per_category")).get(category))
    value = number(own.get(metric))
    return None if value is None else Estimate(value, *bounds(mapping(own["ci"]).get(metric)))


def _least(row: Sequence[float | None], names: Sequence[str], form: str) -> str:
    known = [(value, name) for value, name in zip(row, names, strict=True) if value is not None]
    value, name = min(known)
    return f"{number_text(value, form)} in {name}"


def _first_seed(
    folder: Path, seed: Seed, arms: Mapping[str, Mapping[str, object]], settings: Mapping[str, object]
) -> list[Section | None]:
    """Return partition, curves, clients, rounds and traffic of the first seed."""
    logs = {role: _events(folder, seed, role) for role in arms if role in seed.arms and role != BASE}
    federated = next((role for role in logs if role.startswith("federated")), None)
    events = logs[federated] if federated is not None else []
    rounds, evaluations = _named(events, "round"), _named(events, "evaluation")
    sizes = {client: int(rows or 0) for client, rows in numbers(seed.record["sizes"]).items()}
    holdings = {client: Holding(rows, seed.category_counts.get(client, {})) for client, rows in sizes.items()}
    before = evaluations[0] if evaluations else {}
    order = sorted(logs, key=lambda role: role != federated)
    sections: list[Section | None] = [
        partition_section(holdings, numbers(seed.record.get("partition")), str(settings.get("partitioner"))),
        curves_section(
            [arm_curve(role, logs[role], emphasis=role == federated) for role in order],
            base=number(before.get("loss")),
            base_per_category=numbers(before.get("per_category")),
            clients=client_losses(evaluations),
        ),
    ]
    if federated is not None:
        if BASE in seed.items:
            own = _by_category(arms[federated])
            base, tuned = (losses_of_clients(seed, role) for role in (BASE, federated))
            sections.append(clients_section(holdings, own, base, tuned, measured=False))
        sections.append(rounds_section(rounds, _named(events, "client_failed")))
        sections.append(communication_section(rounds, evaluations, _named(events, "under_way")))
    return sections


def _by_category(arm: Mapping[str, object]) -> dict[str, float | None]:
    return {name: number(mapping(own).get("loss")) for name, own in mapping(arm.get("per_category")).items()}


def _events(folder: Path, seed: Seed, role: str) -> list[Event]:
    return EventLog(training_folder(seed, role)).history()


def _named(events: Sequence[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def _rates(seed: Seed) -> Section | None:
    """Return the validation losses that rates were chosen by; None where there was nothing to choose."""
    losses: dict[str, Any] = dict(mapping(seed.record["validation_losses"]))
    tried = {role: dict(losses[arm]) for role, arm in seed.arms.items() if arm in losses}
    rates = sorted({rate for own in tried.values() for rate in own})
    if len(rates) < 2:
        return None
    columns = (Column("arm"), *(Column(f"{rate:g}", "number", ".3f") for rate in rates), Column("chosen"))
    chosen = mapping(seed.record["learning_rates"])
    rows = [
        Row((role, *(own.get(rate) for rate in rates), f"{chosen[seed.arms[role]]:g}"))
        for role, own in tried.items()
    ]
    table = Table(f"Loss on validation rows by learning rate, seed {seed.seed}", columns, tuple(rows))
    text = "Rates are chosen on rows that nothing else is measured on, once, and kept for the other seeds."
    return Section("Learning rates", "rates", (Text(text), table))


def _setup(
    folder: Path,
    summary: Mapping[str, Any],
    identity: Mapping[str, object],
    settings: Mapping[str, object],
    seeds: Sequence[Seed],
) -> Section:
    environment = read_json(folder / "environment.json")
    own, sizes = read_json(seeds[0].folder / "identity.json"), mapping(seeds[0].record["sizes"])
    facts = [
        Fact("Model", str(summary["model"])),
        Fact("Data", Path(str(summary["dataset"])).name, f"{summary['held_out_rows'][0]} held-out rows a seed"),
        Fact("Clients", f"{len(sizes)}", f"clients_per_round {settings['clients_per_round']}"),
        Fact("Rounds", str(settings["num_rounds"])),
        Fact("Adapter", f"LoRA r={settings['lora_r']}, alpha={settings['lora_alpha']}"),
        Fact("Seeds", ", ".join(str(seed.seed) for seed in seeds)),
        Fact("Learning rates", ", ".join(f"{rate:g}" for rate in summary["learning_rates"])),
    ]
    facts += [
        Fact("Questions", Path(name).name, f"SHA-256 {sha}") for name, sha in mapping(summary["questions"]).items()
    ]
    prints = ("data", "model", "template", "settings")
    origins = [Fact(f"SHA-256 of {name}", str(own[name])) for name in prints if own.get(name)]
    origins += [Fact(name, str(version)) for name, version in mapping(environment.get("packages")).items()]
    origins += [Fact(name, str(environment.get(name))) for name in ("python", "platform", "cores")]
    origins.append(Fact("study", json.dumps(identity["study"])))
    defaults = RunConfig.model_validate({}).model_dump(mode="json")
    return settings_section(facts, settings, defaults, origins)


def _privacy(folder: Path) -> Section:
    failures = [
        event
        for path in sorted(folder.glob("seed-*/arms/*/*/events.jsonl"))
        for event in EventLog(path.parent).history()
        if event["event"] == "client_failed"
    ]
    facts = (
        Fact("Failed updates", f"{len(failures):,}", "of all arms and seeds"),
        Fact(
            "Training rows in this report", "none", "names of clients and categories, and how many rows they have"
        ),
        Fact("Held-out rows in this report", "those shown above, with their answers"),
        Fact("Differential privacy", "none"),
    )
    note = Note(
        "Clients were simulated on one machine. The arms centralised and base are what a federation cannot have: "
        "all rows in one place, and none."
    )
    return Section("Privacy and failures", "privacy", (Facts(facts), note))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
