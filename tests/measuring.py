"""The adapter that is loaded, measured alone: what most tests of evaluation look at."""

from fedit.evaluation.generate import answers
from fedit.evaluation.loss import row_losses
from fedit.model.fast.decode import Prompt


def answer(model, tokenizer, prompts, *, stop, max_new_tokens):
    """Return the greedy answer to every prompt (token ids), without special tokens."""
    asked = [Prompt(ids) for ids in prompts]
    texts = answers(model, tokenizer, asked, [model.read()], stop=stop, max_new_tokens=max_new_tokens)
    return [texts[index] for index in range(len(prompts))]


def held_out_loss(model, rows, categories=None):
    """Return the report on ``rows``; categories: one per row."""
    return row_losses(model, [model.read()], [rows])[0].report(categories)
