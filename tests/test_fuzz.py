"""Broken input of every kind: what broke something once, a short run of every target, and no parser left out."""

import ast
import re
from pathlib import Path

import pytest

from fuzz.loop import fuzz, limits
from fuzz.target import CORPUS
from fuzz.targets import TARGETS

PACKAGE = Path(__file__).parent.parent / "fedit"
EXECUTIONS = 20
"""Of a target in a short run, beyond its examples."""
OURS = {
    "fedit.reading": "what the others call",
    "fedit.follower_process": "a pipe from the process that started it",
    "fedit.report.summary": "what the same run wrote, whose log decides",
    "fedit.data.encoding": "a tokenizer that the tokenizers library has read",
    "fedit.export.ggufvocabulary": "a tokenizer that the tokenizers library has read",
    "fedit.flower.server_app": "settings that fedit deploy sent, validated by their model",
    "fedit.privacy.secagg.members": "what a client wrote for itself of a round that is under way",
    "fedit.privacy.audit.run": "canaries, compared as a whole with those that the settings give",
    "fedit.ui.arms": "the first line of a log, every error of which is a missing name",
    "fedit.evaluation.constraints.kinds": "whether an answer is JSON; goes through the target checks",
}
"""Modules that read and need no target of their own, and why."""
READERS = re.compile(
    r"parse_json|parse_yaml|parse_toml|json\.loads?|yaml\.safe_load|tomllib\.loads|safetensors(\.torch)?\.load\w*"
    r"|GGUFReader|safe_open|load_ssh_public_key|model_validate_json|csv\.DictReader"
)


def test_what_broke_something_once_breaks_nothing_now():
    kept = sorted(CORPUS.glob("*/*"))
    assert kept
    for path in kept:
        with limits():
            TARGETS[path.parent.name].try_(path.read_bytes())


@pytest.mark.parametrize("room", sorted({target.covers[0].split(".")[1] for target in TARGETS.values()}))
def test_broken_input_ends_in_an_error_that_fedit_documents(room):
    for name, target in TARGETS.items():
        if target.covers[0].split(".")[1] == room:
            outcome = fuzz(target, seed=7, executions=len(target.seeds) + EXECUTIONS, guided=False)
            told = [f"{crash.told} at {crash.where} of {crash.data[:200]!r}" for crash in outcome.crashes.values()]
            assert not told, name
            assert outcome.executions == len(target.seeds) + EXECUTIONS


def test_every_module_that_reads_outside_input_has_a_target():
    covered = {module for target in TARGETS.values() for module in target.covers}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text()
        if not READERS.search(text) or module in covered or module in OURS:
            continue
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert not any(map(READERS.fullmatch, calls)), f"{module} reads outside input and no fuzz target covers it"
    for module in covered:
        place = PACKAGE.parent.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or place.is_dir(), module


def test_a_parser_that_breaks_takes_too_long_or_too_much_is_told_on():
    """The fuzzer itself: it finds an exception, an endless loop and a broken promise."""
    from fuzz.target import Target, promise

    def run(data: bytes) -> None:
        if b"x" in data:
            raise KeyError("x")
        promise(b"y" not in data, "no y")

    target = Target("t", ("fedit.files",), run, lambda: [b"a", b"xa", b"ya"], (ValueError,))
    told = [crash.told for crash in fuzz(target, seed=1, executions=3, guided=False).crashes.values()]
    assert sorted(told) == ["KeyError: 'x'", "NotAsPromised: no y"]
