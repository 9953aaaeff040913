"""A run as other programs load it: folders and files of their formats, the hub, a server."""

__all__ = ["FORMATS", "Exported", "Options", "export"]


def __getattr__(name: str) -> object:
    """Load PyTorch only when something is exported."""
    from fedit.export import formats, write

    for module in (write, formats):
        if name in __all__ and hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
