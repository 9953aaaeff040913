"""JSON files of the user's that say something of each client by its id; "*" stands for all others."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from fedit.errors import ConfigError
from fedit.reading import parse_json

OTHERS = "*"


def read(what: str, path: str) -> Mapping[str, object]:
    """Return client id -> what the file says of it.

    what: the setting that names the file, for the message.

    Raises:
        ConfigError: there is no such file, or it holds no JSON object.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}.") from error
    return _read(what, path, changed)


def entry(found: Mapping[str, object], client_id: str) -> object:
    """Return what a file says of a client that `check` found in it."""
    return found[client_id] if client_id in found else found[OTHERS]


def check(path: str, found: Mapping[str, object], clients: Sequence[str]) -> None:
    """Make sure that the file says something of every client.

    Raises:
        ConfigError: it leaves one out.
    """
    missing = [client for client in clients if client not in found]
    if missing and OTHERS not in found:
        raise ConfigError(f"{path} says nothing of client '{missing[0]}'; add it, or \"{OTHERS}\" for all others.")


@lru_cache(maxsize=8)
def _read(what: str, path: str, changed: int) -> Mapping[str, object]:
    """Return the file's object; ``changed`` is when it was written, so that a new one is read again."""
    try:
        content = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {path} holds no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f'{what}: {path} holds no JSON object; expected {{"client": …}}.')
    return content
