"""A cohort's updates: screened on the way, read once, averaged with the right weights."""

from dataclasses import replace

import pytest
import torch

from fedit.errors import ConfigError, NoUpdates, SealedUpdates, UpdatesConsumed
from fedit.tensors import Flat
from fedit.types import ClientFailure, ClientUpdate
from fedit.updates import Updates

EXPECTED = {"m.A": torch.zeros(2, 3), "m.B": torch.zeros(4, 2)}


def update(client, value=1.0, weight=1.0, **changes):
    delta = {name: torch.full_like(tensor, value) for name, tensor in EXPECTED.items()}
    return replace(ClientUpdate(client, 1, int(weight) if weight == weight else 0, weight, delta), **changes)


def changed(good, **tensors):
    return replace(good, delta={**good.delta, **{name.replace("_", "."): t for name, t in tensors.items()}})


def test_the_mean_is_weighted():
    mean = Updates([update("a", 1.0, 1), update("b", 4.0, 2)], EXPECTED).mean()
    assert mean.delta["m.A"].tolist() == [[3.0] * 3] * 2
    assert (mean.weight, mean.num_examples) == (3, 3)


def test_extras_are_averaged_like_deltas():
    sent = [
        update("a", weight=1, extra={"c": torch.tensor([1.0])}),
        update("b", weight=3, extra={"c": torch.tensor([5.0])}),
    ]
    assert Updates(sent, EXPECTED).mean().extra["c"].tolist() == [4.0]


BAD = {
    "not finite": changed(update("bad"), m_A=torch.full((2, 3), float("nan"))),
    "infinity": changed(update("bad"), m_B=torch.full((4, 2), float("inf"))),
    "m.B has shape (2, 4); expected (4, 2)": changed(update("bad"), m_B=torch.ones(2, 4)),
    "tensors that were not asked for: q.A": changed(update("bad"), q_A=torch.ones(2, 3)),
    "weight is nan": update("bad", weight=float("nan")),
    "weight is inf": replace(update("bad"), weight=float("inf")),
    "weight is -1": replace(update("bad"), weight=-1.0),
    "NaN": update("bad", extra={"c": torch.tensor([float("nan")])}),
}


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_update_becomes_a_failure_and_the_others_count(reason):
    seen = []
    updates = Updates([BAD[reason], update("good", 2.0)], EXPECTED, lambda u, norm: seen.append(u.client_id))
    assert updates.mean().delta["m.A"].tolist() == [[2.0] * 3] * 2
    assert seen == ["good"]
    assert [failure.client_id for failure in updates.failures] == ["bad"]
    assert reason in updates.failures[0].reason


def test_a_client_without_weight_is_ignored():
    seen = []
    nothing = replace(update("empty", 99.0), weight=0.0)
    updates = Updates([nothing, update("good", 2.0)], EXPECTED, lambda u, norm: seen.append(u.client_id))
    assert updates.mean().delta["m.A"].tolist() == [[2.0] * 3] * 2
    assert seen == ["good"]
    with pytest.raises(NoUpdates):
        Updates([nothing], EXPECTED).mean()


def test_a_failure_passes_through():
    failure = ClientFailure("late", 1, "no reply")
    updates = Updates([failure, update("good")], EXPECTED)
    updates.mean()
    assert updates.failures == [failure]


def test_updates_are_read_once():
    updates = Updates([update("a")], EXPECTED)
    list(updates)
    with pytest.raises(UpdatesConsumed):
        list(updates)
    with pytest.raises(UpdatesConsumed):
        updates.mean()


def test_nobody_delivered():
    with pytest.raises(NoUpdates, match="no client"):
        Updates([], EXPECTED).mean()


def test_updates_stream_one_at_a_time():
    asked = []

    def results():
        for client in "abc":
            asked.append(client)
            yield update(client)

    stream = iter(Updates(results(), EXPECTED))
    assert next(stream).client_id == "a"
    assert asked == ["a"]


