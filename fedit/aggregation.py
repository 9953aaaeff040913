"""The server's half of an algorithm on adapters that lie on disk, whoever trained them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedit import lora, lowrank, tensorfiles, tensors
from fedit.errors import ConfigError, ModelError, RunFolderError
from fedit.files import new_folder
from fedit.model.export import (
    read_adapter,
    read_adapter_config,
    scale_in_config,
    write_adapter_files,
)
from fedit.rehearsal import COHORT, refuse_larger_ranks, rehearse
from fedit.strategies.base import Strategy
from fedit.types import (
    ClientFailure,
    ClientInfo,
    ClientUpdate,
    LocalTraining,
    ServerState,
    Tensors,
)
from fedit.updates import Updates

ADAPTER = "adapter"
LEDGER_FILE = "ledger.safetensors"
STATE_FILE = "state.safetensors"
ANYHOW = LocalTraining(learning_rate=1.0, num_rounds=10**9, steps=1, optimizer="sgd")
"""Stands for how clients trained, which is not known here: it is what every algorithm can do with."""
UNMOVED = 0.01
"""Relative distance up to which a frozen tensor counts as it was: bfloat16, in which it may have lain, rounds."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """A client's trained adapter: a PEFT folder, and how many examples it was trained on."""

    folder: Path
    num_examples: int


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What came of a round: the new state and the clients that were left out, with the reasons."""

    state: ServerState
    failures: Sequence[ClientFailure]


def read_contribution(text: str) -> Contribution:
    """Return what "PEFT_DIR:num_examples" says.

    Raises:
        ConfigError: it does not end in a number above 0.
    """
    folder, _, count = text.rpartition(":")
    if not folder or not count.isdigit() or int(count) == 0:
        raise ConfigError(f"'{text}' is no client; expected PEFT_DIR:num_examples, such as client-1/adapter:120.")
    return Contribution(Path(folder), int(count))


def aggregate(strategy: Strategy, state: Path, clients: Sequence[Contribution], out: Path) -> Aggregated:
    """Read the state and the clients' adapters, do one round's aggregation, write the next state to ``out``.

    Both folders hold ``adapter/`` (PEFT), ``ledger.safetensors`` ("m.A" (rank, in) and "m.B" (out, rank)) and
    ``state.safetensors`` (the round, and what the strategy remembers): the model's weight is
    W0 + scale B A + L_B L_A. A state may be an adapter alone, before its first round.

    Raises:
        ConfigError: the strategy cannot be applied to adapters on disk, or not to these.
        ModelError: an adapter cannot be read or does not fit.
        RunFolderError: a state cannot be read, or ``out`` cannot be written.
        NoUpdates: no client's adapter can be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} already exists; choose another --out.")
    names = [_name(index, client.folder) for index, client in enumerate(clients)]
    strategy.check(ANYHOW)
    strategy.check_cohort(len(names), names)
    _refuse_if_more_travels(strategy, len(names))
    config, server = read_state(strategy, state)
    sent, updates = {}, []
    for name, client in zip(names, clients, strict=True):
        start, update = _update(strategy, server, client, name)
        sent[name] = start
        updates.append(update)
    number = server.round + 1
    cohort = Updates(updates, server.adapter, starts=sent, uploads=lambda tensor: strategy.uploads(tensor, number))
    after = replace(strategy.aggregate(server, cohort), round=number)
    write_state(after, config, type(strategy).__name__, out)
    return Aggregated(after, cohort.failures)


def read_state(strategy: Strategy, folder: Path) -> tuple[Mapping[str, object], ServerState]:
    """Return the adapter's PEFT config and the state in ``folder``.

    Raises:
        ModelError: there is no LoRA adapter.
        RunFolderError: the state is damaged or another strategy's.
    """
    config = read_adapter_config(folder / ADAPTER)
    server = strategy.init(tensors.flatten(read_adapter(folder / ADAPTER)))
    server = replace(server, scale=scale_in_config(config, folder / ADAPTER))
    try:
        if (folder / LEDGER_FILE).is_file():
            server = replace(server, ledger=safetensors.torch.load_file(folder / LEDGER_FILE))
        if not (folder / STATE_FILE).is_file():
            return config, server
        parts, metadata = tensorfiles.decode((folder / STATE_FILE).read_bytes(), ("memory",))
        number, owner = int(metadata["round"]), metadata["strategy"]
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"the state in {folder} cannot be read: {error}") from error
    if owner != type(strategy).__name__:
        raise RunFolderError(f"the state in {folder} is of strategy {owner}, not of {type(strategy).__name__}.")
    return config, replace(server, adapter=tensors.flatten(read_adapter(folder / ADAPTER)), memory=parts["memory"],
                           round=number)  # fmt: skip


