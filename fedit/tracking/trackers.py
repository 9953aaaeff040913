"""Trackers by name: trackio, Weights & Biases and MLflow, each an extra, all behind the same three calls."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

from fedit.errors import ConfigError

PROJECT = "fedit"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a tracker is told of a run.

    name:     shown to people: the run folder's, with a few letters that no other run has.
    settings: all of them, as JSON values.
    key:      what the tracker called the run when it began; None for a new one.
    """

    name: str
    settings: Mapping[str, object]
    key: str | None


class Tracker(Protocol):
    """A run in a tracker.

    key: what it is found by when the run goes on.
    """

    @property
    def key(self) -> str:
        """The tracker's name for the run."""
        ...

    def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
        """Add numbers at a round; time: seconds since 1970."""
        ...

    def finish(self) -> None:
        """Send what is waiting and end."""
        ...


class Trackio:
    """A local trackio project: SQLite in ``TRACKIO_DIR``, shown by ``trackio show``."""

    def __init__(self, info: RunInfo) -> None:
        import trackio

        self.key = info.key or info.name
        with redirect_stdout(sys.stderr):  # standard output is for results
            self._run: Any = trackio.init(
                project=PROJECT,
                name=self.key,
                config=dict(info.settings),
                resume="allow" if info.key else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
        """Add numbers."""
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        """Wait until all is written."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


class Wandb:
    """A Weights & Biases run; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, info: RunInfo) -> None:
        import wandb

        self.key = info.key or info.name
        with redirect_stdout(sys.stderr):
            self._run: Any = wandb.init(
                project=PROJECT,
                id=self.key,
                name=info.name,
                config=dict(info.settings),
                resume="allow",
                reinit="create_new",
            )
        # Arms follow each other and each begins at round 0, while W&B's own step may only grow.
        self._run.define_metric("fedit_round")
        self._run.define_metric("*", step_metric="fedit_round")

    def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
        """Add numbers."""
        self._run.log({**numbers, "fedit_round": step})

    def finish(self) -> None:
        """Wait until all is sent."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


class Mlflow:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in the folder that MLflow takes by itself."""

    def __init__(self, info: RunInfo) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        if info.key is not None:
            self.key = info.key
            self._client.update_run(self.key, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self.key = str(self._client.create_run(number, run_name=info.name).info.run_id)
        given = [Param(name, str(value)[:MLFLOW_LONGEST]) for name, value in info.settings.items()]
        for start in range(0, len(given), MLFLOW_MOST):
            self._client.log_batch(self.key, params=given[start : start + MLFLOW_MOST])

    def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
        """Add numbers."""
        from mlflow.entities import Metric

        metrics = [Metric(name, number, round(time * 1000), step) for name, number in numbers.items()]
        self._client.log_batch(self.key, metrics=metrics)

    def finish(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.key)


MLFLOW_LONGEST, MLFLOW_MOST = 6000, 100
"""Characters of a parameter, and parameters in one call, that MLflow takes."""

TRACKERS: Mapping[str, Callable[[RunInfo], Tracker]] = {"trackio": Trackio, "wandb": Wandb, "mlflow": Mlflow}
"""Name in ``report_to``, which is also that of the package and of fedit's extra."""


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that the packages of all trackers are there, before anything is trained.

    Raises:
        ConfigError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report_to: the package {name} is not installed: pip install 'fedit[{name}]', or leave it out."
            )
