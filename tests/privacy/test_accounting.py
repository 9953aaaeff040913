"""What noise is worth, against published values, other accountants and closed forms; the ledger adds up."""

import json
import math

import pytest
import torch

pytest.importorskip("dp_accounting")

from fedit.errors import ConfigError, RunFolderError
from fedit.privacy.accounting import Charge, Epsilon, calibrate, epsilon, epsilon_of
from fedit.privacy.keystream import Keystream
from fedit.privacy.ledger import Ledger

# (noise, rate, rounds, delta), epsilon by PLD (dp-accounting 0.6.0), by PRV (Opacus 1.6.0), by RDP. Where a budget
# was given and the noise found for it by RDP, that noise has two digits.
TABLE = [
    ((1.0, 0.05, 200, 1e-5), 4.766, 4.776, 5.368),
    ((0.88, 0.05, 20, 1e-3), 1.404, None, 2.0),
    ((1.32, 0.05, 100, 1e-4), 1.699, None, 2.0),
    ((1.0, 1.0, 200, 1e-5), 159.44, None, 166.03),
]


@pytest.mark.parametrize(("setting", "pld", "prv", "rdp"), TABLE)
def test_epsilon_is_that_of_independent_accountants(setting, pld, prv, rdp):
    found = epsilon(*setting)
    assert found.pld == pytest.approx(pld, rel=1e-3)
    assert found.rdp == pytest.approx(rdp, rel=0.02)
    assert found.pld <= found.rdp
    assert prv is None or abs(found.pld - prv) < 0.05
    assert found.value == found.pld


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_one_round_is_the_sampled_gaussian_mechanism(rate):
    """Its delta is an integral over normal densities (arXiv:1805.06530 without a draw): P against Q = N(0, z²)."""
    z, spent = 1.3, epsilon(1.3, rate, 1, 1e-4).pld
    tail = lambda x: 0.5 * math.erfc(x / 2**0.5)  # noqa: E731
    bound = z**2 * math.log((math.exp(spent) - (1 - rate)) / rate) + 0.5  # where P / Q is exp(epsilon)
    delta = (1 - rate - math.exp(spent)) * tail(bound / z) + rate * tail((bound - 1) / z)
    assert delta == pytest.approx(1e-4, rel=5e-3)


def test_without_replacement_is_accounted_for_by_replacing():
    """The noise counts against twice the clip norm, which the caller divides by."""
    found = epsilon_of((Charge(1.0, 200, "without_replacement", 0.05, 100),), 1e-5)
    assert found.pld is None
    assert found.value == pytest.approx(9.279, abs=1e-2)


def test_more_rounds_and_less_noise_spend_more():
    by_rounds = [epsilon(2.0, 0.2, steps, 1e-3).value for steps in (0, 1, 3)]
    assert by_rounds == sorted(by_rounds)
    assert by_rounds[0] == 0 < by_rounds[1]
    assert epsilon(1.0, 0.2, 1, 1e-3).value > by_rounds[1]
    assert epsilon(0.0, 0.2, 2, 1e-3) == Epsilon(math.inf, math.inf)


def test_calibration_is_the_inverse():
    noise = calibrate(2.0, 1.0, 3, 1e-3)
    spent = epsilon(noise, 1.0, 3, 1e-3).value
    assert 2.0 * (1 - 2e-3) <= spent <= 2.0


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ((-1.0, 0.1, 1, 1e-5), "noise multiplier is -1"),
        ((1.0, 1.5, 1, 1e-5), "rate is 1.5"),
        ((1.0, 0.1, -1, 1e-5), "steps is -1"),
        ((1.0, 0.1, 1, 0.0), "delta is 0"),
    ],
)
def test_numbers_out_of_their_range_are_named(setting, named):
    with pytest.raises(ConfigError, match=named):
        epsilon(*setting)


def test_the_ledger_keeps_what_was_charged_and_adds_up(tmp_path):
    file = tmp_path / "privacy.json"
    ledger = Ledger(file, 1e-3)
    for _ in range(3):
        ledger.charge(Charge(2.0, 1, "poisson", 0.2))
    ledger.charge(Charge(3.0, 1, "poisson", 0.2), "c1")
    again = Ledger(file, 1e-3)
    assert again.charges() == (Charge(2.0, 3, "poisson", 0.2),)
    assert again.spent() == ledger.spent() == epsilon(2.0, 0.2, 3, 1e-3)
    assert again.units() == ["", "c1"]
    assert again.most() == again.spent()
    assert again.spent("", Charge(2.0, 2, "poisson", 0.2)) == epsilon(2.0, 0.2, 5, 1e-3)
    again.refuse_lost(3)
    with pytest.raises(RunFolderError, match="3 of the 4 charges"):
        again.refuse_lost(4)


def test_a_damaged_ledger_is_not_an_empty_one(tmp_path):
    file = tmp_path / "privacy.json"
    for content in ("{", "[]", json.dumps({"units": {"": [{"noise": 1}]}}), "{}"):
        file.write_text(content)
        with pytest.raises(RunFolderError, match="privacy"):
            Ledger(file)


def test_noise_is_gaussian_and_comes_from_the_key_alone():
    drawn = Keystream(bytes(32)).normal(200_001)
    assert torch.equal(drawn, Keystream(bytes(32)).normal(200_001))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.004)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.1)
    assert not torch.equal(Keystream().normal(4), Keystream().normal(4))
