"""One arm as a model of the harness: requests become packed passes and batches over the resident base."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from fedit.data.examples import Message
from fedit.data.tokens import TokenRow
from fedit.errors import ConfigError
from fedit.evaluation.generate import MOST_PROMPTS, answers
from fedit.evaluation.loss import row_losses
from fedit.model.fast.decode import Prompt
from fedit.resident import Resident

Encoded = tuple[Any, list[int], list[int]]
"""(what the harness knows the request by, tokens of the context, tokens to score)."""

ROWS_AT_ONCE = {"cpu": 128, "cuda": 1024, "mps": 128}
"""Requests that are cut into passes together. They come by document, so that its choices share their context."""
LONGEST_ANSWER = 256
"""Tokens of an answer where a task does not say, as in the harness's own model."""
_GREEDY = {"do_sample", "temperature", "top_p", "top_k"}
"""What a task may say of drawing, as long as it is that nothing is drawn."""


class Voice(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """One arm of a `Resident`: log-likelihoods by packed passes, greedy answers by batches.

    Texts become tokens as in the harness's HFLM, so that numbers compare. The longest row is one token shorter:
    the last token of a continuation is computed too, although nothing is predicted from it.

    on_done: hears of every so many requests that are done, how many these were.

    Attributes:
        max_length: tokens of context and continuation, less one.
    """

    def __init__(self, resident: Resident, name: str, on_done: Callable[[int], None] = lambda count: None) -> None:
        super().__init__()
        self.tokenizer = resident.tokenizer
        self.max_length = (resident.context or 2048) - 1
        self._model, self._factors = resident.speaker(name)
        self._template = resident.template(name)
        self._on_done = on_done
        prefix = self.tokenizer.bos_token_id
        self._prefix = self.tokenizer.eos_token_id if prefix is None else prefix
        self._prefix_text = self._decode([self._prefix], special=True)

    @property
    def eot_token_id(self) -> int:
        """The end of the sequence."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return int(self._prefix)

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows the chat template by."""
        return self._template.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return a text's tokens; a beginning of sequence that the text has already is not added again."""
        if add_special_tokens is None and string.startswith(self._prefix_text):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text up to where the answer starts, in the template that the arm was trained with.

        add_generation_prompt: False: the last message is the answer's beginning.
        """
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        turns = chat_history if add_generation_prompt else chat_history[:-1]
        return self._template.prompt([Message(turn["role"], turn["content"]) for turn in turns]) + begun

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in nats; long ones by windows that do not overlap."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            cut = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in cut:
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(owner)
        sums = np.bincount(owners, [score for score, _ in self._loglikelihood_tokens(windows)], len(requests))
        return [float(value) for value in sums]

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: object) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), size := ROWS_AT_ONCE[self._model.device.type]):
            asked = requests[start : start + size]
            rows = [self._row(context, continuation) for _, context, continuation in asked]
            sets = self._sharing(rows, [context for _, context, _ in asked])
            scored: dict[int, tuple[float, bool]] = {}
            measured = row_losses(
                self._model, [self._factors] * len(sets), [[rows[i] for i in own] for own in sets]
            )
            for members, losses in zip(sets, measured, strict=True):
                columns = (losses.sums.tolist(), losses.counts.tolist(), losses.correct.tolist())
                for index, total, count, right in zip(members, *columns, strict=True):
                    scored[index] = (-total, right == count)
            found += [scored[index] for index in range(len(rows))]
            self._on_done(len(rows))
        return found

    def _sharing(self, rows: Sequence[TokenRow], contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return sets of rows whose common beginning is computed once: all, or those of one context each.

        Questions behind the same examples share these, choices of one question share it; a pass knows one of both,
        and the one that leaves fewer tokens to compute is taken.
        """
        together = [list(range(len(rows)))]
        if self._model.fast is None:
            return together
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, context in enumerate(contexts):
            by_context.setdefault(tuple(context), []).append(index)
        apart = list(by_context.values())
        return min(together, apart, key=lambda sets: self._tokens([[rows[i] for i in own] for own in sets]))

    def _tokens(self, sets: Sequence[Sequence[TokenRow]]) -> int:
        assert self._model.fast is not None
        counted = (self._model.fast.own_lengths(rows) for rows in sets)
        return sum(sum(own) + shared for own, shared in counted)

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> TokenRow:
        """Return context and continuation, of which the context loses its beginning if they are too long.

        Raises:
            ConfigError: the continuation alone is too long.
        """
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"a task scores a text of {len(continuation)} tokens; the model reads {self.max_length} in all."
            )
        ids = np.array([*context, *continuation][-(self.max_length + 1) :], dtype=np.int32)
        return TokenRow(ids, np.arange(len(ids)) >= len(ids) - len(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy answers, each up to the first of its stops.

        Raises:
            ConfigError: a task wants something else than greedy answers, or the longest leaves no room.
        """
        found: list[str] = [""] * len(requests)
        for stops, longest, members in _alike(requests, self._decode([self.eot_token_id], special=True)):
            room = self.max_length - longest
            if room < 1:
                raise ConfigError(
                    f"task '{requests[members[0]].task_name}' wants answers of up to {longest} tokens, and the "
                    f"model reads {self.max_length} in all."
                )
            texts_of = (self.tok_encode(requests[i].args[0])[-room:] for i in members)
            prompts = [Prompt(ids or [self.prefix_token_id]) for ids in texts_of]
            for start in range(0, len(prompts), size := MOST_PROMPTS[self._model.device.type]):
                texts = self._answers(prompts[start : start + size], stops, longest)
                for place, text in enumerate(texts):
                    found[members[start + place]] = postprocess_generated_text(text, stops, None)
                self._on_done(len(texts))
        return found

    def _answers(self, prompts: Sequence[Prompt], stops: Sequence[str], longest: int) -> list[str]:
        if self._model.fast is None:
            # Where transformers generates, an answer that has met its stop goes on and is cut afterwards.
            texts = answers(
                self._model,
                self.tokenizer,
                prompts,
                [self._factors],
                stop=[self.eot_token_id],
                max_new_tokens=longest,
            )
            return [texts[index] for index in range(len(prompts))]
        so_far: list[list[int]] = [[] for _ in prompts]
        # A character is four tokens at most, where these are bytes; a stop may end within the last token.
        tail = 4 * max(map(len, stops)) + 4

        def goes_on(prompt: int, token: int) -> bool:
            so_far[prompt].append(token)
            text = self._decode(so_far[prompt][-tail:])
            return not any(stop in text for stop in stops)

        ids = self._model.decode(
            prompts, [self._factors], stops=[self.eot_token_id], max_new_tokens=longest, on_token=goes_on
        )
        return [self._decode(own) for own in ids]

    def _decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text if isinstance(text, str) else "".join(text)


def _alike(requests: Sequence[Instance], end: str) -> Iterator[tuple[list[str], int, list[int]]]:
    """Yield (stops, most tokens, requests) of those that are generated alike, the longest prompts first."""
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for index, request in enumerate(requests):
        wanted = normalize_gen_kwargs(request.args[1], LONGEST_ANSWER)
        refuse_draws(request.task_name or "", wanted)
        stops = handle_stop_sequences(wanted["until"], eos=end)
        groups.setdefault((tuple(stops), int(wanted["max_gen_toks"])), []).append(index)
    for (stops_of, longest), members in groups.items():
        yield list(stops_of), longest, sorted(members, key=lambda i: (-len(requests[i].args[0]), i))


def refuse_draws(task: str, wanted: dict[str, Any]) -> None:
    """Refuse what would not be a greedy answer.

    Raises:
        ConfigError: says which of the task's ``generation_kwargs`` is meant.
    """
    drawn = bool(wanted.get("do_sample")) or float(wanted.get("temperature") or 0) > 0
    others = sorted(wanted.keys() - _GREEDY - {"until", "max_gen_toks"})
    if drawn or others:
        what = "draws its answers (do_sample, temperature)" if drawn else f"sets {', '.join(others)}"
        raise ConfigError(f"task '{task}' {what} in generation_kwargs; fedit bench gives greedy answers alone.")
