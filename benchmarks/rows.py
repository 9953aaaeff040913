"""The rows that everybody trains on: real Dolly rows where there are some, else rows of the same lengths."""

import json
import os
from pathlib import Path

import numpy as np

SEED = 20230509
MAX_LENGTH = 512
POOL = 2000
MEDIAN, SPREAD, SUPERVISED = 120, 1.08, 0.68
"""Lengths of synthetic rows: log-normal, cut at 512, which gives a mean of about 180 tokens."""

Row = dict[str, list[int]]


def pool(model: Path) -> tuple[list[Row], str]:
    """Return many rows and where they are from: ``$FEDIT_DATA/dolly15k``, or made up."""
    dolly = Path(os.environ.get("FEDIT_DATA") or "/nonexistent") / "dolly15k" / "dolly15k.jsonl"
    if dolly.is_file():
        return dolly_rows(dolly, model), "Dolly"
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    return synthetic_rows(
        POOL, vocabulary
    ), "synthetic rows of Dolly-like lengths (set FEDIT_DATA for Dolly's own)"


def prepared(model: Path, tokens: int, folder: Path) -> tuple[list[Row], dict, str]:
    """Write about ``tokens`` tokens of rows; return them, what scripts are asked of them, and words on them."""
    everything, origin = pool(model)
    chosen = representative(everything, tokens)
    write(chosen, folder / "rows.jsonl")
    request = {"model": str(model), "rows": str(folder / "rows.jsonl"), "threads": 1}
    return chosen, request, f"{origin}: {describe(chosen)}"


def dolly_rows(path: Path, model: Path) -> list[Row]:
    """Tokenise a seeded sample of Dolly with the peers' own (Alpaca's) template; only answers are supervised."""
    from transformers import AutoTokenizer

    from fedit.data.examples import Example, Message
    from fedit.data.templates import get_template
    from fedit.data.tokens import tokenize

    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = np.random.default_rng(SEED).permutation(len(lines))[:POOL]
    rows = [json.loads(lines[i]) for i in sorted(chosen)]
    examples = [
        Example(
            (Message("user", row["instruction"]), Message("assistant", row["response"])), context=row["context"]
        )
        for row in rows
        if row["response"].strip()
    ]
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    table = tokenize(examples, tokenizer, get_template("alpaca", tokenizer), max_length=MAX_LENGTH)
    found = (table.row(i) for i in range(len(table)))
    return [{"ids": r.ids.tolist(), "supervised": r.supervised.astype(int).tolist()} for r in found]


def synthetic_rows(count: int, vocabulary: int) -> list[Row]:
    """Return random tokens in rows of Dolly-like lengths whose first third is prompt."""
    rng = np.random.default_rng(SEED)
    lengths = np.exp(rng.normal(np.log(MEDIAN), SPREAD, size=count)).astype(int).clip(16, MAX_LENGTH)
    rows = []
    for length in lengths.tolist():
        prompt = length - round(SUPERVISED * length)
        ids = rng.integers(10, vocabulary, size=length).tolist()
        rows.append({"ids": ids, "supervised": [0] * prompt + [1] * (length - prompt)})
    return rows


def representative(rows: list[Row], tokens: int) -> list[Row]:
    """Return about ``tokens`` tokens in rows at evenly spaced quantiles of the lengths, shuffled.

    A few rows drawn at random would have quite other lengths, and other padding, than the data they stand for.
    """
    ordered = sorted(rows, key=lambda row: (len(row["ids"]), row["ids"]))
    mean = sum(len(row["ids"]) for row in rows) / len(rows)
    count = max(2, round(tokens / mean))
    chosen = [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]
    return [chosen[i] for i in np.random.default_rng(SEED).permutation(count)]


def write(rows: list[Row], path: Path) -> None:
    """Write JSON lines, which every peer's environment can read."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def describe(rows: list[Row]) -> str:
    lengths = [len(row["ids"]) for row in rows]
    share = sum(sum(row["supervised"][1:]) for row in rows) / sum(lengths)
    return (
        f"{len(rows)} rows, {sum(lengths)} tokens, median {np.median(lengths):.0f}, "
        f"mean {np.mean(lengths):.0f}, longest {max(lengths)}, {share:.0%} supervised"
    )
