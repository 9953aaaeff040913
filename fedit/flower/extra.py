"""What is told where Flower is not installed: it comes with an extra of its own."""

from importlib.util import find_spec

from fedit.errors import ConfigError

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
