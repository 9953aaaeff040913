"""A run as other programs load it: folders and files of their formats, the hub, a server."""

from importlib import import_module

__all__ = ["FORMATS", "Exported", "Options", "export"]

_HOMES = {"FORMATS": "formats", "Options": "formats", "Exported": "write", "export": "write"}


def __getattr__(name: str) -> object:
    """Load PyTorch only when something is exported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