def write_state(server: ServerState, config: Mapping[str, object], strategy: str, folder: Path) -> None:
    """Write a state as `read_state` reads it, whole or not at all.

    config: of a PEFT adapter for the same layers.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    with new_folder(folder) as temporary:
        (temporary / ADAPTER).mkdir()
        write_adapter_files(temporary / ADAPTER, server.adapter, config, server.scale)
        ledger = {name: tensor.contiguous() for name, tensor in server.ledger.items()}
        (temporary / LEDGER_FILE).write_bytes(safetensors.torch.save(ledger))
        metadata = {"round": str(server.round), "strategy": strategy}
        (temporary / STATE_FILE).write_bytes(tensorfiles.encode({"memory": server.memory}, metadata))


def _update(
    strategy: Strategy, server: ServerState, client: Contribution, name: str
) -> tuple[Tensors, ClientUpdate]:
    """Return what the client was sent, and its adapter as the update it would have sent."""
    config = read_adapter_config(client.folder)
    trained, scale = read_adapter(client.folder), scale_in_config(config, client.folder)
    rank = lora.rank_of(trained)
    info = ClientInfo(name, client.num_examples, rank, scale)
    sent = strategy.broadcast(server, info)
    refuse_larger_ranks(strategy, server, [info], [sent])
    start = lora.completed(sent.adapter, server.adapter)
    if unknown := sorted(set(start) - set(trained)):
        raise ModelError(f"{client.folder} lacks {unknown[0]}, which strategy '{type(strategy).__name__}' trains.")
    if extra := sorted(set(trained) - set(start)):
        raise ModelError(f"{client.folder} has {extra[0]}, which the state's adapter does not have.")
    if sent.scale is not None and abs(sent.scale - scale) > 1e-9 * scale:
        raise ConfigError(
            f"{client.folder} has scale {scale:g} (alpha over rank), but strategy '{type(strategy).__name__}' "
            f"trains at {sent.scale:g}; averaging them would rescale the client. Use its alpha."
        )
    number = server.round + 1
    for tensor, value in start.items():
        if trained[tensor].shape != value.shape:
            shapes = f"{tuple(trained[tensor].shape)}; expected {tuple(value.shape)}"
            raise ModelError(f"{client.folder}: {tensor} has shape {shapes}.")
    _refuse_other_start(strategy, server, start, scale, rank)
    for tensor, value in start.items():
        if not strategy.trains(tensor, number) and _apart(trained[tensor], value) > UNMOVED:
            raise ModelError(
                f"{client.folder} has another {tensor} than the state, but strategy '{type(strategy).__name__}' "
                f"does not train it in round {number}: its product with what is averaged would be nobody's."
            )
    trained = strategy.align(start, trained, number)
    delta = {n: trained[n] - value for n, value in start.items() if strategy.uploads(n, number)}
    return start, ClientUpdate(name, number, client.num_examples, client.num_examples, delta, scale=scale)


def _name(index: int, folder: Path) -> str:
    return f"{index}:{folder.parent.name if folder.name == ADAPTER else folder.name}"


def _apart(one: Tensor, two: Tensor) -> float:
    """Return the distance between two tensors over the length of the second."""
    return float((one - two).norm() / two.norm()) if two.any() else float(one.norm())


def _refuse_other_start(strategy: Strategy, server: ServerState, start: Tensors, scale: float, rank: int) -> None:
    """Refuse algorithms that send a client something else than the state's adapter at its rank: nobody saw it."""
    shown = lowrank.truncate(lowrank.rescale(server.adapter, server.scale, scale), rank)
    if any(_apart(value, shown[tensor]) > UNMOVED for tensor, value in start.items()):
        raise ConfigError(
            f"strategy '{type(strategy).__name__}' sends clients adapters of their own, and the state's adapter/ "
            "is not what they trained on from; run it with fedit run."
        )


def _refuse_if_more_travels(strategy: Strategy, clients: int) -> None:
    """Refuse algorithms whose clients train or send something that an adapter folder does not hold."""
    if strategy.composes:
        raise ConfigError(
            f"clients of strategy '{type(strategy).__name__}' train and send something else than the factors A "
            "and B, which is not on disk; run it with fedit run."
        )
    (played,) = rehearse(strategy, rounds=1, ranks=(None,) * max(clients, COHORT))
    if played.update.extra:
        raise ConfigError(
            f"clients of strategy '{type(strategy).__name__}' send more than an adapter "
            f"({json.dumps(sorted(played.update.extra)[0])}, …), which is not on disk; run it with fedit run."
        )
