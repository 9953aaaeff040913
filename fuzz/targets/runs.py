"""What a folder keeps: states, logs, answers, summaries, adapters; of this machine or unpacked from another's."""

import json
from functools import cache
from pathlib import Path

import safetensors.torch
import torch

from fedit import checkpoint, tensorfiles
from fedit.errors import ConfigError, ModelError, RunFolderError
from fedit.events import EventLog
from fedit.files import read_json
from fedit.flower.cache import ResultCache
from fedit.flower.progress import read_progress
from fedit.model.export import CONFIG, WEIGHTS, read_adapter, read_adapter_config
from fedit.report.html import html
from fedit.report.markdown import markdown
from fedit.report.run_report import run_report
from fedit.runfolder import read_identity, read_summary
from fedit.store import ClientStore
from fedit.study.items import Items, metrics_of
from fedit.tuned import find_tuned
from fedit.types import ClientState, ServerState
from fuzz.target import Target, promise, table_of
from fuzz.targets import scratch
from fuzz.targets.wire import START, signed

_MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
_EVENTS = [
    {"event": "arm_started", "round": 0, "rounds": 2, "arm": "federated", "time": 1.0},
    {
        "event": "round",
        "round": 1,
        "arm": "federated",
        "train_loss": 1.5,
        "bytes_up": 10,
        "bytes_down": 20,
        "time": 2.0,
    },
    {"event": "site_trouble", "round": 1, "site": "a", "reason": "no", "again": True},
    {"event": "client_failed", "round": 1, "client": "a", "reason": "no"},
    {"event": "evaluation", "round": 1, "loss": 1.0, "per_category": {"a": 1.0}},
    {"event": "finished", "round": 1, "schema": 1},
]


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# --- states ---


@cache
def _states() -> list[bytes]:
    folder = scratch.emptied("seed-server")
    checkpoint.save(folder, ServerState(3, START, scale=2.0))
    return [(folder / "round-0003" / "state.safetensors").read_bytes()]


def _state(data: bytes) -> None:
    """The server's state, damaged in any way, and one whose digest is right."""
    folder = scratch.emptied("server")
    place = folder / "round-0003"
    place.mkdir()
    (place / "state.json").write_text('{"round": 3, "version": 3}')
    (place / "state.safetensors").write_bytes(signed(data))
    promise(checkpoint.load(folder, 3).round == 3, "a state of another round")


def _state_json(data: bytes) -> None:
    folder = scratch.emptied("server")
    place = folder / "round-0003"
    place.mkdir()
    (place / "state.json").write_bytes(data)
    (place / "state.safetensors").write_bytes(_states()[0])
    checkpoint.load(folder, 3)


@cache
def _client_states() -> list[bytes]:
    folder = scratch.emptied("seed-clients")
    ClientStore(folder).write("a", 2, ClientState(5, START))
    return [next(folder.rglob("*.safetensors")).read_bytes()]


def _client_state(data: bytes) -> None:
    store = ClientStore(scratch.emptied("clients"))
    path = store._path("a", 2)
    path.parent.mkdir(parents=True)
    path.write_bytes(signed(data))
    store.read("a", 3)
    store.read("a", 2)


@cache
def _kept_answers() -> list[bytes]:
    folder = scratch.emptied("seed-results")
    ResultCache(folder).put("t1", {"results": [1]}, START)
    return [next(folder.glob("*.answer")).read_bytes()]


def _kept_answer(data: bytes) -> None:
    folder = scratch.emptied("results")
    (folder / "0000000001.t1.answer").write_bytes(signed(data))
    found = ResultCache(folder).get("t1")
    promise(found is None or isinstance(found[0], dict), "an answer whose header is no table")


# --- logs and summaries ---


def _events(data: bytes) -> None:
    folder = scratch.file("log/events.jsonl", data).parent
    log = EventLog(folder)
    log.read()
    log.history()
    read_progress(folder)
    log.rewind(1)
    log.write("round", 1)


def _json_file(data: bytes) -> None:
    path = scratch.file("json/run.json", data)
    (path.parent / "summary.json").write_bytes(data)
    promise(isinstance(read_json(path), dict), "no table")
    read_identity(path.parent)
    read_summary(path.parent)


def _run_folder(data: bytes) -> None:
    """A finished run whose files are given as one object: name -> content; from it the report is made."""
    folder = scratch.emptied("run")
    for name, content in table_of(data).items():
        if name not in _FILES:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _lines(content) if isinstance(content, list) else json.dumps(content).encode()
        path.write_bytes(text)
    document = run_report(folder)
    html(document)
    markdown(document)


