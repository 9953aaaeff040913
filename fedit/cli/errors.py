"""How commands end: 0 well, 1 a failure, 2 the user's mistake, 130 interrupted; tracebacks only with --debug."""

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from fedit.errors import FeditError, UserError
from fedit.process import silence_libraries

EXIT_FAILURE = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


# typer brings its own copy of click in some versions; its own exceptions lead to the right base class.
_USAGE_ERROR: type[typer.BadParameter] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)


class Interrupted(Exception):
    """The user pressed Ctrl-C; the message says how to go on."""


def run_and_exit(app: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    """Run ``app`` and leave the process with an exit code that tells what happened."""
    debug = "--debug" in arguments
    silence_libraries()
    try:
        result = app(args=list(arguments), standalone_mode=False)
    except _USAGE_ERROR as error:
        error.show()
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted", "")
        sys.exit(EXIT_INTERRUPTED)
    except Interrupted as error:
        _say("interrupted", str(error))
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_FAILURE)
    except FeditError as error:
        _say("error", str(error))
        if debug:
            traceback.print_exc()
        sys.exit(EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILURE)
    except Exception as error:
        _say("failed", f"{type(error).__name__}: {error}")
        if debug:
            traceback.print_exc()
        else:
            Console(stderr=True).print(
                Text("Run again with --debug before the command to see where.", style="dim")
            )
        sys.exit(EXIT_FAILURE)
    sys.exit(result if isinstance(result, int) else 0)


def _say(head: str, message: str) -> None:
    """Write to standard error, unwrapped, so that file names and commands can be copied."""
    console = Console(stderr=True, soft_wrap=True)
    lines = message.splitlines() or [""]
    for line in lines:
        console.print(Text.assemble((f"{head}: " if line else head, "bold red"), line))
