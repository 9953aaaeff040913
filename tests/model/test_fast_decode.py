"""Batched answers of several adapters against a loop over the whole sequence, through transformers and PEFT."""

import pytest
import torch
from gradients import FAMILIES, float64_norms
from oracle import load
from tiny import random_adapter

from fedit.model.fast import decode as module
from fedit.model.fast import past
from fedit.model.fast.decode import Prompt

pytestmark = pytest.mark.usefixtures("float64_softmax")

START = [257, 5, 6, 7, 8, 9, 10, 11, 12, 13]
"""Longer than the shortest prefix that is shared."""
PROMPTS = [
    Prompt([*START, 20, 30, 40], 1),
    Prompt([65], 0),
    Prompt([100, 101, 102] * 15, 2),
    Prompt([*START, 7], 1),
    Prompt([7, 8, 9], 0),
    Prompt([*START, 21, 22], 0),
    Prompt(START, 1),
]
EOS = 258
LONGEST = 9


def greedy(oracle, prompt, stops, count=LONGEST):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(oracle(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.fixture
def several(adapted, model_folder):
    """Return (model, adapters of ranks 4, 2 and 4, what each answers through transformers and PEFT)."""

    def get(kind, dtype="fp64"):
        model = adapted(kind, dtype=dtype, targets="all-linear")
        smaller = adapted(kind, dtype=dtype, rank=2, targets="all-linear")
        adapters = [random_adapter(model, 1), random_adapter(smaller, 2), random_adapter(model, 3)]
        oracles = [float64_norms(load(model_folder(kind), a, alpha=8, dtype=model.base.dtype)) for a in adapters]
        return model, adapters, oracles

    return get


def run(model, adapters, prompts=PROMPTS, stops=(EOS,), **options):
    return model.decode(prompts, adapters, stops=stops, max_new_tokens=options.pop("longest", LONGEST), **options)


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_token_is_the_one_that_its_own_adapter_gives_alone(several, kind, dtype):
    model, adapters, oracles = several(kind, dtype)
    expected = [greedy(oracles[prompt.adapter], prompt.ids, {EOS}) for prompt in PROMPTS]
    assert run(model, adapters) == expected
    assert [run(model, adapters, [prompt])[0] for prompt in PROMPTS] == expected
    assert len({tuple(answer) for answer in expected}) > 4


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_rows_that_end_leave_and_room_grows(several, kind, monkeypatch):
    monkeypatch.setattr(past, "GROWTH", 2)
    monkeypatch.setattr(module, "GROWTH", 2)
    model, adapters, oracles = several(kind)
    whole = [greedy(oracles[prompt.adapter], prompt.ids, set(), 40) for prompt in PROMPTS]
    # Tokens at which some answers end early, so that the batch shrinks several times and loses whole adapters.
    stops = {whole[0][2], whole[3][1], whole[6][4], whole[1][12], whole[4][20]}
    expected = [answer[: next((i for i, token in enumerate(answer) if token in stops), 40)] for answer in whole]
    assert run(model, adapters, stops=stops, longest=40) == expected
    assert len({len(answer) for answer in expected}) > 3


def test_prompts_read_in_small_passes_are_the_same(several, monkeypatch):
    model, adapters, _ = several("llama")
    together = run(model, adapters)
    monkeypatch.setattr(type(model), "tokens_per_pass", 8)
    assert run(model, adapters) == together


def test_a_listener_hears_every_token_and_can_end_an_answer(several):
    model, adapters, _ = several("llama")
    whole = run(model, adapters)
    heard = []

    def listen(prompt, token):
        heard.append((prompt, token))
        return not (prompt == 2 and sum(p == 2 for p, _ in heard) == 3)

    found = run(model, adapters, on_token=listen)
    assert found == [answer[:3] if index == 2 else answer for index, answer in enumerate(whole)]
    assert [[token for p, token in heard if p == index] for index in range(len(PROMPTS))] == found


def test_tokens_can_be_chosen_otherwise(several):
    model, adapters, _ = several("llama")
    asked = []

    def least_likely(scores, prompts):
        asked.append((tuple(scores.shape), list(prompts)))
        return scores.argmin(-1)

    found = run(model, adapters, choose=least_likely, stops=())
    assert found != run(model, adapters, stops=())
    # Rows lie adapter by adapter, and are named by the prompts that they answer.
    assert asked[0] == ((7, 260), [1, 4, 5, 0, 3, 6, 2])


def test_nothing_to_do(several):
    model, adapters, _ = several("llama")
    assert run(model, adapters, []) == []
    assert run(model, adapters, longest=0) == [[]] * len(PROMPTS)
    with pytest.raises(ValueError, match="no tokens"):
        run(model, adapters, [Prompt([])])
