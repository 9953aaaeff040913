"""What tests of benchmarks share: tiny arms over one tiny base, and task files."""

import json

import pytest
from tiny import random_adapter

from fedit.tuned import Tuned


@pytest.fixture(scope="session")
def arms(adapted, tiny) -> dict[str, Tuned]:
    """The tiny Llama, and two strong random adapters of it, of different ranks."""
    made = {}
    for seed, (name, rank) in enumerate((("federated", 4), ("centralised", 2)), 1):
        model = adapted("llama", dtype="fp32", rank=rank)
        factors = {name: value.float() for name, value in random_adapter(model, seed, size=0.5).items()}
        made[name] = Tuned(factors, str(tiny), "alpaca_short", rank, 8.0, dtype="fp32")
    return {"base": made["federated"].base(), **made}


@pytest.fixture
def write_task(tmp_path):
    """Write a task file over rows of its own; return its path."""

    def write(name: str, rows: list[dict], **fields: object) -> str:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}, "metadata": {"version": 1.0}, **fields,
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return str(path)

    return write
