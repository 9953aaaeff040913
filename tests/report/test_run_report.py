"""The report on a run: what its folder says is what the report says."""

import json
import subprocess
import sys

import pytest
from runfolders import HOSTILE, write_run

from fedit.errors import RunFolderError
from fedit.report.document import Figure, Headline, Note, SideBySide, Table
from fedit.report.numbers import Estimate, wilson
from fedit.report.run_report import run_report
from fedit.report.sections.clients import Holding, clients_section, partition_section
from fedit.report.sections.curves import ArmCurve, ClientLosses, curves_section, thinned
from fedit.report.sections.results import (
    ComparisonRow,
    JudgedPair,
    Judgement,
    Metric,
    comparison_section,
    judge_section,
    plain_name,
)
from fedit.report.sections.rounds import communication_section, rounds_section
from fedit.report.write import write_report


def section(document, anchor):
    return next(section for section in document.sections if section.anchor == anchor)


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def figure(section, name):
    return next(block for block in blocks(section, Figure) if block.name == name)


def test_a_run_has_all_sections(make_run):
    document = run_report(make_run())
    assert [section.anchor for section in document.sections] == [
        "summary", "setup", "comparison", "partition", "curves", "clients", "rounds", "communication", "examples",
        "privacy",
    ]  # fmt: skip
    assert document.title == "a-run"
    assert document.subtitle == "fedit over 3 clients and 3 rounds: tiny on rows.jsonl"


def test_the_headline_says_what_came_out(make_run):
    (headline,) = blocks(section(run_report(make_run()), "summary"), Headline)
    assert headline.sentence == (
        "3 rounds over 3 clients lowered the held-out loss from 2.000 to 0.500 and raised exact match from 0.0% "
        "to 62.5%. Clients trained alone reached at best 0.800 and 25.0%, training in one place 0.700 and 12.5%."
    )
    assert {fact.name: fact.value for fact in headline.numbers}["traffic"] == "12 MB"


def test_the_comparison_has_intervals_over_the_held_out_rows(make_run):
    (table,) = blocks(section(run_report(make_run()), "comparison"), Table)
    assert [row.cells[0] for row in table.rows] == ["base", "federated", "centralised", "local:client-0"]
    assert table.rows[1].cells[1:] == (0.5, wilson(5, 8), 3000.0)
    assert [row.emphasis for row in table.rows] == [False, True, False, False]


def test_what_was_run_tells_changed_settings_from_defaults(make_run):
    changed, same = blocks(section(run_report(make_run(settings={"lora_r": 4})), "setup"), Table)
    assert ("lora_r", "4", "16") in [row.cells for row in changed.rows]
    assert "seed" in [row.cells[0] for row in same.rows]


def test_the_adapter_that_was_kept_is_the_one_that_is_reported(make_run):
    folder = make_run()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "adapter_round": 1}))
    (headline,) = blocks(section(run_report(folder), "summary"), Headline)
    assert "from 2.000 to 1.500" in headline.sentence


def test_answers_come_in_the_order_of_the_arms_with_differences_marked(make_run):
    first = blocks(section(run_report(make_run()), "examples"), SideBySide)[0]
    assert [answer.arm for answer in first.answers] == ["base", "federated", "centralised", "local:client-0"]
    assert [piece.text for piece in first.answers[1].pieces if piece.new] == ["83"]


def test_a_run_without_baselines_or_answers_has_fewer_sections(make_run):
    folder = make_run(arms=(), answers=(), clients=("only",), categories=(), rounds=1)
    (folder / "answers.json").unlink()
    (folder / "partition-counts.json").unlink()
    (folder / "partition.json").write_text(json.dumps({"clients": {"only": ["a", "b"]}}))
    document = run_report(folder)
    anchors = {section.anchor for section in document.sections}
    assert not anchors & {"comparison", "examples"}
    assert "1 clients hold 2 training rows" in section(document, "partition").blocks[0].text


def test_failures_and_rounds_that_changed_nothing_are_told(make_run):
    found = section(run_report(make_run(failures=(("client-1", "out of memory"),))), "rounds")
    assert "round 1, 2, 3" in blocks(found, Note)[0].text
    reasons = next(table for table in blocks(found, Table) if table.caption == "Why updates failed")
    assert reasons.rows[0].cells == ("out of memory", 3, "client-1")


