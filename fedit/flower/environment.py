"""The environment of a deployment's processes: Flower quiet, offline, and with a home of its own."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from fedit.errors import ConfigError
from fedit.flower.extra import INSTALL

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Otherwise a SuperLink fetches the packages of a job from an index.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def child_environment(flwr_home: Path) -> dict[str, str]:
    """Return this process's variables with what Flower's programs need.

    flwr_home: where Flower writes, instead of the user's home.
    """
    # Flower finds its own programs on PATH, also where the virtual environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [os.environ.get("PATH")])])
    return {**os.environ, **SWITCHES, "FLWR_HOME": str(flwr_home.absolute()), "PATH": path}


def program(name: str, environment: Mapping[str, str]) -> str:
    """Return the file of one of Flower's programs.

    Raises:
        ConfigError: Flower is not installed.
    """
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise ConfigError(f"{name} is not installed; install it with: {INSTALL}")
    return found
