"""Tasks on arms: what the harness finds, kept and read again, and how arms differ item by item."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import fedit.harness.run
from fedit.errors import ConfigError, RunFolderError, UnknownName
from fedit.evaluation.constraints import Constraint, constraint_report
from fedit.evaluation.intervals import bootstrap
from fedit.harness import bench
from fedit.harness.ifeval import process_results, share
from fedit.harness.run import choose_arms

EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmarks"
FACTS = str(EXAMPLES / "facts.yaml")
CHOICE = {
    "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["red", "blue"],
    "doc_to_target": "a", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
ROWS = [{"q": f"Question {number}:", "a": number % 2} for number in range(12)]


@pytest.fixture(scope="module")
def examples(arms, tmp_path_factory):
    """Return the two examples' summary, and the folder with it."""
    folder = tmp_path_factory.mktemp("bench")
    return bench(arms, [FACTS, str(EXAMPLES / "rules.yaml")], out=folder), folder


def test_every_arm_has_the_harness_numbers_with_their_errors(examples):
    summary, folder = examples
    assert json.loads((folder / "bench.json").read_text()) == summary
    assert summary["reference"] == "federated"
    assert summary["harness"]["version"].startswith("0.4.")
    facts = summary["tasks"]["facts"]
    assert (facts["version"], facts["documents"], facts["of"], facts["fewshot"]) == ("1.0", 8, 8, 0)
    acc = facts["metrics"]["acc,none"]
    assert acc["higher_is_better"] is True
    for arm in ("base", "federated", "centralised"):
        value, stderr = acc["arms"][arm].values()
        assert value * 8 == round(value * 8)
        assert stderr == pytest.approx(math.sqrt(value * (1 - value) / 7))
    assert acc["reference_minus"].keys() == {"base", "centralised"}


def test_differences_are_paired_over_items(examples):
    summary, folder = examples
    items = {
        arm: json.loads((folder / "results" / arm / "facts.json").read_text())["items"]["acc,none"]
        for arm in ("federated", "base")
    }
    differences = [items["federated"][doc] - items["base"][doc] for doc in sorted(items["base"], key=int)]
    found = summary["tasks"]["facts"]["metrics"]["acc,none"]["reference_minus"]["base"]
    assert found["estimate"] == pytest.approx(np.mean(differences))
    wanted = bootstrap(differences)
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high))


def test_ifeval_metrics_are_those_of_fedits_own_report(examples):
    summary, folder = examples
    rows = [json.loads(line) for line in (EXAMPLES / "rules.jsonl").read_text().splitlines()]
    for arm in ("base", "federated"):
        kept = json.loads((folder / "results" / arm / "rules.json").read_text())
        cases = []
        for doc, row in enumerate(rows):
            pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
            cases.append((row["prompt"], [Constraint(id, own) for id, own in pairs], kept["answers"][str(doc)]))
        report = constraint_report(cases)
        numbers = summary["tasks"]["rules"]["metrics"]
        for kind in ("prompt", "instruction"):
            for how in ("strict", "loose"):
                value = numbers[f"{kind}_{how},none"]["arms"][arm]["value"]
                assert value == pytest.approx(getattr(report, f"{kind}_{how}"))
    assert "base" in numbers["instruction_loose,none"]["reference_minus"]


def test_constraints_are_marked_as_they_are_followed():
    doc = {
        "prompt": "p",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{"num_words": None}, {"keywords": ["rain"], "num_words": None}],
    }
    assert process_results(doc, ["No, sun"]) == {
        "instruction_strict": [False, False], "prompt_strict": False,
        "instruction_loose": [False, False], "prompt_loose": False,
    }  # fmt: skip
    assert process_results(doc, ["Sure, this:\nrain"])["instruction_strict"] == [False, True]
    assert process_results(doc, ["Sure, this:\nrain"])["instruction_loose"] == [True, True]
    assert share([[True, False], [True]]) == pytest.approx(2 / 3)


def test_a_language_that_cannot_be_told_leaves_the_prompt_out(monkeypatch):
    monkeypatch.setattr("fedit.evaluation.constraints.language.available", lambda: False)
    ids = ["language:response_language", "punctuation:no_comma"]
    doc = {"prompt": "p", "instruction_id_list": ids, "kwargs": [{"language": "de"}, {}]}
    assert process_results(doc, ["Ja"]) == {"instruction_strict": [True], "instruction_loose": [True]}


def test_what_is_there_is_not_asked_for_again(examples, arms, monkeypatch):
    summary, folder = examples
    heard = []
    monkeypatch.setattr(fedit.harness.run, "_measured", None)  # would fail where it is called
    again = bench(arms, [FACTS], out=folder, on_progress=lambda *told: heard.append(told))
    assert again["tasks"]["facts"] == summary["tasks"]["facts"]
    assert heard == [(arm, "facts", 0, 0) for arm in arms]


