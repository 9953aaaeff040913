"""General strategies beside flwr's own: equal where those are right, and what differs where they are not.

flwr is no part of a strategy's needs; where it cannot be imported these tests are skipped.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("flwr", reason="flwr is not installed")

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flwr

from fedit import tensors
from fedit.errors import NoUpdates
from fedit.strategies import build_strategy
from fedit.types import ClientUpdate, ServerState
from fedit.updates import Updates

SHAPES = {"x.q.A": (3, 7), "x.q.B": (5, 3), "y.v.A": (3, 9), "y.v.B": (9, 3)}
WEIGHTS = (7, 1, 20, 4, 11, 3, 5, 9)
ROUNDS = 4


def draw(seed, size=1.0, only="", dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: size * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    return {name: tensor.to(dtype) for name, tensor in drawn.items() if name.endswith(only)}


def orthonormal():
    """An adapter whose rows of A are orthonormal: there, distances of B are distances of the weights."""
    start = draw(0)
    rows = {n: torch.linalg.qr(t.T).Q.T.contiguous() for n, t in start.items() if n.endswith(".A")}
    return {**start, **rows}


@dataclass
class Reply:
    """A client's reply, as far as flwr's strategies look at it."""

    content: RecordDict

    def has_error(self):
        return False


def theirs(strategy, server_round, start, deltas, weights=WEIGHTS):
    """Return what flwr makes of clients that trained ``start`` into ``start + delta``."""
    replies = []
    for delta, weight in zip(deltas, weights, strict=False):
        trained = {n: t + delta[n] if n in delta else t for n, t in start.items()}
        arrays = ArrayRecord({n: Array(t.numpy()) for n, t in trained.items()})
        replies.append(Reply(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})})))
    arrays, _ = strategy.aggregate_train(server_round, replies)
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def theirs_over_rounds(strategy, cohorts, server_round=None):
    """Return their adapter after every round; server_round: that flwr is told instead of 1, 2, …"""
    adapter, found = draw(0), []
    for round, deltas in enumerate(cohorts, 1):
        begin(strategy, adapter)
        adapter = theirs(strategy, server_round(round) if server_round else round, adapter, deltas)
        found.append(adapter)
    return found


def begin(strategy, adapter):
    """What flwr's configure_train does besides sending: keep what the clients start from."""
    if isinstance(strategy, flwr.FedAvgM):
        strategy.current_arrays = ArrayRecord({n: Array(t.numpy()) for n, t in adapter.items()})
    else:
        strategy.current_arrays = {name: tensor.numpy() for name, tensor in adapter.items()}


def ours(strategy, state, deltas, weights=WEIGHTS):
    sent = [
        ClientUpdate(f"c{i}", 1, weight, float(weight), delta, scale=state.scale)
        for i, (delta, weight) in enumerate(zip(deltas, weights, strict=False))
    ]
    uploads = {name for update in sent for name in update.delta}
    return strategy.aggregate(state, Updates(sent, state.adapter, uploads=lambda name: name in uploads))


def ours_over_rounds(strategy, cohorts, memory=None):
    state = replace(strategy.init(draw(0)), memory=memory or {})
    found = []
    for deltas in cohorts:
        state = ours(strategy, state, deltas)
        found.append(state.adapter)
    return found


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def cohorts(count=5, size=0.1):
    return [[draw(100 * round + k, size) for k in range(count)] for round in range(ROUNDS)]


def same(one, two, tolerance=1e-12):
    return set(one) == set(two) and all(
        torch.allclose(one[name], two[name], rtol=0, atol=tolerance) for name in one
    )


def moments_from_zero(tau):
    """The server's memory with v at 0, where flwr begins; the paper (arXiv:2003.00295) begins at tau^2 or more."""
    zero = {f"{kind}/{name}": torch.zeros(shape).double() for kind in "mv" for name, shape in SHAPES.items()}
    return {**zero, "rounds": number(0.0), "tau": number(tau)}


# --- means and server optimizers ---


