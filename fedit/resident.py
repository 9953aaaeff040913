"""A base model in memory and adapters of it that take turns: prompts, draws and answers token by token."""

import hashlib
import secrets
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fedit import seeds
from fedit.data.examples import Message
from fedit.data.templates import Template, get_template
from fedit.data.tokens import encode_prompt, stop_ids
from fedit.errors import ConfigError, ModelError
from fedit.model.adapted import AdaptedModel
from fedit.model.loading import context_length, load_base, load_tokenizer
from fedit.model.sources import ModelSource, resolve_model
from fedit.tensors import flatten
from fedit.tuned import Tuned
from fedit.types import Tensors

_LEAST_PROMPT = 16
"""Tokens that have to be left for the prompt beside the longest answer."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else from the likeliest tokens whose share is top_p."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: its text, how many tokens it took, and whether the model itself ended it."""

    text: str
    tokens: int
    ended: bool


class Resident:
    """One base model in memory, and adapters of it that answer in turn, one at a time.

    Adapters may differ in rank, scale, layers and template: each lies in the shape of the largest, zero where it
    has nothing. One without factors is the base.

    Attributes:
        voices: name -> what answers by that name.
        source: the base model.
        context: tokens that it reads in all; None where its config does not say.

    Raises:
        ConfigError: the voices need different bases, or a template cannot be used.
        ModelError: the base cannot be loaded, or an adapter does not fit it.
    """

    def __init__(
        self, voices: Mapping[str, Tuned], *, say: Callable[[str], None] = lambda _: None, fast_path: bool = False
    ) -> None:
        self.voices = dict(voices)
        first = next(iter(self.voices.values()))
        self.source, dtype = _common_base(self.voices, say)
        self.tokenizer = load_tokenizer(self.source)
        self.context = context_length(self.source)
        self._templates = {name: get_template(tuned.template, self.tokenizer) for name, tuned in voices.items()}
        self._stops = {name: stop_ids(self.tokenizer, template) for name, template in self._templates.items()}
        base = load_base(self.source, dtype=dtype, bits=first.bits, tokenizer=self.tokenizer)
        layers = {_layer(name) for tuned in voices.values() for name in tuned.adapter}
        self._model = AdaptedModel(
            base,
            rank=max(tuned.rank for tuned in voices.values()),
            alpha=first.alpha,
            rslora=first.rslora,
            targets=sorted(layers) or "auto",
            fast_path=fast_path,  # `answer` leaves generation to transformers; others may use it
        )
        self._silent = {name: torch.zeros_like(value) for name, value in self._model.read().items()}
        self._factors = {name: self._fitted(tuned) for name, tuned in voices.items() if tuned.adapter}
        self._speaking = ""

    def template(self, voice: str) -> Template:
        """Return the template that prompts of ``voice`` are made with."""
        return self._templates[voice]

    def speaker(self, voice: str) -> tuple[AdaptedModel, Tensors]:
        """Return the model that all voices share, and the factors that make it speak as ``voice``."""
        return self._model, self._factors.get(voice, self._silent)

    def identity(self, voice: str) -> str:
        """Return the SHA-256 of all that decides what ``voice`` answers: base, template, adapter and scale."""
        tuned = self.voices[voice]
        known = f"{self.source.fingerprint} {self._templates[voice].fingerprint}"
        digest = hashlib.sha256(f"{known} {tuned.scale if tuned.adapter else 0}".encode())
        for name, tensor in sorted(tuned.adapter.items()):
            digest.update(f" {name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def prompt(self, voice: str, messages: Sequence[Message], max_new_tokens: int) -> list[int]:
        """Return the tokens that the answer to ``messages``, the last of which is the user's, is generated from.

        The oldest exchanges are left out when the model cannot read so many; a system turn stays.

        Raises:
            ConfigError: the longest answer leaves no room for a prompt, or the template fails.
            DataError: the template refuses the conversation.
        """
        room = (self.context or 1 << 30) - max_new_tokens
        if room < _LEAST_PROMPT:
            raise ConfigError(
                f"max_new_tokens is {max_new_tokens}, and the model reads {self.context} tokens in all; "
                f"expected at most {(self.context or 0) - _LEAST_PROMPT}."
            )
        system = list(messages[:1]) if messages[0].role == "system" else []
        turns = messages[len(system) :]

        def without(exchanges: int, length: int = 1 << 30) -> list[int]:
            return self._encode(voice, [*system, *turns[2 * exchanges :]], length)

        ids = without(0)
        if len(ids) <= room:
            return ids
        most = len(turns) // 2
        fewest = 1 + bisect_left(range(1, most), True, key=lambda dropped: len(without(dropped)) <= room)
        return without(min(fewest, most), room)  # a question that is too long alone loses its beginning

    def answer(
        self,
        voice: str,
        prompt: Sequence[int],
        write: Callable[[str], None],
        sampling: Sampling,
        *,
        turn: int = 0,
        on_token: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Answer ``prompt`` (token ids), handing text to ``write`` as it comes.

        turn: messages before the question; with the seed it decides the draws.
        on_token: called before each token is looked at; what it raises ends the answer.
        """
        if voice != self._speaking:
            self._model.load(self._factors.get(voice, self._silent))
            self._speaking = voice
        stops = self._stops[voice]
        stream = TextStream(self.tokenizer, stops, write, on_token)
        ids = torch.tensor([list(prompt)], device=self._model.device)
        with torch.no_grad(), warnings.catch_warnings(), self._seeded(sampling, turn):
            warnings.simplefilter("ignore")  # generation defaults of the base that are not used here
            self._model.generate(ids, torch.ones_like(ids), self._generation(sampling, stops), stream)
        return Answer(stream.text, stream.tokens, stream.ended)

    def _encode(self, voice: str, messages: Sequence[Message], max_length: int) -> list[int]:
        return encode_prompt(messages, "", self.tokenizer, self._templates[voice], max_length=max_length)

    def _fitted(self, tuned: Tuned) -> Tensors:
        """Return the factors of ``tuned`` in the loaded shapes, with its scale in B.

        Raises:
            ModelError: a factor is missing, unknown or of another shape.
        """
        name = self.source.name
        layers = {_layer(factor) for factor in tuned.adapter}
        own = {factor for factor in self._silent if _layer(factor) in layers}
        if own != set(tuned.adapter):
            missing, unknown = sorted(own - set(tuned.adapter))[:2], sorted(set(tuned.adapter) - own)[:2]
            raise ModelError(f"adapter does not fit model '{name}': missing {missing}, unknown {unknown}")
        fitted = {factor: value.clone() for factor, value in self._silent.items()}
        for factor, value in tuned.adapter.items():
            whole = fitted[factor]
            part = whole[: len(value)] if factor.endswith(".A") else whole[:, : value.shape[1]]
            if part.shape != value.shape:
                raise ModelError(
                    f"adapter does not fit: {factor} is {tuple(value.shape)}, "
                    f"model '{name}' has {tuple(whole.shape)}"
                )
            part.copy_(value if factor.endswith(".A") else value * (tuned.scale / self._model.scale))
        return flatten(fitted)

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
    def _seeded(self, sampling: Sampling, turn: int) -> Iterator[None]:
        """Seed torch for one answer: generation draws from its global generator, which is put back afterwards."""
        device = self._model.device
        root = secrets.randbits(62) if sampling.seed is None else sampling.seed
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seeds.derive(root, "chat", turn))
            yield


@dataclass
class TextStream(BaseStreamer):
    """Text from tokens as they are generated: no special tokens, no half characters, nothing after a stop.

    tokens, ended: how many there were after the prompt, and whether the last one was a stop.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: set[int]
    write: Callable[[str], None]
    on_token: Callable[[], None] = lambda: None
    text: str = ""
    tokens: int = 0
    ended: bool = False
    _ids: list[int] = field(default_factory=list)
    _prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        """Take the prompt the first time, then one token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.on_token()
        token = int(value.reshape(-1)[0])
        self.tokens += 1
        self.ended = token in self.stops
        if not self.ended:
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


def _common_base(voices: Mapping[str, Tuned], say: Callable[[str], None]) -> tuple[ModelSource, str]:
    """Return the one base model that all voices are adapters of, and its dtype; "auto" goes along with any.

    Raises:
        ConfigError: they need different ones.
    """
    sources = {tuned.model: resolve_model(tuned.model, progress=say) for tuned in voices.values()}
    first, *others = voices
    start = voices[first]
    for name in others:
        tuned = voices[name]
        if sources[tuned.model].fingerprint != sources[start.model].fingerprint:
            raise _two_bases(first, name, f"model {start.model} and {tuned.model}")
        if tuned.bits != start.bits:
            raise _two_bases(first, name, f"bits {start.bits} and {tuned.bits}")
    dtypes = {tuned.dtype: name for name, tuned in voices.items() if tuned.dtype != "auto"}
    if len(dtypes) > 1:
        (one, own), (other, theirs) = list(dtypes.items())[:2]
        raise _two_bases(own, theirs, f"dtype {one} and {other}")
    return sources[start.model], next(iter(dtypes), "auto")


def _two_bases(one: str, other: str, why: str) -> ConfigError:
    return ConfigError(
        f"{one} and {other} need different bases: {why}. "
        "One base is held in memory for all; start another process for the other."
    )


def _layer(factor: str) -> str:
    """Return the kind of layer that a factor belongs to: "q_proj" of "model.layers.0.self_attn.q_proj.A"."""
    return factor.rpartition(".")[0].rpartition(".")[2]
