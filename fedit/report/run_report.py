"""The report on one run, from what its folder holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit.config import RunConfig
from fedit.data import DEPLOYMENT
from fedit.events import Event
from fedit.privacy.report import Statement, stated
from fedit.report.document import Block, Document, Fact, Facts, Headline, Note, Section, Text
from fedit.report.leakage import audit_of
from fedit.report.numbers import Estimate, number_text, shrunk, wilson
from fedit.report.record import BASE, FEDERATED, RunRecord, mapping, number, numbers, read_run
from fedit.report.sections.clients import clients_section, partition_section
from fedit.report.sections.curves import ArmCurve, ClientLosses, Points, curves_section
from fedit.report.sections.leakage import leakage_section
from fedit.report.sections.personal import Client, personal_section
from fedit.report.sections.results import (
    Answered,
    ComparisonRow,
    Example,
    Metric,
    comparison_section,
    examples_section,
)
from fedit.report.sections.rounds import communication_section, rounds_section
from fedit.report.sections.setup import settings_section

METRICS = (
    Metric("loss", "held-out loss", ".3f", "lowest"),
    Metric("exact_match", "exact match", ".1%", "highest"),
    Metric("tokens", "training tokens", ",d"),
)

_BUDGETS = ("local_steps", "local_epochs", "local_tokens")

_ABOUT_ARMS = (
    "local:<client> trained alone for as many steps as in the federation had it always been chosen; "
    "local_total:<client> and centralised with as many tokens as the whole federation."
)
_ABOUT_INTERVALS = (
    "Intervals are 95 % Wilson score intervals over the held-out instructions. They are of one run with one seed "
    "and say nothing about other seeds."
)


def run_report(folder: Path, more: Sequence[Section] = ()) -> Document:
    """Return the report on the finished run in ``folder``; ``more`` sections come after the comparison.

    Raises:
        RunFolderError: there is no finished run in it, or a file of it cannot be read.
    """
    run = read_run(folder)
    rounds, evaluations = run.federated.named("round"), run.federated.named("evaluation")
    before, after = run.evaluation(BASE), run.evaluation(FEDERATED)
    sections = [
        summary_section(run),
        _setup(run),
        _comparison(run),
        *more,
        partition_section(run.holdings, numbers(run.summary.get("partition")), _scheme(run)),
        _learning_curves(run, evaluations, before),
        clients_section(
            run.holdings,
            numbers(after.get("per_category")),
            _known(before.get("per_client")),
            _known(after.get("per_client")),
            measured=_measured(run),
        ),
        _personal(run),
        rounds_section(
            rounds,
            run.federated.named("client_failed"),
            left_under_way=int(number(run.summary.get("left_under_way")) or 0),
            resumed=len(run.federated.named("resumed")),
            stopped_early=bool(run.federated.named("stopped_early")),
        ),
        communication_section(rounds, evaluations, run.federated.named("under_way")),
        _examples(run),
        leakage_section(audit_of(run.audit)),
        _privacy(run),
    ]
    summary = run.summary
    subtitle = (
        f"{summary.get('strategy')} over {summary.get('clients')} clients and {summary.get('rounds')} rounds: "
        f"{summary.get('model')} on {summary.get('dataset')}"
    )
    return Document(run.name, subtitle, tuple(section for section in sections if section is not None))


def _learning_curves(run: RunRecord, evaluations: Sequence[Event], before: Mapping[str, object]) -> Section:
    if run.not_evaluated:
        text = f"There is nothing to draw: {run.not_evaluated}. The training loss is under Rounds."
        return Section("Learning curves", "curves", (Note(text),))
    return curves_section(
        _curves(run),
        base=number(before.get("loss")),
        base_per_category=numbers(before.get("per_category")),
        clients=client_losses(evaluations),
        measured=_measured(run),
    )


def summary_section(run: RunRecord) -> Section:
    """Return the result in one sentence, and the most important numbers."""
    before, after = (number(run.evaluation(arm).get("loss")) for arm in (BASE, FEDERATED))
    start, end = (_exact_match(run, arm) for arm in (BASE, FEDERATED))
    rounds, clients = (number_text(number(run.summary.get(key)), ",d") for key in ("rounds", "clients"))
    sentence = f"{rounds} rounds over {clients} clients "
    if run.not_evaluated:
        sentence += f"are done; how good the adapter is was not measured: {run.not_evaluated}"
        facts = [Fact("held-out loss", "not measured", run.not_evaluated)]
    else:
        sentence += _moved("the held-out loss", before, after, ".3f")
        losses = f"{number_text(before, '.3f')} → {number_text(after, '.3f')}"
        facts = [Fact("held-out loss", losses, "nats per token")]
    if start is not None and end is not None:
        sentence += f" and {_moved('exact match', start.value, end.value, '.1%')}"
        shares = f"{number_text(start.value, '.1%')} → {number_text(end.value, '.1%')}"
        ends = f"95 % interval {number_text(end.low, '.0%')} to {number_text(end.high, '.0%')}"
        facts.append(Fact("exact match", shares, ends))
    traffic = sum(number(run.summary.get(key)) or 0.0 for key in ("bytes_up", "bytes_down"))
    less = shrunk(sum(number(run.summary.get(key)) or 0.0 for key in ("raw_bytes_up", "raw_bytes_down")), traffic)
    facts += [
        Fact("training tokens", number_text(number(run.summary.get("tokens")), "compact"), "of all clients"),
        Fact("traffic", number_text(traffic, "bytes"), f"both ways{f', {less}' if less else ''}"),
        Fact("time", number_text(number(run.summary.get("seconds")), "duration"), "training and evaluation"),
        Fact("failed updates", number_text(number(run.summary.get("failed_updates")), ",d")),
    ]
    blocks: list[Block] = [Headline(f"{sentence}.{_others(run)}", tuple(facts))]
    if after is None and not run.not_evaluated:
        blocks.append(Note("The last held-out loss is not a finite number: the training diverged.", "warning"))
    return Section("Summary", "summary", tuple(blocks))


def _moved(what: str, before: float | None, after: float | None, form: str) -> str:
    """Return what became of a number, as the end of a sentence."""
    if before is None or after is None:
        return f"took {what} from {number_text(before, form)} to {number_text(after, form)}"
    if before == after:
        return f"left {what} at {number_text(after, form)}"
    verb = "lowered" if after < before else "raised"
    return f"{verb} {what} from {number_text(before, form)} to {number_text(after, form)}"


def _others(run: RunRecord) -> str:
    """Return what training alone and training in one place reach, as a sentence; "" where neither was tried."""
    alone = [arm for arm in run.arms if arm.startswith(("local:", "local_total:"))]
    pooled = [arm for arm in run.arms if arm == "centralised"]
    said = []
    for words, arms in (("clients trained alone reached at best", alone), ("training in one place", pooled)):
        losses = [loss for arm in arms if (loss := number(run.evaluation(arm).get("loss"))) is not None]
        matches = [match.value for arm in arms if (match := _exact_match(run, arm)) is not None]
        if losses:
            share = f" and {number_text(max(matches), '.1%')}" if matches else ""
            said.append(f"{words} {number_text(min(losses), '.3f')}{share}")
    text = ", ".join(said)
    return f" {text[:1].upper()}{text[1:]}." if text else ""


def _setup(run: RunRecord) -> Section:
    values, summary = run.settings, run.summary
    started = next(iter(run.federated.named("arm_started")), {})
    budget = next((f"{values[key]} {key[6:]}" for key in _BUDGETS if values.get(key) is not None), "1 epoch")
    trained = number_text(number(started.get("trainable_parameters")), ",d")
    facts = [
        Fact("Model", str(summary.get("model"))),
        Fact(
            "Adapter", f"LoRA r={values.get('lora_r')}, alpha={values.get('lora_alpha')}", f"{trained} parameters"
        ),
        Fact("Data", str(summary.get("dataset")), f"{summary.get('held_out_rows')} held-out rows"),
        Fact("Algorithm", str(summary.get("strategy")), _transforms(values)),
        Fact("Clients", str(summary.get("clients")), f"clients_per_round {values.get('clients_per_round')}"),
        Fact("Rounds", str(summary.get("rounds")), f"adapter of round {summary.get('adapter_round')}"),
        Fact("Local training", f"{budget} a round, batches of {values.get('batch_size')}"),
        Fact("Optimizer", f"{values.get('optimizer')}, learning rate {values.get('learning_rate')}"),
        Fact("Seed", str(values.get("seed"))),
        Fact("fedit", str(run.identity.get("fedit"))),
    ]
    prints = ("data", "model", "template", "settings", "strategy")
    origins = [Fact(f"SHA-256 of {name}", str(run.identity[name])) for name in prints if run.identity.get(name)]
    origins.append(Fact("SHA-256 of partition", str(mapping(summary.get("partition")).get("hash"))))
    packages = mapping(run.environment.get("packages"))
    origins += [Fact(name, str(version)) for name, version in packages.items() if name != "fedit"]
    origins += [Fact(name, str(run.environment.get(name))) for name in ("python", "platform", "cores")]
    origins += [Fact(name, str(run.identity.get(name))) for name in ("num_threads", "stack_width")]
    defaults = RunConfig.model_validate({}).model_dump(mode="json")
    return settings_section(facts, values, defaults, origins, repeat="fedit run resolved.yaml --out again")


def _curves(run: RunRecord) -> list[ArmCurve]:
    """Return the curves of all arms that were trained, the federation's first."""
    return [
        arm_curve(arm.name, arm.events, emphasis=arm.name == FEDERATED)
        for arm in run.arms.values()
        if arm.name != BASE
    ]


