"""What a site's policy refuses, in one sentence; and that no file makes it fail in another way."""

import json
import math
import re
import tomllib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.flower.policy import DEFAULT_POLICY, Policy, most_steps
from fedit.objectives import OBJECTIVES, objective_of
from fedit.settings import from_values
from fedit.strategies import STRATEGIES
from fedit.strategies.ditto import PERSONAL
from fedit.strategies.feddpa import LOCAL
from fedit.types import LocalTraining

TRAINING = LocalTraining(1e-3, 10, steps=5)


def wrong(text):
    with pytest.raises(ConfigError) as caught:
        Policy.parse(text)
    return str(caught.value)


def test_the_default_text_says_the_defaults_and_explains_every_setting():
    assert Policy.parse(DEFAULT_POLICY) == Policy()
    assert set(tomllib.loads(DEFAULT_POLICY)) == set(Policy.model_fields)
    lines = DEFAULT_POLICY.splitlines()
    for name in Policy.model_fields:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        assert lines[at - 1].startswith("# "), f"{name} is not explained"


def test_an_empty_file_is_the_defaults_and_a_missing_one_an_error(tmp_path):
    (tmp_path / "policy.toml").write_bytes(b"\xef\xbb\xbf")
    assert Policy.load(tmp_path / "policy.toml") == Policy()
    with pytest.raises(ConfigError, match=r"there is no .*absent\.toml; take the one of the site's bundle"):
        Policy.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Policy.load(tmp_path)


