"""What a finished run says: ``summary.json`` for scripts, ``summary.md`` and pictures for people."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedit.data.examples import Example, row_id
from fedit.events import Event
from fedit.federation import Trained, totals
from fedit.files import write_json, write_text
from fedit.job import Job
from fedit.report.numbers import shrunk
from fedit.report.pictures import category_curves, learning_curves, partition_figure
from fedit.report.record import COUNTS
from fedit.scoring import Answers

SHOWN_EXAMPLES = 3
"""Held-out rows with their answers in ``summary.md`` and on the terminal."""

KEPT_EXAMPLES = 8
"""Those in ``summary.json`` and in the report."""

T = TypeVar("T")

PREFERENCES = ("dpo_loss", "preference_accuracy", "reward_margin")
"""What an evaluation says where clients learn from preferences."""
LOSSES = ("loss", "perplexity", "token_accuracy", "example_loss")


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm's end: what it trained and, where answers were generated, how good they are."""

    name: str
    trained: Trained
    answers: Answers | None

    @classmethod
    def read(cls, name: str, trained: Trained, path: Path) -> "ArmResult | None":
        """Return the result with the answers kept in ``path``; None if there are none."""
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(name, trained, Answers(content["texts"], content["right"], content["per_category"]))

    def write(self, path: Path) -> None:
        """Keep the answers in ``path``."""
        if self.answers is not None:
            texts, right = dict(self.answers.texts), dict(self.answers.right)
            write_json(path, {"texts": texts, "right": right, "per_category": dict(self.answers.per_category)})

    @property
    def evaluation(self) -> Event:
        """The evaluation of the round that the arm's adapter is from."""
        return _evaluation(self.trained.events, self.trained.round)


def summarise(job: Job, federated: Trained, results: Sequence[ArmResult]) -> dict[str, object]:
    """Return the content of ``summary.json``."""
    by_name = {result.name: result for result in results}
    before, after = by_name["base"].evaluation, by_name["federated"].evaluation
    start, end = _mapping(before["per_category"]), _mapping(after["per_category"])
    named = Counter(event["event"] for event in federated.events)
    waiting = [event["clients"] for event in federated.events if event["event"] == "under_way"]
    summary: dict[str, object] = {
        "model": job.config.model,
        "dataset": job.corpus.name,
        "strategy": job.config.strategy,
        "clients": len(job.clients),
        "held_out_rows": len(job.held_out),
        **totals(federated.events),
        "adapter_round": federated.round,
        # Where clients are private, who failed is withheld, and how many.
        "failed_updates": None if job.config.privacy == "client" else named["client_failed"],
        "dropped_clients": named["client_dropped"],
        "left_under_way": sum(len(clients) for clients in waiting if isinstance(clients, list)),
        "held_out": {
            "before": _held_out(by_name["base"], before),
            "after": _held_out(by_name["federated"], after),
        },
        "per_category": {name: {"before": start[name], "after": end[name]} for name in start},
        **_privacy(federated.events),
        "partition": {**job.statistics, "scheme": job.partition.scheme, "hash": job.partition.hash},
        "removed_rows": dict(job.partition.removed),
    }
    if job.config.compare:
        summary["arms"] = {result.name: _arm(result) for result in results}
        summary["examples"] = [
            {
                "instruction": example.messages[-2].content,
                "category": example.category,
                "context": example.context,
                "expected": example.answer,
                "answers": {name: {"text": text, "right": right} for name, (text, right) in answers.items()},
            }
            for example, answers in answered_examples(job, results)
        ]
    return summary