def arm_curve(name: str, events: Sequence[Event], *, emphasis: bool = False) -> ArmCurve:
    """Return the held-out losses of an arm over its training tokens, from its log."""
    tokens = 0.0
    overall: list[tuple[float, float | None]] = []
    categories: dict[str, list[tuple[float, float | None]]] = {}
    for event in events:
        if event["event"] == "round":
            tokens += number(event.get("tokens")) or 0.0
        elif event["event"] == "evaluation":
            overall.append((tokens, number(event.get("loss"))))
            for category, loss in numbers(event.get("per_category")).items():
                categories.setdefault(category, []).append((tokens, loss))
    by_category: dict[str, Points] = {category: tuple(points) for category, points in categories.items()}
    return ArmCurve(name, tuple(overall), by_category, emphasis=emphasis)


def client_losses(evaluations: Sequence[Event]) -> list[ClientLosses]:
    """Return the clients' losses after each evaluation of a federation that has any."""
    found = []
    for event in evaluations:
        over = numbers(event.get("clients"))
        if over:
            losses = _known(event.get("per_client"))
            round = int(number(event["round"]) or 0)
            found.append(ClientLosses(round, losses, over.get("mean"), over.get("worst_decile")))
    return found


def _comparison(run: RunRecord) -> Section | None:
    """Return the arms side by side; None where there is nothing but losses before and after."""
    if len(run.arms) <= 2 and _exact_match(run, FEDERATED) is None:
        return None
    rows = []
    for arm in run.arms:
        values = {"loss": number(run.evaluation(arm).get("loss")), "tokens": run.tokens(arm)}
        metrics = {name: Estimate(value) for name, value in values.items() if value is not None}
        if (match := _exact_match(run, arm)) is not None:
            metrics["exact_match"] = match
        rows.append(ComparisonRow(arm, metrics, emphasis=arm == FEDERATED))
    known = [metric for metric in METRICS if any(metric.name in row.metrics for row in rows)]
    notes = [_ABOUT_ARMS] if len(run.arms) > 2 else []
    return comparison_section(rows, known, notes=[*notes, _ABOUT_INTERVALS])


