"""fedit's model of the harness gives the numbers that the harness's own model over transformers gives."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from fedit.errors import ConfigError
from fedit.harness.model import Voice
from fedit.resident import Resident

QUESTIONS = ["Once upon a time", "A dog and a cat", "", "Once upon a time there was a king and a queen", "Zebra "]
CHOICES = [" green", " blue and red", "x"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request, arms, model_folder, adapted):
    """Return (fedit's model, the harness's) of one arm: on the fast path, and where there is none."""
    from dataclasses import replace

    from tiny import random_adapter

    arm = arms["federated"]
    if request.param != "llama":
        model = adapted(request.param, dtype="fp32", rank=4)
        factors = {name: value.float() for name, value in random_adapter(model, 1, size=0.3).items()}
        arm = replace(arm, adapter=factors, model=str(model_folder(request.param)))
    resident = Resident({"federated": arm}, fast_path=True)
    model, factors = resident.speaker("federated")
    assert (model.fast is not None) == (request.param == "llama")
    model.load(factors)
    model._model.generation_config.eos_token_id = resident.tokenizer.eos_token_id  # HFLM would write on after it
    theirs = HFLM(pretrained=model._model, tokenizer=resident.tokenizer, batch_size=1, device="cpu")
    return Voice(resident, "federated"), theirs


def requests(kind, arguments):
    return [Instance(kind, {}, given, index, task_name="t") for index, given in enumerate(arguments)]


def test_log_likelihoods_are_those_of_the_harness(both):
    ours, theirs = both
    asked = requests("loglikelihood", [(question, choice) for question in QUESTIONS for choice in CHOICES])
    mine, wanted = ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in wanted], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in wanted]


def test_what_the_model_would_write_itself_counts_as_greedy(both):
    ours, theirs = both
    asked = requests(
        "loglikelihood", [(f"A {letter}", chr(code)) for letter in "bcdfghjklmnpqrst" for code in range(33, 127)]
    )
    mine = [greedy for _, greedy in ours.loglikelihood(asked, disable_tqdm=True)]
    assert mine == [greedy for _, greedy in theirs.loglikelihood(asked, disable_tqdm=True)]
    assert 0 < sum(mine) <= 16


def test_whole_texts_are_scored_as_by_the_harness_by_windows_too(both):
    ours, theirs = both
    theirs._max_length = ours.max_length = 40
    asked = requests("loglikelihood_rolling", [("A short text.",), ("A longer text that needs windows. " * 4,)])
    wanted = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(wanted, rel=1e-5)
    long = requests("loglikelihood", [("many words " * 10, " end")])
    assert ours.loglikelihood(long)[0][0] == pytest.approx(theirs.loglikelihood(long)[0][0], rel=1e-5, abs=1e-4)


def test_answers_are_those_of_the_harness_up_to_their_stops(both):
    ours, theirs = both
    free = {"until": [], "max_gen_toks": 12}
    plain = theirs.generate_until(requests("generate_until", [(q, free) for q in QUESTIONS if q]))
    stops = [text[len(text) // 2 :][:2] for text in plain if len(text) > 4]
    assert stops
    asked = requests(
        "generate_until",
        [(q, {"until": stops[:1], "max_gen_toks": longest}) for longest in (12, 5) for q in QUESTIONS if q]
        + [(q, free) for q in QUESTIONS if q],
    )
    wanted = theirs.generate_until(asked, disable_tqdm=True)
    assert ours.generate_until(asked) == wanted
    assert wanted[: len(plain)] != plain
    assert ours.generate_until(requests("generate_until", [("", free)])) != [None]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"until": [], "do_sample": True, "temperature": 0.7}, "draws its answers"),
        ({"until": [], "num_beams": 4}, "sets num_beams"),
        ({"until": [], "max_gen_toks": 600}, "answers of up to 600 tokens"),
    ],
)
def test_what_would_not_be_a_greedy_answer_is_refused(both, wanted, told):
    with pytest.raises(ConfigError, match=told):
        both[0].generate_until(requests("generate_until", [("A dog", wanted)]))


def test_a_text_that_is_longer_than_the_model_reads_is_refused(both):
    with pytest.raises(ConfigError, match="scores a text of"):
        both[0].loglikelihood(requests("loglikelihood", [("A dog", "x" * 2000)]), disable_tqdm=True)


def test_questions_stand_in_the_template_of_the_training(arms):
    voice = Voice(Resident({"federated": arms["federated"]}), "federated")
    asked = voice.apply_chat_template([{"role": "user", "content": "Why?"}])
    assert "### Instruction:\nWhy?" in asked
    begun = voice.apply_chat_template(
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}], False
    )
    assert begun == asked + "Because"
