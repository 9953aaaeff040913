"""Files that are either whole or absent: atomic writes, folders that appear at once, the user cache."""

import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedit.errors import RunFolderError
from fedit.reading import parse_json

_ASIDE = ".old.tmp"
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds the old or the new content, never a part.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Write JSON with sorted keys atomically; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run.

    Raises:
        RunFolderError: the file is missing or holds no such thing.
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} holds no JSON object.")
    return content


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` in one step when the block ends well.

    An older folder of that name is replaced; a crash leaves either the old or the new one.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            _sync_folder(temporary)
            _swap(temporary, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {reason(error)}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half done in ``folder``; a folder it had moved aside comes back."""
    for path in folder.glob(f".*{_ASIDE}"):
        original = folder / path.name.removeprefix(".").removesuffix(_ASIDE).rpartition(".")[0]
        if not original.exists():
            os.rename(path, original)
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Return the operating system's words for an error, with what to do about the common ones."""
    hints = {"ENOSPC": "free some space or choose another --out", "EACCES": "choose a folder you may write to"}
    name = _errno_name(error)
    text = error.strerror or str(error)
    return f"{text}; {hints[name]}" if name in hints else text


def safe_name(text: str) -> str:
    """Return a file name for any text: readable where the text is plain, never the same for two texts.

    >>> safe_name("client-3"), safe_name("../x")
    ('client-3', '..%2Fx-6ae6e7d5')
    """
    quoted = quote(text, safe="")
    if quoted == text and text == text.lower() and len(text) <= 80 and not _taken_by_windows(text):
        return text
    # Some file systems do not tell capitals from small letters, and names have a longest length.
    return f"{quoted[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _taken_by_windows(name: str) -> bool:
    """Return whether Windows takes a name for a device, or drops its last point."""
    return name.endswith(".") or name.partition(".")[0] in _DEVICES


def cache_dir() -> Path:
    """Return the user's cache folder for fedit: ``FEDIT_CACHE``, or the platform's own place."""
    if chosen := os.environ.get("FEDIT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fedit" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fedit"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedit"


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    # A folder cannot replace a folder in one call: move the old one aside first.
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return  # other systems cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _errno_name(error: OSError) -> str:
    import errno

    return errno.errorcode.get(error.errno or 0, "")
