"""``fedit list``: the names that settings accept."""


def list_names() -> None:
    """Say which names settings accept."""
