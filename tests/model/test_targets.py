"""Which layers carry an adapter, architecture by architecture."""

import pytest
from tiny import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM

from fedit.errors import ModelError
from fedit.model.targets import choose_targets

ATTENTION = {
    "llama": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "mistral": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "qwen2": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "qwen3": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "gemma2": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "gemma": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "gemma3_text": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "smollm3": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "phi3": ["o_proj", "qkv_proj"],
    "gpt2": ["c_attn"],
    "opt": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "bloom": ["dense", "query_key_value"],
}
MLP = {
    "llama": ["down_proj", "gate_proj", "up_proj"],
    "phi3": ["down_proj", "gate_up_proj"],
    "gpt2": ["c_fc", "c_proj"],
    "opt": ["fc1", "fc2"],
    "bloom": ["dense_4h_to_h", "dense_h_to_4h"],
}


@pytest.fixture(scope="module")
def model():
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_attention_is_found(model, kind):
    assert choose_targets(model(kind), "attention") == ATTENTION[kind]
    assert choose_targets(model(kind), "auto") == ATTENTION[kind]


@pytest.mark.parametrize("kind", sorted(MLP))
def test_all_linear_is_everything_but_the_head(model, kind):
    assert choose_targets(model(kind), "all-linear") == sorted(ATTENTION[kind] + MLP[kind])


def test_names_are_taken_as_given_sorted_and_once(model):
    assert choose_targets(model("llama"), ["v_proj", "q_proj", "v_proj"]) == ["q_proj", "v_proj"]
    assert choose_targets(model("llama"), "q_proj") == ["q_proj"]


def test_an_unknown_name_suggests_the_nearest(model):
    with pytest.raises(ModelError, match=r"no linear layer is called 'qproj'; did you mean 'q_proj'\?.*down_proj"):
        choose_targets(model("llama"), ["qproj"])


def test_the_head_is_no_target(model):
    with pytest.raises(ModelError, match="lm_head"):
        choose_targets(model("llama"), ["lm_head"])
