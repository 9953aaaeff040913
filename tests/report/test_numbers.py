import math

import pytest

from fedit.report.numbers import Estimate, estimate_text, natural_order, number_text, tick_texts, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 24), (1, 1), (10, 24), (5, 8), (48, 48), (7, 1000)])
def test_wilson_ends_are_where_the_score_test_just_rejects(right, total):
    z = 1.959964
    estimate = wilson(right, total)
    share = right / total
    assert estimate.value == share
    for end in (estimate.low, estimate.high):
        assert end is not None
        if 0 < end < 1:  # (share - p)² = z² p (1 - p) / n defines the ends
            assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / total)
    assert 0 <= estimate.low <= share <= estimate.high <= 1
    assert estimate.low < estimate.high


@pytest.mark.parametrize(("right", "total"), [(0, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_what_is_no_share(right, total):
    with pytest.raises(ValueError, match="no share"):
        wilson(right, total)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".3f", "—"),
        (math.nan, ".3f", "not a number"),
        (-math.inf, "", "-∞"),
        (0.98137, ".3f", "0.981"),
        (6699.0, ",d", "6,699"),
        (0.4167, ".1%", "41.7%"),
        (313e6, "bytes", "313 MB"),
        (999_999, "bytes", "1 MB"),
        (12, "bytes", "12 B"),
        (6699, "compact", "6.7k"),
        (40.6, "duration", "40.6 s"),
        (3725, "duration", "1 h 2 min"),
        (59.99, "duration", "60 s"),
        (120, "duration", "2 min"),
        (12345.6, "", "12,346"),
        (0.002, "", "0.002"),
        (3.0, "", "3"),
    ],
)
def test_numbers_read_well(value, form, text):
    assert number_text(value, form) == text


def test_intervals_are_written_with_their_estimate():
    assert estimate_text(Estimate(0.5, 0.25, 0.75), ".0%") == "50% [25%, 75%]"
    assert estimate_text(Estimate(0.5), ".0%") == estimate_text(Estimate(0.5, math.nan, 1.0), ".0%") == "50%"


@pytest.mark.parametrize(
    ("ticks", "form", "texts"),
    [
        ([0, 0.25, 0.5], ".3f", ["0.00", "0.25", "0.50"]),
        ([0, 0.5, 1], ".3f", ["0.0", "0.5", "1.0"]),
        ([0, 0.05, 0.1], ".1%", ["0%", "5%", "10%"]),
        ([0, 0.002, 0.004], ".1%", ["0.0%", "0.2%", "0.4%"]),
        ([0, 5000, 10000], "compact", ["0", "5k", "10k"]),
        ([1, 2], ",d", ["1", "2"]),
        ([1e-7, 2e-7], "", ["1e-07", "2e-07"]),
        ([3], ".3f", ["3"]),
    ],
)
def test_ticks_have_the_digits_that_tell_them_apart(ticks, form, texts):
    assert tick_texts(ticks, form) == texts


def test_names_sort_by_their_numbers():
    names = ["client-10", "client-2", "client-02", "", "client", "2" * 5000, "3"]
    ordered = sorted(names, key=natural_order)
    assert ordered.index("client-2") < ordered.index("client-10")
    assert ordered.index("3") < ordered.index("2" * 5000)
