"""What starts fast stays fast, who may import what, and nothing is pickled."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedit"
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "matplotlib",
    "pyarrow",
    "flwr",
    "huggingface_hub",
    "gguf",
    "openai",
    "dp_accounting",
    "lm_eval",
)
FENCES = {
    "flwr": ("flower/",),
    "cryptography": ("flower/certificates.py", "privacy/keystream.py", "privacy/secagg/crypto.py"),
    "peft": ("model/",),
    "datasets": ("data/sources.py", "harness/library.py"),  # a source of rows; told to be quiet
    "lm_eval": ("harness/",),
    "langdetect": ("evaluation/constraints/language.py",),
    "gguf": ("model/gguf.py", "model/wheel.py", "export/gguf"),
    "openai": ("judging/endpoint.py",),
    "dp_accounting": ("privacy/accounting.py",),
    "pickle": (),
    "dill": (),
    "cloudpickle": (),
    # Is the package index there?; sites; the page's server; a free port.
    "socket": ("diagnose.py", "flower/", "ui/", "export/serve.py"),
}


def modules():
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def imports():
    found = {}
    for path, tree in modules().items():
        nodes = list(ast.walk(tree))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        found[path] = {name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize("statement", ["import fedit", "import fedit.cli.app", "from fedit.cli import main"])
def test_start_up_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", FENCES)
def test_libraries_are_imported_only_behind_their_fences(name):
    found = [path for path, names in imports().items() if name in names]
    assert [path for path in found if not path.startswith(FENCES[name])] == []


def test_nothing_is_pickled():
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}, (
                    path
                )


def test_annotations_are_not_postponed():
    assert [path for path, names in imports().items() if "__future__" in names] == []


def test_no_global_generator_is_used():
    """``numpy.random.<draw>`` and ``random`` would make a result depend on who drew before."""
    allowed = {"default_rng", "Generator", "SeedSequence"}
    for path, tree in modules().items():
        if path == "harness/library.py":  # seeds what others' tasks draw from, and puts it back
            continue
        assert "random" not in imports()[path], path
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
                assert node.attr in allowed, path