def test_every_mistake_is_named_with_its_place(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("max_round = 3\nmax_steps = true\nmodels = 'x'\nmin_noise_multiplier = nan\n[max_rank]\n")
    with pytest.raises(ConfigError) as caught:
        Policy.load(path)
    assert str(caught.value).splitlines() == [
        f"{path}: unknown setting 'max_round'; did you mean 'max_rounds'?",
        f"{path}: models is 'x': input should be a valid list",
        f"{path}: max_rank is {{}}: input should be a valid integer",
        f"{path}: max_steps is True: input should be a valid integer",
        f"{path}: min_noise_multiplier is nan: input should be a finite number",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strategies = ['fedexlora']", "strategies is ['fedexlora']: unknown strategy 'fedexlora'; did you mean"),
        ("tunings = ['lara']", "tunings is ['lara']: unknown tuning 'lara'; did you mean 'lora'?"),
        ("objectives = ['ppo']", "objectives is ['ppo']: unknown objective 'ppo'; did you mean 'dpo'?"),
        ("max_rank = 0", "max_rank is 0: input should be greater than or equal to 1"),
        ("max_message_megabytes = inf", "max_message_megabytes is inf: input should be a finite number"),
        ("max_rank = 0x" + "f" * 5000, "max_rank"),
        ("max_rounds = " + "9" * 5000, "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("max_rounds", "not valid TOML"),
        ("max_message_megabytes = 0x" + "f" * 5000, "max_message_megabytes is beyond what can be shown (int)"),
    ],
)
def test_a_value_that_cannot_work_is_refused(text, expected):
    if expected == "max_rank":  # a whole number of any length is one
        assert Policy.parse(text).max_rank > 10**6000
    else:
        assert wrong(text).startswith(f"policy.toml: {expected}")


def test_a_strategy_may_be_allowed_as_a_file():
    policy = Policy(strategies=["mine.py:Mine"], allow_custom_code=True)
    assert policy.refusal(RunConfig(strategy="mine.py:Mine")) is None
    assert "only mine.py:Mine" in policy.refusal(RunConfig(strategy="other.py:Mine"))
    assert "allow_custom_code" in Policy(strategies=["mine.py:Mine"]).refusal(RunConfig(strategy="mine.py:Mine"))


def private(**noise):
    return {"privacy": "client", "weighting": "uniform", "privacy_options": {"clip_norm": 0.1, **noise}}


REFUSED = [
    # policy, job, what the sentence names: the rule, the job's value, what is allowed
    ({"models": ["a", "b"]}, {"model": "c"}, ("models", "model='c'", "only a, b")),
    ({"max_rounds": 3}, {"num_rounds": 4}, ("max_rounds", "num_rounds=4", "at most 3")),
    ({"max_steps": 3}, {"local_steps": 4}, ("max_steps", "local_steps=4", "at most 3")),
    ({"max_steps": 3}, {"local_epochs": 4}, ("max_steps", "local_epochs=4", "at most 3")),
    ({"max_steps": 3}, {"personal_steps": 4, "personal_evaluation": True}, ("max_steps", "personal_steps=4")),
    ({"max_rank": 8}, {"lora_r": 16}, ("max_rank", "lora_r=16", "at most 8")),
    ({"max_rank": 8}, {"lora_r": "auto", "upload_megabytes": 1}, ("max_rank", "lora_r='auto'", "at most 8")),
    ({"max_rank": 8}, {"lora_r": 16, "tuning": "vera"}, ("max_rank", "lora_r=16")),
    ({"strategies": ["fedavg"]}, {"strategy": "ditto"}, ("strategies", "strategy='ditto'", "only fedavg")),
    ({}, {"tuning": "full"}, ("tunings", "tuning='full'", "only lora, dora, ia3, vera, prefix")),
    ({"objectives": ["sft"]}, {"objective": "dpo"}, ("objectives", "objective='dpo'", "only sft")),
    ({}, {"attack": ["nan"]}, ("attack", "attack=['nan']", "none")),
    ({}, {"attack": ["trigger"]}, ("attack", "attack=['trigger']", "none")),
    ({"min_noise_multiplier": 0.5}, {}, ("min_noise_multiplier", "no noise", "at least 0.5")),
    ({"require_secure_aggregation": True}, {}, ("require_secure_aggregation", "see this site's updates")),
    ({"min_noise_multiplier": 0.5}, private(noise_multiplier=0.4), ("min_noise_multiplier", "multiplier=0.4")),
    ({"min_noise_multiplier": 0.5}, private(epsilon=8.0), ("min_noise_multiplier", "states an epsilon")),
    (
        {"min_noise_multiplier": 0.5},
        {"privacy": "example", "privacy_options": {"noise_multiplier": 0.4}},
        ("min_noise_multiplier", "0.4", "at least 0.5"),
    ),
    ({"allow_statistics": ["loss"]}, {}, ("allow_statistics", "weighting='examples'", "weighting='uniform'")),
    ({"allow_statistics": []}, {"weighting": "tokens"}, ("allow_statistics", "tells supervised_tokens")),
    ({}, {"strategy": "x.py:Y"}, ("allow_custom_code", "strategy='x.py:Y'", "no files")),
    ({}, {"transforms": ["cast", "x.py:Y"]}, ("allow_custom_code", "transforms='x.py:Y'")),
    ({}, {"transforms": [{"x.py:Y": {"a": 1}}]}, ("allow_custom_code", "transforms='x.py:Y'")),
    ({}, {"selection": "x.py:Y"}, ("allow_custom_code", "selection='x.py:Y'")),
    ({}, {"devices": "/a b/x.py:Y"}, ("allow_custom_code", "devices='/a b/x.py:Y'")),
    ({}, {"stragglers": "x.py:Y"}, ("allow_custom_code", "stragglers='x.py:Y'")),
    ({}, {"availability": "x.py:Y"}, ("allow_custom_code", "availability='x.py:Y'")),
    ({}, {"strategy_options": {"a": "x.py:Y"}}, ("allow_custom_code", "strategy_options='x.py:Y'")),
    ({}, {"prompt_template": "/etc/x.jinja"}, ("allow_custom_code", "prompt_template='/etc/x.jinja'")),
]


@pytest.mark.parametrize(("policy", "job", "named"), REFUSED)
def test_a_refusal_is_one_sentence_with_rule_value_and_what_is_allowed(policy, job, named):
    sentence = Policy(**policy).refusal(RunConfig(**job))
    assert sentence.startswith(f"{named[0]}: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in named[1:]:
        assert part in sentence


ALLOWED = [
    ({}, {}),
    ({"models": ["a", "b"]}, {"model": "b"}),
    ({"max_rounds": 3}, {"num_rounds": 3}),
    ({"max_steps": 3}, {"local_steps": 3}),
    ({"max_rank": 8}, {"lora_r": 8, "client_ranks": [4, 8]}),
    ({"max_rank": 8}, {"lora_r": 16, "tuning": "ia3"}),
    ({"min_noise_multiplier": 0.5}, private(noise_multiplier=0.5)),
    ({"tunings": []}, {"tuning": "full"}),
    ({"tunings": ["full"]}, {"tuning": "full"}),
    ({}, {"objective": "dpo", "prompt_template": "alpaca", "transforms": ["top_k", "cast", "zstd"]}),
    ({"allow_statistics": []}, {"weighting": "uniform"}),
    ({"allow_custom_code": True}, {"strategy": "x.py:Y", "prompt_template": "x.jinja"}),
]


@pytest.mark.parametrize(("policy", "job"), ALLOWED)
def test_what_is_allowed_is_done(policy, job):
    assert Policy(**policy).refusal(RunConfig(**job)) is None


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_default_policy_allows_every_strategy_that_comes_with_fedit(name):
    assert Policy().refusal(RunConfig(strategy=name)) is None


def test_ranks_of_single_clients_count_where_the_servers_is_still_open():
    # A job with lora_r=auto may name larger ranks than any that is settled.
    config = RunConfig(lora_r=16, client_ranks={"a": 16}).model_copy(update={"lora_r": 4})
    sentence = Policy(max_rank=8).refusal(config)
    assert sentence == "max_rank: the job has client_ranks=16; this site allows at most 8."


def test_epochs_become_steps_with_the_rows_of_a_client():
    policy, config = Policy(max_steps=8), RunConfig(local_epochs=2, batch_size=4)
    assert policy.refusal(config) is None  # not known yet
    assert policy.refusal(config, None, 16) is None
    assert policy.refusal(config, None, 17) == (
        "max_steps: the job has local_epochs=2, which may be 10 steps; this site allows at most 8."
    )
    # Neither steps nor epochs nor tokens: one epoch.
    assert policy.refusal(RunConfig(batch_size=1), None, 8) is None
    assert "local_epochs=1" in policy.refusal(RunConfig(batch_size=1), None, 9)


def test_tokens_become_the_most_steps_that_they_can_be():
    training = replace(TRAINING, steps=None, tokens=100, batch_size=2)
    assert most_steps(training) == 1  # not known yet
    assert most_steps(training, 10) == 100  # rows of one token
    assert most_steps(training, 10, 50) == 3 * 5
    assert most_steps(training, 10, 10_000) == 2 * 5
    config = RunConfig(local_tokens=100, batch_size=2)
    assert Policy(max_steps=15).refusal(config, None, 10, 50) is None
    assert "local_tokens=100, which may be 15 steps" in Policy(max_steps=14).refusal(config, None, 10, 50)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    tokens=st.integers(1, 200),
    start=st.integers(0, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_no_client_takes_more_steps_for_its_tokens_than_was_reckoned_with(
    lengths, batch_size, tokens, start, seed
):
    from fedit.training import batches

    taken = seen = 0
    stream = batches(len(lengths), batch_size, seed, start)
    while seen < tokens:
        seen += sum(lengths[i] for i in next(stream))
        taken += 1
    training = replace(TRAINING, steps=None, tokens=tokens, batch_size=batch_size)
    assert taken <= most_steps(training, len(lengths), sum(lengths))


def test_an_adapter_of_the_clients_own_cannot_be_trained_for_more_steps_than_are_allowed():
    policy = Policy(max_steps=10)
    config = RunConfig(strategy="ditto", local_steps=5, strategy_options={"personal_share": 2.0})
    assert policy.refusal(config) is None
    for share, told in (
        (2.5, "13 steps"),
        (1e300, "more than 1e15 steps"),
        (float("inf"), "more than 1e15 steps"),
    ):
        longer = config.model_copy(update={"strategy_options": {"personal_share": share}})
        assert f"personal_share={share}, which may be {told}" in policy.refusal(longer)


def test_a_task_is_judged_as_well_as_the_job_that_it_belongs_to():
    policy, config = Policy(max_steps=10, max_rounds=10, objectives=["sft"]), RunConfig(local_steps=5)
    assert policy.refusal(config, TRAINING) is None
    for change, named in (
        ({"steps": 11}, "the task has local_steps=11"),
        ({"steps": None, "epochs": 11}, "the task has local_epochs=11"),
        ({"num_rounds": 11}, "the task has num_rounds=11"),
        ({"objective": "dpo"}, "the task has objective='dpo'"),
        ({"steps": "many"}, "the task has steps='many'; this site allows whole numbers from 1"),
        ({"steps": -1}, "the task has steps=-1"),
        ({"steps": True}, "the task has steps=True"),
        ({"batch_size": 0}, "the task has batch_size=0"),
        ({"num_rounds": None}, "the task has num_rounds=None"),
        ({"epochs": 1.5}, "the task has epochs=1.5"),
    ):
        assert named in policy.refusal(config, replace(TRAINING, **change), 4)
    assert "the job has local_steps=11" in policy.refusal(RunConfig(local_steps=11), TRAINING)


def test_a_long_value_of_a_job_is_cut():
    sentence = Policy(models=["a"]).refusal(RunConfig(model="x\n" * 1000))
    assert len(sentence) < 200
    assert "\n" not in sentence


def test_only_metrics_that_are_allowed_leave():
    metrics = {"loss": 1.0, "steps": 2.0, "secret": 3.0}
    assert Policy().metrics(metrics) == {"loss": 1.0, "steps": 2.0}
    assert Policy(allow_statistics=["secret"]).metrics(metrics) == {"secret": 3.0}
    assert Policy(allow_statistics=[]).metrics(metrics) == {}
    assert Policy().reports("num_examples")
    assert not Policy(allow_statistics=["loss"]).reports("num_examples")


def test_by_default_all_that_fedits_own_clients_report_may_leave():
    kinds = [objective_of(replace(TRAINING, objective=name)) for name in OBJECTIVES]
    measured = {name for kind in kinds for name in kind.measures}
    assert measured
    assert {*measured, f"{PERSONAL}_loss", f"{LOCAL}_loss"} <= set(Policy().allow_statistics)


def test_a_message_that_is_too_large_is_named_with_its_size():
    policy = Policy(max_message_megabytes=1.5)
    assert policy.oversized(1_500_000) is None
    assert policy.oversized(3_000_000) == (
        "max_message_megabytes: a message has 3 million bytes; this site allows 1.5."
    )


# --- whatever is thrown at it ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(Policy.model_fields)) | st.text(max_size=12)
TOML = st.lists(
    st.tuples(
        KEYS | st.text(alphabet='[]"=.#\n ', max_size=6),
        st.sampled_from([" = ", "=", "\n", " = [", '"', "'''"]),
        JSON.map(lambda value: json.dumps(value)) | st.text(alphabet="0x_e.-:TZ[]{},'\"", max_size=20),
    ).map("".join),
    max_size=4,
).map("\n".join)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def config_error_or(make):
    try:
        return make()
    except ConfigError:
        return None


@given(st.binary(max_size=80) | TOML.map(lambda text: text.encode("utf-8", "surrogatepass")))
@FUZZ
def test_a_file_of_anything_is_a_policy_or_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    config_error_or(lambda: Policy.load(path))


@given(JSON | st.dictionaries(KEYS, JSON, max_size=4))
@FUZZ
def test_json_of_anything_is_a_policy_or_a_config_error(value):
    policy = config_error_or(lambda: Policy.of(json.loads(json.dumps(value)), "policy"))
    assert policy is None or isinstance(policy, Policy)


@given(st.dictionaries(st.sampled_from(sorted(RunConfig.model_fields)) | st.text(max_size=8), JSON, max_size=3))
@FUZZ
def test_whatever_job_a_server_sends_it_is_judged_or_a_config_error(value):
    config = config_error_or(lambda: from_values(json.loads(json.dumps(value)), "the server's job"))
    sentence = Policy().refusal(config, None, 7, 700) if config is not None else None
    assert sentence is None or re.fullmatch(r"\w+: the job .*; this site allows .*\.", sentence)


ANY_COUNT = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**4000)


@given(ANY_COUNT, ANY_COUNT, ANY_COUNT, ANY_COUNT, st.floats() | st.integers() | st.text(max_size=2))
@FUZZ
def test_whatever_task_a_server_sends_it_is_judged(steps, epochs, tokens, batch_size, share):
    config = RunConfig(strategy_options={"personal_share": share})
    training = replace(TRAINING, steps=steps, epochs=epochs, tokens=tokens, batch_size=batch_size)
    sentence = Policy().refusal(config, training, 7, 700)
    assert sentence is None or sentence.endswith(".")


def test_a_task_must_be_as_private_as_its_job_and_its_site_want():
    job = RunConfig(privacy="example", privacy_options={"epsilon": 8.0})
    private = replace(TRAINING, example_clip=1.0, example_noise=0.6)
    assert Policy(min_noise_multiplier=0.5).refusal(job) is None
    assert Policy(min_noise_multiplier=0.5).refusal(job, private) is None
    assert "noise_multiplier=0.6" in Policy(min_noise_multiplier=0.7).refusal(job, private)
    for wrong_one in (
        TRAINING,
        replace(private, example_clip=0.0),
        replace(private, example_clip="1"),
        replace(private, example_noise=math.nan),
        replace(private, example_noise=None),
    ):
        assert Policy().refusal(job, wrong_one).startswith("privacy: the task has example_clip=")
