"""Files that targets hand to parsers which take paths."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """Return a folder of this process's own, which goes with it."""
    path = Path(tempfile.mkdtemp(prefix="fedit-fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def file(name: str, data: bytes) -> Path:
    """Return a file with this content."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def emptied(name: str) -> Path:
    """Return a folder in which nothing is."""
    path = folder() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