def write_summary(
    folder: Path, job: Job, federated: Trained, results: Sequence[ArmResult], summary: Mapping[str, object]
) -> None:
    """Write pictures, ``summary.md`` and, last, ``summary.json``, whose presence says that the run is finished."""
    counts = job.category_counts
    sizes = job.sizes
    held = {client: {"rows": sizes[client], "categories": mine} for client, mine in counts.items()}
    write_json(folder / COUNTS, held)
    if not any(counts.values()):
        counts = {client: {"rows": size} for client, size in sizes.items()}
    curves = {r.name: _curve(r) for r in results if r.name != "base"}
    base = {"base": _number(results[0].evaluation["loss"])}
    categories = sorted(_mapping(results[0].evaluation["per_category"]))
    for suffix in ("png", "svg"):
        partition_figure(counts, folder / f"partition.{suffix}")
        learning_curves(
            curves,
            folder / f"curves.{suffix}",
            xlabel="training tokens",
            ylabel="held-out loss (nats per token)",
            reference=base,
        )
        if categories:
            by_category = {c: {name: _curve(r, c) for name, r in _named(results)} for c in categories}
            category_curves(
                by_category, folder / f"categories.{suffix}", xlabel="training tokens", ylabel="held-out loss"
            )
    write_text(folder / "summary.md", _markdown(folder, job, results, summary))
    write_json(folder / "summary.json", dict(summary))


