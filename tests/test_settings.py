import ast
from pathlib import Path

import pytest
import yaml

from fedit import settings
from fedit.config import SECTIONS, RunConfig
from fedit.errors import ConfigError

ROOT = Path(__file__).parents[1]


def write(folder, text, name="job.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(*arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        settings.load(*arguments, **keywords)
    return str(caught.value)


def test_unknown_setting_names_file_line_and_the_nearest_name(tmp_path):
    path = write(tmp_path, "model: x\n\nfederation:\n  num_rounds: 3\nlora_rr: 4\n")
    assert message(path) == f"{path}:5: unknown setting 'lora_rr'; did you mean 'lora_r'?"


def test_all_errors_are_reported_together(tmp_path):
    path = write(tmp_path, "num_rounds: 0\nlora_rr: 4\nbatch_size: many\n")
    text = message(path, ["lr=1"])
    assert f"{path}:1: num_rounds is 0" in text
    assert f"{path}:2: unknown setting 'lora_rr'" in text
    assert f"{path}:3: batch_size is 'many'" in text
    assert "argument lr: unknown setting 'lr'; here it is called 'learning_rate'" in text


def test_later_layers_win_and_every_value_remembers_where_it_came_from(tmp_path):
    path = write(tmp_path, "num_rounds: 3\nlora_r: 4\nseed: 5\n")
    found = settings.load(path, ["num_rounds=7", "lora_r=8"], {"num_rounds": 9})
    assert (found.config.num_rounds, found.config.lora_r, found.config.seed) == (9, 8, 5)
    assert found.origins == {"num_rounds": "--num_rounds", "lora_r": "argument lora_r", "seed": f"{path}:3"}


def test_yaml_and_toml_mean_the_same(tmp_path):
    yaml_job = write(tmp_path, "learning_rate: 3e-4\ntraining:\n  local_steps: 2\ncolumns:\n  response: answer\n")
    toml_job = write(
        tmp_path, 'learning_rate = 3e-4\n[training]\nlocal_steps = 2\n[columns]\nresponse = "answer"\n', "job.toml"
    )
    assert settings.load(yaml_job).config == settings.load(toml_job).config
    assert settings.load(yaml_job).config.learning_rate == 3e-4


def test_sections_group_and_model_may_be_a_section_or_a_setting(tmp_path):
    grouped = write(tmp_path, "model:\n  model: some/base\n  lora_r: 2\n")
    assert settings.load(grouped).config.model == "some/base"
    assert settings.load(None, ["model.lora_r=3", "model=other/base"]).config.lora_r == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["columns.response=reply"], {"response": "reply"}),
        (["columns.response=reply", "columns.category=team"], {"response": "reply", "category": "team"}),
    ],
)
def test_columns_are_set_one_by_one(arguments, expected):
    assert settings.load(None, arguments).config.columns.given() == expected


def test_unknown_column_role_is_suggested():
    assert "did you mean 'response'?" in message(None, ["columns.respons=x"])


def test_a_list_may_be_written_with_commas():
    config = settings.load(None, ["lora_target_modules=auto", "compare=local,centralised"]).config
    assert config.compare == ["local", "centralised"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["local_steps=2", "local_epochs=1"], "set only one of local_epochs, local_steps"),
        (["load_in_8bit=true", "load_in_4bit=true"], "set only one of load_in_8bit and load_in_4bit"),
        (["clients_per_round=1.5"], "expected a whole number from 1 or a fraction"),
        (["clients_per_round=0"], "expected a whole number from 1 or a fraction"),
        (["held_out=1.0"], "fraction below 1"),
        (["early_stopping=2"], "early_stopping needs validation rows"),
        (["partitioner=manifest"], "needs partition_file"),
        (["partition_by=user"], "partitioner=natural only"),
        (["attack=alie,ipm"], "attack names alie and ipm; expected one on updates and one on rows"),
        (["attack=trigger", "attack_strength=2"], "read by attacks on updates only"),
        (["attackers=1.5"], "attackers is 1.5"),
        (["defence_steps=2"], "defence_steps needs rows that the server holds"),
        (["optimizer=lion"], "optimizer is 'lion'"),
        (["rounds"], "not of the form key=value"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, words):
    assert words in message(None, overrides)


def test_a_setting_that_stands_twice_is_refused(tmp_path):
    path = write(tmp_path, "seed: 1\nmodel: x\nseed: 2\n")
    assert message(path) == f"{path}:3: setting 'seed' stands here and in line 1"


@pytest.mark.parametrize(
    ("name", "text"), [("job.yaml", "a: [1\n"), ("job.toml", "a = [1\n"), ("job.yaml", "- a\n")]
)
def test_broken_job_files_are_named(tmp_path, name, text):
    assert str(tmp_path / name) in message(write(tmp_path, text, name))


def test_a_job_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"model: \xff\n")
    assert "UTF-8" in message(path)


def test_unknown_recipe_is_suggested():
    assert "did you mean 'demo'?" in message("demmo")


@pytest.mark.parametrize("name", sorted(settings.recipes()))
def test_recipes_load_by_name_and_by_path_without_suffix(name):
    assert settings.load(name).config == settings.load(str(ROOT / "recipes" / name)).config


def test_resolved_settings_give_the_same_settings_again():
    config = settings.load("demo", ["columns.response=reply", "strategy_options.server_lr=0.5"]).config
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert settings.from_values(yaml.safe_load(text), "again") == config


def test_every_setting_is_documented_and_has_a_section():
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["section"] in SECTIONS


def test_every_setting_is_read_by_something():
    """A setting that nothing reads would be accepted and ignored."""
    read = set()
    for path in (ROOT / "fedit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if path.name == "config.py" and isinstance(node, ast.Dict):
                read |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    assert not set(RunConfig.model_fields) - read


def test_the_set_of_settings_grows_on_purpose():
    assert len(RunConfig.model_fields) == 100, "a setting was added or removed: say so here and run make fix"


def test_a_value_that_fits_no_type_is_one_problem_with_all_that_was_expected():
    with pytest.raises(ConfigError) as caught:
        settings.load("demo", ["lora_r=abc"])
    (line,) = str(caught.value).split("\n")
    assert line.startswith("argument lora_r: lora_r is 'abc': input should be a valid integer")
    assert line.endswith("; or input should be 'auto'")
