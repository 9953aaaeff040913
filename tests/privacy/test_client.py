"""Client-level privacy in the loop: what is clipped, how loud the noise is, what is charged, what stays hidden."""

import math
from dataclasses import replace

import pytest
import torch
from arithmetic import Arithmetic, constant, go, same, training

from fedit import tensors
from fedit.cohort import uniform
from fedit.errors import ConfigError, RunFolderError, SealedUpdates
from fedit.pace.synchronous import Synchronous
from fedit.privacy.base import Sampling
from fedit.privacy.client import ClientLevel, ClientPrivacy
from fedit.privacy.ledger import Ledger
from fedit.privacy.rehearsing import refuse_single_updates, rehearse_privately
from fedit.selection.draws import Poisson
from fedit.strategies import build_strategy
from fedit.strategies.fedit import FedIT
from fedit.types import ClientFailure, ClientUpdate, ServerState

pytest.importorskip("dp_accounting")


def everyone(clients, round):
    return uniform(clients, 1.0, seed=0, round=round)


def private(expected=4.0, population=4, ledger=None, rate=1.0, **options):
    options = {"clip_norm": 1.0, "noise_multiplier": 1.0, **options}
    sampling = Sampling("poisson", rate, expected, population, 1, "", "")
    return ClientPrivacy(ClientLevel(**options), sampling, ledger or Ledger(delta=1e-3))


def sealed(privacy, size=1, clip_norm=None):
    state = ServerState(0, {"m.A": torch.zeros(size)})
    if clip_norm is not None:
        state = replace(state, privacy={"clip_norm": torch.tensor(clip_norm, dtype=torch.float64)})
    return privacy.seal(state, state.adapter, {})


def update(value, client="c0", weight=1.0, **extra):
    return ClientUpdate(client, 1, 10, weight, {"m.A": torch.as_tensor(value, dtype=torch.float32)}, **extra)


def test_without_noise_and_clip_it_is_the_uniform_run_bit_for_bit():
    plain = go(Arithmetic([10] * 4), everyone, rounds=3)
    loose = private(noise_multiplier=0.0, clip_norm=math.inf)
    hidden = go(Arithmetic([10] * 4), everyone, rounds=3, privacy=loose)
    assert all(same(replace(one, privacy={}), two) for (one, _), (two, _) in zip(hidden, plain, strict=True))
    assert loose.spent().value == math.inf


def test_all_that_a_client_sends_is_clipped_as_one_vector_and_weights_do_not_count():
    privacy = private(noise_multiplier=0.0, expected=2.0, clip_norm=1.0)
    state = ServerState(0, {"m.A": torch.zeros(2)})
    seal = privacy.seal(state, state.adapter, {"c": torch.zeros(2)})
    sent = [
        update([3.0, 0.0], weight=100.0, extra={"c": torch.tensor([0.0, 4.0])}),  # norm 5
        update([0.0, 0.3], weight=1.0, extra={"c": torch.tensor([0.4, 0.0])}),  # norm 0.5
    ]
    mean = seal.mean(sent)
    assert mean.delta["m.A"].tolist() == pytest.approx([0.3, 0.15])
    assert mean.extra["c"].tolist() == pytest.approx([0.2, 0.4])


def test_the_clipped_sum_is_bounded_and_updates_of_zero_are_no_trouble():
    seal = sealed(private(noise_multiplier=0.0, expected=1.0, clip_norm=0.7), size=50)
    mean = seal.mean([update(10.0 ** (k - 5) * torch.randn(50)) for k in range(9)] + [update(torch.zeros(50))])
    assert tensors.norm(mean.delta) <= 9 * 0.7 * (1 + 1e-6)


def test_noise_is_as_loud_as_it_is_said_to_be():
    """Standard deviation z C / (q N) on every entry, in a strategy's extras as well."""
    privacy = private(noise_multiplier=1.7, clip_norm=0.3, expected=12.5, population=50)
    count = 100_000
    state = ServerState(0, {"m.A": torch.zeros(count)})
    still = update(torch.zeros(count), extra={"c": torch.zeros(count)})
    mean = privacy.seal(state, state.adapter, still.extra).mean([still])
    for drawn in (mean.delta["m.A"], mean.extra["c"]):
        assert float(drawn.std()) == pytest.approx(1.7 * 0.3 / 12.5, rel=0.01)
        assert abs(float(drawn.mean())) < 5 * 1.7 * 0.3 / 12.5 / count**0.5
    assert mean.delta["m.A"][:100].tolist() != mean.extra["c"][:100].tolist()


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_a_model_whose_clients_learn_nothing_moves_by_the_stated_noise(server_lr):
    class Still(Arithmetic):
        def run(self, tasks):
            for task in tasks:
                yield update(torch.zeros(60_000), task.client_id)

    privacy = private(noise_multiplier=2.0, clip_norm=0.1)
    state = ServerState(0, {"m.A": torch.zeros(60_000)})
    ((after, _),) = go(
        Still([10] * 4), everyone, rounds=1, start=state, strategy=FedIT(server_lr=server_lr), privacy=privacy
    )
    assert float(after.adapter["m.A"].std()) == pytest.approx(server_lr * 2.0 * 0.1 / 4, rel=0.015)