def answered_examples(job: Job, results: Sequence[ArmResult]) -> list[tuple[Example, dict[str, tuple[str, bool]]]]:
    """Return a few held-out rows with every arm's answer and grade: the first row of evenly spaced categories."""
    answered = [result for result in results if result.answers is not None]
    if not answered:
        return []
    firsts: dict[str | None, Example] = {}
    for example in job.held_out:
        firsts.setdefault(example.category, example)
    rows = [firsts[name] for name in sorted(firsts, key=str)] if len(firsts) >= SHOWN_EXAMPLES else job.held_out
    shown = []
    for example in spread(rows, KEPT_EXAMPLES):
        key = row_id(example)
        texts = {r.name: (r.answers.texts[key], r.answers.right[key]) for r in answered if r.answers is not None}
        shown.append((example, texts))
    return shown


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most so many items, evenly spaced."""
    return items[:: max(len(items) // most, 1)][:most]


def traffic_text(summary: Mapping[str, object], name: str) -> str:
    """Return the bytes carried one way ("bytes_up"), and how they compare with those before transforms."""
    sent = _number(summary[name])
    less = shrunk(_number(summary.get(f"raw_{name}", sent)), sent)
    return f"{sent / 1e6:,.1f} MB" + (f" ({less})" if less else "")


def not_heard(summary: Mapping[str, object]) -> str:
    """Return a sentence a kind of clients that were asked and neither delivered nor failed; empty without any."""
    dropped, left = (int(_number(summary.get(key, 0))) for key in ("dropped_clients", "left_under_way"))
    said = f" Not waited for, late or more than wanted: {dropped:,}." if dropped else ""
    return said + (f" Under way when the rounds were over: {left:,}." if left else "")


def _markdown(folder: Path, job: Job, results: Sequence[ArmResult], summary: Mapping[str, object]) -> str:
    held_out = _mapping(summary["held_out"])
    before, after = _mapping(held_out["before"]), _mapping(held_out["after"])
    failed = "withheld" if summary["failed_updates"] is None else summary["failed_updates"]
    lines = [
        f"# {folder.name}",
        "",
        f"{summary['strategy']} over {summary['clients']} clients, {summary['rounds']} rounds, "
        f"{_number(summary['tokens']):,.0f} tokens, {_number(summary['seconds']):,.0f} s. "
        f"Up {traffic_text(summary, 'bytes_up')}, down {traffic_text(summary, 'bytes_down')}. "
        f"Failed updates: {failed}.{not_heard(summary)}{_simulated(summary)}"
        f"{protected(summary)}",
        "",
        f"Held-out loss {_number(before['loss']):.3f} → {_number(after['loss']):.3f} nats per token "
        f"over {summary['held_out_rows']} rows; perplexity {_number(before['perplexity']):.2f} → "
        f"{_number(after['perplexity']):.2f}; token accuracy {_number(before['token_accuracy']):.3f} → "
        f"{_number(after['token_accuracy']):.3f}.",
        "",
        "![who holds what](partition.png)",
        "",
        "![learning curves](curves.png)",
        "",
    ]
    categories = _mapping(summary["per_category"])
    if categories:
        lines += ["| category | loss before | loss after |", "|---|---:|---:|"]
        for name, pair in categories.items():
            both = _mapping(pair)
            lines.append(f"| {name} | {_number(both['before']):.3f} | {_number(both['after']):.3f} |")
        lines.append("")
    if "arms" in summary:
        lines += ["| arm | held-out loss | exact match | training tokens |", "|---|---:|---:|---:|"]
        for name, arm in _mapping(summary["arms"]).items():
            values = _mapping(arm)
            lines.append(
                f"| {name} | {_number(values['loss']):.3f} | {_number(values['exact_match']):.2f} | "
                f"{_number(values['tokens']):,.0f} |"
            )
        lines.append("")
    for example, answers in spread(answered_examples(job, results), SHOWN_EXAMPLES):
        lines += [f"**{example.messages[-2].content}**", ""]
        if example.context:
            lines += [f"> {example.context}", ""]
        lines += [
            f"- {name} ({'right' if good else 'wrong'}): `{text!r}`" for name, (text, good) in answers.items()
        ]
        lines += [f"- expected: `{example.answer!r}`", ""]
    lines += [f"Next: `fedit chat {folder}`", ""]
    return "\n".join(lines)


def _privacy(events: Sequence[Event]) -> dict[str, object]:
    """Return what was promised to clients and what has been spent; nothing where nothing was promised."""
    promised = next((event["privacy"] for event in events if "privacy" in event), None)
    if not isinstance(promised, dict):
        return {}
    spent = [event for event in events if event["event"] == "round" and "epsilon" in event]
    ended = any(event["event"] == "budget_spent" for event in events)
    last = {name: spent[-1][name] for name in ("epsilon", "epsilon_rdp")} if spent else {}
    return {"privacy": {**promised, **last, "rounds": len(spent), "budget_spent": ended}}


def protected(summary: Mapping[str, object]) -> str:
    """Return what was spent, in words; nothing where nothing was promised."""
    if "privacy" not in summary:
        return ""
    own = _mapping(summary["privacy"])
    epsilon = own.get("epsilon", 0.0)
    shown = "unbounded" if epsilon is None else f"{_number(epsilon):.3g}"
    return f" Spent on every client: epsilon {shown} at delta {_number(own['delta']):.3g}."


def _simulated(summary: Mapping[str, object]) -> str:
    """Return what the virtual clock says, in words; nothing where there is none."""
    seconds = summary.get("simulated_seconds")
    return "" if seconds is None else f" Simulated time: {_number(seconds):,.1f} s."


def _arm(result: ArmResult) -> dict[str, object]:
    evaluation = result.evaluation
    losses = _mapping(evaluation["per_category"])
    matches = result.answers.per_category if result.answers else {}
    return {
        "loss": evaluation["loss"],
        "exact_match": result.answers.exact_match if result.answers else None,
        "tokens": 0 if result.name == "base" else totals(result.trained.events)["tokens"],
        "rounds": result.trained.round,
        "per_category": {
            name: {"loss": losses[name], "exact_match": matches.get(name)} for name in sorted(losses)
        },
    }


def _held_out(result: ArmResult, evaluation: Event) -> dict[str, object]:
    fields: dict[str, object] = {name: evaluation[name] for name in (*PREFERENCES, *LOSSES) if name in evaluation}
    fields["per_client"] = evaluation["clients"]
    if result.answers is not None:
        fields["exact_match"] = result.answers.exact_match
    return fields


def _evaluation(events: Sequence[Event], round: int) -> Event:
    """Return the newest evaluation up to ``round``."""
    found = [e for e in events if e["event"] == "evaluation" and int(str(e["round"])) <= round]
    return found[-1]


def _named(results: Sequence[ArmResult]) -> list[tuple[str, ArmResult]]:
    return [(result.name, result) for result in results if result.name != "base"]


def _curve(result: ArmResult, category: str | None = None) -> list[tuple[float, float]]:
    """Return (training tokens so far, held-out loss) at every evaluation of an arm."""
    tokens, points = 0.0, []
    for event in result.trained.events:
        if event["event"] == "round":
            tokens += _number(event["tokens"])
        elif event["event"] == "evaluation":
            loss = event["loss"] if category is None else _mapping(event["per_category"]).get(category)
            if loss is not None:
                points.append((tokens, _number(loss)))
    return points


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {value!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value)