def test_federated_averaging_is_flwrs():
    found = ours_over_rounds(build_strategy("fedavg", {}), cohorts())
    assert all(map(same, found, theirs_over_rounds(flwr.FedAvg(), cohorts())))


@pytest.mark.parametrize(("beta", "rate"), [(0.9, 1.0), (0.5, 0.3), (0.0, 0.7)])
def test_server_momentum_is_flwrs(beta, rate):
    peer = flwr.FedAvgM(server_momentum=beta, server_learning_rate=rate)
    found = ours_over_rounds(build_strategy("fedavgm", {"beta": beta, "server_lr": rate}), cohorts())
    assert all(map(same, found, theirs_over_rounds(peer, cohorts())))


def test_fedadagrad_is_flwrs_but_for_where_the_second_moment_begins():
    """flwr's v begins at 0; the paper asks for at least tau^2, and so is ours unless it is given flwr's."""
    peer = theirs_over_rounds(flwr.FedAdagrad(eta=0.3, tau=0.05), cohorts())
    strategy = build_strategy("fedadagrad", {"server_lr": 0.3, "tau": 0.05})
    assert all(map(same, ours_over_rounds(strategy, cohorts(), moments_from_zero(0.05)), peer))
    assert not same(ours_over_rounds(strategy, cohorts())[0], peer[0], 1e-3)


def test_fedyogi_is_flwrs_but_for_where_the_second_moment_begins():
    peer = theirs_over_rounds(flwr.FedYogi(eta=0.3, beta_1=0.9, beta_2=0.8, tau=0.05), cohorts())
    strategy = build_strategy("fedyogi", {"server_lr": 0.3, "beta1": 0.9, "beta2": 0.8, "tau": 0.05})
    assert all(map(same, ours_over_rounds(strategy, cohorts(), moments_from_zero(0.05)), peer))
    assert not same(ours_over_rounds(strategy, cohorts())[0], peer[0], 1e-3)


def test_fedadam_is_flwrs_once_its_bias_correction_has_faded():
    """In round 10^6 flwr's correction is 1 and what is left is the paper's step, from v = 0."""
    peer = flwr.FedAdam(eta=0.3, beta_1=0.9, beta_2=0.8, tau=0.05)
    found = theirs_over_rounds(peer, cohorts(), server_round=lambda round: 10**6)
    strategy = build_strategy("fedadam", {"server_lr": 0.3, "beta1": 0.9, "beta2": 0.8, "tau": 0.05})
    assert all(map(same, ours_over_rounds(strategy, cohorts(), moments_from_zero(0.05)), found))


def test_fedadam_with_bias_correction_is_flwrs_told_the_round_before():
    """flwr adds 1 to a round that counts from 1 already; told one less it is Adam, up to tau."""
    peer = flwr.FedAdam(eta=0.3, beta_1=0.9, beta_2=0.8, tau=1e-13)
    options = {"server_lr": 0.3, "beta1": 0.9, "beta2": 0.8, "tau": 1e-13, "bias_correction": True}
    found = ours_over_rounds(build_strategy("fedadam", options), cohorts())
    told = theirs_over_rounds(peer, cohorts(), server_round=lambda round: round - 1)
    assert all(same(one, two, 1e-8) for one, two in zip(found, told, strict=True))


def test_flwrs_fedadam_corrects_a_round_late_and_its_first_step_is_too_short():
    """By sqrt(1 + beta2) / (1 + beta1): 0.74 at its defaults. Ours is a whole step, as torch's Adam is."""
    start, deltas = draw(0), cohorts()[0]
    peer = flwr.FedAdam(eta=0.1, tau=1e-13)
    begin(peer, start)
    short = theirs(peer, 1, start, deltas)
    options = {"server_lr": 0.1, "tau": 1e-13, "bias_correction": True}
    whole = ours_over_rounds(build_strategy("fedadam", options), [deltas])[0]
    for name in SHAPES:
        assert torch.allclose((whole[name] - start[name]).abs(), number(0.1), rtol=0, atol=1e-8)
        ratio = (short[name] - start[name]) / (whole[name] - start[name])
        assert torch.allclose(ratio, number(math.sqrt(1.99) / 1.9), rtol=0, atol=1e-6)


