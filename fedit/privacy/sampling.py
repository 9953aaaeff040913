"""How a federation's rounds draw their clients, and what that does for privacy."""

from collections.abc import Sequence

from fedit.availability import Always, Availability
from fedit.errors import ConfigError
from fedit.pace.stragglers import OverSelect, Stragglers
from fedit.privacy.base import Sampling
from fedit.selection.base import Selection
from fedit.selection.draws import Poisson, RoundRobin, Uniform, Weighted

_ADDED = "one has a client more than the other"
_REPLACED = "they differ in all that one client holds"


def sampling_of(
    selection: Selection,
    stragglers: Stragglers,
    availability: Availability,
    size: int,
    population: int,
    always: Sequence[str] = (),
) -> Sampling:
    """Return how rounds of ``size`` of ``population`` clients are drawn.

    Raises:
        ConfigError: in a way that no accountant covers.
    """
    if always:
        raise ConfigError(
            f"privacy=client needs clients that nothing marks out, but {', '.join(sorted(always))} take part in "
            "every round of this strategy; take another one."
        )
    contacts = min(stragglers.contacts(size), population)
    here = isinstance(availability, Always)
    displaces = isinstance(stragglers, OverSelect) and contacts > size
    if type(selection) is Poisson:
        return _coins(selection.probability or contacts / population, size, population, here, displaces)
    if type(selection) is Uniform and here and contacts == population and not displaces:
        return _coins(1.0, population, population, here, displaces=False)
    if type(selection) is Uniform and here:
        return Sampling(
            "without_replacement", contacts / population, float(size), population, 2, _REPLACED,
            f"{contacts} of {population} clients are drawn without replacement and nobody is told whom",
        )  # fmt: skip
    if type(selection) in (Uniform, RoundRobin) or (type(selection) is Weighted and not selection.replacement):
        why = "availability says who can be drawn" if type(selection) is Uniform else "the draw follows no coin"
        return Sampling("none", 1.0, float(size), population, 2, _REPLACED, f"{why}: every round counts in full")
    raise ConfigError(
        f"privacy=client cannot go with selection {type(selection).__name__}: whom it takes depends on what "
        "clients hold or report, which no noise covers. Take selection=poisson (or uniform, round_robin)."
    )


def _coins(rate: float, size: int, population: int, here: bool, displaces: bool) -> Sampling:
    """Return the sampling of clients that each have a coin of their own."""
    expected = min(rate * population, float(size)) if displaces else rate * population
    # Whoever comes into a full round puts the slowest of it out.
    changes = 2 if displaces else 1
    if not here:
        return Sampling(
            "none", 1.0, expected, population, changes, _ADDED,
            "availability says who can take part, which hides nobody: every round counts in full",
        )  # fmt: skip
    reason = "each takes part by a secret coin of its own" if rate < 1 else "all take part in every round"
    return Sampling("poisson", rate, expected, population, changes, _ADDED, reason)
