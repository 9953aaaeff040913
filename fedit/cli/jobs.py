"""What every command that takes a job reads: ``JOB|RECIPE [key=value ...]``."""

from collections.abc import Mapping, Sequence

from fedit import settings
from fedit.settings import Settings


def read_job(job: str | None, overrides: Sequence[str], flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings of a job file or recipe with ``overrides`` and ``flags``.

    ``job`` may itself be the first key=value.

    Raises:
        ConfigError: the file, a name or a value cannot be used.
    """
    if job is not None and "=" in job:
        return settings.load(None, [job, *overrides], flags)
    return settings.load(job, list(overrides), flags)