_FILES = (
    "run.json",
    "resolved.yaml",
    "environment.json",
    "summary.json",
    "partition-counts.json",
    "events.jsonl",
    "answers.json",
    "personal.json",
    "arms/base/answers.json",
    "arms/arm-0/events.jsonl",
    "arms/arm-0/answers.json",
)


def _run_folders() -> list[bytes]:
    return [(Path(__file__).parent / "run.json").read_bytes()]


# --- adapters ---


@cache
def _adapter_weights() -> list[bytes]:
    good = {f"{_MODULE}.lora_A.weight": torch.ones(2, 3), f"{_MODULE}.lora_B.weight": torch.zeros(4, 2)}
    odd = {"x": torch.ones(1), f"{_MODULE}.lora_A.weight": torch.ones(2)}
    return [safetensors.torch.save(good), safetensors.torch.save(odd)]


_ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "use_rslora": False,
    "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


def _adapter_folder(config: bytes, weights: bytes) -> Path:
    folder = scratch.emptied("adapter")
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def _weights(data: bytes) -> None:
    read_adapter(_adapter_folder(json.dumps(_ADAPTER_CONFIG).encode(), data))


def _adapter_config(data: bytes) -> None:
    folder = _adapter_folder(data, _adapter_weights()[0])
    (folder / "README.md").write_bytes(b"prompt_template: " + data)
    read_adapter_config(folder)
    promise(find_tuned(folder).scale > 0, "a scale that is none")


def _aggregated(data: bytes) -> None:
    """The state that fedit aggregate goes on with."""
    from fedit.aggregation import ADAPTER, STATE_FILE, read_state
    from fedit.strategies import build_strategy

    folder = _adapter_folder(json.dumps(_ADAPTER_CONFIG).encode(), _adapter_weights()[0])
    state = scratch.emptied("state")
    folder.rename(state / ADAPTER)
    (state / STATE_FILE).write_bytes(signed(data))
    read_state(build_strategy("fedavg", {}), state)


def _aggregation_states() -> list[bytes]:
    return [tensorfiles.encode({"memory": START}, {"round": "2", "strategy": "FedAvg"})]


# --- studies ---


def _items(data: bytes) -> None:
    items = Items.read(scratch.file("items.json", data))
    for metric in metrics_of(items):
        items.column(metric)
    items.of_category("a")


_ITEMS = {
    "rows": ["1", "2"],
    "categories": ["a", None],
    "owners": [None, None],
    "nll": [1.0, 2.0],
    "tokens": [3, 4],
    "correct": [1, 2],
    "texts": ["a", "b"],
    "right": [True, False],
    "rouge": [0.5, 0.1],
}


def _study_rows(data: bytes) -> None:
    from fedit.study.examples import _rows

    _rows(scratch.file("examples.json", data))


_BROKEN = (RunFolderError,)
TARGETS = (
    Target("server_state", ("fedit.checkpoint",), _state, _states, _BROKEN),
    Target(
        "server_state_json",
        ("fedit.checkpoint",),
        _state_json,
        lambda: [b'{"round": 3, "version": 3}'],
        _BROKEN,
        "json",
    ),
    Target("client_state", ("fedit.store",), _client_state, _client_states, _BROKEN),
    Target("kept_answer", ("fedit.flower.cache",), _kept_answer, _kept_answers, ()),
    Target(
        "events", ("fedit.events", "fedit.flower.progress"), _events, lambda: [_lines(_EVENTS)], _BROKEN, "jsonl"
    ),
    Target(
        "json_of_a_run",
        ("fedit.files", "fedit.runfolder"),
        _json_file,
        lambda: [b'{"version": 1, "settings": "5", "num_threads": 1}'],
        _BROKEN,
        "json",
    ),
    Target(
        "run_folder",
        ("fedit.report.record", "fedit.report.run_report"),
        _run_folder,
        _run_folders,
        (*_BROKEN, ConfigError),
        "json",
    ),
    Target(
        "adapter_weights",
        ("fedit.model.export",),
        _weights,
        _adapter_weights,
        (ModelError,),
        "bytes",
        (b"lora_A", b'"shape":[', b"F8_E5M2", b"\xff" * 8),
    ),
    Target(
        "adapter_config",
        ("fedit.model.export", "fedit.tuned"),
        _adapter_config,
        lambda: [json.dumps(_ADAPTER_CONFIG).encode()],
        (ModelError,),
        "json",
    ),
    Target(
        "aggregation_state",
        ("fedit.aggregation",),
        _aggregated,
        _aggregation_states,
        (*_BROKEN, ConfigError, ModelError),
    ),
    Target("study_items", ("fedit.study.items",), _items, lambda: [json.dumps(_ITEMS).encode()], _BROKEN, "json"),
    Target("study_rows", ("fedit.study.examples",), _study_rows, lambda: [b'[{"a": 1}]'], _BROKEN, "json"),
)
