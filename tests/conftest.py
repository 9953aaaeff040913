"""What tests share: tiny random models made once, tiny runs, and no network."""

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from xdist.scheduler import LoadFileScheduling

from fedit import settings
from fedit.config import RunConfig
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model

sys.path.insert(0, str(Path(__file__).parent))  # helpers beside this file

from tiny import make_tokenizer, save_model, write_rows

torch.set_num_threads(1)  # tiny matrices: more threads only cost
transformers_logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what transformers announces about its own future, as the command line does."""
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:transformers")


class FilesAndDocuments(LoadFileScheduling):
    """Tests of a file go to one process, since they share what is expensive; documents share nothing."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_commands.py" in nodeid else str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put documents last: they are short and leave no process idle at the end."""
    items.sort(key=lambda item: item.path.name == "test_commands.py")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """Return who deals tests to processes with `--dist loadfile`."""
    return FilesAndDocuments(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine; tests that need a real model may download it."""
    if request.node.get_closest_marker("slow"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not (
            isinstance(address, tuple) and str(address[0]) in ("127.0.0.1", "::1", "localhost")
        ):
            raise OSError(f"a test tried to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, four control tokens and ChatML."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of the tiny model of an architecture, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
            save_model(kind, made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def tiny(model_folder: Callable[[str], Path]) -> Path:
    """The folder of the tiny Llama."""
    return model_folder("llama")


@pytest.fixture(scope="session")
def adapted(model_folder: Callable[[str], Path]) -> Callable[..., AdaptedModel]:
    """Return a freshly adapted tiny model: ``adapted("gpt2", dtype="fp64", rank=4, ...)``."""

    def build(kind: str = "llama", *, dtype: str = "fp64", rank: int = 4, **options: object) -> AdaptedModel:
        base = load_base(resolve_model(str(model_folder(kind))), device="cpu", dtype=dtype)
        return AdaptedModel(base, rank=rank, **{"alpha": 2 * rank, **options})  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def shared_model(adapted: Callable[..., AdaptedModel]) -> AdaptedModel:
    """One tiny Llama in float64 for tests that load their own adapter into it."""
    return adapted("llama", dtype="fp64")


@pytest.fixture(scope="module")
def importable() -> Iterator[None]:
    """Let processes find the package where it is tested from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "")
        yield


@pytest.fixture
def float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers' plain attention, whose softmax is float32, keep float64."""
    real = torch.nn.functional.softmax

    def exact(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None, **options: object) -> torch.Tensor:
        return real(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDIT_CACHE", str(folder))
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures and the report of a run, which take longer than tiny runs do."""
    for name in ("partition_figure", "learning_curves", "category_curves"):
        monkeypatch.setattr(f"fedit.report.summary.{name}", lambda *args, **options: None)
    monkeypatch.setattr("fedit.launch.write_report", lambda *args, **options: None)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A JSONL file of 60 short rows in three categories."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, 60)
    return path


@pytest.fixture
def make_config(tiny: Path, dataset: Path, cache: Path, no_pictures: None) -> Callable[..., RunConfig]:
    """Return the settings of a tiny run with changes: ``make_config(num_rounds=3)``."""

    def make(**changes: object) -> RunConfig:
        values: dict[str, object] = {
            "model": str(tiny),
            "device": "cpu",
            "dtype": "fp32",
            "dataset": str(dataset),
            "lora_r": 4,
            "lora_alpha": 8,
            "num_clients": 3,
            "num_rounds": 2,
            "local_steps": 2,
            "batch_size": 4,
            "learning_rate": 0.01,
            "held_out": 2,
            "max_length": 96,
            "num_workers": 1,
            **changes,
        }
        return settings.from_values({name: v for name, v in values.items() if v is not None}, "test")

    return make


@pytest.fixture
def keep_global_state() -> Iterator[None]:
    """Fail a test that moves PyTorch's or NumPy's global generator."""
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "PyTorch's global generator moved"
    assert (before[1] == np.random.get_state()[1]).all(), "NumPy's global generator moved"  # noqa: NPY002
