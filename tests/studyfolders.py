"""A small study with everything that a report can show: several federations, questions, a judge, votes."""

import json
from pathlib import Path

from tiny import write_rows

from fedit import settings
from fedit.evaluation.votes import append
from fedit.judging import judge, read_arms
from fedit.judging.base import Reply, Request
from fedit.settings import Settings
from fedit.study.run import run_study


class Longest:
    """A judge that weighs verdicts and likes the longer answer."""

    name, explains, concurrency, sampling = "long", False, 1, {}

    def describe(self) -> dict[str, object]:
        return {"kind": "scripted", "model": self.name}

    def ask(self, request: Request) -> Reply:
        text = request.messages[-1].content
        first = text.index("ANSWER 1 ENDS") - text.index("ANSWER 1 BEGINS")
        second = text.index("ANSWER 2 ENDS") - text.index("ANSWER 2 BEGINS")
        best = f"{9 if first >= second else 4} {9 if second >= first else 4}"
        return Reply(None, {choice: 0.0 if choice == best else -100.0 for choice in request.choices}, 1, 1)


def write_study(folder: Path, model: Path) -> Path:
    """Run a study of a tiny model into ``folder / "study"``, judge its answers and vote on them."""
    folder.mkdir(parents=True)
    write_rows(folder / "rows.jsonl", 60)
    rows = [
        {"question_id": f"q{i}", "category": "chat", "question": f"Say {i}.", "reference": "x"} for i in range(8)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "model": str(model),
        "device": "cpu",
        "dtype": "fp32",
        "dataset": str(folder / "rows.jsonl"),
        "prompt_template": "vicuna",
        "lora_r": 4,
        "partitioner": "label_count",
        "labels_per_client": 1,
        "num_clients": 4,
        "clients_per_round": 2,
        "num_rounds": 2,
        "local_steps": 1,
        "batch_size": 4,
        "held_out": 2,
        "validation": 1,
        "max_length": 96,
        "max_new_tokens": 3,
        "num_workers": 1,
    }
    study = settings.load(
        None,
        [
            "study.strategies=[fedit, ffa_lora]",
            "study.seeds=2",
            "study.learning_rates=0.001,0.01",
            f"study.questions={folder / 'questions.jsonl'}",
            "study.question_tokens=4",
            "study.resamples=40",
        ],
    ).study
    out = folder / "study"
    ready = Settings(settings.from_values(given, "test"), {}, study)
    run_study(ready, out)
    judge(read_arms([out]), Longest(), out=out / "judgement-score", resamples=40, with_canaries=True)
    arms = ("base", "federated:fedit")
    append(out / "votes.jsonl", [dict(zip(("first", "second", "winner"), (*arms, "tie"), strict=True))] * 3)
    return out
