"""Hostile clients: what they send, who they are, and which rules withstand them."""

import typing
from dataclasses import replace
from functools import cache

import pytest
import torch

from fedit import seeds
from fedit.attacks import ATTACKS, Sight, alie_deviations, attacked, hostile_clients
from fedit.config import POISONS, AttackName
from fedit.engines.hostile import HostileClients
from fedit.rounds import run_rounds
from fedit.strategies import build_strategy
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate, LocalTraining, ServerState

SHAPES = {"m.A": (2, 5), "m.B": (4, 2)}
SCALE = 2.0


def draw(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: size * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def update(client, seed, weight=1.0):
    return ClientUpdate(client, 1, 10, weight, draw(seed), scale=SCALE)


OWN = update("x", 0)
HONEST = [update(f"c{i}", i + 1) for i in range(4)]
SIGHT = Sight(HONEST, clients=5, hostile=1)


def sent(name, strength=None, sight=SIGHT):
    return attacked(OWN, name, sight, strength, seed=0)


def test_the_setting_knows_every_attack():
    assert set(typing.get_args(AttackName)) == {*ATTACKS, *POISONS}


def test_simple_attacks_by_hand():
    own = OWN.delta["m.A"]
    assert torch.equal(sent("sign_flip").delta["m.A"], -own)
    assert torch.equal(sent("sign_flip", 3.0).delta["m.A"], -3 * own)
    assert torch.equal(sent("boost").delta["m.A"], 10 * own)
    assert torch.equal(sent("replacement").delta["m.A"], 5 * own)
    assert torch.isnan(sent("nan").delta["m.A"]).all()
    assert {n: tuple(t.shape) for n, t in sent("wrong_rank").delta.items()} == {"m.A": (3, 5), "m.B": (4, 3)}
    assert not sent("free_rider").delta["m.A"].any()
    assert torch.equal(sent("copycat").delta["m.A"], HONEST[0].delta["m.A"])
    lie = sent("lying_counts")
    assert (lie.weight, lie.num_examples) == (1000.0, 10_000)
    assert torch.equal(lie.delta["m.A"], own)


def test_noise_has_the_size_it_is_told_and_is_drawn_by_the_seed():
    flat = torch.cat([t.flatten() for t in OWN.delta.values()])
    many = [attacked(replace(OWN, round=r), "gaussian", SIGHT, 2.0, seed=0) for r in range(200)]
    noise = torch.cat([t.flatten() for u in many for t in u.delta.values()])
    assert float(noise.std()) == pytest.approx(2 * float(flat.square().mean().sqrt()), rel=0.05)
    assert torch.equal(sent("gaussian").delta["m.A"], sent("gaussian").delta["m.A"])


def test_alie_and_ipm_against_the_honest_mean():
    stack = torch.stack([u.delta["m.B"] for u in HONEST])
    mean, deviation = stack.mean(0), stack.std(0, correction=0)
    torch.testing.assert_close(sent("alie", 1.5).delta["m.B"], mean - 1.5 * deviation, rtol=0, atol=0.01)
    torch.testing.assert_close(sent("ipm").delta["m.B"], -0.5 * mean, rtol=0, atol=0.01)
    # Ten clients, two hostile: s = 6 - 2 = 4 of 8 honest ones to win over.
    assert alie_deviations(10, 2) == pytest.approx(0.0)
    # Fifty and 24: s = 26 - 24 = 2 of 26, Phi^-1(24 / 26).
    assert alie_deviations(50, 24) == pytest.approx(1.4260, abs=1e-4)
    assert alie_deviations(2, 2) == 0.0


def test_colluders_do_not_send_equal_bits():
    one, two = (attacked(update(c, 0), "ipm", SIGHT, None, seed=0) for c in "xy")
    assert not torch.equal(one.delta["m.A"], two.delta["m.A"])


def test_who_is_hostile_is_drawn_once_and_spares_whom_it_must():
    ids = [f"c{i:02d}" for i in range(20)]
    chosen = hostile_clients(ids, 0.29, seed=0)
    assert len(chosen) == 6
    assert chosen == hostile_clients(reversed(ids), 0.29, seed=0)
    assert chosen != hostile_clients(ids, 0.29, seed=1)
    assert set(hostile_clients(ids, 19, seed=0, spared={"c07"})) == set(ids) - {"c07"}
    assert hostile_clients(ids, 0, seed=0) == []


# --- a problem of two factors, small enough to be solved in a moment ---

TARGET = torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Quadratic:
    """Clients that step down |s B A - W_k|^2 / 2, where the W_k scatter around one target of rank 2."""

    def __init__(self, count=11):
        left, values, right = torch.linalg.svd(TARGET)
        self.target = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
        noise = [torch.Generator().manual_seed(seeds.derive(0, "client", i)) for i in range(count)]
        self.own = {
            f"c{i:02d}": self.target + 0.1 * torch.randn(4, 5, generator=g, dtype=torch.float64)
            for i, g in enumerate(noise)
        }
        self.initial = {"m.A": draw(3)["m.A"], "m.B": torch.zeros(4, 2).double()}
        self.trains = lambda name: True

    def clients(self):
        return [ClientInfo(client, 10) for client in self.own]

    def run(self, tasks):
        for task in tasks:
            start = {**self.initial, **task.broadcast.adapter}
            a, b = start["m.A"].clone(), start["m.B"].clone()
            for _ in range(10):
                apart = SCALE * b @ a - self.own[task.client_id]
                step_a, step_b = SCALE * b.T @ apart, SCALE * apart @ a.T
                b = b - 0.01 * step_b
                if self.trains("m.A"):
                    a = a - 0.01 * step_a
            delta = {"m.A": a - start["m.A"], "m.B": b - start["m.B"]}
            delta = {n: t for n, t in delta.items() if self.trains(n)}
            yield ClientUpdate(task.client_id, task.round, 10, 10.0, delta, scale=SCALE)


def error(strategy_name, options, attack, strength, hostile=2, rounds=12):
    """How far the federation ends from the target, relative to where it began, and what its rounds recorded."""
    problem = Quadratic()
    strategy = build_strategy(strategy_name, options)
    problem.trains = lambda name: strategy.trains(name, 1)
    ids = hostile_clients(problem.own, hostile, seed=0, spared=strategy.always()) if attack else []
    engine = HostileClients(problem, attack, ids, strength=strength, seed=0) if attack else problem
    rounds_done = run_rounds(
        ServerState(0, problem.initial, scale=SCALE),
        engine,
        strategy,
        rounds=rounds,
        cohort=lambda clients, round: sorted(client.client_id for client in clients),
        training=lambda round: LocalTraining(learning_rate=0.01, num_rounds=rounds, steps=10),
        seed=0,
    )
    states, records = zip(*rounds_done, strict=True)
    final = SCALE * states[-1].adapter["m.B"] @ states[-1].adapter["m.A"]
    return float((final - problem.target).norm() / problem.target.norm()), records, ids


@cache
def honest_error(name):
    """What a rule reaches without attackers: those that train B alone have the room of one random A."""
    return error(name, RULES[name], None, None)[0]


RULES = {
    "fedit": {},
    "norm_clipping": {},
    "median": {"max_attackers": 2},
    "trimmed_mean": {"max_attackers": 2},
    "krum": {"max_attackers": 2},
    "multi_krum": {"max_attackers": 2},
    "bulyan": {"max_attackers": 2},
    "geometric_median": {},
    "centred_clipping": {},
    "fltrust": {"root_client": "c00"},
}
BREAKING = {
    "sign_flip": 20.0,
    "boost": 1000.0,
    "gaussian": 100.0,
    "alie": 200.0,
    "ipm": 20.0,
    "free_rider": 100.0,
}
"""Attacks that ruin the plain mean, at a strength that does."""


@pytest.mark.parametrize("attack", BREAKING)
def test_the_mean_breaks_where_the_rules_hold(attack):
    broken, _, _ = error("fedit", {}, attack, BREAKING[attack], rounds=3)
    assert not broken < 1.0  # further off than it began, or not a number
    for name, options in list(RULES.items())[1:]:
        found, _, _ = error(name, options, attack, BREAKING[attack])
        assert found < honest_error(name) + 0.2, (attack, name, found)


@pytest.mark.parametrize("attack", ["nan", "wrong_rank"])
@pytest.mark.parametrize("name", RULES)
def test_what_cannot_be_an_update_is_screened_out_for_all(attack, name):
    found, records, ids = error(name, RULES[name], attack, None)
    assert found < honest_error(name) + 0.2
    assert [f.client_id for f in records[0].failures] == ids


@pytest.mark.parametrize("attack", ["alie", "ipm", "copycat", "replacement"])
def test_attacks_at_their_own_strength_do_not_break_a_rule(attack):
    for name in ("krum", "multi_krum", "geometric_median", "bulyan"):
        assert error(name, RULES[name], attack, None)[0] < honest_error(name) + 0.2


def test_a_copy_is_rejected_and_recorded():
    _, records, ids = error("multi_krum", {"max_attackers": 2}, "copycat", None)
    assert [f.client_id for f in records[0].failures if "copy" in f.reason]
    assert len(records[0].clients) + len(records[0].failures) == 11
    assert set(ids) & {f.client_id for f in records[0].failures}


def test_a_liar_takes_over_the_mean_and_not_a_capped_rule():
    _, records, (liar,) = error("fedit", {}, "lying_counts", None, hostile=1, rounds=1)
    weights = {str(c["client"]): float(c["weight"]) for c in records[0].clients}
    assert weights[liar] / sum(weights.values()) > 0.98
    for options, most in (({}, 1 / 11), ({"weight_cap": 2.0}, 2 / 12)):
        _, records, _ = error("geometric_median", options, "lying_counts", None, hostile=1, rounds=1)
        shares = {str(c["client"]): float(c["share"]) for c in records[0].clients}
        assert shares[liar] <= 1.6 * most


def test_fltrust_always_asks_its_root():
    problem = Quadratic()
    strategy = build_strategy("fltrust", {"root_client": "c05"})
    rounds = run_rounds(
        ServerState(0, problem.initial, scale=SCALE),
        problem,
        strategy,
        rounds=2,
        cohort=lambda clients, round: ["c01", "c02"],
        training=lambda round: LocalTraining(learning_rate=0.01, num_rounds=2, steps=1),
        seed=0,
    )
    assert [record.cohort for _, record in rounds] == [["c01", "c02", "c05"]] * 2


def test_a_round_without_enough_for_the_rule_says_why_and_leaves_the_adapter():
    problem = Quadratic(6)
    state = ServerState(0, problem.initial, scale=SCALE)
    how = LocalTraining(learning_rate=0.01, num_rounds=2, steps=1)
    ((after, record),) = run_rounds(
        state,
        problem,
        build_strategy("krum", {"max_attackers": 1}),
        rounds=1,
        cohort=lambda clients, round: ["c00", "c01", "c02", "c03"],
        training=lambda round: how,
        seed=0,
    )
    assert not record.aggregated
    assert record.reason == "4 usable updates; with 1 attackers among them the rule needs at least 5"
    assert torch.equal(after.adapter["m.B"], state.adapter["m.B"])


def test_results_that_are_failures_pass_and_keep_their_order():
    class Failing:
        def clients(self):
            return [ClientInfo(c, 3) for c in "abc"]

        def run(self, tasks):
            for task in tasks:
                if task.client_id == "b":
                    yield ClientFailure("b", 1, "gone")
                else:
                    yield replace(OWN, client_id=task.client_id)

    how = LocalTraining(learning_rate=0.1, num_rounds=1, steps=1)
    tasks = [ClientTask(1, c, None, how, 0) for c in "abc"]
    for attack in ("ipm", "sign_flip"):
        results = list(HostileClients(Failing(), attack, ["b", "c"], strength=None, seed=0).run(tasks))
        assert [r.client_id for r in results] == ["a", "b", "c"]
        assert isinstance(results[1], ClientFailure)
        assert torch.equal(results[0].delta["m.A"], OWN.delta["m.A"])
        assert not torch.equal(results[2].delta["m.A"], OWN.delta["m.A"])
