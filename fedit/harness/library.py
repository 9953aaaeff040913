"""The harness as it is installed: whether it is there, which version, and what it does behind one's back."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from fedit.errors import ConfigError

INSTALL = "pip install 'fedit[harness]'"
SEED = 1234
"""Of few-shot examples, and of numpy while tasks are built: the harness's own defaults."""


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
    from lm_eval.api import model, task

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for module in (model, task):  # their bars have no switch that evaluate() passes on
        if not isinstance(module.tqdm, partial):
            module.tqdm = partial(module.tqdm, disable=True)


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the global generators as the harness does, and put them back: some tasks shuffle as they are built."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