def moves(norms, rounds, **options):
    """Return the clip norms of rounds whose clients' updates have these norms."""
    privacy = private(adaptive=True, expected=len(norms), population=len(norms), **options)
    clip, found = options.get("clip_norm", 1.0), []
    for _ in range(rounds):
        seal = sealed(privacy, clip_norm=clip)
        seal.mean(update([norm]) for norm in norms)
        clip = float(seal.after()["clip_norm"])
        found.append(clip)
    return found


@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 4.25), (0.8, 6.5)])
def test_the_adaptive_clip_norm_finds_the_quantile(quantile, expected):
    """On norms spread over 0.5 to 8; Flower 1.42's rule has the sign of the other count and falls to zero here."""
    norms = torch.linspace(0.5, 8, 41).tolist()
    for start in (0.1, 30.0):
        found = moves(norms, 60, quantile=quantile, clip_norm=start, noise_multiplier=0.0, clip_learning_rate=0.4)
        assert found[-1] == pytest.approx(expected, rel=0.06)


def test_the_adaptive_clip_norm_finds_the_quantile_under_noise():
    found = moves(torch.linspace(0.5, 8, 41).tolist(), 100, clip_norm=1.0, noise_multiplier=1.0)
    assert sum(found[-60:]) / 60 == pytest.approx(4.25, rel=0.15)


def test_noise_goes_by_the_norm_that_was_clipped_to_not_by_the_next_one():
    privacy = private(adaptive=True, noise_multiplier=1.0, expected=100.0, population=100, clip_learning_rate=3.0)
    seal = sealed(privacy, size=50_000, clip_norm=2.0)
    mean = seal.mean([update(torch.zeros(50_000))] * 100)
    assert float(seal.after()["clip_norm"]) < 1.0
    z_sum, _ = privacy.noises
    assert float(mean.delta["m.A"].std()) == pytest.approx(z_sum * 2.0 / 100, rel=0.02)


def test_the_noise_of_sum_and_count_together_is_worth_the_stated_one():
    z_sum, z_count = ClientLevel(clip_norm=1.0, noise_multiplier=1.0, adaptive=True).noises(50)
    assert (z_sum, z_count) == (pytest.approx(1.0206, abs=1e-4), 2.5)
    assert z_sum**-2 + (2 * z_count) ** -2 == pytest.approx(1.0)
    small = ClientLevel(clip_norm=1.0, noise_multiplier=1.0, adaptive=True).noises(5)
    assert small == (pytest.approx(1.1547, abs=1e-4), 1.0)
    with pytest.raises(ConfigError, match=r"count_noise' is 0\.4; expected more than half"):
        ClientLevel(clip_norm=1.0, noise_multiplier=1.0, adaptive=True, count_noise=0.4).noises(50)


def test_a_round_of_nobody_is_noise_and_is_charged():
    privacy = private()
    (first, one), (second, two) = go(Arithmetic([10] * 4), lambda clients, round: [], rounds=2, privacy=privacy)
    assert one.aggregated
    assert first.round == 1
    assert float(first.adapter["m.A"].abs().max()) > 0
    assert not torch.equal(first.adapter["m.A"], second.adapter["m.A"])
    assert 0 < one.diagnostics["epsilon"] < two.diagnostics["epsilon"]
    assert privacy.ledger.steps() == 2


def test_a_client_that_fails_or_sends_nonsense_adds_nothing_and_ends_nothing():
    def broken(update):
        return replace(update, delta=constant(math.nan))

    def lost(update):
        return ClientFailure(update.client_id, update.round, "gone")

    spoil = {(1, "c0"): broken, (1, "c1"): lost, (1, "c2"): lambda u: replace(u, extra={"sly": torch.ones(2)})}
    loose = private(noise_multiplier=0.0, clip_norm=math.inf)
    ((after, record),) = go(Arithmetic([10] * 4, spoil), everyone, rounds=1, privacy=loose)
    alone = go(Arithmetic([10] * 4), lambda clients, round: ["c3"], rounds=1)[0][0].adapter
    assert torch.allclose(after.adapter["m.A"], alone["m.A"] / 4)
    assert (record.failures, record.clients, record.cohort) == ([], [], [])


def test_no_round_of_nobody_ends_the_run():
    fails = {
        (r, f"c{k}"): lambda u: ClientFailure(u.client_id, u.round, "gone") for r in range(9) for k in range(4)
    }
    assert len(go(Arithmetic([10] * 4, fails), everyone, rounds=5, privacy=private(noise_multiplier=0.0))) == 5