def _personal(run: RunRecord) -> Section | None:
    """Return what clients run for themselves; None where that was not measured."""
    if not run.personal:
        return None
    everyone = numbers(mapping(run.personal.get("global")).get("per_category"))
    clients = []
    for name, values in mapping(run.personal.get("clients")).items():
        row = mapping(values)
        matrix = {kind: mapping(row.get(kind)) for kind in ("personal", "tuned")}
        own = {"global": number(row.get("global")), "local": number(row.get("local"))}
        own |= {kind: number(model.get("own")) for kind, model in matrix.items()}
        categories = {kind: numbers(model.get("per_category")) for kind, model in matrix.items() if model}
        clients.append(Client(name, bool(row.get("seen")), _known(own), categories))
    models = mapping(run.personal.get("models"))
    summaries = {
        group: {kind: _known(one) for kind, one in mapping(models.get(group)).items()}
        for group in ("seen", "unseen")
    }
    steps = int(number(run.personal.get("personal_steps")) or 0)
    return personal_section(clients, everyone, summaries, steps=steps, measured=_measured(run))


def _examples(run: RunRecord) -> Section | None:
    """Return the held-out instructions that the summary shows, with all answers; None where it shows none."""
    shown = run.summary.get("examples")
    examples = [_example(run, mapping(one)) for one in (shown if isinstance(shown, list) else [])]
    return examples_section(examples) if examples else None


