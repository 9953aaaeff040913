"""The ``fedit`` command. Nothing heavy is imported before a command runs."""

import io
import sys
from typing import NoReturn

from fedit.cli.app import app


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    from fedit.cli.errors import run_and_exit

    for stream in (sys.stdout, sys.stderr):
        # Windows gives pipes and files its code page, in which names and formulas cannot be written.
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    run_and_exit(app, sys.argv[1:])
