"""Token tables on disk, found again by content; a damaged file is as good as none."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fedit.files import write_bytes

_LOG = logging.getLogger(__name__)

Arrays = tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.uint8]]
_NAMES = ("ids", "supervised", "offsets", "truncated")
_TYPES = (np.int32, np.bool_, np.int64, np.uint8)


def write(path: Path, arrays: Arrays) -> None:
    """Write a table's arrays and their hash atomically.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    content: dict[str, NDArray[np.generic]] = dict(zip(_NAMES, arrays, strict=True))
    write_bytes(path, safetensors.numpy.save(content, metadata={"sha256": _hash(arrays)}))


def read(path: Path, rows: int) -> Arrays | None:
    """Return the arrays of a table of that many rows; None if there is no file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
            ids, supervised, offsets, truncated = (file.get_tensor(name) for name in _NAMES)
    except (OSError, safetensors.SafetensorError) as error:
        _LOG.warning("the token cache %s is damaged and will be written again: %s", path, error)
        return None
    arrays: Arrays = (ids, supervised, offsets, truncated)
    typed = tuple(array.dtype.type for array in (ids, supervised, offsets, truncated)) == _TYPES
    if not typed or len(truncated) != rows or stored.get("sha256") != _hash(arrays):
        _LOG.warning("the token cache %s is damaged and will be written again", path)
        return None
    return arrays


def _hash(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