def test_interruptions_and_early_stops_are_told(make_run):
    folder = make_run()
    with open(folder / "events.jsonl", "a", encoding="utf-8") as log:
        for name in ("resumed", "resumed", "stopped_early"):
            log.write(json.dumps({"event": name, "round": 2}) + "\n")
    text = section(run_report(folder), "rounds").blocks[0].text
    assert "resumed 2 times" in text
    assert "stopped early" in text


def test_a_run_that_diverged_says_so(make_run, tmp_path):
    document = run_report(make_run(loss=None))
    assert "diverged" in blocks(section(document, "summary"), Note)[0].text
    write_report(document, tmp_path / "out", pdf=False)


def test_more_sections_come_after_the_comparison(make_run):
    judged = judge_section(Judgement("a judge", (), {}))
    anchors = [section.anchor for section in run_report(make_run(), [judged]).sections]
    assert anchors.index("judge") == anchors.index("comparison") + 1


@pytest.mark.parametrize(
    ("missing", "message"),
    [("run.json", "no run.json"), ("summary.json", "fedit resume"), ("events.jsonl", "no evaluation")],
)
def test_what_is_no_finished_run_is_refused(make_run, missing, message):
    folder = make_run()
    (folder / missing).unlink()
    with pytest.raises(RunFolderError, match=message):
        run_report(folder)


@pytest.mark.parametrize("name", ["summary.json", "resolved.yaml", "run.json", "answers.json", "environment.json"])
def test_files_that_cannot_be_read_are_named(make_run, name):
    folder = make_run()
    (folder / name).write_text("{")
    with pytest.raises(RunFolderError, match=name):
        run_report(folder)


def test_all_files_are_written(make_run, tmp_path):
    document = run_report(make_run())
    page = write_report(document, tmp_path / "out")
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"report.html", "report.md", "report.json", "figures"}
    drawn = {path.name for path in (page.parent / "figures").iterdir()}
    assert drawn == {f"{figure.name}.{kind}" for figure in document.figures() for kind in ("svg", "pdf")}
    content = json.loads((page.parent / "report.json").read_text())
    assert content["title"] == "a-run"


def test_the_same_run_gives_the_same_files(make_run, tmp_path):
    folder = make_run(clients=HOSTILE, categories=HOSTILE, answers=HOSTILE)
    first = write_report(run_report(folder), tmp_path / "one", pdf=False).parent
    second = write_report(run_report(folder), tmp_path / "two", pdf=False).parent
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_many_clients_categories_arms_and_rounds_stay_readable(tmp_path):
    folder = write_run(
        tmp_path / "many",
        clients=tuple(f"hospital-{i}" for i in range(200)),
        categories=tuple(f"category {i}" for i in range(60)),
        arms=tuple(f"local:hospital-{i}" for i in range(12)),
        rounds=250,
    )
    document = run_report(folder)
    held = figure(section(document, "partition"), "partition").chart
    assert len(held.rows) <= 40
    assert len(held.columns) == 20
    assert held.columns[-1] == "41 others"
    assert sum(held.totals) * 5 == pytest.approx(sum(10 + i for i in range(200)))
    curves = section(document, "curves")
    assert len(figure(curves, "curves").chart.series) == 8
    assert all(len(series.points) <= 200 for series in figure(curves, "curves").chart.series)
    assert len(figure(curves, "curves-categories").chart.panels) == 12
    assert len(figure(section(document, "communication"), "traffic").chart.labels) <= 120
    assert write_report(document, tmp_path / "out", pdf=False).stat().st_size < 1_500_000


