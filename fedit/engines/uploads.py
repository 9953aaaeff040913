"""An engine that keeps what the server sees of single clients, for an audit of a simulation."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedit import lora, tensorfiles, tensors
from fedit.engines.base import Engine
from fedit.errors import ConfigError, RunFolderError
from fedit.files import reason, safe_name, write_bytes
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform
from fedit.transforms.chain import Downlink, receive
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate, Running, Tensors

UPLOADS = "uploads"
"""Folder of a run's kept uploads: round-0003/client.safetensors."""

_PARTS = ("before", "after", "ledger")


@dataclass(frozen=True, slots=True)
class Upload:
    """One client's upload: what the server can run before and after it knows it."""

    round: int
    client: str
    before: Running
    after: Running


class KeepUploads:
    """Wraps the engine of a simulation and writes down the uploads of some clients as they pass.

    folder:   a file a round and client; a round that is done again after an interruption is written anew.
    clients:  ids of those whose uploads are kept.
    initial:  the adapter that the run starts from, with which broadcasts that leave tensors out are completed.

    Raises:
        ConfigError: clients keep tensors for themselves, so that an upload alone runs nothing.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        clients: Collection[str],
        strategy: Strategy,
        transforms: Sequence[Transform],
        initial: Tensors,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._kept = frozenset(clients)
        self._start = strategy.init(initial).adapter
        self._strategy = strategy.settled(self._start)
        self._transforms = transforms
        if not all(map(self._strategy.shares, self._start)):
            raise ConfigError(
                f"strategy {type(strategy).__name__} leaves tensors with its clients, so that a single upload "
                "is no model that could be audited; set keep_uploads to 0."
            )

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return self._engine.clients()

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks."""
        for task, result in zip(tasks, self._engine.run(tasks), strict=True):
            if task.client_id in self._kept and isinstance(result, ClientUpdate):
                self._keep(task, result)
            yield result

    def _keep(self, task: ClientTask, sent: ClientUpdate) -> None:
        update = receive(self._transforms, sent)
        if isinstance(update, ClientFailure) or not tensors.is_finite(update.delta):
            return
        broadcast = Downlink(self._transforms).arrived(task.broadcast)
        before = lora.completed(broadcast.adapter, self._start)
        if any(name not in before or before[name].shape != tensor.shape for name, tensor in update.delta.items()):
            return  # the server will not use it either
        after = {n: tensor + update.delta[n] if n in update.delta else tensor for n, tensor in before.items()}
        scale = update.scale if broadcast.scale is None else broadcast.scale
        parts = {
            "before": self._strategy.factors(before),
            "after": self._strategy.factors(after),
            "ledger": broadcast.ledger,
        }
        about = {"round": str(task.round), "client": task.client_id, "scale": repr(scale)}
        path = self._folder / f"round-{task.round:04d}" / f"{safe_name(task.client_id)}.safetensors"
        write_bytes(path, tensorfiles.encode({name: _plain(held) for name, held in parts.items()}, about))


def kept_uploads(folder: Path) -> dict[int, list[Path]]:
    """Return round -> the files of its kept uploads, both in order; ``folder`` is the run's."""
    found: dict[int, list[Path]] = {}
    for path in sorted((folder / UPLOADS).glob("round-*/*.safetensors")):
        found.setdefault(int(path.parent.name.removeprefix("round-")), []).append(path)
    return found


def read_upload(path: Path) -> Upload:
    """Read a kept upload.

    Raises:
        RunFolderError: the file cannot be read, or a bit of it changed.
    """
    try:
        parts, about = tensorfiles.decode(path.read_bytes(), _PARTS)
        round, client, scale = int(about["round"]), about["client"], float(about["scale"])
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, KeyError) as error:
        raise RunFolderError(f"{path} holds no kept upload: {error}") from error
    before, after = (Running(parts[name], parts["ledger"], scale) for name in ("before", "after"))
    return Upload(round, client, before, after)


def _plain(held: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().to("cpu") for name, tensor in held.items()}
