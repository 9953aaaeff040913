"""TensorBoard's files: a picture of the log, made from it, and so never with a point twice."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from fedit.events import Event
from fedit.files import safe_name
from fedit.tracking.points import points

FOLDER = "tensorboard"
FLUSH_SECONDS = 10


class Board:
    """One arm's curves in ``<run>/tensorboard/<arm>``."""

    def __init__(self, run: Path, arm: str, past: Sequence[Event]) -> None:
        """Write the curves anew from ``past``, all that the log holds; those of a killed run may go beyond."""
        folder = run / FOLDER / safe_name(arm.replace(":", ".").replace(" ", "_"))
        shutil.rmtree(folder, ignore_errors=True)
        # purge_step: a TensorBoard that is open forgets what it read of the files that went.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=FLUSH_SECONDS)
        for event in past:
            self.add(event)

    def add(self, event: Event) -> None:
        """Add the numbers of one event."""
        time = event.get("time")
        for name, number in points(event).items():
            step = int(str(event["round"]))
            self._writer.add_scalar(name, number, step, walltime=time if isinstance(time, float) else None)

    def close(self) -> None:
        """Write what is waiting."""
        self._writer.close()
