"""How rounds draw clients, and what that is worth: amplified only where the draw earns it."""

import pytest

from fedit.availability import build_availability
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.pace.stragglers import build_stragglers
from fedit.privacy.sampling import sampling_of
from fedit.privacy.setup import client_sampling
from fedit.selection import build_selection
from fedit.strategies import build_strategy


def drawn(selection="poisson", stragglers="wait_all", availability="always", size=5, population=100, **options):
    return sampling_of(
        build_selection(selection, options.get("selection_options", {})),
        build_stragglers(stragglers, options.get("stragglers_options", {})),
        build_availability(availability, {}),
        size,
        population,
    )


@pytest.mark.parametrize(
    ("options", "kind", "rate", "expected", "changes"),
    [
        ({}, "poisson", 0.05, 5, 1),
        ({"selection_options": {"probability": 0.2}}, "poisson", 0.2, 20, 1),
        # Slow clients that are left out are nobody's business; those put out by a faster one are.
        ({"stragglers": "deadline", "stragglers_options": {"seconds": 1.0}}, "poisson", 0.05, 5, 1),
        ({"stragglers": "over_select", "stragglers_options": {"factor": 2.0}}, "poisson", 0.1, 5, 2),
        ({"availability": "diurnal"}, "none", 1.0, 5, 1),
        ({"selection": "uniform"}, "without_replacement", 0.05, 5, 2),
        (
            {"selection": "uniform", "stragglers": "over_select", "stragglers_options": {"factor": 1.3}},
            "without_replacement",
            0.07,
            5,
            2,
        ),
        ({"selection": "uniform", "size": 100}, "poisson", 1.0, 100, 1),
        ({"selection": "uniform", "availability": "diurnal"}, "none", 1.0, 5, 2),
        ({"selection": "round_robin"}, "none", 1.0, 5, 2),
        ({"selection": "weighted", "selection_options": {"replacement": False}}, "none", 1.0, 5, 2),
    ],
)
def test_a_draw_is_accounted_for_as_what_it_is(options, kind, rate, expected, changes):
    found = drawn(**options)
    assert (found.kind, found.rate, found.expected, found.changes) == (kind, rate, expected, changes)
    assert found.charge(1.0).noise_multiplier == 1.0 / changes


@pytest.mark.parametrize("selection", ["oort", "power_of_choice", "weighted"])
def test_draws_that_depend_on_what_clients_hold_are_refused(selection):
    with pytest.raises(ConfigError, match="no noise covers"):
        drawn(selection)


def test_rounds_of_arrivals_are_refused():
    config = RunConfig(strategy="fedbuff")
    with pytest.raises(ConfigError, match="rounds that begin together"):
        client_sampling(config, build_strategy("fedbuff", {}), 10)
