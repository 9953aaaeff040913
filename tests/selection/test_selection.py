"""Selection policies: reproducible, as likely as they say, and nobody's draw depends on who else is there."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.errors import ConfigError, UnknownName
from fedit.selection import SELECTIONS, build_selection
from fedit.selection.base import Known, Pool
from fedit.selection.oort import Oort
from fedit.types import ClientInfo


def clients(count, sizes=None):
    return [ClientInfo(f"client-{i:02d}", (sizes or [10] * count)[i]) for i in range(count)]


def pool(there, size=4, round=1, seed=0, known=None):
    return Pool(there, size, max(len(there), 1), round, seed, known or {})


def heard(count, losses=None, seconds=None, rounds=None):
    """Return what is known of clients that were all asked once."""
    return {
        f"client-{i:02d}": Known(
            1,
            (rounds or [1] * count)[i],
            (losses or [1.0] * count)[i],
            seconds[i] if seconds else None,
        )
        for i in range(count)
    }


@pytest.fixture(params=sorted(SELECTIONS))
def selection(request):
    return build_selection(request.param, {})


# --- laws of the table ---


@pytest.mark.parametrize("round", [1, 2, 17])
def test_a_cohort_follows_from_the_pool_whatever_its_order(selection, round):
    there = clients(20, list(range(5, 25)))
    known = heard(12, [0.5 + i / 7 for i in range(12)])
    chosen = selection.choose(pool(there, round=round, known=known))
    assert chosen == sorted(chosen)
    assert set(chosen) <= {client.client_id for client in there}
    assert chosen == selection.choose(pool(there[::-1], round=round, known=dict(reversed(known.items()))))


def test_a_cohort_has_the_size_that_is_wanted_as_far_as_there_are_clients(selection):
    for count, size in ((20, 4), (3, 4), (4, 4), (0, 4)):
        chosen = selection.choose(pool(clients(count), size))
        if selection.fixed_size:
            assert len(set(chosen)) == len(chosen) == min(size, count)
        if count == 0:
            assert chosen == []


def test_seeds_differ(selection):
    known = heard(40, [0.1 * i for i in range(40)])
    cohorts = {tuple(selection.choose(pool(clients(40), seed=seed, known=known))) for seed in range(8)}
    assert len(cohorts) > 1


@pytest.mark.parametrize("name", ["uniform", "poisson", "weighted", "power_of_choice"])
def test_a_new_client_does_not_reshuffle_the_others(name):
    options = {"replacement": False} if name == "weighted" else {"probability": 0.3} if name == "poisson" else {}
    policy = build_selection(name, options)
    for round in range(1, 40):
        before = set(policy.choose(pool(clients(10), 3, round)))
        after = set(policy.choose(pool(clients(11), 3, round)))
        # The newcomer may take a place; nobody else comes in.
        assert after - before <= {"client-10"}
        assert len(before - after) <= 1


def test_an_unknown_policy_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'poisson'"):
        build_selection("poison", {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("poisson", {"probability": 1.5}),
        ("power_of_choice", {"candidates": -1}),
        ("oort", {"exploration": 2.0}),
        ("oort", {"penalty": -1.0}),
        ("uniform", {"q": 1}),
    ],
)
def test_options_that_cannot_work_are_refused(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build_selection(name, options)


# --- how often ---


def chi_square(counts, expected):
    return sum((counts[c] - expected[c]) ** 2 / expected[c] for c in expected)


def frequencies(policy, there, size, rounds):
    counts = dict.fromkeys((c.client_id for c in there), 0)
    for round in range(1, rounds + 1):
        for client in policy.choose(pool(there, size, round)):
            counts[client] += 1
    return counts


def test_poisson_coins_fall_as_often_as_they_should():
    there, rounds = clients(20), 3000
    counts = frequencies(build_selection("poisson", {"probability": 0.2}), there, 4, rounds)
    deviations = [(count - 0.2 * rounds) / math.sqrt(rounds * 0.2 * 0.8) for count in counts.values()]
    # A sum of 20 squared normals exceeds 45.3 once in a thousand.
    assert 4 < sum(d * d for d in deviations) < 45.3


def test_poisson_cohorts_may_be_empty_and_differ_in_size():
    policy = build_selection("poisson", {})
    sizes = {len(policy.choose(pool(clients(10), 1, round))) for round in range(200)}
    assert {0, 1, 2} <= sizes


def test_weighted_draws_are_proportional_to_examples():
    sizes = [1, 2, 3, 4, 10]
    there, rounds, size = clients(5, sizes), 2000, 2
    counts = frequencies(build_selection("weighted", {}), there, size, rounds)
    expected = {c.client_id: rounds * size * n / sum(sizes) for c, n in zip(there, sizes, strict=True)}
    assert chi_square(counts, expected) < 18.5  # 4 degrees of freedom, once in a thousand


def test_weighted_draws_without_replacement_have_the_inclusion_of_successive_sampling():
    sizes = [1, 2, 3, 6]
    there, rounds = clients(4, sizes), 4000
    counts = frequencies(build_selection("weighted", {"replacement": False}), there, 2, rounds)
    p = [n / sum(sizes) for n in sizes]
    for i, client in enumerate(there):
        inclusion = p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i)
        assert counts[client.client_id] / rounds == pytest.approx(inclusion, abs=0.03)


def test_a_plain_mean_over_weighted_draws_is_unbiased():
    sizes, values = [1, 2, 3, 4, 10], [5.0, -1.0, 2.0, 0.5, 1.0]
    there, rounds = clients(5, sizes), 4000
    value = {c.client_id: v for c, v in zip(there, values, strict=True)}
    policy = build_selection("weighted", {})
    means = [sum(value[c] for c in policy.choose(pool(there, 3, round))) / 3 for round in range(1, rounds + 1)]
    wanted = sum(n * v for n, v in zip(sizes, values, strict=True)) / sum(sizes)
    assert sum(means) / rounds == pytest.approx(wanted, abs=0.06)
    assert policy.averages_draws


# --- turns ---


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=30)
def test_round_robin_asks_everybody_once_before_anybody_twice(count, size, seed):
    policy, there = build_selection("round_robin", {}), clients(count)
    times = dict.fromkeys((c.client_id for c in there), 0)
    for round in range(1, 2 * count + 2):
        known = {c: Known(asked=n) for c, n in times.items() if n}
        cohort = policy.choose(pool(there, min(size, count), round, seed, known))
        assert len(set(cohort)) == len(cohort) == min(size, count)
        for client in cohort:
            times[client] += 1
        assert max(times.values()) - min(times.values()) <= 1


def test_round_robin_takes_its_turns_in_another_order_each_time():
    policy, there = build_selection("round_robin", {}), clients(8)
    turns = {
        tuple(policy.choose(pool(there, 3, known={c.client_id: Known(asked=turn) for c in there})))
        for turn in range(6)
    }
    assert len(turns) > 1


# --- losses ---


def test_power_of_choice_takes_the_highest_losses_of_its_candidates():
    there, losses = clients(6), [0.3, 2.0, 0.1, 1.5, 0.7, 0.9]
    policy = build_selection("power_of_choice", {"candidates": 6})
    assert policy.choose(pool(there, 2, known=heard(6, losses))) == ["client-01", "client-03"]


def test_power_of_choice_asks_first_whom_it_never_heard():
    there = clients(6)
    policy = build_selection("power_of_choice", {"candidates": 6})
    assert policy.choose(pool(there, 2, known=heard(5, [9.0] * 5)))[-1] == "client-05"


def test_power_of_choice_with_as_many_candidates_as_places_looks_at_no_loss():
    policy = build_selection("power_of_choice", {"candidates": 3})
    one = policy.choose(pool(clients(9), 3, known=heard(9, [float(i) for i in range(9)])))
    assert one == policy.choose(pool(clients(9), 3, known=heard(9, [-float(i) for i in range(9)])))


def test_power_of_choice_refuses_fewer_candidates_than_places():
    with pytest.raises(ConfigError, match="candidates"):
        build_selection("power_of_choice", {"candidates": 2}).choose(pool(clients(9), 3))


# --- Oort ---


EXPLOIT = {"exploration": 0.0, "min_exploration": 0.0, "cutoff": 1.0}


def test_oort_scores_are_those_of_the_formula():
    policy = Oort(preferred=0.5, penalty=2.0, clip=0.95)
    known = heard(4, [1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0], [1, 2, 4, 8])
    scores = policy.scores(dict.fromkeys(known, 10), known, 9)
    # utilities 10, 20, 30, 50; the preferred duration is the third of four
    for i, (utility, last, slow) in enumerate([(0, 1, 1), (0.25, 2, 1), (0.5, 4, 1), (1, 8, (3 / 4) ** 2)]):
        expected = (utility + math.sqrt(0.1 * math.log(9) / last)) * slow
        assert scores[f"client-{i:02d}"] == pytest.approx(expected, rel=1e-12)


def test_oort_clips_an_outlier():
    losses = [1.0] * 20 + [50.0]
    known = heard(21, losses)
    clipped = Oort(clip=0.9).scores(dict.fromkeys(known, 1), known, 1)
    assert clipped["client-20"] == clipped["client-00"]
    assert Oort(clip=1.0).scores(dict.fromkeys(known, 1), known, 1)["client-20"] == 1.0


def test_oort_exploits_useful_clients_and_avoids_slow_ones():
    policy, there = Oort(**EXPLOIT), clients(6)
    losses = [0.3, 2.0, 0.1, 1.5, 0.7, 0.9]
    assert policy.choose(pool(there, 2, known=heard(6, losses))) == ["client-01", "client-03"]
    slow = [1.0, 100.0, 1.0, 1.0, 1.0, 1.0]
    assert policy.choose(pool(there, 2, known=heard(6, losses, slow))) == ["client-03", "client-05"]


def test_oort_explores_a_share_that_decays_to_a_floor():
    policy, there = Oort(exploration=0.9, decay=0.5, min_exploration=0.2), clients(40)
    new = []
    for round in (1, 2, 3, 9):
        cohort = policy.choose(pool(there, 10, round, known=heard(20)))
        new.append(sum(c >= "client-20" for c in cohort))
    assert new == [9, 5, 3, 2]


def test_oort_comes_back_to_whom_it_has_not_heard_for_long():
    known = heard(2, [1.0, 1.0], rounds=[1, 90])
    scores = Oort().scores(dict.fromkeys(known, 10), known, 100)
    assert scores["client-00"] > scores["client-01"]
