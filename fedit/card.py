"""Adapters as a run leaves them: PEFT folders with a card that says what they are and where they come from."""

from pathlib import Path

from fedit.config import RunConfig
from fedit.data.examples import fingerprint
from fedit.job import Job
from fedit.model.export import save_adapter
from fedit.runfolder import to_yaml
from fedit.types import Tensors


def write_adapter(job: Job, adapter: Tensors, round: int, folder: Path) -> None:
    """Write the adapter of a round as a PEFT folder whose card says where it comes from.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    facts = {
        "dataset": Path(job.corpus.name).name if Path(job.corpus.name).exists() else job.corpus.name,
        "data fingerprint": fingerprint(job.corpus.all()),
        "base weights": _origin(job),
        "base model fingerprint": job.source.fingerprint,
        "prompt template": f"{job.template.name} ({job.template.fingerprint[:12]})",
        "clients": str(len(job.clients)),
        "rounds": str(round),
        "partition": f"{job.partition.scheme} ({job.partition.hash[:12]})",
    }
    save_adapter(job.model, adapter, folder, facts=facts, settings_yaml=to_yaml(_without_paths(job.config)))


def _origin(job: Job) -> str:
    if job.source.origin == "wheel":
        return f"4-bit GGUF from the PyPI package {job.source.revision}, dequantised"
    return f"{job.source.origin}, revision {job.source.revision}" if job.source.revision else job.source.origin


def _without_paths(config: RunConfig) -> RunConfig:
    """Return settings for others to read: files of this machine by their names alone."""
    paths = {name: getattr(config, name) for name in ("model", "dataset", "prompt_template", "partition_file")}
    return config.model_copy(
        update={name: Path(path).name for name, path in paths.items() if path is not None and Path(path).exists()}
    )
