import csv
import json

import pytest

from fedit.data.manifest import Partition


@pytest.fixture
def flawed(tmp_path):
    """A CSV file with two repeated rows, one empty answer and one contradiction."""
    rows = [(f"Name city {i}", f"It is city {i}.", "geo" if i % 3 else "math") for i in range(30)]
    rows += [*rows[:2], ("What is missing?", "", "geo"), ("Name city 5", "Another.", "geo")]
    path = tmp_path / "flawed.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer", "category"), *rows])
    return path


@pytest.fixture
def job(tiny, flawed):
    return [
        f"dataset={flawed}", "columns.instruction=question", "columns.response=answer", f"model={tiny}",
        "num_clients=3", "held_out=2", "max_length=128",
    ]  # fmt: skip


def read(outcome):
    return json.loads(outcome.out)


def test_a_check_counts_findings_and_says_where(fedit, job):
    outcome = fedit("data", "check", *job, "--json")
    assert outcome.code == 0
    found = {finding["name"]: finding for finding in read(outcome)["findings"]}
    assert {name: f["count"] for name, f in found.items() if f["count"]} == {
        "empty_answers": 1,
        "duplicate_rows": 2,
        "ambiguous_prompts": 2,
    }
    assert found["empty_answers"]["where"][0].endswith("flawed.csv:34")
    assert all(finding["advice"] for finding in found.values())


def test_a_check_tells_what_a_run_would_use(fedit, job):
    content = read(fedit("data", "check", *job, "--json"))
    assert content["rows"] == 34
    assert content["refused"] is None
    assert content["run"]["removed"]["duplicate"] == 2
    assert content["run"]["removed"]["empty_answer"] == 1
    assert content["run"]["training_rows"] + content["run"]["held_out_rows"] == 31
    assert content["lengths"]["max"] >= content["supervised_lengths"]["max"] > 0


def test_the_supervised_part_of_an_example_stands_between_marks(fedit, job):
    outcome = fedit("data", "check", *job)
    assert outcome.code == 0
    assert "flawed.csv:2, as it is learnt" in outcome.out
    assert "«It is city 0.<|im_end|>»" in outcome.out
    assert "\x1b" not in outcome.out


def test_as_many_examples_are_shown_as_asked_for(fedit, job):
    assert len(read(fedit("data", "check", *job, "--json", "--examples", 5))["examples"]) == 5
    assert read(fedit("data", "check", *job, "--json", "--examples", 0))["examples"] == []


def test_cut_rows_are_found(fedit, job):
    outcome = fedit("data", "check", *job, "max_length=24")
    assert outcome.code == 0
    assert "raise max_length" in outcome.out


def test_a_check_of_what_a_run_would_refuse_leaves_with_2(fedit, job):
    outcome = fedit("data", "check", *job, "num_clients=50", "--json")
    assert outcome.code == 2
    content = read(outcome)
    assert content["run"] is None
    assert "50 clients are asked for" in content["refused"]
    assert content["refused"] in outcome.err
    assert content["findings"]


def test_rows_that_cannot_be_read_are_refused_at_once(fedit, tiny, flawed):
    outcome = fedit("data", "check", f"dataset={flawed}", f"model={tiny}", "--json")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "columns.instruction=FIELD" in outcome.err


def test_a_job_file_is_read_and_overridden(fedit, job, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("num_clients: 4\n" + "".join(f"{k}: {v}\n" for k, v in (text.split("=") for text in job[3:4])))
    content = read(fedit("data", "partition", path, *job, "num_clients=2", "--json"))
    assert content["num_clients"] == 2


def test_a_partition_is_shown_with_its_counts(fedit, job):
    outcome = fedit("data", "partition", *job, "partitioner=dirichlet", "min_examples=2")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["client", "geo", "math", "all"]
    cells = [line.split() for line in lines[1:5]]
    counts = [[int(cell.replace("·", "0")) for cell in row[1:]] for row in cells]
    assert all(geo + math == total for geo, math, total in counts)
    assert [sum(column) for column in zip(*counts[:3], strict=True)] == counts[3]
    assert "Jensen-Shannon" in outcome.out


def test_many_clients_are_shown_by_category(fedit, tiny, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"do {i}", "output": "x", "category": f"c{i % 4}"} for i in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = fedit("data", "partition", f"dataset={path}", f"model={tiny}", "num_clients=40", "held_out=1")
    assert outcome.code == 0
    assert "40 clients" in outcome.out
    assert "client-0" not in outcome.out


def test_many_categories_are_shown_by_client(fedit, tiny, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"do {i}", "output": "x", "category": f"category {i % 20}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = fedit("data", "partition", f"dataset={path}", f"model={tiny}", "num_clients=3", "held_out=1")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["client", "rows", "categories", "most", "of"]


def test_a_written_partition_can_be_followed(fedit, job, tmp_path):
    folder = tmp_path / "dealt"
    dealt = fedit(
        "data", "partition", *job, "partitioner=label_count", "labels_per_client=1", "--out", folder, "--json"
    )
    content = read(dealt)
    assert [path.rpartition(".")[2] for path in content["files"]] == ["json", "png", "svg"]
    assert Partition.load(folder / "partition.json").hash == content["hash"]
    again = [text for text in job if not text.startswith("num_clients")]
    followed = fedit(
        "data",
        "partition",
        *again,
        "partitioner=manifest",
        f"partition_file={folder / 'partition.json'}",
        "--json",
    )
    assert read(followed)["hash"] == content["hash"]


def test_rows_without_categories_get_no_pictures(fedit, tiny, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"do {i}", "output": "x"}) + "\n" for i in range(20)))
    outcome = fedit(
        "data", "partition", f"dataset={path}", f"model={tiny}", "num_clients=2", "--out", tmp_path / "out"
    )
    assert outcome.code == 0
    assert "no categories to draw" in outcome.err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["partition.json"]


def test_statistics_add_up(fedit, job):
    content = read(fedit("data", "stats", *job, "--json"))
    categories, everything = content["categories"], content["all"]
    assert set(categories) == {"geo", "math"}
    for name in ("training", "validation", "held_out", "tokens"):
        assert sum(found[name] for found in categories.values()) == everything[name]
    assert everything["training"] == content["training_rows"]
    assert 0 < everything["supervised_share"] < 1
    assert list(everything["lengths"]) == ["min", "median", "90%", "95%", "99%", "max"]


def test_statistics_are_a_table_for_people(fedit, job):
    outcome = fedit("data", "stats", *job)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split()[:4] == ["category", "training", "validation", "held-out"]
    assert "removed: 2 duplicate, 1 without an answer" in outcome.out


def test_a_typing_error_in_a_setting_is_explained(fedit):
    outcome = fedit("data", "stats", "num_client=3")
    assert outcome.code == 2
    assert "did you mean 'num_clients'?" in outcome.err
