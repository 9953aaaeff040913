"""Laws of the robust strategies: what they keep, what they withstand, what they refuse."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError, NoUpdates, SealedUpdates
from fedit.strategies import build_strategy
from fedit.types import ClientUpdate, LocalTraining, ServerState
from fedit.updates import Updates

SHAPES = {"x.q.A": (3, 7), "x.q.B": (5, 3), "y.v.A": (3, 9), "y.v.B": (9, 3)}
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=2, steps=1)
OPTIONS = {
    "norm_clipping": {},
    "median": {},
    "trimmed_mean": {},
    "krum": {},
    "multi_krum": {},
    "bulyan": {},
    "geometric_median": {},
    "centred_clipping": {},
    "fltrust": {"root_client": "c0"},
}
COORDINATES = ("median", "trimmed_mean", "bulyan")
NEEDS = {"median": (3, 1), "trimmed_mean": (3, 1), "krum": (5, 3), "multi_krum": (5, 3), "bulyan": (7, 4)}
"""Clients that one attacker needs, and that each further one would add (2 for all but Bulyan)."""


def build(name, **options):
    return build_strategy(name, {**OPTIONS[name], **options})


def draw(seed, size=1.0, only=""):
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: size * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    return {name: tensor for name, tensor in drawn.items() if name.endswith(only)}


def update(index, delta, weight=1.0, scale=2.0):
    return ClientUpdate(f"c{index}", 1, int(weight), float(weight), delta, scale=scale)


def server():
    return ServerState(0, draw(0), scale=2.0)


def only(name):
    return ".B" if name in COORDINATES else ""


def step(strategy, state, sent):
    updates = Updates(sent, state.adapter, uploads=lambda name: strategy.uploads(name, 1))
    return strategy.aggregate(state, updates), updates


def moved(strategy, sent, state=None):
    state = state or server()
    after, _ = step(strategy, state, sent)
    return {name: tensor - state.adapter[name] for name, tensor in after.adapter.items()}


def assert_close(one, two, tolerance=1e-9):
    for name in set(one) | set(two):
        torch.testing.assert_close(
            one.get(name, torch.zeros(SHAPES[name]).double()),
            two.get(name, torch.zeros(SHAPES[name]).double()),
            rtol=0,
            atol=tolerance,
        )


def dense(state, delta, scale=2.0):
    """The change of all weights as one vector."""
    a = {n: t + delta.get(n, 0) for n, t in state.adapter.items()}
    return torch.cat(
        [
            scale * (a[f"{m}.B"] @ a[f"{m}.A"] - state.adapter[f"{m}.B"] @ state.adapter[f"{m}.A"]).flatten()
            for m in ("x.q", "y.v")
        ]
    )


@pytest.fixture(params=sorted(OPTIONS))
def name(request):
    return request.param


# --- what all keep ---


def test_clients_that_agree_are_followed(name):
    delta = draw(1, only=only(name))
    options = {} if name in ("fltrust",) else {"reject_duplicates": False}
    assert_close(moved(build(name, **options), [update(i, delta) for i in range(7)]), delta, 1e-12)


@given(st.permutations(range(8)))
@settings(max_examples=6, deadline=None)
def test_the_order_of_clients_gives_the_same_bits(order):
    for name in OPTIONS:
        clients = [update(i, draw(i + 1, only=only(name)), 10 + i) for i in range(8)]
        one, two = moved(build(name), clients), moved(build(name), [clients[i] for i in order])
        assert_close(one, two, 0)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"norm_clipping", "fltrust"}))
def test_moving_all_updates_moves_the_result(name):
    """B alone differs, so that the change of the weights is linear in what is sent."""
    shift = draw(99, only=".B")
    clients = [update(i, {**_still(name), **draw(i + 1, only=".B")}) for i in range(8)]
    there = [replace(c, delta={n: t + shift.get(n, 0) for n, t in c.delta.items()}) for c in clients]
    start = server()
    # What centred clipping remembers lies in the same space.
    away = replace(start, memory={**_still(name), **shift} if name == "centred_clipping" else {})
    strategy = build(name, max_norm=0.0)
    one, two = moved(strategy, clients, start), moved(strategy, there, away)
    assert_close({n: t + shift.get(n, 0) for n, t in one.items()}, two, 1e-9)


def _still(name):
    return {} if name in COORDINATES else {n: torch.zeros(s).double() for n, s in SHAPES.items() if n[-1] == "A"}


def test_scaling_all_updates_scales_the_result(name):
    clients = [update(i, {**_still(name), **draw(i + 1, only=".B")}) for i in range(8)]
    large = [c.map(lambda _, tensor: 1000 * tensor) for c in clients]
    one, two = moved(build(name), clients), moved(build(name), large)
    assert_close({n: 1000 * t for n, t in one.items()}, two, 1e-7)


def test_a_client_that_sends_nan_is_as_if_absent(name):
    clients = [update(i, draw(i + 1, only=only(name))) for i in range(8)]
    bad = update(8, draw(50, only=only(name)))
    bad.delta["x.q.B"][0, 0] = float("nan")
    after, updates = step(build(name), server(), [*clients, bad])
    assert [failure.client_id for failure in updates.failures] == ["c8"]
    assert_close(after.adapter, step(build(name), server(), clients)[0].adapter, 0)


def test_a_finite_update_whose_effect_overflows_is_as_if_absent(name):
    """Entries near the largest float32 pass the test for NaN, and would make every distance NaN."""
    state = replace(server(), adapter={n: t.float() for n, t in server().adapter.items()})
    clients = [
        update(i, {n: t.float() for n, t in draw(i + 1, only=only(name)).items()}, scale=64.0) for i in range(8)
    ]
    bad = update(8, {n: torch.full_like(t, 3e38) for n, t in clients[0].delta.items()}, scale=64.0)
    after, updates = step(build(name), state, [*clients, bad])
    assert ("c8", True) in [(f.client_id, "not finite" in f.reason) for f in updates.failures]
    assert_close(after.adapter, step(build(name), state, clients)[0].adapter, 0)


def test_the_server_state_is_not_edited_in_place(name):
    state = replace(server(), memory={n: t.clone() for n, t in draw(5).items()})
    before, memory = {n: t.clone() for n, t in state.adapter.items()}, draw(5)
    step(build(name), state, [update(i, draw(i + 1, only=only(name))) for i in range(8)])
    assert_close(state.adapter, before, 0)
    assert_close(state.memory, memory, 0)


def test_only_the_mean_of_a_sealed_cohort_may_be_seen(name):
    sealed = Updates([update(0, draw(1))], server().adapter, sealed=True)
    with pytest.raises(SealedUpdates):
        build(name).aggregate(server(), sealed)


def test_what_each_client_weighs_in_the_aggregate_is_told():
    clients = [update(i, draw(i + 1)) for i in range(8)]
    _, updates = step(build("krum"), server(), clients)
    assert sorted(updates.shares.values()) == [0.0] * 7 + [1.0]
    _, updates = step(build("geometric_median"), server(), clients)
    assert sum(updates.shares.values()) == pytest.approx(1.0)


# --- what they withstand ---


@pytest.mark.parametrize("attackers", [1, 2])
@pytest.mark.parametrize("size", [1e6, -1e6])
def test_attackers_within_the_bound_do_not_move_the_result_out_of_the_honest_range(name, attackers, size):
    honest = [update(i, draw(i + 1, only=only(name))) for i in range(4 * attackers + 3 - attackers)]
    hostile = [
        update(100 + i, {n: size * torch.ones_like(t) for n, t in draw(0, only=only(name)).items()})
        for i in range(attackers)
    ]
    options = {"max_attackers": attackers} if name in NEEDS else {}
    screen = {} if name == "fltrust" else {"max_norm": 0.0, "reject_duplicates": False}
    strategy = build(name, **options, **screen)
    result = moved(strategy, [*honest, *hostile])
    everybody = [*honest, *hostile]
    mean = {n: sum(c.delta[n] for c in everybody) / len(everybody) for n in honest[0].delta}
    for factor, tensor in result.items():
        if factor not in honest[0].delta:
            continue
        values = torch.stack([client.delta[factor] for client in honest])
        low, high = values.amin(0), values.amax(0)
        if name in ("norm_clipping", "centred_clipping", "geometric_median", "fltrust"):
            # These let every client in by a bounded amount: no further than the honest ones' range is wide.
            width = float(max(c.delta[f].norm() for c in honest for f in c.delta))
            assert float(tensor.norm()) <= 2 * width
        else:
            assert bool(((tensor >= low - 1e-9) & (tensor <= high + 1e-9)).all())
        assert float(mean[factor].abs().max()) > 1e4  # the plain mean does not withstand it


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_krum_compares_products_and_takes_one_whole_adapter(seed):
    state = ServerState(0, draw(seed), scale=2.0)
    clients = [update(i, draw(seed + i + 1, 0.3 + 0.1 * i)) for i in range(6)]
    x = torch.stack([dense(state, client.delta) for client in clients])
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    scores = [sum(sorted(apart[i, j] for j in range(6) if j != i)[:3]) for i in range(6)]
    best = min(range(6), key=lambda i: scores[i])
    assert_close(moved(build("krum", max_norm=0.0), clients, state), clients[best].delta, 1e-12)
    order = sorted(range(6), key=lambda i: scores[i])[:3]
    expected = {n: sum(clients[i].delta[n] for i in order) / 3 for n in SHAPES}
    assert_close(moved(build("multi_krum", max_norm=0.0, select=3), clients, state), expected, 1e-12)


def test_krum_sees_through_factors_of_one_product():
    """The same effective update as B, A or 10 B, A / 10: distances between factors would call them far apart."""
    state = ServerState(0, {n: torch.zeros(s).double() for n, s in SHAPES.items()}, scale=2.0)
    core = draw(1)
    near = [
        {n: t * (2.0**i if n.endswith("B") else 2.0**-i) + 1e-3 * draw(20 + i)[n] for n, t in core.items()}
        for i in (-1, 0, 1)
    ]
    far = [draw(30 + i, 0.5) for i in range(2)]
    clients = [update(i, delta) for i, delta in enumerate([*near, *far])]
    chosen = moved(build("krum", max_norm=0.0), clients, state)
    assert any(torch.equal(chosen["x.q.B"], delta["x.q.B"]) for delta in near)


def test_a_median_of_each_factor_would_mix_clients():
    """Factor by factor the median takes B of one client and A of another, whose product nobody trained."""
    ones, zeros = torch.ones(2, 2).double(), torch.zeros(2, 2).double()
    trained = [{"m.A": ones, "m.B": zeros}, {"m.A": zeros, "m.B": ones}, {"m.A": ones, "m.B": ones}]
    # Two of three clients leave the weight as it is, yet the factors' medians are A = 1 and B = 1.
    mixed = {n: torch.stack([t[n] for t in trained]).median(0).values for n in ("m.A", "m.B")}
    assert (mixed["m.B"] @ mixed["m.A"]).abs().sum() > 0
    for name in COORDINATES:
        with pytest.raises(ConfigError, match=r"'both'.*entry of B from one client and one of A from another"):
            build(name, factor="both").check(TRAINING)
        with pytest.raises(ConfigError, match="B is zero at the start"):
            build(name, factor="A").check(TRAINING)
        with pytest.raises(ConfigError, match="expected B"):
            build(name, factor="C").check(TRAINING)
        assert not build(name).trains("m.A", 1)
        assert not build(name).uploads("m.A", 1)
    state = ServerState(0, {"m.A": zeros, "m.B": zeros})
    clients = [update(i, delta, scale=1.0) for i, delta in enumerate(trained)]
    after, _ = step(build("krum", max_attackers=0), state, clients)
    assert (after.adapter["m.B"] @ after.adapter["m.A"]).abs().max() == 0


def test_norm_clipping_takes_zero_updates_and_leaves_nan_out():
    """Flower's clipping divides by zero on the first and lets the second through."""
    nothing = {n: torch.zeros(s).double() for n, s in SHAPES.items()}
    bad = update(3, {n: torch.full(s, float("nan")).double() for n, s in SHAPES.items()})
    result = moved(build("norm_clipping"), [update(0, nothing), update(1, draw(1)), update(2, draw(2)), bad])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.values())
    assert_close(moved(build("norm_clipping"), [update(0, nothing), update(1, nothing)]), nothing, 0)


