"""What tests of reports share: a finished run that was never run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runfolders import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run with changes: ``make_run(rounds=2)``."""
    return lambda **changes: write_run(tmp_path / "a-run", **changes)