# --- robust rules ---


@pytest.mark.parametrize("count", [5, 8])
def test_the_median_is_flwrs_where_one_factor_is_trained(count):
    deltas = [draw(k, only=".B") for k in range(count)]
    after = ours(build_strategy("median", {}), ServerState(0, draw(0)), deltas)
    assert same(after.adapter, theirs(flwr.FedMedian(), 1, draw(0), deltas))


@pytest.mark.parametrize(("count", "attackers"), [(5, 1), (8, 2), (8, 3)])
def test_the_trimmed_mean_is_flwrs_where_one_factor_is_trained(count, attackers):
    deltas = [draw(k, only=".B") for k in range(count)]
    peer = flwr.FedTrimmedAvg(beta=(attackers + 0.5) / count)
    after = ours(build_strategy("trimmed_mean", {"max_attackers": attackers}), ServerState(0, draw(0)), deltas)
    assert same(after.adapter, theirs(peer, 1, draw(0), deltas))


def test_flwrs_trimmed_mean_trims_nobody_in_a_small_cohort():
    """It cuts int(0.2 * 4) = 0 of each side and says nothing. Ours is told a number of attackers and cuts it."""
    deltas = [*(draw(k, only=".B") for k in range(3)), draw(3, 1e6, only=".B")]
    peer = theirs(flwr.FedTrimmedAvg(), 1, draw(0), deltas)
    mean = theirs(flwr.FedAvg(), 1, draw(0), deltas, (1,) * 4)
    assert same(peer, mean, 1e-6)
    found = ours(build_strategy("trimmed_mean", {"max_norm": 0.0}), ServerState(0, draw(0)), deltas).adapter
    assert all((found[name] - draw(0)[name]).abs().max() < 10 for name in SHAPES)


@pytest.mark.parametrize("peer", [flwr.FedMedian(), flwr.FedTrimmedAvg(beta=0.34)], ids=["median", "trimmed"])
def test_flwrs_coordinate_rules_make_of_clients_that_agree_a_model_that_none_has(peer):
    """Three pairs of factors of one product; coordinate by coordinate they become a quarter of it.

    Ours trains one factor alone, where the median of the factor is a median of the weights.
    """
    nothing = {name: torch.zeros(shape).double() for name, shape in SHAPES.items()}
    model, stretch = draw(1), (1.0, -0.5, -4.0)
    deltas = [{n: t * c if n.endswith(".B") else t / c for n, t in model.items()} for c in stretch]
    found = theirs(peer, 1, nothing, deltas)
    for module in ("x.q", "y.v"):
        product = found[f"{module}.B"] @ found[f"{module}.A"]
        agreed = model[f"{module}.B"] @ model[f"{module}.A"]
        assert torch.allclose(product, 0.125 * agreed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "count", "options", "select"), [
    ("krum", 5, {"max_attackers": 1}, None),
    ("krum", 8, {"max_attackers": 2}, None),
    ("multi_krum", 8, {"max_attackers": 2, "select": 3}, 3),
    ("multi_krum", 8, {"max_attackers": 2}, 6),
])  # fmt: skip
def test_krum_chooses_whom_flwr_chooses_where_both_measure_the_same(seed, name, count, options, select):
    """A is orthonormal and stays: distances of B, which flwr takes, are those of the weights, which ours takes.

    flwr weighs those chosen by what they claim to have; told the same of all, it averages them as ours does.
    """
    deltas = [draw(50 * seed + k, only=".B") for k in range(count)]
    deltas[0] = draw(50 * seed, 5.0, only=".B")
    start, still = orthonormal(), {n: torch.zeros(s).double() for n, s in SHAPES.items() if n.endswith(".A")}
    sent = [{**still, **delta} for delta in deltas]
    after = ours(build_strategy(name, {**options, "max_norm": 0.0}), ServerState(0, start, scale=2.0), sent)
    attackers = options["max_attackers"]
    peer = (
        flwr.MultiKrum(num_malicious_nodes=attackers, num_nodes_to_select=select)
        if select
        else flwr.Krum(num_malicious_nodes=attackers)
    )
    assert same(after.adapter, theirs(peer, 1, start, sent, (1,) * count))


