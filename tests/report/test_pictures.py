import struct
import subprocess
import sys

import numpy as np
import pytest

from fedit.errors import ConfigError, DataError
from fedit.report.pictures import _means, category_curves, learning_curves, partition_figure

ARMS = {
    name: [(1e5 * i, 2.0 - 0.1 * i - 0.05 * arm) for i in range(5)]
    for arm, name in enumerate(["local", "fedavg", "fedprox", "flora", "centralised"])
}


def counts_of(clients, categories=8):
    return {
        f"client-{i:03d}": {f"category {j}": (i * j) % 5 * 30 for j in range(categories)} for i in range(clients)
    }


def size_of(path):
    """Width and height in pixels, from a PNG's header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("clients", [1, 4, 100])
def test_a_partition_is_drawn_a_thousand_pixels_wide(tmp_path, clients):
    partition_figure(counts_of(clients) | {"last": {"category 1": 3}}, tmp_path / "p.png")
    width, height = size_of(tmp_path / "p.png")
    assert width == 1000
    assert 200 < height < 1500


@pytest.mark.parametrize("clients", [400, 401, 10_000])
def test_thousands_of_clients_become_a_few_hundred_columns(tmp_path, clients):
    partition_figure(counts_of(clients, 4), tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn.count("<path") < 200  # one outline for all sizes
    assert len(drawn) < 200_000


def test_a_column_is_the_mean_of_its_clients():
    values = np.arange(10.0).reshape(5, 2)
    assert _means(values, 1).tolist() == values.tolist()
    assert _means(values, 2).tolist() == [[1, 2], [5, 6], [8, 9]]


def test_equal_pictures_are_equal_files(tmp_path):
    for name in ("one.svg", "two.svg", "one.png", "two.png"):
        partition_figure(counts_of(3, 3), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()


def test_many_categories_and_long_names_are_drawn_without_warnings(tmp_path):
    counts = {"x" * 80: {f"a rather long category, number {i}": 10_000 + i for i in range(40)}}
    partition_figure(counts, tmp_path / "p.png")
    assert size_of(tmp_path / "p.png")[0] == 1000


def test_names_are_text_and_never_formulas(tmp_path):
    partition_figure({"$\\frac{$": {"$x^{$": 1}}, tmp_path / "p.svg")
    learning_curves({"$\\bad{$": [(0, 1.0)]}, tmp_path / "c.svg", xlabel="$\\", ylabel="$$")


def test_curves_of_several_arms_are_drawn_with_references(tmp_path):
    learning_curves(ARMS, tmp_path / "c.png", xlabel="tokens", ylabel="held-out loss", reference={"base": 2.1})
    assert size_of(tmp_path / "c.png")[0] == 1000


def test_an_arm_without_points_does_not_stop_the_others(tmp_path):
    learning_curves({"a": [], "b": [(1, 2.0), (2, 1.5)]}, tmp_path / "c.svg", xlabel="round", ylabel="loss")
    assert (tmp_path / "c.svg").exists()


def test_categories_are_drawn_as_small_panels(tmp_path):
    category_curves(
        {name: ARMS for name in "abcd"} | {"e": {"fedavg": ARMS["fedavg"]}},
        tmp_path / "c.png",
        xlabel="tokens",
        ylabel="loss",
    )
    assert size_of(tmp_path / "c.png")[0] == 1000


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no clients with rows"):
        partition_figure({"x": {}}, tmp_path / "p.png")
    with pytest.raises(DataError, match="no curves"):
        learning_curves({"a": []}, tmp_path / "c.png", xlabel="x", ylabel="y")
    with pytest.raises(DataError, match="no curves"):
        category_curves({}, tmp_path / "c.png", xlabel="x", ylabel="y")


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"saved as \.png or \.svg"):
        learning_curves(ARMS, tmp_path / "c.gif", xlabel="x", ylabel="y")


def test_drawing_leaves_no_global_state(tmp_path):
    script = (
        "import sys, fedit.report.pictures as p; from pathlib import Path\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"p.partition_figure({{'x': {{'a': 1}}}}, Path({str(tmp_path / 'p.svg')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
