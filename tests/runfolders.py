"""Run folders written by hand: what a report is made of, with any names and numbers."""

import json
from pathlib import Path

import yaml

from fedit.config import RunConfig

HOSTILE = (
    "<script>alert(1)</script>",
    "]]></style></title><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) `code` | cell | **bold** ~~s~~",
    "\u202egnp.exe\u2066 \u200b\x00\x1b[31m\ud800",
    "https://evil.example/?q='\"&amp;<b>",
    "W" * 400,
    "# $x$ --- ===",
    "\nnew\r\nlines\tand\u2028more",
)
"""Names and answers that would do harm where they are not escaped."""


def write_run(
    folder: Path,
    *,
    clients: tuple[str, ...] = ("client-0", "client-1", "client-2"),
    categories: tuple[str, ...] = ("open_qa", "summarization"),
    arms: tuple[str, ...] = ("centralised", "local:client-0"),
    answers: tuple[str, ...] = ("The answer is 48.", "The answer is 83.", "Paris", "London"),
    rounds: int = 3,
    loss: float | None = 0.5,
    settings: dict[str, object] | None = None,
    failures: tuple[tuple[str, str], ...] = (),
) -> Path:
    """Write a finished run: ``loss`` is the last one of the federation, ``failures`` are (client, reason)."""
    everyone = ("base", "federated", *arms)
    config = RunConfig.model_validate({"num_rounds": rounds, **(settings or {})}).model_dump(mode="json")
    (folder / "arms").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    _json(folder / "run.json", {"version": 1, "fedit": "0.1.0", "settings": "5" * 64, "data": "d" * 64})
    _json(folder / "environment.json", {"python": "3.11", "packages": {"torch": "2.13"}, "cores": 2})
    counts = {
        client: {"rows": 10 + i, "categories": {c: 5 for j, c in enumerate(categories) if (i + j) % 2 == 0}}
        for i, client in enumerate(clients)
    }
    _json(folder / "partition-counts.json", counts)
    (folder / "events.jsonl").write_text(_events("federated", clients, categories, rounds, loss, failures))
    for number, arm in enumerate(arms):
        place = folder / "arms" / f"arm-{number}"
        place.mkdir()
        (place / "events.jsonl").write_text(_events(arm, clients, categories, rounds, 0.7 + 0.1 * number))
        _answers(place, number + 1)
    (folder / "arms" / "base").mkdir()
    _answers(folder / "arms" / "base", 0)
    _answers(folder, 5)
    examples = [
        {
            "instruction": f"{text} ?",
            "category": categories[0] if categories else None,
            "context": text,
            "expected": text,
            "answers": {
                arm: {"text": answers[i % len(answers)], "right": i % 2 == 0} for i, arm in enumerate(everyone)
            },
        }
        for text in answers
    ]
    _json(
        folder / "summary.json",
        {
            "model": "tiny",
            "dataset": "rows.jsonl",
            "strategy": "fedit",
            "clients": len(clients),
            "rounds": rounds,
            "tokens": 1000 * rounds,
            "bytes_up": 2_000_000 * rounds,
            "bytes_down": 2_000_000 * rounds,
            "seconds": 3.5 * rounds,
            "adapter_round": rounds,
            "failed_updates": len(failures),
            "held_out_rows": 8,
            "removed_rows": {"duplicate": 2},
            "partition": {"scheme": "label_count", "hash": "a" * 64, "size_gini": 0.1},
            "arms": {arm: {"rounds": rounds} for arm in everyone},
            "examples": examples,
        },
    )
    return folder


def _events(
    arm: str,
    clients: tuple[str, ...],
    categories: tuple[str, ...],
    rounds: int,
    last: float | None,
    failures: tuple[tuple[str, str], ...] = (),
) -> str:
    """Return a log whose losses fall from 2 to ``last``; None: the last one is not finite."""
    events: list[dict[str, object]] = [
        {"event": "arm_started", "round": 0, "clients": len(clients), "trainable_parameters": 1234}
    ]
    for number in range(rounds + 1):
        loss = 2 - number / max(rounds, 1) * (2 - (last or 1))
        if number:
            events += [
                {"event": "client_failed", "round": number, "client": client, "reason": reason}
                for client, reason in failures
            ]
            events.append(
                {
                    "event": "round",
                    "round": number,
                    "cohort": list(clients[:2]),
                    "delivered": 2,
                    "failed": len(failures),
                    "aggregated": not failures,
                    "train_loss": loss,
                    "tokens": 1000,
                    "bytes_up": 2_000_000,
                    "bytes_down": 2_000_000,
                    "seconds": 3.5,
                    "update_norm_mean": 2.0 / number,
                    "update_norm_max": 3.0 / number,
                    "mean_update_norm": 1.5 / number,
                    "pairwise_cosine": 0.1,
                    "diversity": 1.9,
                    "aggregation_bias": 0.16,
                    "aggregation_bias_error": 0.003,
                }
            )
        shown = None if last is None and number == rounds else loss
        events.append(
            {
                "event": "evaluation",
                "round": number,
                "loss": shown,
                "seconds": 1.0,
                "per_category": {name: shown and shown * (1 + 0.1 * i) for i, name in enumerate(categories)},
                "per_client": {name: shown and shown * (1 + 0.01 * i) for i, name in enumerate(clients)},
                "clients": {"mean": shown, "worst_decile": shown and shown * 1.2},
            }
        )
    return "".join(json.dumps({**event, "arm": arm, "time": 0.0}) + "\n" for event in events)


def _answers(folder: Path, right: int) -> None:
    grades = {f"row-{i}": i < right for i in range(8)}
    _json(folder / "answers.json", {"texts": {row: "x" for row in grades}, "right": grades, "per_category": {}})


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