def test_a_client_may_keep_tensors_to_itself():
    alone = replace(update("a", 2.0), delta={"m.A": torch.full((2, 3), 2.0)})
    assert set(Updates([alone], EXPECTED, uploads=lambda name: name == "m.A").mean().delta) == {"m.A"}


def test_a_client_that_leaves_out_what_it_was_asked_for_is_screened_out():
    alone = replace(update("a", 2.0), delta={"m.A": torch.full((2, 3), 2.0)})
    updates = Updates([alone, update("b")], EXPECTED)
    assert updates.mean().delta["m.A"][0, 0] == 1
    assert [(f.client_id, f.reason) for f in updates.failures] == [("a", "update lacks tensors: m.B")]


def test_a_sealed_cohort_shows_its_mean_alone():
    with pytest.raises(SealedUpdates, match="only the cohort's mean"):
        iter(Updates([update("a")], EXPECTED, sealed=True))
    assert Updates([update("a", 2.0)], EXPECTED, sealed=True).mean().delta["m.A"][0, 0] == 2


def test_what_a_client_ended_with_is_what_it_was_sent_plus_its_delta():
    low = {"m.A": torch.ones(1, 3), "m.B": torch.ones(4, 1)}
    sent = replace(update("a"), delta={"m.A": torch.full((1, 3), 2.0), "m.B": torch.zeros(4, 1)})
    updates = Updates([sent, update("b", 5.0)], EXPECTED, starts={"a": low})
    trained = {each.client_id: updates.trained(each) for each in updates}
    assert trained["a"]["m.A"].tolist() == [[3.0] * 3]
    assert trained["b"]["m.A"][0, 0] == 5
    assert not updates.alike
    with pytest.raises(ConfigError, match="several ranks"):
        Updates([sent, update("b", 5.0)], EXPECTED, starts={"a": low}).mean()


def test_a_change_reaches_everything_that_leaves_the_client():
    sent = update("a", extra={"c": torch.tensor([1.0])}).map(lambda name, tensor: 2 * tensor)
    assert sent.delta["m.A"][0, 0] == 2
    assert sent.extra["c"].tolist() == [2.0]


def test_observers_hear_the_norm_and_everybody_shares_one_mean():
    heard = []
    updates = Updates([update("a", 2.0), update("b", 4.0)], EXPECTED, lambda u, norm: heard.append(norm))
    mean = updates.mean()
    assert heard == pytest.approx([2 * 14**0.5, 4 * 14**0.5])
    assert mean.delta is updates.deltas.value()
    assert isinstance(mean.delta, Flat)


def test_a_strategy_that_reads_every_update_leaves_the_mean_to_others():
    updates = Updates([update("a", 1.0, 1), update("b", 4.0, 2)], EXPECTED)
    assert [isinstance(u.delta, Flat) for u in updates] == [True, True]
    assert updates.deltas.value()["m.B"][0, 0] == 3.0


def test_deltas_of_several_dtypes_are_averaged_too():
    odd = changed(update("a", 2.0), m_B=torch.full((4, 2), 2.0, dtype=torch.float64))
    assert Updates([odd, update("b", 4.0)], EXPECTED).mean().delta["m.A"][0, 0] == 3.0


def test_participation_is_the_weight_of_who_delivered_among_the_whole_federation():
    weights = {"a": 10.0, "b": 30.0, "c": 40.0, "absent": 20.0}
    bad = changed(update("c"), m_A=torch.full((2, 3), float("nan")))
    sent = [update("a", 1.0, 10), ClientFailure("x", 1, "gone"), bad, update("b", 2.0, 30)]
    updates = Updates(sent, EXPECTED, weights=weights)
    assert updates.participation == 0
    mean = updates.mean()
    assert updates.participation == 0.4
    # a sum over all clients, of which the cohort's part is this
    assert updates.participation * mean.delta["m.A"][0, 0] == pytest.approx((10 * 1 + 30 * 2) / 100)