def test_norm_clipping_shortens_by_hand():
    still = _still("norm_clipping")
    clients = [update(i, {**still, **draw(i + 1, 1.0, ".B")}) for i in range(3)]
    large = update(3, {**still, **draw(9, 50.0, ".B")})
    state = server()
    norms = [float(dense(state, c.delta).norm()) for c in (*clients, large)]
    factors = [float(torch.cat([t.flatten() for t in c.delta.values()]).norm()) for c in (*clients, large)]
    bound = sum(sorted(norms)[1:3]) / 2
    own = sum(sorted(factors)[1:3]) / 2
    kept = [min(1, bound / n, own / m) for n, m in zip(norms, factors, strict=True)]
    expected = {
        n: sum(k * c.delta[n] for k, c in zip(kept, (*clients, large), strict=True)) / 4 for n in clients[0].delta
    }
    assert_close(moved(build("norm_clipping"), [*clients, large], state), expected)
    assert kept[3] < 0.1


def test_centred_clipping_goes_on_from_the_last_round():
    state = server()
    strategy = build("centred_clipping", radius=0.5, iterations=1, reject_duplicates=False)
    clients = [update(i, draw(1, 0.001)) for i in range(5)]
    first, _ = step(strategy, state, clients)
    assert_close({n: t - state.adapter[n] for n, t in first.adapter.items()}, first.memory, 1e-12)
    # One attacker of five moves the next centre by no more than a fifth of the radius.
    hostile = update(5, draw(7, 1e6))
    second, _ = step(strategy, replace(first, adapter=state.adapter), [*clients[:4], hostile])
    apart = dense(state, second.memory) - dense(state, first.memory)
    assert float(apart.norm()) <= 0.5 / 5 * 1.5


