"""Rows of three sites, in one file for a simulation and in a file a site for a deployment."""

import json
from pathlib import Path

from tiny import write_rows

from fedit.config import RunConfig
from fedit.prepare import prepare

SITES = ("hospital-a", "hospital-b", "hospital-c")


def write_owned_rows(path: Path, count: int) -> None:
    """Write rows each of which names the site that owns it."""
    write_rows(path, count)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "site": SITES[i // 3 % 3]}) + "\n" for i, row in enumerate(rows)))


def split(config: RunConfig, data: Path) -> None:
    """Write what each site trains on in a simulation to a file of its own, and what is held out to another."""
    lines = data.read_text().splitlines()
    dealt = prepare(config)
    parts = {**dealt.clients, "held-out": dealt.corpus.held_out}
    for name, examples in parts.items():
        numbers = [int(example.where.rpartition(":")[2]) for example in examples]
        (data.parent / f"{name}.jsonl").write_text("".join(f"{lines[number - 1]}\n" for number in numbers))
