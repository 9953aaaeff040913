"""Text to token ids with character positions; control tokens come from templates, never from rows."""

import bisect
import dataclasses
import hashlib
import json
import re
import secrets
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fedit.data.examples import Message
from fedit.data.rendering import Rendered
from fedit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters that Unicode keeps for a program's own use, then private ones; text rarely holds any.
_MARKS = (*range(0xFDD0, 0xFDEC), *range(0xF0000, 0xF1000))
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and the characters each token covers: ids int32, starts and ends int64, all (tokens,)."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Marks:
    """Two characters that enclose text which a template must pass on as plain text."""

    opening: str
    closing: str


class Encoder:
    """A tokenizer's own rules, without its padding, its truncation and the tokens it adds around a text.

    Attributes:
        bos: ids that the tokenizer puts before every text; () for many.
        bos_token: id of the beginning of sequence, None without one; some tokenizers do not add it.
        eos: id of the end of sequence.
        controls: ids of the tokens that steer, by their text.
        added: texts of all tokens that are matched as a whole, by id.
        fingerprint: hash of the rules.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which gives no character positions, and loss "
                "masks need them; use a model whose folder has a tokenizer.json."
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so no answer could end; set its eos_token."
            )
        self._rules = tokenizers.Tokenizer.from_str(backend.to_str())
        self._rules.no_padding()
        self._rules.no_truncation()
        self.bos = _ids_before(self._rules)
        # ByteLevel's post-processor cuts white space off the positions, even where it adds no token.
        self._rules.post_processor = None
        content = self._rules.to_str()
        self.bos_token: int | None = tokenizer.bos_token_id
        self.eos = int(tokenizer.eos_token_id)
        parts = (tokenizers.__version__, str(self.bos), str(self.bos_token), str(self.eos), content)
        self.fingerprint = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        added = self._rules.get_added_tokens_decoder()
        self.added = {id: token.content for id, token in added.items()}
        self.controls = {token.content: id for id, token in added.items() if token.special and token.content}
        longest_first = sorted(map(re.escape, self.controls), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first) or "(?!)")
        # Some tokenizers match in any case. A false alarm costs time and changes nothing.
        self._suspect = re.compile(self._control.pattern, re.IGNORECASE)
        self._renamed: tuple[tokenizers.Tokenizer, dict[str, str]] | None = None

    def shield(self, messages: Sequence[Message], context: str) -> tuple[list[Message], str, Marks | None]:
        """Return the texts with marks around whatever looks like a control token; None: nothing did."""
        texts = [context, *(message.content for message in messages)]
        if not any(self._suspect.search(text) for text in texts):
            return list(messages), context, None
        free = (mark for mark in map(chr, _MARKS) if not any(mark in text for text in texts))
        opening, closing = next(free), next(free)
        marked = [self._suspect.sub(f"{opening}\\g<0>{closing}", text) for text in texts]
        roles = [message.role for message in messages]
        messages = [Message(role, text) for role, text in zip(roles, marked[1:], strict=True)]
        return messages, marked[0], Marks(opening, closing)

    def encode(self, texts: Sequence[Rendered]) -> list[Encoded]:
        """Return the tokens of each text; its ``literals`` become plain text, never control tokens."""
        plain = [number for number, text in enumerate(texts) if not text.literals]
        done: dict[int, Encoded] = {}
        for start in range(0, len(plain), _BATCH):
            batch = plain[start : start + _BATCH]
            found = self._rules.encode_batch([texts[n].text for n in batch], add_special_tokens=False)
            done.update((n, _encoded(encoding)) for n, encoding in zip(batch, found, strict=True))
        return [done[n] if n in done else self._encode_literally(text) for n, text in enumerate(texts)]

    def _encode_literally(self, rendered: Rendered) -> Encoded:
        """Encode with the same rules, except that control tokens have names no row can know."""
        if self._renamed is None:
            self._renamed = _rename_controls(self._rules, self.controls)
        rules, names = self._renamed
        pieces: list[str] = []
        origins: list[NDArray[np.int64]] = []  # for each character of the new text, its old position
        end = 0
        for start, stop in (*rendered.literals, (len(rendered.text), len(rendered.text))):
            for match in self._control.finditer(rendered.text, end, start):
                pieces += [rendered.text[end : match.start()], names[match[0]]]
                origins.append(np.arange(end, match.start()))
                origins.append(np.full(len(pieces[-1]), match.start()))
                end = match.end()
            pieces.append(rendered.text[end:stop])
            origins.append(np.arange(end, stop))
            end = stop
        encoded = _encoded(rules.encode("".join(pieces), add_special_tokens=False))
        origin = np.append(np.concatenate(origins), len(rendered.text))
        return Encoded(encoded.ids, origin[encoded.starts], origin[encoded.ends])


def unshield(rendered: Rendered, marks: Marks | None) -> Rendered:
    """Return the text without marks, and where the text they enclosed is."""
    if marks is None:
        return rendered
    at = [place for place, char in enumerate(rendered.text) if char in (marks.opening, marks.closing)]

    def moved(place: int) -> int:
        return place - bisect.bisect_left(at, place)

    enclosed = re.finditer(f"{marks.opening}[^{marks.opening}{marks.closing}]*{marks.closing}", rendered.text)
    return dataclasses.replace(
        rendered,
        text=rendered.text.replace(marks.opening, "").replace(marks.closing, ""),
        spans=tuple((moved(start), moved(end)) for start, end in rendered.spans),
        literals=tuple((moved(match.start()), moved(match.end())) for match in enclosed),
    )


_ENCODERS: weakref.WeakKeyDictionary["PreTrainedTokenizerBase", tuple[int, Encoder]] = weakref.WeakKeyDictionary()


def encoder_of(tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    """Return the encoder of a tokenizer; made once, because a large vocabulary takes a second.

    Raises:
        ModelError: the tokenizer gives no character positions.
    """
    known = _ENCODERS.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = (len(tokenizer), Encoder(tokenizer))
        _ENCODERS[tokenizer] = known
    return known[1]


def _ids_before(rules: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the ids that the post-processor puts before a text."""
    bare = rules.encode("a", add_special_tokens=False).ids
    whole = rules.encode("a").ids
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:start])


def _rename_controls(
    rules: tokenizers.Tokenizer, controls: Iterable[str]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Return the same tokenizer with unguessable control tokens, and their new names.

    The vocabulary is renamed too: some models find whole entries in plain text.
    """
    key = secrets.token_hex(8)
    names = {text: f"\ufdd0{key}:{number}\ufdd1" for number, text in enumerate(controls)}
    content = json.loads(rules.to_str())
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    return tokenizers.Tokenizer.from_str(json.dumps(content)), names


def _encoded(encoding: tokenizers.Encoding) -> Encoded:
    ids = np.array(encoding.ids, dtype=np.int32)
    places = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64, count=2 * len(ids))
    return Encoded(ids, places[0::2], places[1::2])
