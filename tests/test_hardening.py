"""What fedit promises beyond its parsers: no foreign code is run, no path leaves a folder, no secret is told."""

import ast
import re
from pathlib import Path

import pytest
import torch

from fedit.errors import ConfigError, ModelError
from fedit.files import safe_name

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("fedit", "fuzz", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "shelve.open",
    "marshal.loads",
    "joblib.load",
    "np.load",
    "subprocess.getoutput",
}
"""Calls that run what they are given, or may."""


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_runs_what_it_is_given_and_no_shell_is_started():
    for path in SOURCES:
        for name, call in calls(path):
            where = f"{path}:{call.lineno}: {ast.unparse(call)[:80]}"
            assert name not in RUNS_CODE, where
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("shell", "False") == "False", where
            assert options.get("allow_pickle", "False") == "False", where
            assert options.get("trust_remote_code", "False") == "False", where
            if name == "tarfile.open":  # archives are only made here
                assert options.get("mode") == "'w'", where
            assert not name.endswith((".extractall", ".extract")), where


def test_code_of_the_users_own_is_loaded_in_one_place_alone():
    loading = [path.name for path in SOURCES if any(name.endswith("exec_module") for name, _ in calls(path))]
    assert loading == ["registry.py"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "a/b", "a\\b", "", "\0", "x" * 400, "C:", "Ä", "a\n"]
)
def test_names_from_outside_become_one_file_name(name, tmp_path):
    made = safe_name(name)
    assert "/" not in made
    assert "\0" not in made
    assert len(made) < 200
    assert (tmp_path / f"c-{made}").parent == tmp_path
    assert safe_name(f"{name}x") != made


def test_a_client_keeps_its_state_in_its_own_folder(tmp_path):
    from fedit.store import ClientStore
    from fedit.types import ClientState

    store = ClientStore(tmp_path / "clients")
    for name in ("../../outside", "/outside", "..", "a/../../b"):
        store.write(name, 1, ClientState(1, {"m.A": torch.ones(1)}))
        assert store.read(name, 2).batches_seen == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clients"]
    assert len(list((tmp_path / "clients").iterdir())) == 4


def test_a_model_folder_names_no_file_outside_of_it(tmp_path):
    from fedit.model.sources import weight_files

    for name in ("../secret.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin"):
        (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
        with pytest.raises(ModelError, match="as a file of weights"):
            weight_files(tmp_path)


def test_names_of_sites_and_runs_are_plain():
    from fedit.flower.jobs import check_name
    from fedit.flower.layout import check_sites

    for name in ("..", "../x", "a/b", ".hidden", "-rf", "a b", "a\n", ""):
        with pytest.raises(ConfigError):
            check_name(name)
        with pytest.raises(ConfigError):
            check_sites([name])


def test_a_bundle_unpacks_into_one_folder_of_its_own(tmp_path):
    import tarfile

    pytest.importorskip("flwr")
    from fedit.flower.init import create

    deployment = create(tmp_path / "d", ["hospital-a"], "127.0.0.1", insecure=True)
    with tarfile.open(deployment.archive("hospital-a")) as archive:
        members = archive.getmembers()
    assert members
    for member in members:
        assert member.name == "hospital-a" or member.name.startswith("hospital-a/")
        assert ".." not in member.name.split("/")
        assert member.isfile() or member.isdir()
        if member.name.endswith(".key"):
            assert member.mode == 0o600


def test_no_setting_holds_a_secret_and_a_run_folder_tells_nothing_of_the_environment(
    make_config, tmp_path, monkeypatch
):
    from fedit.config import RunConfig
    from fedit.launch import run

    key = "sk-fake-0123456789abcdef"
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "FEDIT_SECRET"):
        monkeypatch.setenv(name, key)
    run(make_config(num_rounds=1, held_out=2), tmp_path / "run")
    told = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert told == []
    assert not [name for name in RunConfig.model_fields if re.search("key|token$|password|secret", name)]
