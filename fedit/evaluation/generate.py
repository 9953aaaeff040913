"""Greedy answers to prompts, in batches of similar length, stopping at the end of the answer."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fedit.model.adapted import AdaptedModel

PROMPTS_PER_PASS = 32
"""Most prompts of a pass: many enough for fast products, few enough that several workers get some."""


def answer(
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Iterable[int],
    max_new_tokens: int,
    on_pass: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Return the greedy answer of the loaded adapter to every prompt (token ids), without special tokens."""
    texts = answers_of_share(model, tokenizer, prompts, stop=stop, max_new_tokens=max_new_tokens, on_pass=on_pass)
    return [texts[index] for index in range(len(prompts))]


def answers_of_share(
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Iterable[int],
    max_new_tokens: int,
    share: tuple[int, int] = (0, 1),
    on_pass: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Return the answers to the prompts of every n-th pass, from the k-th on, for ``share`` (k, n), by index.

    How prompts are cut into passes depends on the prompts alone, not on the share.
    """
    stops = sorted(stop)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad, use_cache=True
    )
    answers: dict[int, str] = {}
    for members in _passes(prompts)[share[0] :: share[1]]:
        width = max(len(prompts[i]) for i in members)
        ids = torch.full((len(members), width), pad, dtype=torch.int64)
        mask = torch.zeros((len(members), width), dtype=torch.int64)
        for line, index in enumerate(members):
            # Padded on the left, so that every row goes on where its prompt ends.
            ids[line, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[line, width - len(prompts[index]) :] = 1
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # generation defaults of the base that greedy search does not use
            output = model.generate(ids.to(model.device), mask.to(model.device), config)
        for line, index in enumerate(members):
            answers[index] = _text(output[line, width:].tolist(), tokenizer, stops)
        on_pass(len(answers))
    return answers


def _passes(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut prompts into passes of similar lengths and nearly equal numbers."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    count = -(-len(order) // PROMPTS_PER_PASS)
    cuts = [len(order) * number // count for number in range(count + 1)] if count else [0]
    return [order[start:end] for start, end in pairwise(cuts)]


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)
