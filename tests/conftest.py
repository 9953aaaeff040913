"""Tiny random models, a byte-level tokenizer and rows that every test may share; nothing here is downloaded."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from fedit import settings
from fedit.config import RunConfig
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model
from fedit.types import Tensors

torch.set_num_threads(1)  # tiny matrices: more threads only cost
transformers_logging.disable_progress_bar()

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCABULARY = 256 + len(SPECIAL)

# Weights this large make attention far from uniform, so that a leak between rows shows.
_WIDE = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 259}
_LLAMA_LIKE = {
    **_WIDE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": None, "head_dim": 8},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma2": {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": _LLAMA_LIKE,
    "gpt2": {**_WIDE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2},
    "opt": {
        **_WIDE,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "init_std": 0.2,
    },
    "bloom": {**_WIDE, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
}
"""One tiny model a way of knowing positions, of fusing projections and of shaping attention."""


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDIT_CACHE", str(folder))
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of a report, which take longer than tiny runs do."""
    for name in ("partition_figure", "learning_curves", "category_curves"):
        monkeypatch.setattr(f"fedit.report.summary.{name}", lambda *args, **options: None)


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
            **changes,
        }
        return settings.from_values({name: v for name, v in values.items() if v is not None}, "test")

    return make


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Tokenizer(models.BPE(vocab={char: id for id, char in enumerate(alphabet)}, merges=[]))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_model(kind: str, folder: Path, seed: int = 0) -> None:
    """Write a tiny random model with its tokenizer, as any model folder is."""
    config: PretrainedConfig = AutoConfig.for_model(kind, **CONFIGS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start at 1 and 0, which would hide mistakes
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
            assert name
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Write rows of three categories that a tiny model can learn something from."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon"]
    lines = []
    for index in range(count):
        category = ("copy", "upper", "count")[index % 3]
        picked = [words[i] for i in rng.integers(len(words), size=int(rng.integers(1, 4)))]
        text = " ".join([*picked, str(index)])
        answer = {"copy": text, "upper": text.upper(), "count": str(len(picked))}[category]
        lines.append(json.dumps({"instruction": f"{category}: {text}", "output": answer, "category": category}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_rows(lengths: list[int], seed: int = 0, prompt: float = 0.5) -> list[TokenRow]:
    """Return random rows of the given lengths whose first part is prompt and the rest supervised."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        supervised = np.zeros(length, dtype=np.bool_)
        supervised[max(1, int(prompt * length)) :] = True
        rows.append(TokenRow(rng.integers(0, 256, size=length).astype(np.int32), supervised))
    return rows


def random_adapter(model: AdaptedModel, seed: int = 0, size: float = 0.1) -> Tensors:
    """Return an adapter whose A and B are both far from zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in model.initial(seed).items()
    }


@pytest.fixture
def keep_global_state() -> Iterator[None]:
    """Fail a test that moves PyTorch's or NumPy's global generator."""
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "PyTorch's global generator moved"
    assert (before[1] == np.random.get_state()[1]).all(), "NumPy's global generator moved"  # noqa: NPY002
