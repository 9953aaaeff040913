"""Conversations with a tuned model: what a run folder or an adapter says about it, and answers token by token."""

import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fedit import checkpoint, seeds
from fedit.data.examples import Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt, stop_ids
from fedit.errors import ConfigError, ModelError
from fedit.model.adapted import AdaptedModel
from fedit.model.export import CONFIG, WEIGHTS, read_adapter, read_adapter_config
from fedit.model.loading import context_length, load_base, load_tokenizer
from fedit.model.sources import DEFAULT_MODEL, resolve_model
from fedit.runfolder import read_config
from fedit.types import Tensors

_DEFAULT_AS_PUBLISHED = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SETTING_IN_CARD = re.compile(r"^prompt_template: (\S.*)$", re.MULTILINE)
_LEAST_PROMPT = 16
"""Tokens that have to be left for the prompt beside the longest answer."""

_NOT_PLAIN = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
)
"""Fields of adapter_config.json that, when set, mean more than two factors a layer at one scale."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """An adapter and everything that decides what it answers.

    note: what the user should know about how it was found; "" for nothing.
    """

    adapter: Tensors
    model: str
    template: str
    rank: int
    alpha: float
    rslora: bool = False
    dtype: str = "auto"
    bits: int = 16
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else from the likeliest tokens whose share is top_p."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


def find_tuned(folder: Path, *, model: str | None = None, template: str | None = None) -> Tuned:
    """Return the adapter in ``folder``: a run, an arm of one, or any PEFT folder of a LoRA adapter.

    A run's settings decide model, template and scale; those of an adapter alone are in its own
    config and card. ``model`` and ``template`` win over both.

    Raises:
        ModelError: there is no adapter, or one that is not plain LoRA.
        RunFolderError: a run's settings cannot be read.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; name a run folder or the folder of a LoRA adapter.")
    run = _run_of(folder.resolve())
    home = next((place for place in (folder, folder / "adapter") if (place / CONFIG).is_file()), None)
    if run is not None:
        return _from_run(folder, run, home, model, template)
    if home is None:
        raise ModelError(_nothing_found(folder))
    return _from_adapter(home, model, template)


class Chat:
    """A loaded model and one conversation with it.

    Attributes:
        base_answers: whether the base model answers instead of the tuned one.
        messages: the conversation so far, without the system turn.
    """

    def __init__(self, tuned: Tuned, *, system: str = "", say: Callable[[str], None] = lambda _: None) -> None:
        source = resolve_model(tuned.model, progress=say)
        self.tokenizer = load_tokenizer(source)
        self.template = get_template(tuned.template, self.tokenizer)
        self._context = context_length(source)
        base = load_base(source, dtype=tuned.dtype, bits=tuned.bits, tokenizer=self.tokenizer)
        modules = {name.rpartition(".")[0].rpartition(".")[2] for name in tuned.adapter}
        self._model = AdaptedModel(
            base, rank=tuned.rank, alpha=tuned.alpha, rslora=tuned.rslora, targets=sorted(modules)
        )
        self._model.load(tuned.adapter)
        self._adapter = tuned.adapter
        self._system = [Message("system", system)] if system else []
        self.base_answers = False
        self.messages: list[Message] = []

    def use_base(self, on: bool) -> None:
        """Let the base model answer, or the tuned one again. Factors of zero change nothing: that is the base."""
        silent = {name: torch.zeros_like(tensor) for name, tensor in self._adapter.items()}
        self._model.load(silent if on else self._adapter)
        self.base_answers = on

    def take_back(self) -> str | None:
        """Remove the last question and its answer and return the question; None if there is none."""
        if not self.messages:
            return None
        question = self.messages[-2].content
        del self.messages[-2:]
        return question

    def answer(self, question: str, write: Callable[[str], None], sampling: Sampling) -> str:
        """Answer ``question`` in the conversation, handing text to ``write`` as it comes.

        An interrupted answer stays in the conversation as far as it got.

        Raises:
            ConfigError: the longest answer leaves no room for a prompt, or the template fails.
            DataError: the template refuses the conversation.
        """
        prompt = self._prompt(question, sampling.max_new_tokens)
        stops = stop_ids(self.tokenizer, self.template)
        streamer = TextStream(self.tokenizer, stops, write)
        ids = torch.tensor([prompt], device=self._model.device)
        try:
            with torch.no_grad(), warnings.catch_warnings(), self._seeded(sampling):
                warnings.simplefilter("ignore")  # generation defaults of the base that are not used here
                self._model.generate(ids, torch.ones_like(ids), self._generation(sampling, stops), streamer)
        finally:
            self.messages += [Message("user", question), Message("assistant", streamer.text)]
        return streamer.text

    def _prompt(self, question: str, max_new_tokens: int) -> list[int]:
        """Return the prompt's tokens; the oldest exchanges go first when the model cannot read so many."""
        room = (self._context or 1 << 30) - max_new_tokens
        if room < _LEAST_PROMPT:
            raise ConfigError(
                f"max_new_tokens is {max_new_tokens}, and the model reads {self._context} tokens in all; "
                f"expected at most {(self._context or 0) - _LEAST_PROMPT}."
            )
        kept = list(self.messages)
        while True:
            turns = [*self._system, *kept, Message("user", question)]
            ids = encode_prompt(turns, "", self.tokenizer, self.template, max_length=1 << 30)
            if len(ids) <= room:
                return ids
            if not kept:
                return encode_prompt(turns, "", self.tokenizer, self.template, max_length=room)
            kept = kept[2:]

    def _generation(self, sampling: Sampling, stops: set[int]) -> GenerationConfig:
        pad = self.tokenizer.pad_token_id
        draw: dict[str, object] = {"do_sample": False}
        if sampling.temperature > 0:
            # top_k is off: transformers would otherwise keep 50 tokens.
            draw = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=pad if pad is not None else min(stops),
            use_cache=True,
            **draw,
        )

    @contextmanager
    def _seeded(self, sampling: Sampling) -> Iterator[None]:
        """Seed torch for one answer: generation draws from its global generator, which is put back afterwards."""
        device = self._model.device
        root = secrets.randbits(62) if sampling.seed is None else sampling.seed
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seeds.derive(root, "chat", len(self.messages)))
            yield


