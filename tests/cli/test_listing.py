import json
import subprocess
import sys

import pytest

from fedit.availability import AVAILABILITIES
from fedit.cli.listing import KINDS
from fedit.clock import DEVICES
from fedit.config import RunConfig
from fedit.data.partition import PARTITIONS
from fedit.data.rounds import ROUND_TEMPLATES
from fedit.data.schemas import SCHEMAS
from fedit.pace import STRAGGLERS
from fedit.schedule import SCHEDULES
from fedit.selection import SELECTIONS
from fedit.settings import recipes
from fedit.strategies import STRATEGIES
from fedit.transforms import TRANSFORMS

TABLES = {
    "strategies": STRATEGIES,
    "transforms": TRANSFORMS,
    "partitions": PARTITIONS,
    "selections": SELECTIONS,
    "devices": ["none", *DEVICES],
    "stragglers": STRAGGLERS,
    "availabilities": AVAILABILITIES,
    "recipes": recipes(),
    "schedules": SCHEDULES,
    "settings": RunConfig.model_fields,
}


def read(fedit, *arguments):
    outcome = fedit("list", *arguments, "--json")
    assert outcome.code == 0
    return json.loads(outcome.out)


@pytest.mark.parametrize("kind", TABLES)
def test_a_list_has_the_names_of_its_table(fedit, kind):
    assert [entry["name"] for entry in read(fedit, kind)] == list(TABLES[kind])


@pytest.mark.parametrize(("kind", "table"), [("templates", ROUND_TEMPLATES), ("formats", SCHEMAS)])
def test_a_list_adds_what_is_no_fixed_name(fedit, kind, table):
    names = [entry["name"] for entry in read(fedit, kind)]
    assert set(table) < set(names)
    assert "auto" in names


def test_every_name_has_a_summary_and_a_kind(fedit):
    entries = read(fedit)
    assert {entry["kind"] for entry in entries} == set(KINDS)
    assert all(entry["summary"] for entry in entries)


@pytest.mark.parametrize("kind", KINDS)
def test_people_see_every_name(fedit, kind):
    outcome = fedit("list", kind)
    assert outcome.code == 0
    assert all(entry["name"] in outcome.out for entry in read(fedit, kind))


def test_without_a_kind_everything_is_listed_in_short(fedit):
    out = fedit("list").out
    assert all(kind in out for kind in KINDS)
    assert "label_count" in out
    assert "gradient_checkpointing" not in out  # settings are many: they have a list of their own


def test_an_unknown_kind_is_refused_with_the_nearest(fedit):
    outcome = fedit("list", "strategy")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "did you mean 'strategies'?" in outcome.err


def test_a_strategy_tells_its_paper_and_options(fedit):
    found = next(entry for entry in read(fedit, "strategies") if entry["name"] == "fedit")
    assert "arXiv:2305.05644" in found["paper"]
    assert found["options"]["server_lr"]["default"] == 1.0
    assert "step towards the mean" in found["options"]["server_lr"]["help"]


def test_every_strategy_tells_its_paper_and_says_its_options_in_one_line(fedit):
    for entry in read(fedit, "strategies"):
        assert "arXiv:" in entry["paper"], entry["name"]
        for option in entry["options"].values():
            assert option["help"] == " ".join(option["help"].split()) != ""


def test_a_strategy_tells_what_its_code_does(fedit):
    found = next(entry for entry in read(fedit, "strategies") if entry["name"] == "fedit")
    assert found["arxiv"] == ["2305.05644"]
    assert (found["uploads"], found["downloads"]) == ("A, B", "A, B")
    assert (found["exact"], found["mixed_ranks"]) == (False, False)
    assert (found["central_dp"], found["secure_aggregation"]) == (True, True)
    shown = fedit("list", "strategies").out
    assert "no: exact aggregate, mixed ranks" in shown


def test_bytes_on_a_model_are_told_for_strategies_alone(fedit, model_folder):
    command = ("list", "strategies", "--model", str(model_folder("llama")), "--lora_r", "2")
    found = {entry["name"]: entry for entry in json.loads(fedit(*command, "--json").out)}
    assert found["fedit"]["bytes_up"] == 4 * 2 * 2 * (2 * 64 + 2 * 48)
    assert "MB up" in fedit(*command).out
    outcome = fedit("list", "partitions", "--model", "x")
    assert outcome.code == 2
    assert "fedit list strategies --model" in outcome.err


def test_a_partition_tells_what_it_needs_and_its_options_as_settings(fedit):
    found = {entry["name"]: entry for entry in read(fedit, "partitions")}
    assert found["dirichlet"]["needs"] == "a category for every row"
    assert found["dirichlet"]["options"]["alpha"] == {"type": "float", "default": 0.5}
    assert list(found["manifest"]["options"]) == ["partition_file"]


def test_a_setting_tells_its_choices(fedit):
    found = {entry["name"]: entry for entry in read(fedit, "settings")}
    assert found["compare"]["choices"] == ["local", "centralised"]
    assert found["lora_r"]["default"] == 16
    assert found["alpha"]["section"] == "federation"


def test_listing_imports_nothing_heavy():
    program = (
        "import sys; from fedit.cli.app import app; app(['list', '--json'], standalone_mode=False); "
        "heavy = {'torch', 'transformers', 'peft', 'matplotlib', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
