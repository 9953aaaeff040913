"""Error feedback: what was sent and what is kept add up to what was learnt, and nothing stale comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.transforms import build_transforms
from fedit.transforms.chain import receive, send
from fedit.types import ClientUpdate

SHAPES = {"m.A": (4, 9), "m.B": (7, 4)}


def delta(seed, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


def go(options, deltas):
    """Send deltas by round; return what arrived, by round, and the memory at the end."""
    transforms = build_transforms([{"top_k": options}])
    memory, arrived = {}, {}
    for round, own in deltas.items():
        sent, memory = send(transforms, ClientUpdate("a", round, 1, 1.0, own), memory, round)
        arrived[round] = receive(transforms, sent).delta
    return arrived, memory


def unsent(memory):
    return {name.removeprefix("0.unsent."): tensor for name, tensor in memory.items() if ".unsent." in name}


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.integers(1, 6), st.sampled_from([16, 32]))
@settings(max_examples=40, deadline=None)
def test_what_was_sent_and_what_is_kept_are_what_was_learnt(seed, fraction, rounds, bits):
    deltas = {round: delta(seed + round) for round in range(1, rounds + 1)}
    arrived, memory = go({"fraction": fraction, "value_bits": bits}, deltas)
    kept = unsent(memory)
    for name in SHAPES:
        learnt = sum(own[name] for own in deltas.values())
        sent = sum(own[name] for own in arrived.values())
        torch.testing.assert_close(sent + kept[name], learnt, rtol=0, atol=1e-12)


def test_everything_is_sent_sooner_or_later():
    """A client that learns nothing more sends the rest, a part a round."""
    deltas = {
        1: delta(0),
        **{round: {n: torch.zeros_like(t) for n, t in delta(0).items()} for round in range(2, 12)},
    }
    arrived, memory = go({"fraction": 0.1, "value_bits": 32}, deltas)
    for name in SHAPES:
        torch.testing.assert_close(sum(own[name] for own in arrived.values()), delta(0)[name], rtol=0, atol=0)
        assert not unsent(memory)[name].any()


def test_without_feedback_nothing_is_kept():
    arrived, memory = go({"fraction": 0.1, "feedback": False}, {1: delta(0), 2: delta(1)})
    assert not memory
    alone, _ = go({"fraction": 0.1, "feedback": False}, {2: delta(1)})
    assert all(torch.equal(arrived[2][name], alone[2][name]) for name in SHAPES)


@pytest.mark.parametrize(("gap", "factor"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_what_is_kept_fades_with_the_rounds_that_were_missed(gap, factor):
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    options = {"fraction": 1e-9, "decay": 0.5, "value_bits": 32}  # one entry a round
    _, before = go(options, {3: delta(0)})
    arrived, after = go(options, {3: delta(0), 3 + gap: zeros})
    for name in SHAPES:
        whole = arrived[3 + gap][name] + unsent(after)[name]
        torch.testing.assert_close(whole, factor * unsent(before)[name], rtol=1e-12, atol=0)


def test_tensors_that_do_not_leave_in_a_round_keep_theirs():
    only_b = {"m.B": delta(1)["m.B"]}
    options = {"fraction": 0.1, "value_bits": 32}
    _, before = go(options, {1: delta(0)})
    arrived, after = go(options, {1: delta(0), 2: only_b})
    assert set(arrived[2]) == {"m.B"}
    assert torch.equal(unsent(after)["m.A"], unsent(before)["m.A"])


def test_what_was_kept_of_another_rank_is_dropped():
    other = delta(1, shapes={"m.A": (2, 9), "m.B": (7, 2)})
    arrived, memory = go({"fraction": 0.1}, {1: delta(0), 2: other})
    alone, _ = go({"fraction": 0.1}, {2: other})
    assert all(torch.equal(arrived[2][name], alone[2][name]) for name in other)
    assert {name: tuple(t.shape) for name, t in unsent(memory).items()} == {"m.A": (2, 9), "m.B": (7, 2)}


def test_transforms_that_remember_do_not_meet():
    """What each remembers has a name of its own, and the ones without memory get none."""
    transforms = build_transforms([{"top_k": {}}, {"quantize": {}}, {"zstd": {}}])
    _, memory = send(transforms, ClientUpdate("a", 1, 1, 1.0, delta(0, torch.float32)), {}, 0)
    assert all(name.startswith("0.") for name in memory)
