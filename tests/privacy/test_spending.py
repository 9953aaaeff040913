"""What DP-SGD spends: charges of rounds, the noise of a budget, and that nobody trains who was not charged."""

import json
import math
from dataclasses import replace

import pytest

from fedit import checkpoint, federation
from fedit.engines.private import PrivateClients
from fedit.errors import RunFolderError
from fedit.launch import resume, run
from fedit.privacy import spending
from fedit.privacy.accounting import Charge, Epsilon
from fedit.privacy.example import ExampleLevel
from fedit.privacy.ledger import FILE, Ledger
from fedit.strategies.ditto import Ditto
from fedit.strategies.feddpa import FedDPA
from fedit.strategies.fedit import FedIT
from fedit.strategies.fedrep import FedRep
from fedit.types import Broadcast, ClientFailure, ClientInfo, ClientTask, ClientUpdate, LocalTraining

HOW = LocalTraining(learning_rate=0.1, num_rounds=4, steps=5, batch_size=4, example_clip=1.0, example_noise=2.0)
LEVEL = ExampleLevel(noise_multiplier=2.0)


def task(client="a", round=1, training=HOW):
    return ClientTask(round, client, Broadcast({}, scale=1.0), training, 0)


def simple(charge):
    """Return what stands in for epsilon: it rises with the rate and the steps, and falls with the noise."""
    return charge.rate * math.sqrt(charge.steps) / charge.noise_multiplier if charge.noise_multiplier else math.inf


@pytest.fixture
def simple_accountant(monkeypatch):
    """Count as `simple` does: the real accountant takes a second a figure."""

    def spent(charges, delta):
        assert 0 < delta < 1
        return Epsilon(*[max(map(simple, charges), default=0.0)] * 2)

    for module in ("ledger", "spending"):
        monkeypatch.setattr(f"fedit.privacy.{module}.epsilon_of", spent)
    monkeypatch.setattr(
        "fedit.privacy.spending.calibrate", lambda target, rate, steps, delta: rate * math.sqrt(steps) / target
    )


def test_every_step_of_every_phase_is_charged():
    assert spending.charge_of(FedIT(), task(), 16) == Charge(2.0, 5, "poisson", 0.25)
    assert spending.charge_of(FedIT(), task(), 3).rate == 1.0
    epochs = task(training=replace(HOW, steps=None, epochs=2))
    assert spending.charge_of(FedIT(), epochs, 10).steps == 6
    assert spending.charge_of(Ditto(personal_share=2.0), task(), 16).steps == 15
    assert spending.charge_of(FedRep(), task(), 16).steps == 2 + 2  # halves of 5, rounded
    assert [spending.charge_of(FedDPA(), task(round=r), 16).steps for r in (1, 2)] == [5, 10]


def test_the_noise_of_a_budget_protects_whoever_would_spend_most(simple_accountant):
    level = ExampleLevel(epsilon=0.5)
    assert spending.noise_of(LEVEL, FedIT(), HOW, [16], 4) == 2.0
    for training in (HOW, replace(HOW, steps=None, epochs=3)):
        sizes = [3, 7, 16, 33, 80, 81]
        noise = spending.noise_of(level, FedIT(), training, sizes, 4)
        known = replace(training, example_noise=noise)
        spent = [
            simple(replace(charge, steps=4 * charge.steps))
            for charge in (spending.charge_of(FedIT(), task(training=known), size) for size in sizes)
        ]
        assert max(spent) == pytest.approx(0.5, rel=1e-9)
    fewer = replace(level, most_rounds=1)
    assert spending.noise_of(fewer, FedIT(), HOW, [16], 4) == pytest.approx(
        spending.noise_of(level, FedIT(), HOW, [16], 4) / 2
    )


