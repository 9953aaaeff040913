"""Greedy answers against a loop that takes the likeliest token of the whole sequence every time."""

import json

import pytest
import torch
from measuring import answer
from oracle import load
from tiny import random_adapter, save_model

from fedit.evaluation import generate as module
from fedit.evaluation.generate import answers
from fedit.model.adapted import AdaptedModel
from fedit.model.fast.decode import Prompt
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model

PROMPTS = [[257, 10, 20, 30, 40], [65], [100, 101, 102] * 9, [7, 8, 9]]
EOS = 258


@pytest.fixture(scope="module")
def ready(adapted, model_folder):
    made = {}

    def get(kind):
        if kind not in made:
            # Attention written out masks with float64's minimum, which its float32 softmax takes for infinity.
            dtype = "fp32" if kind in ("bloom", "gemma2") else "fp64"
            model = adapted(kind, dtype=dtype)
            adapter = random_adapter(model, 1)
            made[kind] = model, adapter, load(model_folder(kind), adapter, alpha=8, dtype=model.base.dtype)
        model, adapter, oracle = made[kind]
        model.load(adapter)
        return model, oracle

    return get


def greedy(oracle, prompt, stop, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(oracle(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "gemma2", "phi3", "qwen3"])
def test_answers_are_the_greedy_ones_whatever_stands_beside_them(ready, tokenizer, kind):
    model, oracle = ready(kind)
    expected = [decode(tokenizer, greedy(oracle, prompt, {EOS}, 8)) for prompt in PROMPTS]
    together = answer(model, tokenizer, PROMPTS, stop={EOS}, max_new_tokens=8)
    alone = [answer(model, tokenizer, [prompt], stop={EOS}, max_new_tokens=8)[0] for prompt in PROMPTS]
    assert together == alone == expected
    assert len(set(together)) > 1


def test_an_answer_ends_before_any_stop_token(ready, tokenizer):
    model, oracle = ready("llama")
    whole = greedy(oracle, PROMPTS[0], {EOS}, 8)
    stop = {EOS, whole[3]}
    expected = [decode(tokenizer, greedy(oracle, prompt, stop, 8)) for prompt in PROMPTS]
    assert answer(model, tokenizer, PROMPTS, stop=stop, max_new_tokens=8) == expected
    assert len(expected[0]) <= 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_many_prompts_of_several_adapters_keep_their_order(ready, tokenizer, monkeypatch, kind):
    monkeypatch.setitem(module.MOST_PROMPTS, "cpu", 4)
    model, _ = ready(kind)
    adapters = [model.read(), random_adapter(model, 2)]
    prompts = [Prompt(PROMPTS[i % 4] + [i], i % 3 % 2) for i in range(11)]
    told = []
    options = {"stop": {EOS}, "max_new_tokens": 3}
    found = answers(model, tokenizer, prompts, adapters, on_batch=told.append, **options)
    assert [found[i] for i in range(11)] == [
        answers(model, tokenizer, [prompt], adapters, **options)[0] for prompt in prompts
    ]
    # Batches of nearly equal size; where transformers answers, the last is the second adapter's.
    assert told == [3, 7, 11]


def test_shares_are_whole_batches_and_together_everything(ready, tokenizer):
    model, _ = ready("llama")
    prompts = [Prompt(PROMPTS[i % 4] + [i]) for i in range(50)]
    options = {"stop": {EOS}, "max_new_tokens": 2, "places": 3}
    shares = [answers(model, tokenizer, prompts, [model.read()], share=(k, 4), **options) for k in range(4)]
    assert [len(share) for share in shares] == [16, 17, 17, 0]
    whole = answers(model, tokenizer, prompts, [model.read()], **options)
    assert {index: text for share in shares for index, text in share.items()} == whole
    assert set(whole) == set(range(50))


def test_nothing_is_drawn_and_nothing_moves(ready, tokenizer, keep_global_state):
    model, _ = ready("llama")
    before = model.read()
    answer(model, tokenizer, PROMPTS, stop={EOS}, max_new_tokens=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.read().items())


def test_no_prompts_no_answers(ready, tokenizer):
    model, _ = ready("llama")
    assert answer(model, tokenizer, [], stop={EOS}, max_new_tokens=3) == []


@pytest.mark.parametrize(
    "habits",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5},
        {"num_beams": 3},
        {"min_new_tokens": 7, "suppress_tokens": [65, 66, 67]},
        {"max_length": 6},
    ],
    ids=lambda habits: "+".join(habits),
)
def test_habits_that_a_base_ships_do_not_change_its_grades(tmp_path, tokenizer, ready, habits):
    """``generation_config.json`` holds what the base's makers like in a chat."""
    folder = tmp_path / "model"
    save_model("llama", folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, **habits}))
    model = AdaptedModel(load_base(resolve_model(str(folder)), device="cpu", dtype="fp64"), rank=4, alpha=8)
    calm, _ = ready("llama")
    model.load(calm.read())
    expected = answer(calm, tokenizer, PROMPTS, stop={EOS}, max_new_tokens=8)
    assert answer(model, tokenizer, PROMPTS, stop={EOS}, max_new_tokens=8) == expected
