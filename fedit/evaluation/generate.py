"""Greedy answers to prompts, in batches of similar length, stopping at the end of the answer."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fedit.model.adapted import AdaptedModel

PROMPTS_PER_PASS = 64


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
    stops = sorted(stop)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad, use_cache=True
    )
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), PROMPTS_PER_PASS):
        members = order[start : start + PROMPTS_PER_PASS]
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
        on_pass(min(start + PROMPTS_PER_PASS, len(order)))
    return answers


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)
