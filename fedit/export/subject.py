"""What is exported: a run's federated model, an arm's, a client's own, or a lone adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from fedit import checkpoint, lora
from fedit.config import RunConfig
from fedit.data.manifest import Partition
from fedit.errors import ModelError, did_you_mean
from fedit.model.sources import ModelSource, resolve_model
from fedit.ranks import ranks_of_clients
from fedit.runfolder import read_config
from fedit.scaling import lora_scale
from fedit.store import ClientStore
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy
from fedit.tuned import Tuned, find_tuned, run_of
from fedit.types import ClientInfo, Running, with_ledger


@dataclass(frozen=True, slots=True)
class Subject:
    """A tuned model that is to be exported.

    name:   what it is called in the export.
    tuned:  its factors and all they need; without factors where something else than LoRA was trained.
    kind:   what was trained, a name of `fedit.model.kinds.KINDS`.
    folder: of what was trained, where that is not LoRA: PEFT's, or a whole model's.
    run:    the run that it comes from; None for an adapter alone.
    """

    name: str
    tuned: Tuned
    kind: str = "lora"
    folder: Path | None = None
    run: Path | None = None

    @property
    def note(self) -> str:
        """What the user should know about how it was found; "" for nothing."""
        return self.tuned.note


def find_subject(folder: Path, *, model: str | None = None, template: str | None = None) -> Subject:
    """Return the tuned model in ``folder``: a run, an arm of one, or a PEFT folder of a LoRA adapter.

    model, template: win over what the folder says.

    Raises:
        ModelError: there is none.
        RunFolderError: a run's settings cannot be read.
    """
    place = folder.resolve()
    own = place.parent if place.name == "adapter" else place
    run = run_of(place) if folder.is_dir() else None
    config = read_config(run) if run is not None else None
    if config is None or config.tuning == "lora":
        return Subject(own.name, find_tuned(folder, model=model, template=template), run=run)
    adapter = own / "adapter"
    if not adapter.is_dir():
        raise ModelError(f"{folder} is not finished, and tuning={config.tuning} is exported when a run is over.")
    tuned = _without_factors(config, model or config.model, template or config.prompt_template)
    return Subject(own.name, tuned, config.tuning, adapter, run)


def _without_factors(config: RunConfig, model: str, template: str) -> Tuned:
    return Tuned({}, model, template, config.rank, config.lora_alpha, dtype=config.dtype, bits=config.bits)


def find_clients(subject: Subject, wanted: Sequence[str] | None = None) -> list[Subject]:
    """Return what clients of a run run for themselves; wanted: their ids, None: all.

    Raises:
        ModelError: there is no such client, or what it runs is no single model.
        RunFolderError: the run's states cannot be read.
    """
    run = subject.run
    if run is None or not (run / "partition.json").is_file():
        raise ModelError(f"'{subject.name}' is an adapter alone; only a run has models of single clients.")
    config = read_config(run)
    if subject.kind != "lora":
        raise ModelError(f"models of single clients are exported for tuning=lora, not {subject.kind}.")
    sizes = {client: len(rows) for client, rows in Partition.load(run / "partition.json").clients.items()}
    for client in wanted or ():
        if client not in sizes:
            hint = did_you_mean(client, sizes)
            raise ModelError(f"the run has no client '{client}'{hint} Clients: {', '.join(list(sizes)[:5])}, …")
    server = checkpoint.newest(run / "server")
    if server is None:
        raise ModelError(f"{run / 'server'} holds no state of the federation, so nothing is known of its clients.")
    strategy = build_strategy(config.strategy, config.strategy_options).settled(server.adapter)
    store = ClientStore(run / "clients")
    ranks = ranks_of_clients(config, list(sizes))
    found = []
    for client in wanted or sizes:
        rank = ranks.get(client)
        scale = None if rank is None else config.scale_at(rank)
        info = ClientInfo(client, sizes[client], rank, scale)
        running = strategy.personal(server, info, store.read(client, server.round + 1))
        found.append(replace(subject, name=client, tuned=_tuned_of(client, running, subject.tuned)))
    return found


def are_personal(subject: Subject) -> bool:
    """Return whether the run's clients run something else than its federated model."""
    if subject.run is None or subject.kind != "lora" or not (subject.run / "partition.json").is_file():
        return False
    strategy = type(build_strategy(*_algorithm(read_config(subject.run))))
    return strategy.personal is not Strategy.personal or strategy.shares is not Strategy.shares


def _algorithm(config: RunConfig) -> tuple[str, Mapping[str, int | float | str | bool]]:
    return config.strategy, config.strategy_options


def _tuned_of(client: str, running: Running, model: Tuned) -> Tuned:
    """Return what a client runs as one adapter: its own, with the frozen correction folded in."""
    if running.likened is not None:
        raise ModelError(
            f"client '{client}' weighs its adapter anew for every question (option 'likened'), which no other "
            "program does; export the federated model, or run without that option."
        )
    factors = lora.joined(with_ledger(running.adapter, running.ledger), running.scale)
    rank = lora.rank_of(factors)
    alpha = running.scale / lora_scale(1.0, rank, rslora=model.rslora)
    return replace(model, adapter=factors, rank=rank, alpha=alpha, note="")


def source_of(subject: Subject) -> ModelSource:
    """Return the base model of ``subject``.

    Raises:
        ModelError: it cannot be found.
    """
    return resolve_model(subject.tuned.model)


def config_of(subject: Subject) -> PretrainedConfig:
    """Return the configuration of the base model's language part.

    Raises:
        ModelError: it cannot be read.
    """
    source = source_of(subject)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the config of model '{source.name}' cannot be read: {error}") from error
    return config.get_text_config()
