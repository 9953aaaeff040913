"""What the extra for deployments asks for, and which versions of Flower it is tested with."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]

pytest.importorskip("flwr")


@pytest.mark.slow
@pytest.mark.check(1)
def test_all_that_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.check(17)
def test_the_flwr_that_constraints_pin_is_the_lowest_that_is_supported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = map(Requirement, project["optional-dependencies"]["flower"])
    (lowest,) = [Version(one.version) for one in extra.specifier if one.operator == ">="]
    pins = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert {name: Version(pinned) for name, _, pinned in pins if name == "flwr"} == {"flwr": lowest}
    assert version("flwr") in extra.specifier
