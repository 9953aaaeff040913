"""What tests of the command line share: a call of ``fedit`` in this process, and a tiny finished run."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import write_rows

from fedit import settings
from fedit.cli.app import app
from fedit.cli.errors import run_and_exit
from fedit.launch import run


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: object
    out: str
    err: str


@pytest.fixture
def fedit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Callable[..., Outcome]:
    """Call the command line as the shell does: ``fedit("list", "strategies")``."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_and_exit(app, [str(argument) for argument in arguments])
        text = capsys.readouterr()
        return Outcome(left.value.code, text.out, text.err)

    return call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A finished run of the tiny Llama, with one baseline; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder / "rows.jsonl", 60)
    job = {
        "model": tiny, "dtype": "fp32", "dataset": folder / "rows.jsonl", "num_clients": 2, "num_rounds": 2,
        "local_steps": 2, "batch_size": 4, "held_out": 1, "max_length": 96, "lora_r": 4, "lora_alpha": 16,
        "learning_rate": 0.02, "prompt_template": "alpaca_short", "compare": "[centralised]", "max_new_tokens": 4,
        "num_workers": 1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        for name in ("partition_figure", "learning_curves", "category_curves"):
            patch.setattr(f"fedit.report.summary.{name}", lambda *args, **options: None)
        config = settings.load(None, [f"{name}={value}" for name, value in job.items()]).config
        return run(config, folder / "first").folder