class Asked:
    """An engine that notes whom it was asked for, and what the ledger then held."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def clients(self):
        return [ClientInfo("a", 16), ClientInfo("b", 8)]

    def run(self, tasks):
        for one in tasks:
            units = json.loads(self.path.read_text())["units"]
            self.seen.append((one.client_id, sum(charge["steps"] for charge in units[one.client_id])))
            yield ClientUpdate(one.client_id, one.round, 1, 1.0, {})


def rounds_of(level, path, count):
    """Return who was asked, and the reasons of those who were not, over rounds of both clients."""
    engine = Asked(path)
    guarded = PrivateClients(engine, FedIT(), level, Ledger(path, 1e-3))
    reasons = []
    for number in range(1, count + 1):
        results = list(guarded.run([task("a", number), task("b", number)]))
        assert [result.client_id for result in results] == ["a", "b"]
        reasons += [(r.client_id, r.reason) for r in results if isinstance(r, ClientFailure)]
    return engine.seen, reasons


def test_clients_are_charged_before_they_are_asked(tmp_path):
    seen, reasons = rounds_of(LEVEL, tmp_path / FILE, 2)
    assert seen == [("a", 5), ("b", 5), ("a", 10), ("b", 10)]
    assert not reasons


def test_whose_budget_is_spent_is_not_asked(tmp_path, simple_accountant):
    """The other one goes on: it has more examples, so that a step tells less of each."""
    limited = replace(LEVEL, max_epsilon=0.8)
    seen, reasons = rounds_of(limited, tmp_path / FILE, 4)
    assert [client for client, _ in seen] == ["a", "b", "a", "b", "a", "a"]
    assert [client for client, _ in reasons] == ["b", "b"]
    assert "another round would spend epsilon 0.968 of at most 0.8" in reasons[0][1]


def test_nobody_takes_part_more_often_than_the_noise_was_found_for(tmp_path):
    seen, reasons = rounds_of(replace(LEVEL, most_rounds=1), tmp_path / FILE, 2)
    assert seen == [("a", 5), ("b", 5)]
    assert reasons[0] == ("a", "its examples are protected: it has taken part in 1 rounds, and most_rounds is 1")


# --- runs ---


class Killed(BaseException):
    """Stands for the end of the process."""


def private(make_config, **changes):
    return make_config(privacy="example", privacy_options={"noise_multiplier": 1.0}, num_rounds=3, **changes)


def ledger_of(folder):
    units = json.loads((folder / FILE).read_text())["units"]
    return {client: sum(charge["steps"] for charge in charges) for client, charges in units.items()}


def killed_after(monkeypatch, rounds):
    """Let the process end when so many rounds are committed."""
    save = checkpoint.save

    def save_and_die(folder, server):
        save(folder, server)
        if server.round == rounds:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)


def test_a_resumed_run_goes_on_with_what_it_has_spent(make_config, tmp_path, monkeypatch, simple_accountant):
    pytest.importorskip("dp_accounting")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            run(private(make_config), tmp_path / "run")
    before = ledger_of(tmp_path / "run")
    assert set(before.values()) == {4}
    resume(tmp_path / "run")
    assert set(ledger_of(tmp_path / "run").values()) == {6}
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    rounds, clients = ([e for e in map(json.loads, lines) if e["event"] == name] for name in ("round", "client"))
    rate = 4 / min(client["examples"] for client in clients)
    expected = [simple(Charge(1.0, steps, "poisson", rate)) for steps in (2, 4, 6)]
    assert [r["epsilon"] for r in rounds] == pytest.approx(expected)


def test_a_round_that_is_done_again_is_charged_again(make_config, tmp_path, monkeypatch, simple_accountant):
    """Its noise is new: whoever saw both has two looks."""
    pytest.importorskip("dp_accounting")
    with monkeypatch.context() as patch:
        patch.setattr(federation, "_log_round", killing)
        with pytest.raises(Killed):
            run(private(make_config), tmp_path / "run")
    resume(tmp_path / "run")
    assert set(ledger_of(tmp_path / "run").values()) == {8}


def killing(*args):
    raise Killed


def test_a_ledger_that_was_lost_ends_the_run(make_config, tmp_path, monkeypatch, simple_accountant):
    pytest.importorskip("dp_accounting")
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(Killed):
            run(private(make_config), tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(RunFolderError, match="what was spent is not known"):
        resume(tmp_path / "run")


def test_who_spent_most_is_found_among_those_of_whom_nobody_is_safer(monkeypatch, simple_accountant):
    """Without asking about the others; where clients have several kinds of charges, among all."""
    asked = []
    spent = spending.epsilon_of
    monkeypatch.setattr("fedit.privacy.spending.epsilon_of", lambda c, d: asked.append(c) or spent(c, d))
    ledger = Ledger(None, 1e-3)
    for client, rate, steps in (("a", 0.1, 8), ("b", 0.2, 4), ("c", 0.2, 3), ("d", 0.1, 7)):
        ledger.charge(Charge(1.0, steps, "poisson", rate), client)
    assert spending.most_spent(ledger) == ledger.most() == Epsilon(0.4, 0.4)
    assert len(asked) == 2
    ledger.charge(Charge(1.0, 9, "poisson", 0.3), "d")
    assert spending.most_spent(ledger) == ledger.most()
    assert ledger.most().value == pytest.approx(0.9)


@pytest.mark.slow
def test_the_noise_of_a_budget_by_the_real_accountant():
    """For clients of one step an epoch, and of many: the one who spends most comes close to the budget."""
    pytest.importorskip("dp_accounting")
    level = ExampleLevel(epsilon=4.0, delta=1e-5)
    training = replace(HOW, steps=None, epochs=1, batch_size=16)
    sizes = [20, 60, 200]
    noise = spending.noise_of(level, FedIT(), training, sizes, 3)
    known = replace(training, example_noise=noise)
    ledger = Ledger(None, 1e-5)
    for size in sizes:
        charge = spending.charge_of(FedIT(), task(training=known), size)
        ledger.charge(replace(charge, steps=3 * charge.steps), str(size))
    assert 3.9 < ledger.most().value <= 4.0