def test_other_questions_another_adapter_or_other_options_are_asked_anew(arms, write_task, tmp_path, monkeypatch):
    asked = []
    measure = fedit.harness.run._measured

    def counting(resident, arm, *others):
        asked.append(arm)
        return measure(resident, arm, *others)

    monkeypatch.setattr(fedit.harness.run, "_measured", counting)
    two = {"base": arms["base"], "federated": arms["federated"]}

    def calls(these, rows=ROWS, **options):
        asked.clear()
        bench(these, [write_task("colours", rows, **CHOICE)], out=tmp_path / "out", **options)
        return list(asked)

    assert calls(two) == ["base", "federated"]
    assert calls(two) == []
    assert calls({**two, "federated": arms["centralised"]}) == ["federated"]
    assert calls(two, rows=ROWS[::-1]) == ["base", "federated"]
    assert calls(two, limit=4) == ["base", "federated"]
    assert calls(two, limit=4, fewshot=2) == ["base", "federated"]
    assert calls(two, limit=4, fewshot=2, chat=True) == ["base", "federated"]


def test_a_call_goes_on_where_another_ended(arms, write_task, tmp_path, monkeypatch):
    path = write_task("colours", ROWS, **CHOICE)
    whole = bench(arms, [path], out=tmp_path / "whole")
    measure = fedit.harness.run._measured

    def dying(resident, arm, *others):
        if arm == "centralised":
            raise KeyboardInterrupt
        return measure(resident, arm, *others)

    monkeypatch.setattr(fedit.harness.run, "_measured", dying)
    with pytest.raises(KeyboardInterrupt):
        bench(arms, [path], out=tmp_path / "out")
    monkeypatch.setattr(
        fedit.harness.run, "_measured", lambda *of: pytest.fail(of[1]) if of[1] != "centralised" else measure(*of)
    )
    assert bench(arms, [path], out=tmp_path / "out") == whole
    place = tmp_path / "out" / "results" / "base" / "colours.json"
    place.write_text(json.dumps({"key": json.loads(place.read_text())["key"], "metrics": 3}))
    with pytest.raises(RunFolderError, match=r"colours\.json is damaged"):
        bench(arms, [path], out=tmp_path / "out")


def test_a_group_has_the_harness_mean_of_its_tasks(arms, write_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the harness reads data of names from the working directory
    write_task("few", ROWS[:4], **CHOICE)
    write_task("many", ROWS, **CHOICE)
    group = {"group": "both", "task": ["few", "many"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "both.yaml").write_text(json.dumps(group))
    summary = bench({"base": arms["base"]}, ["both"], out=tmp_path / "out", include=[tmp_path])
    few, many = (summary["tasks"][n]["metrics"]["acc,none"]["arms"]["base"]["value"] for n in ("few", "many"))
    assert summary["groups"]["both"]["tasks"] == ["few", "many"]
    found = summary["groups"]["both"]["metrics"]["acc,none"]["arms"]["base"]
    assert found["value"] == pytest.approx((4 * few + 12 * many) / 16)


@pytest.mark.parametrize(
    ("spec", "fields", "told"),
    [
        ("absent.yaml", None, "there is no task file absent.yaml"),
        ("own", {"task": ["a"]}, "has no single 'task'"),
        ("own", {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "names the data nowhere.jsonl"),
        ("own", {"output_type": "telepathy"}, "cannot be loaded"),
        ("own", {"doc_to_text": 3, "test_split": "absent"}, "cannot be loaded"),
        (
            "own",
            {"output_type": "generate_until", "generation_kwargs": {"do_sample": True, "temperature": 1.0}},
            "draws its answers",
        ),
        ("own", {"unsafe_code": True}, "runs programs that the model writes"),
    ],
)
def test_tasks_that_cannot_be_used_are_named_before_anything_is_asked(
    arms, write_task, tmp_path, spec, fields, told
):
    path = spec if fields is None else write_task(spec, ROWS, **{**CHOICE, **fields})
    with pytest.raises(ConfigError, match=told):
        bench(arms, [path], out=tmp_path / "out")


def test_a_task_without_metadata_has_no_version(arms, write_task, tmp_path):
    path = write_task("plain", ROWS[:2], **{**CHOICE, "metadata": None})
    summary = bench({"base": arms["base"]}, [path], out=tmp_path / "out")
    assert summary["reference"] == "base"
    assert summary["tasks"]["plain"]["documents"] == 2


@pytest.mark.slow  # the harness reads 14,000 task files to know its own names
def test_the_harness_own_tasks_need_their_data(arms, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="there is no task 'arc_easyy'; did you mean 'arc_easy'"):
        bench(arms, ["arc_easyy"], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="the data of task 'arc_easy' are not on this machine"):
        bench(arms, ["arc_easy"], out=tmp_path / "out")


def test_arms_are_chosen_by_name_or_kind(arms):
    found = {"federated": 1, "local:a": 2, "local:b": 3, "base": 0}
    assert list(choose_arms(found, [])) == ["base", "federated", "local:a", "local:b"]
    assert list(choose_arms(found, ["local", "base"])) == ["base", "local:a", "local:b"]
    with pytest.raises(UnknownName, match="locl"):
        choose_arms(found, ["locl"])
    with pytest.raises(UnknownName, match="federatd"):
        bench(arms, [FACTS], out=None, reference="federatd")
