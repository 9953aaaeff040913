"""The harness as it is installed: whether it is there, which version, and what it does not say on a terminal."""

import logging
from importlib.metadata import PackageNotFoundError, version

from fedit.errors import ConfigError

INSTALL = "pip install 'fedit[harness]'"


def installed_version() -> str:
    """Return the version of lm-eval.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("lm-eval")
    except PackageNotFoundError as error:
        raise ConfigError(f"benchmarks need lm-evaluation-harness; install it with: {INSTALL}") from error


def quiet() -> None:
    """Leave errors of the harness and of datasets on the terminal, and nothing else of theirs."""
    import datasets  # type: ignore[import-untyped]

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
