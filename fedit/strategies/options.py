"""Limits that hyper-parameters of several strategies have."""

from fedit.errors import ConfigError


def positive(strategy: str, **options: float) -> None:
    """Raise ``ConfigError`` unless every option is more than 0."""
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"option '{name}' of strategy '{strategy}' is {value}; expected more than 0.")


def not_negative(strategy: str, **options: float) -> None:
    """Raise ``ConfigError`` unless every option is at least 0."""
    for name, value in options.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"option '{name}' of strategy '{strategy}' is {value}; expected at least 0.")


def decays(strategy: str, **options: float) -> None:
    """Raise ``ConfigError`` unless every option is at least 0 and less than 1."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise ConfigError(
                f"option '{name}' of strategy '{strategy}' is {value}; expected at least 0 and less than 1."
            )
