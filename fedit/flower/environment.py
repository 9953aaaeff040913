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
MEMORY = {
    # glibc keeps what its threads free, and takes more for the pieces of the next message: without these a server
    # with updates of 59 MB grew by 100 MB a round.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000",
}
"""Of the C library; what the user has set wins."""


def child_environment(flwr_home: Path) -> dict[str, str]:
    """Return this process's variables with what a deployment's processes need.

    flwr_home: where Flower writes, instead of the user's home.
    """
    # Flower finds its own programs on PATH, also where the virtual environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [os.environ.get("PATH")])])
    return {**os.environ, **SWITCHES, "FLWR_HOME": str(flwr_home.absolute()), "PATH": path}


def messenger_environment(flwr_home: Path) -> dict[str, str]:
    """Return the same for programs that pass messages on, and train nothing: they give memory back."""
    return {**MEMORY, **child_environment(flwr_home)}


def program(name: str, environment: Mapping[str, str]) -> str:
    """Return the file of one of Flower's programs.

    Raises:
        ConfigError: Flower is not installed.
    """
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise ConfigError(f"{name} is not installed; install it with: {INSTALL}")
    return found
