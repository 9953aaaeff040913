"""Every command and every Python block of README, CONTRIBUTING and docs is run, document by document."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```\n(.*?)(?=^```|\Z)", re.MULTILINE | re.DOTALL)
SAVED_AS = re.compile(r"^\s*Saved as `([\w./-]+)`")

GROUPS: list[int] = []
"""Process groups of the blocks of a document, some of which leave programs running in the background."""
SECONDS_TO_END = 30
SECONDS_OF_A_BLOCK = 900


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
LONG = {"benchmarks.md", "leakage.md", "privacy.md", "sweeps.md"}
"""Documents of minutes, which `make docs-check` runs; what they show has slow tests of its own."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path.relative_to(ROOT)), marks=pytest.mark.long if path.name in LONG else ())
        for path in WITH_COMMANDS
    ],
)
def test_commands_of_a_document_work(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")  # a site's socket has to have a short path
    shutil.copytree(ROOT / "examples", folder / "examples")
    try:
        for block in blocks(path):
            if block.saved_as:
                (folder / block.saved_as).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                run([sys.executable, "-c", block.text], folder)
            else:
                run_shell(block.text, folder)
    finally:
        end_what_runs()


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
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        GROUPS.append(started.pid)
        try:
            out, err = started.communicate(timeout=SECONDS_OF_A_BLOCK)
        except subprocess.TimeoutExpired as error:
            end_what_runs()
            out, err = started.communicate()
            logs = "".join(f"--- {log.name}\n{log.read_text()[-4000:]}\n" for log in sorted(folder.glob("*.log")))
            raise AssertionError(f"{command[-1]}\nhangs\n{out[-4000:]}\n{err[-4000:]}\n{logs}") from error
    if not runs(started.pid):
        GROUPS.remove(started.pid)
    assert started.returncode == 0, f"{command[-1]}\n{out[-2000:]}\n{err[-4000:]}"


def end_what_runs() -> None:
    """End what blocks left running in the background, as servers are; the newest first."""
    while GROUPS:
        group = GROUPS.pop()
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + SECONDS_TO_END
        while runs(group) and time.monotonic() < until:
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def runs(group: int) -> bool:
    """Return whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_commands_are_found_where_there_are_some():
    found = {str(path.relative_to(ROOT)) for path in WITH_COMMANDS}
    assert found >= {"README.md", "CONTRIBUTING.md", "docs/deploy.md", "docs/tutorials/first-run.md"}
