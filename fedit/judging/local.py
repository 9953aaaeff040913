"""A judge on this machine: a causal language model whose likelihoods of the possible verdicts are weighed."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from fedit.data.examples import Example, Message
from fedit.data.templates import Template, get_template
from fedit.data.tokens import stop_ids, tokenize
from fedit.errors import ConfigError, DataError, ModelError
from fedit.judging.base import Reply, Request
from fedit.model.loading import context_length, load_base
from fedit.model.sources import resolve_model

_UNCUT = 1 << 30
_DECIMALS = 6


class LocalModel:
    """A base model by name or folder that says how likely it would write each verdict.

    Nothing is generated and nothing is parsed, so that every question gets a verdict in both orders; whether it is
    a good one depends on the model. Text of answers that looks like a control token stays text.

    device, dtype: as in a run's settings.
    """

    explains = False
    concurrency = 1

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load the model.

        Raises:
            ModelError: it cannot be found or loaded.
        """
        source = resolve_model(model, progress=say)
        self._base = load_base(source, device=device, dtype=dtype)
        self._context = context_length(source)
        self._template = get_template("auto", self._base.tokenizer)
        self._takes_system = _takes_system(self._template)
        self._stops = stop_ids(self._base.tokenizer, self._template)
        parameters = inspect.signature(self._base.model.forward).parameters
        # Logits of a whole prompt over a large vocabulary take more memory than the model.
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        # Another model under the same name is another judge.
        self.name = f"local:{model}@{source.fingerprint[:16]}"
        self.sampling: Mapping[str, object] = {"method": "likelihood", "dtype": str(self._base.dtype)}

    def describe(self) -> dict[str, object]:
        """Return what results say about it."""
        return {"kind": "local", "model": self.name, "template": self._template.name, **self.sampling}

    def ask(self, request: Request) -> Reply:
        """Return the log-likelihood of every choice as the whole answer to the request.

        Raises:
            ConfigError: the request is longer than the model can read.
            ModelError: the model keeps no cache that can be continued in several ways.
        """
        rows = self._rows(request)
        longest = max(map(len, rows))
        if self._context is not None and longest > self._context:
            raise ConfigError(
                f"a question with its answers has {longest:,} tokens, and {self.name} reads {self._context:,}; "
                "give --max-answer-chars a smaller number, or use a judge with a longer context."
            )
        with torch.no_grad():
            values = self._likelihoods(rows)
        likelihoods = {
            choice: round(value, _DECIMALS) for choice, value in zip(request.choices, values, strict=True)
        }
        return Reply(None, likelihoods, longest, 0)

    def _rows(self, request: Request) -> list[list[int]]:
        """Return the tokens of the request with each choice as its answer, without the end of the turn."""
        messages = request.messages
        if not self._takes_system:
            messages = (Message("user", "\n\n".join(message.content for message in messages)),)
        examples = [Example((*messages, Message("assistant", choice))) for choice in request.choices]
        table = tokenize(examples, self._base.tokenizer, self._template, max_length=_UNCUT)
        rows = []
        for row in map(table.row, range(len(table))):
            answer = int(row.supervised.argmax())
            ids = row.ids.tolist()
            end = next((i for i in range(answer, len(ids)) if ids[i] in self._stops), len(ids))
            rows.append(ids[:end])
        return rows

    def _likelihoods(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return log P of each row's tokens after what all rows have in common, and that the row then ends.

        A row that is the beginning of others ("1" of "10") counts with the probability that none of them goes on.
        """
        start = _common(rows)
        values = [0.0] * len(rows)
        logits, cache = self._read(rows[0][:start], None)
        self._descend({i: row[start:] for i, row in enumerate(rows)}, logits, cache, 0.0, values)
        return values

    def _descend(
        self,
        rest: Mapping[int, Sequence[int]],
        logits: torch.Tensor,
        cache: Cache,
        sum_so_far: float,
        values: list[float],
    ) -> None:
        """Fill in the values of rows that go on with ``rest`` after what ``cache`` has read."""
        nexts: dict[int, dict[int, Sequence[int]]] = {}
        for index, tokens in rest.items():
            if tokens:
                nexts.setdefault(tokens[0], {})[index] = tokens[1:]
        scores = torch.log_softmax(logits.double(), dim=-1)
        ended = [index for index, tokens in rest.items() if not tokens]
        if ended:
            going_on = float(scores[list(nexts)].exp().sum()) if nexts else 0.0
            for index in ended:
                values[index] = sum_so_far + float(torch.log1p(torch.tensor(-min(going_on, 1 - 1e-12))))
        for token, members in nexts.items():
            value = sum_so_far + float(scores[token])
            if not any(members.values()):
                values[next(iter(members))] = value  # no two choices read the same
                continue
            after, grown = self._read([token], cache)
            self._descend(members, after, grown, value, values)

    def _read(self, tokens: Sequence[int], cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """Return the logits after ``tokens``, (vocabulary,), and the cache with them; ``cache`` stays as it is."""
        ids = torch.tensor([list(tokens)], device=self._base.device)
        past = None if cache is None else _branch(cache)
        output = self._base.model(input_ids=ids, past_key_values=past, use_cache=True, **self._only_last)
        kept = getattr(output, "past_key_values", None)
        # Other layers edit their state in place, and branches of it would mix.
        if not isinstance(kept, Cache) or not all(isinstance(layer, DynamicLayer) for layer in kept.layers):
            raise ModelError(
                f"{self.name} keeps no cache of keys and values, which weighing verdicts needs; serve it behind "
                "an endpoint instead (--base-url)."
            )
        return cast(torch.Tensor, output.logits)[0, -1], kept


def _takes_system(template: Template) -> bool:
    """Whether a template has a place for a system message; Gemma's refuses one."""
    try:
        template.render(Example((Message("system", "s"), Message("user", "u"), Message("assistant", "a"))))
    except DataError:
        return False
    return True


def _branch(cache: Cache) -> Cache:
    """Return a cache that can grow on its own: a layer that grows replaces its tensors, it does not edit them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
