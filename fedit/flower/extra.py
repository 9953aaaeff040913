"""What is told where Flower is not installed: it comes with an extra of its own."""

import os
from importlib.util import find_spec

from fedit.errors import ConfigError

POSIX = os.name == "posix"
INSTALL = "pip install 'fedit[flower]'"


def require(command: str, *packages: str) -> None:
    """Check that packages of the extra are there.

    command: what needs them, as the user calls it.

    Raises:
        ConfigError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(f"`{command}` needs the package {package}; install it with: {INSTALL}")


def require_posix(command: str) -> None:
    """Check that this system has what server and sites are built on.

    Raises:
        ConfigError: it is Windows.
    """
    if not POSIX:
        raise ConfigError(
            f"`{command}` needs local sockets and process groups, which Python has on Linux and macOS; on Windows "
            "run it in WSL or in a container."
        )
