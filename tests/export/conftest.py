"""What tests of exports share: finished tiny runs, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import save_bpe_model
from tiny import write_rows

from fedit import settings
from fedit.launch import run


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a tiny model whose vocabulary llama.cpp reads: ``bpe("qwen2")``."""
    made: dict[str, Path] = {}

    def folder(kind: str = "llama", split: str = "smollm", **changes: object) -> Path:
        key = f"{kind}-{split}-{sorted(changes.items())}"
        if key not in made:
            home = tmp_path_factory.mktemp("bpe") / f"tiny-{kind}"
            made[key] = save_bpe_model(kind, home, split, **changes)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bpe: Callable[..., Path]) -> Callable[..., Path]:
    """Return the folder of a finished tiny run: ``finished(strategy="fedex_lora")``; not to be changed."""
    made: dict[str, Path] = {}

    def folder(**changes: object) -> Path:
        key = str(sorted(changes.items()))
        if key not in made:
            home = tmp_path_factory.mktemp("finished")
            write_rows(home / "rows.jsonl", 24)
            job = {
                "model": str(bpe()), "device": "cpu", "dtype": "fp32", "dataset": str(home / "rows.jsonl"),
                "num_clients": 2, "num_rounds": 2, "local_steps": 1, "batch_size": 4, "held_out": 1,
                "max_length": 128, "lora_r": 4, "lora_alpha": 8, "learning_rate": 0.05, "num_workers": 1,
                "compare": [], "exact_match": False, **changes,
            }  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FEDIT_CACHE", str(home / "cache"))
                for name in ("partition_figure", "learning_curves", "category_curves"):
                    patch.setattr(f"fedit.report.summary.{name}", lambda *args, **options: None)
                patch.setattr("fedit.launch.write_report", lambda *args, **options: None)
                run(settings.from_values(job, "test"), home / "first")
            made[key] = home / "first"
        return made[key]

    return folder