@dataclass
class TextStream(BaseStreamer):
    """Text from tokens as they are generated: no special tokens, no half characters, nothing after a stop."""

    tokenizer: PreTrainedTokenizerBase
    stops: set[int]
    write: Callable[[str], None]
    text: str = ""
    _ids: list[int] = field(default_factory=list)
    _prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        """Take the prompt the first time, then one token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value.reshape(-1)[0])
        if token not in self.stops:
            self._ids.append(token)
            self._flush(last=False)

    def end(self) -> None:
        """Write what was kept back."""
        self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        # Decoded from the first token on: the decoders of some tokenizers treat the first one specially.
        decoded = self.tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = (decoded if isinstance(decoded, str) else "".join(decoded)).lstrip()
        if not last and text.endswith("\ufffd"):
            return  # the bytes of a character that is not complete yet
        if text.startswith(self.text) and text != self.text:
            new, self.text = text[len(self.text) :], text
            self.write(new)


def _run_of(folder: Path) -> Path | None:
    """Return the run that ``folder`` is, or is the adapter or an arm of; None if it belongs to none."""
    own = folder.parent if folder.name == "adapter" else folder
    run = own.parent.parent if own.parent.name == "arms" else own
    return run if (run / "resolved.yaml").is_file() else None


def _from_run(folder: Path, run: Path, home: Path | None, model: str | None, template: str | None) -> Tuned:
    config = read_config(run)
    note = ""
    if home is not None:
        adapter = read_adapter(home)
    else:
        server = folder / "server"
        done = sorted(int(p.parent.name.removeprefix("round-")) for p in server.glob("round-*/state.json"))
        if not done:
            raise ModelError(_nothing_found(folder))
        adapter = checkpoint.load(server, done[-1]).adapter
        note = f"{folder} is not finished: this is its adapter after round {done[-1]} of {config.num_rounds}"
    return Tuned(
        adapter,
        model or config.model,
        template or config.prompt_template,
        config.lora_r,
        config.lora_alpha,
        config.use_rslora,
        config.dtype,
        config.bits,
        note,
    )


def _from_adapter(home: Path, model: str | None, template: str | None) -> Tuned:
    config = read_adapter_config(home)
    _check_plain(config, home)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise ModelError(f"{home / CONFIG} has r {rank!r} and lora_alpha {alpha!r}; expected numbers.")
    base = model or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{home / CONFIG} does not name a base model; name it with --model.")
    note = "" if model else f"base model {base}, as {CONFIG} says; --model names another"
    if not model and base.lower() == _DEFAULT_AS_PUBLISHED.lower():
        note = f"base model {DEFAULT_MODEL}, the 4-bit build of {base}; --model names another"
        base = DEFAULT_MODEL
    return Tuned(
        read_adapter(home),
        base,
        template or _template_in_card(home) or "auto",
        rank,
        float(alpha),
        bool(config.get("use_rslora")),
        note=note,
    )


def _check_plain(config: Mapping[str, object], home: Path) -> None:
    extras = [name for name in _NOT_PLAIN if config.get(name)]
    if config.get("bias") not in (None, "none"):
        extras.append("bias")
    if extras:
        raise ModelError(f"{home} is no plain LoRA adapter: {CONFIG} sets {', '.join(extras)}; load it with PEFT.")


def _template_in_card(home: Path) -> str | None:
    """Return the prompt template that the adapter's card tells of, if it has one."""
    card = home / "README.md"
    found = _SETTING_IN_CARD.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return found[1].strip().strip("'\"") if found else None


def _nothing_found(folder: Path) -> str:
    return (
        f"{folder} holds nothing to chat with: looked for {CONFIG} and {WEIGHTS} in it and in its folder "
        "'adapter', and for a run's resolved.yaml with the states of its rounds in 'server'. Name a run folder "
        "(fedit run JOB --out DIR makes one) or the folder of a LoRA adapter."
    )
