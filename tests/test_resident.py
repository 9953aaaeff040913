"""One base, several adapters: each answers as it does alone."""

from dataclasses import replace

import pytest
import torch
from tiny import random_adapter, save_model

from fedit.data.examples import Message
from fedit.errors import ConfigError, ModelError
from fedit.resident import Resident, Sampling
from fedit.tuned import Tuned

SHORT = Sampling(max_new_tokens=16)
QUESTION = [Message("user", "copy: red 1")]


@pytest.fixture(scope="module")
def make(adapted, tiny):
    """Return a strong random adapter of the tiny Llama, so that answers differ."""

    def build(seed, *, rank=4, alpha=8.0, targets="attention", **fields):
        model = adapted("llama", dtype="fp32", rank=rank, targets=targets)
        factors = {name: value.float() for name, value in random_adapter(model, seed, size=0.5).items()}
        return Tuned(factors, str(tiny), "alpaca_short", rank, alpha, dtype="fp32", **fields)

    return build


def ask(resident, voice, messages=QUESTION, sampling=SHORT, **options):
    return resident.answer(
        voice, resident.prompt(voice, messages, sampling.max_new_tokens), lambda text: None, sampling, **options
    )


def test_adapters_of_all_shapes_answer_together_as_they_do_alone(make):
    voices = {
        "plain": make(1),
        "wide": make(2, rank=16, alpha=32.0),
        "rslora": make(3, rank=2, alpha=3.0, rslora=True),
        "few layers": make(4, targets=["q_proj"]),
        "other layers": make(5, targets=["gate_proj", "down_proj"]),
        "chat": replace(make(6), template="chat"),
        "base": replace(make(1).base(), template="chat"),
    }
    alone = {name: ask(Resident({name: tuned}), name) for name, tuned in voices.items()}
    together = Resident(voices)
    assert {name: ask(together, name) for name in voices} == alone
    assert {name: ask(together, name) for name in reversed(voices)} == alone
    assert len({answer.text for answer in alone.values()}) == len(voices)


def test_the_base_is_the_model_without_any_adapter(make, tiny):
    from transformers import AutoModelForCausalLM

    resident = Resident({"tuned": make(1), "base": make(1).base()})
    tuned = ask(resident, "tuned")
    prompt = torch.tensor([resident.prompt("base", QUESTION, 16)])
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = plain.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    text = resident.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).lstrip()
    assert ask(resident, "base").text == text != tuned.text


def test_an_answer_counts_its_tokens_and_knows_how_it_ended(make):
    resident = Resident({"a": make(1)})
    seen = []
    answer = ask(resident, "a", on_token=lambda: seen.append(1))
    assert answer.tokens == len(seen) <= 16
    assert answer.ended == (answer.tokens < 16)


def test_what_is_raised_at_a_token_ends_the_answer_there(make):
    resident = Resident({"a": make(1)})
    left = iter([True, True])

    class Enough(Exception):
        pass

    def heed():
        if not next(left, False):
            raise Enough

    pieces = []
    prompt = resident.prompt("a", QUESTION, 16)
    with pytest.raises(Enough):
        resident.answer("a", prompt, pieces.append, SHORT, on_token=heed)
    assert len("".join(pieces)) <= 2
    assert ask(resident, "a") == ask(Resident({"a": make(1)}), "a")


def test_an_identity_is_of_what_answers_not_of_its_name_or_company(make):
    one = Resident({"a": make(1), "wide": make(2, rank=16), "base": make(1).base()})
    other = Resident({"b": make(1), "chat": replace(make(1), template="chat"), "stronger": make(1, alpha=9.0)})
    assert one.identity("a") == other.identity("b")
    names = [one.identity(n) for n in one.voices] + [other.identity(n) for n in ("chat", "stronger")]
    assert len(set(names)) == 5


@pytest.mark.parametrize("room", [80, 130, 300])
def test_only_as_many_exchanges_go_as_must_and_the_system_turn_stays(make, room):
    resident = Resident({"a": make(1)})
    turns = []
    for number in range(20):
        turns += [Message("user", f"question {number}"), Message("assistant", "answer")]
    last = Message("user", "now")

    def tokens(dropped):
        kept = [Message("system", "Be brief."), *turns[2 * dropped :], last]
        return resident.prompt("a", kept, 1)

    limit = resident.context - room
    ids = resident.prompt("a", [Message("system", "Be brief."), *turns, last], limit)
    text = resident.tokenizer.decode(ids)
    assert text.startswith("Be brief.")
    assert text.endswith("now\n\n### Response:\n")
    first = 20 - text.count("### Instruction") + 1
    assert ids == tokens(first)
    assert len(ids) <= room < len(tokens(first - 1))


def test_different_bases_are_refused(make, tmp_path):
    save_model("llama", tmp_path / "other", seed=7)
    other = replace(make(2), model=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"first and second need different bases: model .*other\. One base"):
        Resident({"first": make(1), "second": other})


def test_different_precisions_are_refused_and_auto_goes_along(make):
    with pytest.raises(ConfigError, match="first and second need different bases: dtype fp32 and fp64"):
        Resident({"first": make(1), "second": replace(make(2), dtype="fp64")})
    with pytest.raises(ConfigError, match="bits 16 and 4"):
        Resident({"first": make(1), "second": replace(make(2), bits=4)})
    assert Resident({"first": replace(make(1), dtype="auto"), "second": replace(make(2), dtype="fp64")})


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_an_adapter_that_does_not_fit_is_refused(make, damage):
    tuned = make(1)
    name = next(iter(tuned.adapter))
    factors = dict(tuned.adapter)
    if damage == "missing":
        del factors[name]
    elif damage == "unknown":
        factors["model.layers.9.self_attn.q_proj.A"] = factors[name]
    else:
        factors[name] = torch.zeros(8, 8)
    with pytest.raises(ModelError, match="does not fit"):
        Resident({"a": replace(tuned, adapter=factors)})
