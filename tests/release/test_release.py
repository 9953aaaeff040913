"""What a release has: one version, a changelog in order, a citation, an image, a command line that starts fast."""

import ast
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "flwr", "openai", "lm_eval")
CFF_REQUIRED = {"cff-version", "message", "title", "authors"}
"""Keys that the Citation File Format 1.2.0 requires, and below those that it knows of what is used here."""
CFF_KNOWN = CFF_REQUIRED | {"type", "abstract", "version", "license", "keywords", "references"}
REFERENCE_REQUIRED = {"authors", "title", "type"}


def test_the_version_stands_in_one_place_and_all_others_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == version("fedit") == citation["version"]
    written = re.compile(rf"__version__|[\"']{re.escape(PROJECT['version'])}[\"']")
    for path in (ROOT / "fedit").rglob("*.py"):
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if written.search(line)]
        assert [line for line in found if "transformers." not in line and "torch." not in line
                and "tokenizers." not in line] == [], path  # fmt: skip


def test_the_changelog_is_in_order_and_begins_with_this_version():
    heads = re.findall(
        r"^## (\S+) \(([^)]+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    versions = [Version(number) for number, _ in heads]
    assert versions == sorted(versions, reverse=True)
    assert str(versions[0]) == PROJECT["version"]
    dates = [datetime.date.fromisoformat(date) for _, date in heads if date != "unreleased"]
    assert dates == sorted(dates, reverse=True)
    assert "unreleased" not in [date for _, date in heads[1:]]


def test_the_citation_is_valid_and_names_nobody_as_its_author():
    """By the keys of the format's schema 1.2.0: cffconvert, which checks it, is kept up no more."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert CFF_REQUIRED <= citation.keys() <= CFF_KNOWN
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    # An entity has a name; a person would have family-names and given-names.
    assert citation["authors"] == PROJECT["authors"] == [{"name": "the fedit contributors"}]
    for reference in citation["references"]:
        assert reference.keys() >= REFERENCE_REQUIRED
        assert all(person.keys() == {"family-names", "given-names"} for person in reference["authors"])
        assert all(one.keys() == {"type", "value"} for one in reference["identifiers"])


COMMANDS = """
import contextlib, io, json, sys
import fedit
from fedit.cli.app import app
import typer

def walk(command, path):
    yield path
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from walk(inner, [*path, name])

shown = {}
for path in walk(typer.main.get_command(app), []):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(args=[*path, "--help"], prog_name="fedit", standalone_mode=False)
    shown[" ".join(path)] = out.getvalue()
heavy = [name for name in sys.argv[1:] if name in sys.modules]
print(json.dumps({"heavy": heavy, "shown": shown}))
"""


def test_the_help_of_every_command_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", COMMANDS, *HEAVY], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert {"", "run", "bench", "deploy node", "privacy audit", "data check"} <= found["shown"].keys()
    for command, text in found["shown"].items():
        assert f"fedit {command}".strip() in text
        assert "--help" in text


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("fedit run demo --strategy fed", {"fedavg", "fedit", "fedsa_lora"}, {"krum"}),
        ("fedit run pa", {"paper", "paper-mini"}, {"demo"}),
        ("fedit run demo --partitioner d", {"dirichlet"}, {"iid"}),
        ("fedit run demo --lr_schedule ", {"constant", "linear", "cosine"}, set()),
        ("fedit run demo --exact_match t", {"true"}, {"false"}),
        ("fedit run demo --prompt_template ", {"auto", "alpaca"}, {"FILE.json"}),
        ("fedit run demo --partition_f", {"--partition_file"}, {"--partitioner"}),
        ("fedit list st", {"strategies", "stragglers"}, {"models"}),
        ("fedit ben", {"bench"}, {"run"}),
    ],
)
def test_the_shell_completes_commands_flags_and_values(line, wanted, unwanted, monkeypatch, capsys):
    """What the script that ``fedit --install-completion`` writes asks for."""
    from fedit.cli.app import app

    words = shlex.split(line)
    monkeypatch.setenv("_FEDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) if line.endswith(" ") else len(words) - 1))
    with pytest.raises(SystemExit):
        app(prog_name="fedit")
    found = set(capsys.readouterr().out.split())
    assert wanted <= found
    assert not unwanted & found


def test_job_files_beside_one_are_completed(tmp_path, monkeypatch):
    from fedit.cli.completion import jobs

    (tmp_path / "mine.yaml").touch()
    (tmp_path / "my.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert jobs("m") == ["mine.yaml"]
    assert jobs(f"{tmp_path}/m") == [f"{tmp_path}/mine.yaml"]


def test_a_pipe_of_another_code_page_gets_utf8():
    """As on Windows, where a name could not be written."""
    command = [sys.executable, "-m", "fedit", "run", "ὕλη.yaml"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, "ὕλη.yaml" in done.stderr.decode()) == (2, True)


def test_names_that_windows_takes_for_devices_are_changed():
    from fedit.files import safe_name

    for name in ("con", "nul", "com1", "aux.txt", "ends."):
        assert safe_name(name).startswith(name)
        assert safe_name(name) != name
    assert [safe_name(name) for name in ("console", "com", "a.con", "client-0")] == [
        "console", "com", "a.con", "client-0",
    ]  # fmt: skip


def test_server_and_sites_say_that_they_need_another_system_than_windows(monkeypatch):
    from fedit.errors import ConfigError
    from fedit.flower import extra

    extra.require_posix("fedit deploy node")
    monkeypatch.setattr(extra, "POSIX", False)
    with pytest.raises(ConfigError, match="WSL"):
        extra.require_posix("fedit deploy node")


def test_text_is_read_and_written_in_utf8_on_every_system():
    """An encoding that is left out is the machine's code page on Windows."""
    for path in (ROOT / "fedit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
                continue
            called, given = ast.unparse(node.func), [ast.unparse(argument) for argument in node.args]
            binary = any(re.fullmatch(r"'[rwax]\+?b\+?'", argument) for argument in given)
            positional = len(given) > called.endswith(
                ".write_text"
            )  # read_text("utf-8"), write_text(text, "utf-8")
            assert not called.endswith((".read_text", ".write_text")) or positional, f"{path.name}:{node.lineno}"
            assert called != "open" or binary, f"{path.name}:{node.lineno}"


def dockerfile() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions: (name, arguments), with lines that go on put together."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_built_from_what_is_there_and_runs_as_an_ordinary_user():
    """Read, not built: no container engine is asked for."""
    instructions = dockerfile()
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name, rest in instructions:
        if name == "COPY" and "--from" not in rest:
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)
        if name == "RUN":
            checked = subprocess.run(["bash", "-n", "-c", rest], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
    names = [name for name, _ in instructions]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert dict(instructions)["USER"] == "fedit"
    extras = re.search(r'EXTRAS="([\w,]+)"', (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    (base,) = {rest.split()[0] for name, rest in instructions if name == "FROM"}
    assert (
        f"Programming Language :: Python :: {base.removeprefix('python:').removesuffix('-slim')}"
        in PROJECT["classifiers"]
    )