def test_fltrust_by_hand():
    still = _still("fltrust")
    clients = [update(i, {**still, **draw(i + 1, 1.0 + i, ".B")}) for i in range(5)]
    state = server()
    x = [dense(state, c.delta) for c in clients]
    size = [torch.cat([t.flatten() for t in c.delta.values()]).norm() for c in clients]
    trust = [max(0.0, float(v @ x[0] / v.norm() / x[0].norm())) for v in x[1:]]
    equal = [min(float(x[0].norm() / v.norm()), float(size[0] / m)) for v, m in zip(x[1:], size[1:], strict=True)]
    expected = {
        n: sum(t * e * c.delta[n] for t, e, c in zip(trust, equal, clients[1:], strict=True)) / sum(trust)
        for n in clients[0].delta
    }
    assert_close(moved(build("fltrust"), clients, state), expected)


def test_fltrust_trusts_nobody_that_points_away():
    root = update(0, draw(1, 0.1))
    away = [update(i, {n: -i * t for n, t in draw(1, 0.1).items()}) for i in (1, 2)]
    assert_close(moved(build("fltrust"), [root, *away]), {n: torch.zeros(s).double() for n, s in SHAPES.items()})
    with pytest.raises(NoUpdates, match="root client 'c0' delivered no"):
        moved(build("fltrust"), away)
    with pytest.raises(NoUpdates, match="nobody but the root client"):
        moved(build("fltrust"), [root])


