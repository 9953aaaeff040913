"""Greedy answers to prompts, in batches of similar length over one base, stopping at the end of the answer."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fedit.model.adapted import AdaptedModel
from fedit.model.fast.decode import Prompt

MOST_PROMPTS = {"cpu": 64, "cuda": 256, "mps": 64}
"""Device -> most prompts of a batch. Measured on a CPU: 64 are a sixth faster than 32, and 128 as fast as 64."""

FEW_PROMPTS = 16
"""Batches are not made smaller than this to give every core one."""


def answers(
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    adapters: Sequence[Mapping[str, Tensor]],
    *,
    stop: Iterable[int],
    max_new_tokens: int,
    places: int = 1,
    share: tuple[int, int] = (0, 1),
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Return greedy answers by index: to the prompts of every n-th batch, from the k-th on, for ``share`` (k, n).

    On the fast path a batch holds prompts of several adapters. How prompts are cut into batches depends on the
    prompts and on ``places`` (cores or GPUs that are to have one each), not on the share.

    on_batch: hears how many answers there are yet.
    """
    stops = sorted(stop)
    found: dict[int, str] = {}
    batches = _batches(prompts, most=MOST_PROMPTS[model.device.type], places=places, mixed=model.fast is not None)
    for members in batches[share[0] :: share[1]]:
        chosen = [prompts[i] for i in members]
        if model.fast is not None:
            tokens = model.decode(chosen, adapters, stops=stops, max_new_tokens=max_new_tokens)
        else:
            model.load(adapters[chosen[0].adapter])
            tokens = _by_transformers(model, tokenizer, chosen, stops, max_new_tokens)
        for index, ids in zip(members, tokens, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found[index] = text if isinstance(text, str) else "".join(text)
        on_batch(len(found))
    return found


def _batches(prompts: Sequence[Prompt], *, most: int, places: int, mixed: bool) -> list[list[int]]:
    """Cut prompts into batches of similar lengths and about equal numbers, of one adapter unless ``mixed``."""
    if not mixed:
        owners = sorted({prompt.adapter for prompt in prompts})
        apart = [[i for i, prompt in enumerate(prompts) if prompt.adapter == owner] for owner in owners]
        return [batch for own in apart for batch in _cut(prompts, own, most, places)]
    return _cut(prompts, range(len(prompts)), most, places)


def _cut(prompts: Sequence[Prompt], members: Sequence[int], most: int, places: int) -> list[list[int]]:
    order = sorted(members, key=lambda i: (len(prompts[i].ids), i))
    count = max(math.ceil(len(order) / most), min(places, math.ceil(len(order) / FEW_PROMPTS)))
    cuts = [len(order) * number // count for number in range(count + 1)] if count else [0]
    return [order[start:end] for start, end in pairwise(cuts)]


def _by_transformers(
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    stops: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the loaded adapter's answers, token ids without the stop, where there is no fast path."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stops), pad_token_id=pad, use_cache=True
    )
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for line, prompt in enumerate(prompts):
        # Padded on the left, so that every row goes on where its prompt ends.
        ids[line, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[line, width - len(prompt.ids) :] = 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generation defaults of the base that greedy search does not use
        output = model.generate(ids.to(model.device), mask.to(model.device), config)
    found = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        found.append(row[:end])
    return found
