"""Limits that hyper-parameters of several strategies have."""

from fedit.errors import ConfigError
from fedit.types import LocalTraining


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


def fresh_moments(strategy: str, training: LocalTraining) -> None:
    """Raise ``ConfigError`` if optimizers are kept, for an algorithm that makes the adapter anew every round."""
    if training.keep_optimizer:
        raise ConfigError(
            f"strategy '{strategy}' makes the adapter anew every round, so moments that are kept would belong to "
            "other directions; set client_optimizer to reset."
        )