def test_fltrust_takes_clients_that_did_not_move():
    nothing = update(2, {n: torch.zeros(s).double() for n, s in SHAPES.items()})
    root, same = update(0, draw(1)), update(1, draw(1))
    assert_close(moved(build("fltrust"), [root, same, nothing]), draw(1), 1e-9)
    still = replace(nothing, client_id="c0")
    assert_close(moved(build("fltrust"), [still, same]), nothing.delta, 0)


def test_fltrust_needs_its_root_among_the_clients():
    strategy = build_strategy("fltrust", {"root_client": "rot"})
    assert strategy.always() == {"rot"}
    with pytest.raises(ConfigError, match="is 'rot', which is no client; did you mean 'root'"):
        strategy.check_cohort(3, ["a", "b", "root"])
    build_strategy("fltrust", {}).check_cohort(3, ["a", "b", "root"])


# --- what they refuse ---


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_too_few_clients_are_refused_with_the_numbers(name):
    least, _ = NEEDS[name]
    strategy = build(name, max_attackers=1)
    with pytest.raises(ConfigError, match=rf"max_attackers=1 needs at least {least} clients.*has {least - 1}"):
        strategy.check_cohort(least - 1, [])
    strategy.check_cohort(least, [])
    clients = [update(i, draw(i + 1, only=only(name))) for i in range(least - 1)]
    with pytest.raises(NoUpdates, match=f"{least - 1} usable updates; with 1 attackers.*at least {least}"):
        moved(strategy, clients)


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_two_attackers_need_more(name):
    least = {"bulyan": 11, "krum": 7, "multi_krum": 7}.get(name, 5)
    build(name, max_attackers=2).check_cohort(least, [])
    with pytest.raises(ConfigError, match=f"at least {least}"):
        build(name, max_attackers=2).check_cohort(least - 1, [])
    with pytest.raises(ConfigError, match=r"'max_attackers'.*-1"):
        build(name, max_attackers=-1).check_cohort(9, [])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("krum", {"max_norm": 0.5}, "'max_norm'"),
        ("multi_krum", {"weight_cap": 0.5}, "'weight_cap'"),
        ("multi_krum", {"select": -1}, "'select'"),
        ("norm_clipping", {"bound": -1.0}, "'bound'"),
        ("geometric_median", {"iterations": 0}, "'iterations'"),
        ("geometric_median", {"smoothing": 0.0}, "'smoothing'"),
        ("centred_clipping", {"radius": -1.0}, "'radius'"),
    ],
)
def test_values_that_cannot_work_are_refused(name, options, words):
    with pytest.raises(ConfigError, match=words):
        build(name, **options).check(TRAINING)


def test_more_to_select_than_are_honest_is_refused():
    with pytest.raises(ConfigError, match=r"'select'.*is 5; expected at most 4"):
        build("multi_krum", select=5).check_cohort(5, [])
