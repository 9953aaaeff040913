"""Token ids and loss masks: which tokens of a row count in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedit.data import tokencache
from fedit.data.encoding import Encoded, Encoder, encoder_of, unshield
from fedit.data.examples import Example, Message, fingerprint
from fedit.data.rendering import Rendered, Template, digest
from fedit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE, PROMPT_CUT, ANSWER_CUT = 0, 1, 2

_VERSION = "1"  # of the rules in this module; a change makes older caches unused
_CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One row, as views: ids int32 and supervised bool, both (length,)."""

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]

    @property
    def rows(self) -> tuple["TokenRow", ...]:
        """What the model runs to learn this: the row itself."""
        return (self,)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """All rows, one after the other.

    ids:        int32, (tokens,).
    supervised: bool, (tokens,); True: the token is a target, predicted from those before it in its row.
                A row's first token never is.
    offsets:    int64, (rows + 1,); row i is ids[offsets[i]:offsets[i + 1]].
    truncated:  uint8, (rows,); `WHOLE`, `PROMPT_CUT` (older tokens are missing, the last answer is
                whole) or `ANSWER_CUT` (the end of the last answer is missing).
    """

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.truncated)

    def row(self, index: int) -> TokenRow:
        """Return row ``index``, which may not be negative."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self.offsets[index], self.offsets[index + 1]
        return TokenRow(self.ids[start:end], self.supervised[start:end])

    def num_supervised(self, index: int) -> int:
        """Return how many tokens of row ``index`` are targets."""
        return int(self.row(index).supervised.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    @property
    def supervised_counts(self) -> NDArray[np.int64]:
        """Targets of each row, (rows,)."""
        before = np.concatenate([[0], np.cumsum(self.supervised, dtype=np.int64)])
        return np.diff(before[self.offsets])


def tokenize(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_length: int,
    train_on_inputs: bool = False,
    cache_dir: Path | None = None,
) -> TokenTable:
    """Return the token ids and loss masks of ``examples``.

    A token is a target when its characters overlap an answer, so a token that straddles the border
    between prompt and answer (" Paris") is one. A row that is too long loses the oldest tokens of its
    prompt first, and the end of its answer only when the answer alone is too long.

    Args:
        examples: the rows.
        tokenizer: a fast tokenizer.
        template: from `fedit.data.templates.get_template`, with this tokenizer.
        max_length: longest row, in tokens.
        train_on_inputs: prompts are targets too.
        cache_dir: where tables are kept and found again, by the content of everything above.

    Raises:
        ConfigError: ``max_length`` leaves no room, or the template fails.
        DataError: the template refuses a row.
        ModelError: the tokenizer gives no character positions.
    """
    encoder = encoder_of(tokenizer)
    _check_length(max_length, encoder)
    if cache_dir is None:
        return _build(examples, encoder, template, max_length, train_on_inputs)
    key = digest(
        _VERSION,
        fingerprint(examples),
        template.fingerprint,
        encoder.fingerprint,
        str(max_length),
        str(train_on_inputs),
    )
    path = cache_dir / f"tokens-{key[:32]}.safetensors"
    arrays = tokencache.read(path, len(examples))
    if arrays is not None:
        return TokenTable(*arrays)
    table = _build(examples, encoder, template, max_length, train_on_inputs)
    tokencache.write(path, (table.ids, table.supervised, table.offsets, table.truncated))
    return table


def encode_prompt(
    messages: Sequence[Message],
    context: str,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_length: int,
) -> list[int]:
    """Return the ids from which the next answer is generated; the oldest are dropped if too many.

    Raises:
        ConfigError: ``max_length`` leaves no room, or the template fails.
        DataError: the template refuses the conversation.
        ModelError: the tokenizer gives no character positions.
    """
    encoder = encoder_of(tokenizer)
    _check_length(max_length, encoder)
    shielded, context, marks = encoder.shield(messages, context)
    rendered = unshield(Rendered(template.prompt(shielded, context), ()), marks)
    ids, kept = with_bos(encoder.encode([rendered])[0].ids, encoder)
    if len(ids) <= max_length:
        return [int(id) for id in ids]
    return [int(id) for id in (*ids[:kept], *ids[len(ids) - (max_length - kept) :])]


def stop_ids(tokenizer: "PreTrainedTokenizerBase", template: Template) -> set[int]:
    """Return the ids that end an answer: the end of sequence and the template's own end of turn."""
    encoder = encoder_of(tokenizer)
    probe = Example((Message("user", "a"), Message("assistant", "b")))
    rendered = template.render(probe)
    encoded = encoder.encode([rendered])[0]
    answer = _overlap(encoded, rendered.text, rendered.spans[-1], encoder)
    body = [int(id) for id in encoded.ids[answer]]
    # Only what follows the answer's own text ends a turn; a reasoning block before it does not.
    own = encoder.added.keys() - {tokenizer.unk_token_id}
    text = max((place for place, id in enumerate(body) if id not in own), default=-1)
    return {encoder.eos, *body[text + 1 :]}


