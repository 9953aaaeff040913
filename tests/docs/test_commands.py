"""Every command and every Python block of README, CONTRIBUTING and docs is run, document by document."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```\n(.*?)(?=^```|\Z)", re.MULTILINE | re.DOTALL)
SAVED_AS = re.compile(r"^\s*Saved as `([\w./-]+)`")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    saved_as: str | None


def blocks(path: Path) -> list[Block]:
    found = []
    for language, text, after in FENCE.findall(path.read_text(encoding="utf-8")):
        name = SAVED_AS.match(after)
        found.append(Block(language, text, name.group(1) if name else None))
    return found


WITH_COMMANDS = [path for path in DOCUMENTS if blocks(path)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_commands_of_a_document_work(path, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for block in blocks(path):
        if block.saved_as:
            (tmp_path / block.saved_as).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            run([sys.executable, "-c", block.text], tmp_path)
        else:
            run_shell(block.text, tmp_path)


def run_shell(text: str, folder: Path) -> None:
    """Run a block's lines; make targets belong to the checkout and are run by CI, here they only have to exist."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for target in [line.split()[1] for line in lines if line.startswith("make ")]:
        run(["make", "--dry-run", target], ROOT)
    script = "\n".join(line for line in text.splitlines() if not line.startswith(("make ", "git ", "pip ")))
    if script.strip():
        run(["bash", "-euo", "pipefail", "-c", script], folder)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_commands_are_found_where_there_are_some():
    assert {path.name for path in WITH_COMMANDS} >= {"README.md", "CONTRIBUTING.md"}