def test_records_tell_nothing_of_single_clients_nor_how_many_they_were(caplog):
    def record(sizes, cohort):
        return go(Arithmetic(sizes), cohort, rounds=1, privacy=private(expected=2.0))[0][1]

    some = record([10, 20, 30, 40], lambda clients, round: ["c1"])
    other = record([10, 99, 30, 40], everyone)
    for name in ("cohort", "clients", "failures", "dropped", "loss", "tokens", "bytes_up", "bytes_down"):
        assert getattr(some, name) == getattr(other, name), name
    assert (some.cohort, some.loss, some.tokens) == ([], None, 0)
    assert some.bytes_up == 2 * 4 * 14
    assert set(some.diagnostics) == {"epsilon", "epsilon_rdp", "delta", "clip_norm"}
    assert some.withheld


def test_the_rounds_end_before_the_one_that_would_overspend():
    unlimited = private()
    all_rounds = go(Arithmetic([10] * 4), everyone, rounds=4, privacy=unlimited)
    limit = all_rounds[1][1].diagnostics["epsilon"] * 1.001
    limited = private(max_epsilon=limit)
    done = go(Arithmetic([10] * 4), everyone, rounds=4, privacy=limited)
    assert [state.round for state, _ in done] == [1, 2]
    assert limited.spent().value <= limit
    assert go(Arithmetic([10] * 4), everyone, rounds=4, start=done[-1][0], privacy=limited) == []


def test_a_resumed_run_keeps_what_was_spent_and_never_draws_finished_rounds_again(tmp_path):
    file = tmp_path / "privacy.json"
    first = private(ledger=Ledger(file, 1e-3))
    ((state, record),) = go(Arithmetic([10] * 4), everyone, rounds=1, privacy=first)
    later = private(ledger=Ledger(file, 1e-3))
    assert later.spent().value == record.diagnostics["epsilon"]
    asked = Arithmetic([10] * 4)
    ((_, second),) = go(asked, everyone, rounds=2, start=state, privacy=later)
    assert {task.round for task in asked.tasks} == {2}
    assert second.diagnostics["epsilon"] == private(ledger=Ledger(file, 1e-3)).spent().value
    assert later.ledger.steps() == 2
    # A round that was released but not saved is done again with new noise: both are paid for.
    go(Arithmetic([10] * 4), everyone, rounds=2, start=state, privacy=later)
    assert later.ledger.steps() == 3
    file.unlink()
    with pytest.raises(RunFolderError, match="0 of the 1 charges"):
        go(Arithmetic([10] * 4), everyone, rounds=2, start=state, privacy=private(ledger=Ledger(file, 1e-3)))


def test_nothing_is_released_that_was_not_written_down(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    privacy = private(ledger=Ledger(blocked / "privacy.json", 1e-3))
    with pytest.raises(RunFolderError, match="cannot write"):
        go(Arithmetic([10] * 4), everyone, rounds=1, privacy=privacy)


def test_cohorts_follow_a_secret_and_not_the_seed():
    def cohorts(secret):
        engine = Arithmetic([10] * 40)
        go(engine, Synchronous(Poisson(), 20, 0, secret=secret), rounds=2)
        return [(task.round, task.client_id) for task in engine.tasks]

    assert cohorts(None) == cohorts(None)
    assert cohorts(2**255 + 1) == cohorts(2**255 + 1) != cohorts(None)


ACCEPTED = ("fedavg", "fedit", "fedprox", "fedavgm", "ffa_lora", "fedsa_lora", "rolora", "fedsvd", "scaffold")
REFUSED = ("fedex_lora", "flora", "krum", "multi_krum", "geometric_median", "flexlora", "norm_clipping")


@pytest.mark.parametrize("name", ACCEPTED)
def test_strategies_that_need_the_mean_alone_are_accepted(name):
    rehearse_privately(build_strategy(name, {}))
    refuse_single_updates(build_strategy(name, {}), name)


@pytest.mark.parametrize("name", REFUSED)
def test_strategies_that_need_single_updates_are_refused_by_the_rehearsal(name):
    with pytest.raises(SealedUpdates):
        rehearse_privately(build_strategy(name, {}))
    with pytest.raises(ConfigError, match=f"'{name}' reads single updates"):
        refuse_single_updates(build_strategy(name, {}), name)


def test_control_variates_come_under_the_same_clip_and_noise():
    """No tensor of SCAFFOLD's next state is free of noise, though no client learnt anything."""
    from fedit.rehearsal import extras

    scaffold = build_strategy("scaffold", {})
    state = scaffold.init({"m.A": torch.zeros(40, 50), "m.B": torch.zeros(50, 40)})
    engine = Arithmetic([10] * 4)
    privacy = private(clip_norm=0.5, noise_multiplier=1.0)
    ((after, _),) = go(
        engine, lambda clients, round: [], rounds=1, start=state, strategy=scaffold, privacy=privacy
    )
    assert set(extras(scaffold, state, engine.clients()[0], training(1))) == set(after.memory) == {"m.A", "m.B"}
    for held in (after.adapter, after.memory):
        for tensor in held.values():
            assert float(tensor.std()) == pytest.approx(0.5 / 4, rel=0.1)
