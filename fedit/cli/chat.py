"""``fedit chat``: talk to a tuned model."""


def chat() -> None:
    """Talk to a tuned model."""
