"""What a job must and must not ask for to run on a deployment; found out before anything is sent."""

from collections.abc import Callable
from pathlib import Path

from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.settings import Settings

Asks = Callable[[RunConfig], bool]

REFUSED: dict[str, tuple[Asks, str]] = {
    "compare": (lambda c: bool(c.compare), "baselines need all rows in one place"),
    "attack": (lambda c: bool(c.attack), "hostile clients are for simulations"),
    "defence_steps": (lambda c: c.defence_steps > 0, "the server holds no rows to tune on"),
    "personal_evaluation": (lambda c: c.personal_evaluation, "the server does not see what clients run"),
    "unseen_clients": (lambda c: c.unseen_clients > 0, "only simulations know who was never asked"),
    "devices": (lambda c: c.devices != "none", "there is no virtual clock: rounds take the time they take"),
    "stragglers": (
        lambda c: c.stragglers != "wait_all",
        "policies for slow clients go by a virtual clock; slow sites are left out by --deadline",
    ),
    "availability": (lambda c: c.availability != "always", "sites are there or not: it is not drawn"),
    "early_stopping": (lambda c: c.early_stopping > 0, "the server holds no validation rows"),
}
"""Setting -> (whether a job asks for it, why a deployment cannot have it)."""
OWN_CODE = ("strategy", "selection", "devices", "stragglers", "availability")
UNUSED = (
    "dataset",
    "dataset_split",
    "max_examples",
    "held_out",
    "validation",
    "num_clients",
    "partitioner",
    "partition_by",
    "partition_file",
    "alpha",
    "labels_per_client",
    "shards_per_client",
    "min_examples",
    "num_clusters",
    "attackers",
    "attack_strength",
    "poison_share",
)
"""Settings of where rows come from and who gets which, which a deployment has no use for: sites hold their own."""


def check_job(settings: Settings, held_out: Path) -> list[str]:
    """Make sure that a job can run on a deployment; return those of its settings that mean nothing there.

    Raises:
        ConfigError: all settings that a deployment cannot have, or whose names and options are wrong.
        DataError: the held-out rows cannot be read.
    """
    config = settings.config
    problems = [
        f"{settings.origins.get(name, 'default')}: {name} is {_shown(getattr(config, name))}, which a deployment "
        f"cannot have: {why}"
        for name, (asks, why) in REFUSED.items()
        if asks(config)
    ]
    problems += [
        f"{settings.origins.get(name, 'default')}: {name} is '{value}', code of your own; sites run only what "
        "comes with fedit"
        for name, value in _own_code(config)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    _build(config)
    _read(config, held_out)
    return [name for name in UNUSED if name in settings.origins]


def _own_code(config: RunConfig) -> list[tuple[str, str]]:
    named = [(name, str(getattr(config, name))) for name in OWN_CODE]
    named += [("transforms", name) for item in config.transforms for name in item]
    return [(setting, value) for setting, value in named if ".py:" in value]


def _build(config: RunConfig) -> None:
    """Have names and options of the algorithm looked up."""
    from fedit.privacy import build_privacy
    from fedit.selection import build_selection
    from fedit.strategies import build_strategy
    from fedit.transforms import build_transforms

    build_strategy(config.strategy, config.strategy_options)
    build_transforms(config.transforms)
    build_selection(config.selection, config.selection_options)
    build_privacy(config.privacy, config.privacy_options)


def _read(config: RunConfig, held_out: Path) -> None:
    """Have the held-out rows read."""
    from fedit.data.sources import load_rows

    if not held_out.is_file():
        raise ConfigError(f"--held-out {held_out} is no file; the server measures on its rows.")
    load_rows(str(held_out), columns=config.columns.given(), data_format=config.data_format, seed=config.seed)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
