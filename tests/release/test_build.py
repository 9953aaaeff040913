"""sdist and wheel are built without a network, hold what they should, and run where they are installed."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import write_rows

ROOT = Path(__file__).parents[2]
CONSUMER = """
from pathlib import Path

import fedit
from fedit.strategies.base import Strategy
from fedit.types import ServerState
from fedit.updates import Updates


class Mine(Strategy):
    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return super().aggregate(server, updates)


def train(folder: Path) -> float:
    result: fedit.Result = fedit.run(fedit.load_config("demo", num_rounds=1), folder)
    rounds: int = fedit.load_config("demo").num_rounds
    return float(rounds) + len(str(result.adapter))


WRONG: str = fedit.load_config("demo").num_rounds
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the sdist and, built from it, the wheel."""
    pytest.importorskip("hatchling", reason="make setup installs it")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Return the Python of an environment with the wheel, and the libraries of this one."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # This environment's libraries, but for its fedit, whose own .pth files are not read from there.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", built[1]], check=True)
    return python


def run(command, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_package_its_recipes_and_the_licence(built):
    names = zipfile.ZipFile(built[1]).namelist()
    package = {name for name in names if name.startswith("fedit/")}
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedit").rglob("*") if path.is_file()}
    recipes = {f"fedit/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()}
    assert package == {name for name in own if "__pycache__" not in name} | recipes
    assert "fedit/py.typed" in package
    rest = sorted(name.partition("/")[2] for name in names if name not in package)
    assert rest == ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]


def test_the_sdist_holds_what_is_needed_to_build_and_read_and_no_tests(built):
    with tarfile.open(built[0]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    tops = {name.partition("/")[0] for name in names}
    assert {"fedit", "recipes", "examples", "docs", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff",
            "pyproject.toml", "constraints.txt"} <= tops  # fmt: skip
    assert not tops & {"tests", "benchmarks", "fuzz", "tools", ".venv", ".ci", "runs", "dist"}
    assert not [name for name in names if "__pycache__" in name]


def test_what_is_installed_trains_a_federation_and_knows_its_recipes(installed, tiny, tmp_path):
    where = run([installed, "-c", "import fedit; print(fedit.__file__)"], tmp_path)
    assert where.stdout.startswith(str(installed.parents[1])), where.stderr
    fedit = installed.parent / "fedit"
    told = run([fedit, "--version"], tmp_path)
    assert told.stdout.startswith("fedit 0."), told.stderr
    assert '"demo"' in run([fedit, "list", "recipes", "--json"], tmp_path).stdout
    write_rows(tmp_path / "rows.jsonl", 40)
    job = (
        f"model={tiny} dtype=fp32 dataset=rows.jsonl num_clients=2 num_rounds=1 local_steps=1 batch_size=4 "
        "held_out=4 max_length=96 lora_r=4 prompt_template=alpaca_short compare=[centralised] max_new_tokens=4 "
        "num_workers=1"
    )
    done = run([fedit, "run", *job.split(), "--out", "run"], tmp_path, FEDIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1


def test_programs_that_use_it_are_checked_with_its_types(installed, tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    # Types of the libraries below are theirs, and reading them takes minutes.
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "transformers", "numpy"))
    (tmp_path / "mypy.ini").write_text(skipped)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "consumer.py"]
    done = run([*command, "--cache-dir", str(tmp_path / "types")], tmp_path)
    assert "Found 1 error in 1 file" in done.stdout, done.stdout
    assert (
        'error: Incompatible types in assignment (expression has type "int", variable has type "str")'
        in done.stdout
    )
