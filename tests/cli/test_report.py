import json


def test_a_run_leaves_a_page_without_being_asked(tiny_run):
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "What each client gets" in page
    assert (tiny_run / "figures" / "partition.svg").is_file()
    assert not list(tiny_run.rglob("*.pdf"))  # these take seconds


def test_report_writes_all_forms_and_says_where(fedit, tiny_run, tmp_path):
    done = fedit("report", tiny_run, "--out", tmp_path / "paper")
    assert done.code == 0
    for name in ("report.html", "report.md", "report.json", "figures"):
        assert str(tmp_path / "paper" / name) in done.out.replace("\n", "")
        assert (tmp_path / "paper" / name).exists()
    assert (tmp_path / "paper" / "figures" / "curves.pdf").is_file()
    content = json.loads((tmp_path / "paper" / "report.json").read_text(encoding="utf-8"))
    anchors = [section["anchor"] for section in content["sections"]]
    assert {"summary", "comparison", "examples", "partition", "curves", "rounds"} <= set(anchors)


def test_the_partition_is_counted_by_client_and_category(tiny_run):
    counts = json.loads((tiny_run / "partition-counts.json").read_text(encoding="utf-8"))
    assert sorted(counts) == ["client-0", "client-1"]
    for held in counts.values():
        assert held["rows"] == sum(held["categories"].values()) > 0


def test_open_shows_the_page(fedit, tiny_run, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("typer.launch", lambda address: shown.append(address) or 0)
    assert fedit("report", tiny_run, "--out", tmp_path, "--open").code == 0
    assert shown == [(tmp_path / "report.html").resolve().as_uri()]


def test_where_no_browser_starts_the_page_is_named(fedit, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("typer.launch", lambda address: 1)
    done = fedit("report", tiny_run, "--out", tmp_path, "--open")
    assert done.code == 0
    assert "report.html" in done.err


def test_a_folder_without_a_run_is_the_users_mistake(fedit, tmp_path):
    done = fedit("report", tmp_path)
    assert done.code == 2
    assert "no run.json" in done.err
