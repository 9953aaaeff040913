"""The ``fedit`` command. Nothing heavy is imported before a command runs."""

import sys
from typing import NoReturn

from fedit.cli.app import app


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    from fedit.cli.errors import run_and_exit

    run_and_exit(app, sys.argv[1:])