def _build(
    examples: Sequence[Example],
    encoder: Encoder,
    template: Template,
    max_length: int,
    train_on_inputs: bool,
) -> TokenTable:
    ids: list[NDArray[np.int32]] = []
    supervised: list[NDArray[np.bool_]] = []
    truncated = np.zeros(len(examples), dtype=np.uint8)
    for start in range(0, len(examples), _CHUNK):
        texts = [_render(example, encoder, template) for example in examples[start : start + _CHUNK]]
        for number, (text, encoded) in enumerate(zip(texts, encoder.encode(texts), strict=True), start):
            row, mask, truncated[number] = _fit(text, encoded, encoder, max_length)
            if train_on_inputs:
                mask[:] = True
            mask[:1] = False  # nothing stands before the first token to predict it from
            ids.append(row)
            supervised.append(mask)
    offsets = np.zeros(len(examples) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ids], out=offsets[1:])
    return TokenTable(
        np.concatenate([np.zeros(0, dtype=np.int32), *ids]),
        np.concatenate([np.zeros(0, dtype=np.bool_), *supervised]),
        offsets,
        truncated,
    )


def _render(example: Example, encoder: Encoder, template: Template) -> Rendered:
    messages, context, marks = encoder.shield(example.messages, example.context)
    if marks is None:
        return template.render(example)
    shielded = Example(tuple(messages), context=context, where=example.where)
    return unshield(template.render(shielded), marks)


def _fit(
    text: Rendered, encoded: Encoded, encoder: Encoder, max_length: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    """Return a row's ids and mask within ``max_length``, and what was cut."""
    ids, kept = with_bos(encoded.ids, encoder)
    added = len(ids) - len(encoded.ids)
    mask = np.zeros(len(ids), dtype=np.bool_)
    answer = np.zeros(len(encoded.ids), dtype=np.bool_)
    for span in text.spans:
        answer = _overlap(encoded, text.text, span, encoder)
        mask[added:] |= answer
    if len(ids) <= max_length:
        return ids, mask, WHOLE
    first = added + int(answer.argmax()) if answer.any() else len(ids)  # of the last answer
    room = max_length - kept
    if len(ids) - first > room:
        cut, end, flag = first, first + room, ANSWER_CUT
    else:
        cut, end, flag = len(ids) - room, len(ids), PROMPT_CUT
        if mask[cut - 1]:
            # The cut goes through an earlier answer: without its beginning, the rest teaches nothing.
            unbroken = mask[cut:first]
            mask[cut : cut + (len(unbroken) if unbroken.all() else int(unbroken.argmin()))] = False
    return (
        np.concatenate([ids[:kept], ids[cut:end]]),
        np.concatenate([mask[:kept], mask[cut:end]]),
        flag,
    )


def _overlap(encoded: Encoded, text: str, span: tuple[int, int], encoder: Encoder) -> NDArray[np.bool_]:
    """Return which tokens overlap the characters of ``span``, (tokens,) bool."""
    start, end = span
    # A token of no width (a word mark that the tokenizer inserts) belongs to the text after it.
    empty = encoded.starts == encoded.ends
    answer: NDArray[np.bool_] = (encoded.starts < end) & (
        (encoded.ends > start) | (empty & (encoded.starts >= start))
    )
    for place in np.flatnonzero(answer & (encoded.starts < start)):
        # A control token may swallow white space around it; what counts is where its own text is.
        own = encoder.added.get(int(encoded.ids[place]))
        if own is not None and text.find(own, encoded.starts[place], encoded.ends[place]) < start:
            answer[place] = False
    return answer


def with_bos(ids: NDArray[np.int32], encoder: Encoder) -> tuple[NDArray[np.int32], int]:
    """Return the ids with the beginning of sequence once, and how many ids that is."""
    bos = np.array(encoder.bos, dtype=np.int32)
    if len(bos):
        present = np.array_equal(ids[: len(bos)], bos)
        return ids if present else np.concatenate([bos, ids]), len(bos)
    # Without such a rule a template may still write one; a token that opens every turn is none.
    marks = np.flatnonzero(ids == (-1 if encoder.bos_token is None else encoder.bos_token))
    return ids, int(marks.tolist() == [0])


def _check_length(max_length: int, encoder: Encoder) -> None:
    if max_length < len(encoder.bos) + 2:
        raise ConfigError(f"max_length is {max_length}; expected at least {len(encoder.bos) + 2} tokens.")
