"""Names become objects; mistakes in names, options and files are told."""

from dataclasses import dataclass

import pytest

from fedit.errors import ConfigError, UnknownName
from fedit.registry import build, find
from fedit.strategies import STRATEGIES, build_strategy
from fedit.strategies.base import Strategy


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


MINE = """
from dataclasses import dataclass
from typing import Literal
from fedit.strategies.base import Strategy

@dataclass(frozen=True)
class Mine(Strategy):
    step: float = 1.0
    name: str = "x"
    count: int = 2
    on: bool = False

@dataclass(frozen=True)
class Either(Strategy):
    tau: float | Literal["auto"] = 1.0
    depth: Literal[1, 2] | None = None

@dataclass(frozen=True)
class Needy(Strategy):
    must: float

class Plain(Strategy):
    pass

class Stranger:
    pass
"""


def test_a_name_of_the_table_is_built_with_its_options():
    assert build_strategy("fedit", {"server_lr": 0.5}).server_lr == 0.5


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="unknown strategy 'fedti'; did you mean 'fedit'") as info:
        build_strategy("fedti", {})
    assert all(name in str(info.value) for name in STRATEGIES)


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(
        ConfigError, match=r"no option 'serverlr'; did you mean 'server_lr'\? Its options: server_lr"
    ):
        build_strategy("fedit", {"serverlr": 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [("step", "fast"), ("step", True), ("count", 1.5), ("count", True), ("on", 1), ("name", 3), ("step", None)],
)
def test_an_option_of_the_wrong_type_is_refused(tmp_path, option, value):
    path = write(tmp_path, MINE)
    with pytest.raises(ConfigError, match=f"option '{option}' of strategy .* expected"):
        build_strategy(f"{path}:Mine", {option: value})


@pytest.mark.parametrize(
    ("option", "value"), [("tau", "auto"), ("tau", 0.5), ("tau", 2), ("depth", 1), ("depth", None)]
)
def test_an_option_may_have_several_types_and_values(tmp_path, option, value):
    assert getattr(build_strategy(f"{write(tmp_path, MINE)}:Either", {option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("tau", "automatic", "float or 'auto'"),
        ("tau", True, "float or 'auto'"),
        ("tau", None, "float or 'auto'"),
        ("depth", 3, "1 or 2 or NoneType"),
        ("depth", True, "1 or 2 or NoneType"),
        ("depth", 1.0, "1 or 2 or NoneType"),
    ],
)
def test_an_option_that_is_none_of_several_is_refused(tmp_path, option, value, expected):
    with pytest.raises(ConfigError, match=f"option '{option}' of strategy .* is {value!r}; expected {expected}"):
        build_strategy(f"{write(tmp_path, MINE)}:Either", {option: value})


def test_a_whole_number_is_a_good_float(tmp_path):
    assert build_strategy(f"{write(tmp_path, MINE)}:Mine", {"step": 2}).step == 2


def test_a_class_from_a_file(tmp_path):
    built = build_strategy(f"{write(tmp_path, MINE)}:Mine", {"count": 5})
    assert isinstance(built, Strategy)
    assert built.count == 5


def test_a_class_from_a_file_with_postponed_annotations(tmp_path):
    path = write(tmp_path, "from __future__ import annotations\n" + MINE)
    assert build_strategy(f"{path}:Mine", {"count": 5}).count == 5
    with pytest.raises(ConfigError, match="option 'count'"):
        build_strategy(f"{path}:Mine", {"count": "many"})


@pytest.mark.parametrize("name", ["Missing", "Stranger"])
def test_a_file_without_such_a_class(tmp_path, name):
    with pytest.raises(ConfigError, match=f"has no dataclass '{name}' derived from Strategy"):
        build_strategy(f"{write(tmp_path, MINE)}:{name}", {})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        build_strategy(f"{tmp_path / 'none.py'}:Mine", {})


@pytest.mark.parametrize("text", ["def broken(:\n", "import no_such_module_anywhere\n", "1 / 0\n"])
def test_a_file_that_fails_is_named(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=str(path)):
        build_strategy(f"{path}:Mine", {})


def test_an_option_that_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="must"):
        build_strategy(f"{write(tmp_path, MINE)}:Needy", {})


def test_other_kinds_have_tables_too():
    @dataclass(frozen=True)
    class Thing:
        size: int = 1

    table = {"seed": "fedit.types:ClientInfo"}
    assert find("thing", "seed", table, Thing).__name__ == "ClientInfo"
    with pytest.raises(UnknownName, match="unknown thing"):
        build("thing", "weed", {}, table, Thing)