def test_a_report_needs_neither_torch_nor_matplotlib(make_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from fedit.report.run_report import run_report; "
        "from fedit.report.write import write_report; "
        f"write_report(run_report(Path({str(make_run())!r})), Path({str(tmp_path / 'out')!r}), pdf=False); "
        "print(*(name for name in ('torch', 'transformers', 'matplotlib', 'numpy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- sections by themselves ---


def test_a_comparison_draws_every_metric_that_has_intervals():
    metrics = [Metric("Rouge L!", "ROUGE-L", ".3f", "highest"), Metric("loss", "loss", ".3f", "lowest")]
    rows = [
        ComparisonRow("base", {"Rouge L!": Estimate(0.2, 0.1, 0.3), "loss": Estimate(2.0)}),
        ComparisonRow("federated", {"Rouge L!": Estimate(0.4, 0.3, 0.5)}, emphasis=True),
    ]
    found = comparison_section(rows, metrics, notes=["Intervals over seeds."])
    (table,) = blocks(found, Table)
    assert table.rows[1].cells == ("federated", Estimate(0.4, 0.3, 0.5), None)
    assert [figure.name for figure in blocks(found, Figure)] == ["comparison-rouge-l"]


def test_a_judgement_is_shown_with_its_doubts():
    pair = JudgedPair("federated", "base", 80, 50, 10, 20, Estimate(0.6875, 0.58, 0.78))
    judged = Judgement("model X", (pair,), {"base": Estimate(5.5, 5.0, 6.0)}, warning="Prefers the first answer.")
    found = judge_section(judged)
    assert blocks(found, Note)[0].kind == "warning"
    pairs, scores = blocks(found, Table)
    assert pairs.rows[0].cells == ("federated", "base", 80, 50, 10, 20, pair.win_rate)
    assert scores.rows[0].cells == ("base", Estimate(5.5, 5.0, 6.0))
    assert figure(found, "judge-wins").chart.references[0].value == 0.5


def test_clients_of_many_are_drawn_by_their_middle_and_extent():
    losses = {f"c{i}": float(i) for i in range(11)}
    found = curves_section([], clients=[ClientLosses(0, losses, 5.0, 10.0), ClientLosses(1, losses, 5.0, 10.0)])
    median, worst = figure(found, "curves-clients").chart.series
    assert median.points == ((0, 5.0), (1, 5.0))
    assert median.band == ((0, 1.0, 9.0), (1, 1.0, 9.0))
    assert worst.points == ((0, 10.0), (1, 10.0))


def test_clients_too_many_to_name_are_drawn_by_mean_and_worst_tenth():
    found = curves_section([], clients=[ClientLosses(0, {}, 2.0, 3.0), ClientLosses(1, {}, 1.0, None)])
    mean, worst = figure(found, "curves-clients").chart.series
    assert (mean.points, worst.points) == (((0, 2.0), (1, 1.0)), ((0, 3.0), (1, None)))


def test_each_client_has_its_loss_beside_the_categories_it_holds():
    holdings = {"client-10": Holding(5, {"a": 5}), "client-2": Holding(7, {"b": 7})}
    per_client = {"client-10": 1.0, "client-2": 3.0}
    found = clients_section(
        holdings, {"a": 1.0, "b": 3.0}, {"client-10": 2.0, "client-2": 2.5}, per_client, measured=False
    )
    chart = figure(found, "clients").chart
    assert chart.rows == ("client-2", "client-10")
    assert chart.values == ((None, 3.0), (1.0, None))
    assert chart.totals == (3.0, 1.0)
    assert "for 1 of 2 clients" in found.blocks[0].text
    (table,) = blocks(found, Table)
    assert [row.cells[0] for row in table.rows] == ["client-2", "client-10"]  # gains least first
    assert clients_section(holdings, {}, {}, {}, measured=False) is None


def test_sections_of_nothing_are_made():
    for found in (
        partition_section({}, {}, "iid"), rounds_section([]), communication_section([]), curves_section([]),
        curves_section([ArmCurve("federated", ())]), comparison_section([], []),
    ):  # fmt: skip
        assert found.title


def test_thinned_points_keep_the_ends():
    points = tuple((float(i), None) for i in range(1001))
    kept = thinned(points)
    assert len(kept) <= 200
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:200]) == points[:200]


def test_plain_names_are_made_of_any_text():
    assert [plain_name(text) for text in ("Exact match", "ROUGE-L!", "../x", "4 bit", "名")] == [
        "exact-match", "rouge-l", "x", "n-4-bit", "unnamed",
    ]  # fmt: skip