def _example(run: RunRecord, values: Mapping[str, object]) -> Example:
    answers = mapping(values.get("answers"))
    places = {name: place for place, name in enumerate(run.arms)}
    return Example(
        str(values.get("instruction")),
        {arm: _answered(answers[arm]) for arm in sorted(answers, key=lambda name: places.get(name, len(places)))},
        str(values.get("context") or ""),
        str(values.get("expected") or ""),
        str(values.get("category") or ""),
    )


def _answered(answer: object) -> Answered:
    values = mapping(answer)
    right = values.get("right")
    return Answered(str(values.get("text")), right if isinstance(right, bool) else None)


def _privacy(run: RunRecord) -> Section:
    shown = run.summary.get("examples")
    count = len(shown) if isinstance(shown, list) else 0
    removed = {name: value for name, value in numbers(run.summary.get("removed_rows")).items() if value}
    baselines = [arm for arm in run.arms if arm not in (BASE, FEDERATED)]
    statement = stated(mapping(run.summary.get("privacy")), baselines=baselines)
    facts = [
        Fact("A client sends", "the change of its adapter, and counts: rows, steps, tokens, loss"),
        Fact(
            "Training rows in this report", "none", "names of clients and categories, and how many rows they have"
        ),
        Fact(
            "Held-out rows in this report",
            f"{count:,}" if count else "none",
            "with their answers" if count else "",
        ),
        *_guarantees(statement),
        Fact("Rows left out", json.dumps(removed) if removed else "none"),
    ]
    where = "on machines of their own" if _scheme(run) == DEPLOYMENT else "which were simulated on one machine"
    opening = f"Rows stayed with their clients, {where}. {statement.opening}"
    blocks: list[Block] = [Text(opening), Facts(tuple(facts))]
    blocks += [Note(f"Not protected: {one}", "warning") for one in statement.unprotected]
    return Section("Privacy", "privacy", tuple(blocks))


def _guarantees(statement: Statement) -> list[Fact]:
    """Return what was promised and spent, as facts."""
    return [Fact(name, value, detail) for name, value, detail in statement.guarantees]


def _transforms(values: Mapping[str, object]) -> str:
    listed = values.get("transforms")
    names = [str(name) for item in listed for name in item] if isinstance(listed, list) else []
    return f"updates sent through {', '.join(names)}" if names else ""


def _exact_match(run: RunRecord, arm: str) -> Estimate | None:
    right = run.arms[arm].right
    return wilson(sum(right.values()), len(right)) if right else None


def _measured(run: RunRecord) -> bool:
    """Tell whether clients' losses are of their own held-out rows, which they are where rows have owners."""
    return run.settings.get("partitioner") == "natural"


def _scheme(run: RunRecord) -> str:
    return str(mapping(run.summary.get("partition")).get("scheme"))


def _known(value: object) -> dict[str, float]:
    return {name: one for name, one in numbers(value).items() if one is not None}