@pytest.mark.parametrize("seed", range(4))
def test_bulyan_in_one_pass_is_flwrs(seed):
    """flwr scores once; the paper anew after each choice, which is ours unless it is told to be fast."""
    deltas = [draw(50 * seed + k, only=".B") for k in range(8)]
    start = orthonormal()
    strategy = build_strategy("bulyan", {"fast": True, "max_norm": 0.0})
    after = ours(strategy, ServerState(0, start, scale=2.0), deltas)
    assert same(after.adapter, theirs(flwr.Bulyan(num_malicious_nodes=1), 1, start, deltas))


def test_flwrs_krum_is_blind_to_small_updates_of_large_weights():
    """It takes |x|^2 + |y|^2 - 2xy of whole float32 weights, which drowns updates of a thousandth of their size.

    Ours compares changes. The attacker moves ten times as far as the honest clients.
    """
    start = {name: 300 * tensor for name, tensor in orthonormal().items()}
    start = {name: tensor.float() for name, tensor in start.items()}
    common = draw(7, 1e-3, only=".B", dtype=torch.float32)
    still = {n: torch.zeros(s) for n, s in SHAPES.items() if n.endswith(".A")}
    fooled = 0
    for seed in range(1, 9):
        honest = [tensors.add(common, draw(50 * seed + k, 1e-4, only=".B", dtype=torch.float32)) for k in range(6)]
        attacker = draw(50 * seed + 6, 1e-2, only=".B", dtype=torch.float32)
        sent = [{**still, **delta} for delta in [*honest, attacker]]
        wrong = tensors.add(start, sent[-1])
        after = ours(build_strategy("krum", {"max_norm": 0.0}), ServerState(0, start, scale=2.0), sent)
        assert not same(after.adapter, wrong, 0)
        fooled += same(theirs(flwr.Krum(num_malicious_nodes=1), 1, start, sent), wrong, 0)
    assert fooled > 0


def test_flwrs_multi_krum_lets_those_chosen_say_what_they_weigh():
    """A client that passes and claims a million examples is the mean. Ours weighs all alike unless told to cap."""
    start, still = orthonormal(), {n: torch.zeros(s).double() for n, s in SHAPES.items() if n.endswith(".A")}
    sent = [{**still, **draw(k, only=".B")} for k in range(6)]
    claims = (10, 10, 10, 10, 10, 10**6)
    peer = flwr.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=6)
    assert same(theirs(peer, 1, start, sent, claims), tensors.add(start, sent[-1]), 1e-3)
    strategy = build_strategy("multi_krum", {"max_norm": 0.0})
    state = ServerState(0, start, scale=2.0)
    assert same(ours(strategy, state, sent, claims).adapter, ours(strategy, state, sent, (10,) * 6).adapter, 0)


# --- what flwr lets in ---


def test_flwr_lets_nan_through():
    """One client that sends NaN is the end of flwr's model; ours goes on without it."""
    sent = [draw(k, 0.1) for k in range(4)]
    sent[3]["x.q.B"][0, 0] = float("nan")
    assert not torch.isfinite(theirs(flwr.FedAvg(), 1, draw(0), sent)["x.q.B"]).all()
    found = ours(build_strategy("fedavg", {}), ServerState(0, draw(0)), sent).adapter
    assert same(found, theirs(flwr.FedAvg(), 1, draw(0), sent[:3]))


def test_flwr_divides_by_zero_where_nobody_has_examples():
    sent = [draw(k) for k in range(3)]
    with pytest.raises(ZeroDivisionError):
        theirs(flwr.FedAvg(), 1, draw(0), sent, (0, 0, 0))
    with pytest.raises(NoUpdates):
        ours(build_strategy("fedavg", {}), ServerState(0, draw(0)), sent, (0, 0, 0))