def test_a_cohort_of_unknown_federation_is_all_of_it():
    updates = Updates([update("a")], EXPECTED)
    updates.mean()
    assert updates.participation == 1


def usual(count=5, seed=0):
    """Return updates of clients that learnt much the same, of different lengths as their rows are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        replace(
            update(f"c{i}"),
            delta={n: (i + 1) * torch.randn(t.shape, generator=generator) for n, t in EXPECTED.items()},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("place", [0, 3, 30])
def test_an_update_out_of_all_proportion_is_screened_out_wherever_it_comes(place):
    honest = usual(30)
    huge = replace(update("huge"), delta={n: t * 1e6 for n, t in honest[0].delta.items()})
    updates = Updates([*honest[:place], huge, *honest[place:]], EXPECTED, most_norm=100.0)
    seen = [one.client_id for one in updates]
    assert seen == [one.client_id for one in honest]
    assert "more than 100 times the median" in updates.failures[0].reason
    assert updates.rejected == {"huge"}


def test_an_extra_out_of_all_proportion_is_screened_out():
    honest = [replace(one, extra={"c": torch.ones(3)}) for one in usual()]
    huge = replace(usual(1, seed=9)[0], client_id="huge", extra={"c": torch.full((3,), 1e9)})
    updates = Updates([*honest, huge], EXPECTED, most_norm=100.0)
    assert updates.mean().extra["c"].tolist() == [1.0] * 3
    assert "changes what goes with it" in updates.failures[0].reason


def test_a_copy_counts_once_and_what_nobody_moved_is_no_copy():
    honest = usual()
    copy = replace(honest[2], client_id="copycat")
    still = [replace(update(name, 0.0)) for name in ("still", "idle")]
    updates = Updates([*honest, copy, *still], EXPECTED, most_norm=100.0)
    assert [one.client_id for one in updates] == ["c0", "c1", "c2", "c3", "c4", "still", "idle"]
    assert [f"{f.client_id}: {f.reason}" for f in updates.failures] == [
        "copycat: the update is a copy of that of c2"
    ]


def test_steps_of_one_size_in_other_directions_are_no_copies():
    """One step of Adam moves every entry by plus or minus the rate: norms and sums of clients are the same."""
    layout = {name: tensor.numel() for name, tensor in EXPECTED.items()}
    steps = {name: torch.tensor([1e-3, -1e-3] * count)[:count] for name, count in layout.items()}
    clients = [
        replace(update(f"c{k}", 0.0), delta={n: t.roll(k).view(EXPECTED[n].shape) for n, t in steps.items()})
        for k in range(2)
    ]
    assert len(list(Updates(clients, EXPECTED, most_norm=100.0))) == 2


def test_two_updates_say_nothing_of_what_is_usual():
    one, other = usual(2)
    other = replace(other, delta={n: 1e6 * t for n, t in other.delta.items()})
    assert len(list(Updates([one, other], EXPECTED, most_norm=10.0))) == 2


def test_who_weighs_more_than_it_can_or_scales_as_it_was_not_told_is_screened_out():
    heavy, odd = replace(update("heavy"), weight=1000.0), replace(update("odd"), scale=50.0)
    updates = Updates(
        [heavy, odd, update("good", 2.0)], EXPECTED, heaviest={"heavy": 10.0, "good": 1.0}, scales={"odd": 2.0}
    )
    assert updates.mean().delta["m.A"][0, 0] == 2
    assert [f.reason for f in updates.failures] == [
        "weight is 1000; it can be 10 at most",
        "its adapter is scaled by 50; expected 2",
    ]


def test_layouts_of_what_strangers_send_are_forgotten():
    from fedit import tensors

    before = len(tensors._layouts)
    for number in range(20):
        stranger = replace(update("bad"), delta={f"x{number}": torch.ones(1)})
        list(Updates([stranger], EXPECTED))
        assert tensors.layout_of({f"y{number}": torch.ones(1)}).size == 1
    assert len(tensors._layouts) <= before + 1
