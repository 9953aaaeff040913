"""Names of strategies with their options: nothing is lost on the way, and what is refused is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit import settings
from fedit.errors import ConfigError, UnknownName
from fedit.strategies import build_variant
from fedit.strategies.fed_sb import FedSB
from fedit.variants import Variant

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_name_is_read_as_it_was_written(name, options):
    found = Variant.parse(str(Variant(name, options)))
    assert found == Variant(name, options)
    assert [type(value) for value in found.options.values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize("text", ["fedit", "file.py:Mine", "a (b)/file.py:Mine", "fedit()", "fedit(x)"])
def test_what_has_no_options_is_a_name(text):
    assert Variant.parse(text) == Variant(text)


def test_a_variant_is_built_with_its_options():
    assert build_variant("fed_sb(bases=first_update)") == FedSB(bases="first_update")
    assert build_variant("fed_sb") == FedSB()
    with pytest.raises(ConfigError, match="did you mean 'bases'"):
        build_variant("fed_sb(base=random)")
    with pytest.raises(UnknownName):
        build_variant("fed_bs(bases=random)")
    with pytest.raises(ConfigError, match="twice"):
        build_variant("fed_sb(bases=random bases=first_update)")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("fedit,fed_sb(bases=first_update)", ["fedit", "fed_sb(bases=first_update)"]),
        ("[fedit, {fed_sb: {bases: first_update}}]", ["fedit", "fed_sb(bases=first_update)"]),
        (
            "{fedadam: {beta1: 0.5, bias_correction: true}, fedit: }",
            ["fedadam(beta1=0.5 bias_correction=true)", "fedit"],
        ),
    ],
)
def test_a_study_takes_strategies_with_options(text, names):
    assert settings.load(None, [f"study.strategies={text}"]).study.strategies == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{fedit: 3}]", "options of 'fedit'"),
        ("[{fedit: , flora: }]", "no strategy"),
        ("[fedit, {fedit: {}}]", "twice"),
        ("[3]", "no strategy"),
    ],
)
def test_mistakes_in_strategies_are_named(text, words):
    with pytest.raises(ConfigError, match=words):
        settings.load(None, [f"study.strategies={text}"])
