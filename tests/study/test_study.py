"""Whole tiny studies: what is trained, chosen and compared, and that nothing is done twice."""

import json

import numpy as np
import pytest
from tiny import write_rows

from fedit import settings
from fedit.errors import ConfigError, RunFolderError
from fedit.settings import Settings
from fedit.study import run as module
from fedit.study.expected import seconds_of_answers
from fedit.study.items import Items
from fedit.study.run import run_study
from fedit.study.summary import client_losses, read_seeds

QUICK = {"resamples": 50}


def study_of(**values):
    given = [f"study.{name}={json.dumps(value)}" for name, value in {**QUICK, **values}.items()]
    return settings.load(None, given).study


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A study with everything on: two rates, two seeds, two-turn questions."""
    folder = tmp_path_factory.mktemp("study")
    write_rows(folder / "rows.jsonl", 90)
    lines = [
        {"question_id": "q1", "category": "chat", "turns": ["Say hello.", "And again."]},
        {"question_id": "q2", "turns": ["Count."], "reference": ["one two"]},
        {
            "question_id": "q3",
            "turns": ["Say nothing but x."],
            "constraints": [{"id": "punctuation:no_comma", "kwargs": {}}],
        },
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        config = settings.from_values(
            {
                "model": str(tiny),
                "device": "cpu",
                "dtype": "fp32",
                "dataset": str(folder / "rows.jsonl"),
                "prompt_template": "vicuna",
                "lora_r": 4,
                "lora_alpha": 8,
                "num_clients": 4,
                "partitioner": "label_count",
                "labels_per_client": 1,
                "clients_per_round": 2,
                "num_rounds": 2,
                "local_steps": 2,
                "batch_size": 4,
                "held_out": 3,
                "validation": 2,
                "max_length": 96,
                "max_new_tokens": 3,
                "eval_every": 2,
                "num_workers": 1,
            },
            "test",
        )
        study = study_of(
            seeds=2, learning_rates=[1e-9, 0.01], questions=[str(folder / "q.jsonl")], question_tokens=4
        )
        heard = []
        summary = run_study(Settings(config, {}, study), folder / "out", listener=heard.append)
        yield Settings(config, {}, study), folder / "out", summary, heard


def test_every_training_has_curves(finished):
    _, folder, _, _ = finished
    trained = list(folder.glob("seed-*/arms/*/*/events.jsonl"))
    assert len(list((folder / "tensorboard").iterdir())) == len(trained) > 0
    assert all(list(path.glob("events.out.tfevents.*")) for path in (folder / "tensorboard").iterdir())


def test_every_arm_has_numbers_with_intervals_and_differences(finished):
    _, folder, summary, _ = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    arms = summary["arms"]
    assert list(arms) == [
        "base", "local-1", "local-2", "local-3", "local_total-1", "local_total-2", "local_total-3",
        "centralised", "federated",
    ]  # fmt: skip
    for name, arm in arms.items():
        assert arm["seeds"] == 2
        for metric in ("loss", "token_accuracy", "exact_match", "rouge_l"):
            low, high = arm["ci"][metric]
            assert low <= arm[metric] <= high
            assert arm[metric] == pytest.approx(np.mean(arm["per_seed"][metric]))
        if name != "base":
            difference = arm["vs_base"]["loss"]
            assert difference["difference"] == pytest.approx(arm["loss"] - arms["base"]["loss"])
            assert difference["ci"][0] <= difference["difference"] <= difference["ci"][1]
    assert arms["federated"]["loss"] < arms["base"]["loss"]
    assert "vs_federated" in arms["centralised"]
    assert arms["federated"]["perplexity"] == pytest.approx(np.exp(arms["federated"]["loss"]))
    assert arms["base"]["tokens"] == 0


def test_categories_and_clients_have_intervals_and_paired_differences_too(finished):
    _, folder, summary, _ = finished
    arms, seeds = summary["arms"], read_seeds(folder, [0, 1])
    for name, arm in arms.items():
        losses = [client_losses(seed, name) for seed in seeds]
        assert arm["per_client"]["mean"] == pytest.approx(np.mean([list(own.values()) for own in losses]))
        for key in ("mean", "worst_decile"):
            low, high = arm["per_client"]["ci"][key]
            assert low <= arm["per_client"][key] <= high
        if name == "base":
            continue
        for key in ("mean", "worst_decile"):
            versus = arm["vs_base"][f"clients_{key}"]
            apart = arm["per_client"][key] - arms["base"]["per_client"][key]
            assert versus["difference"] == pytest.approx(apart)
            assert versus["ci"][0] <= versus["difference"] <= versus["ci"][1]
        for category, own in arm["per_category"].items():
            versus = own["vs_base"]["loss"]
            assert versus["difference"] == pytest.approx(
                own["loss"] - arms["base"]["per_category"][category]["loss"]
            )
            assert versus["ci"][0] <= versus["difference"] <= versus["ci"][1]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "by category: each arm minus the first federation" in text
    assert "clients, mean loss" in text


def test_budgets_are_equal(finished):
    arms = finished[2]["arms"]
    whole = arms["federated"]["tokens"]
    assert whole > 0
    for name in ("centralised", "local_total-1", "local_total-2"):
        # A round ends with the batch that fills its budget.
        assert whole <= arms[name]["tokens"] < 1.3 * whole
    assert arms["local-1"]["rounds"] == 2
    assert arms["local-1"]["tokens"] < whole
    # Who trains in one place sends nothing.
    assert arms["federated"]["bytes_up"] > 0
    assert all(arm["bytes_up"] == arm["bytes_down"] == 0 for name, arm in arms.items() if name != "federated")


def test_the_estimate_counts_what_is_then_done(finished):
    _, folder, summary, heard = finished
    estimates = [event for event in heard if event["event"] == "study_estimate"]
    assert [one["seeds"] for one in estimates] == [2, 1]
    trained = [len(list(folder.glob(f"seed-{seed}/arms/*/lr-*"))) for seed in (0, 1)]
    assert estimates[0]["trainings"] == sum(trained)
    assert estimates[1]["trainings"] == trained[1]
    each, arms = summary["held_out_rows"][0], len(summary["arms"])
    turns = 4
    assert [one["answers"] for one in estimates] == [arms * (2 * each + turns), arms * each]
    assert all(one["seconds"] > one["tokens"] / one["tokens_per_second"] for one in estimates)
    places = [heard.index(one) for one in estimates]
    assert "round" not in [event["event"] for event in heard[: places[0]]]  # before anything is trained


def test_the_time_of_answers_grows_with_their_number_and_length(monkeypatch):
    class Clock:
        workers, now = 2, 0.0

        def initial(self):
            return {}

        def answers(self, adapters, prompts, max_new_tokens):
            self.now += len(prompts) * (0.5 + 0.1 * (max_new_tokens - 1))

    class Rows:
        held_out = tuple(range(100))

        def prompts(self, rows):
            return [[1]] * len(rows)

    clock = Clock()
    monkeypatch.setattr("fedit.study.expected.time.perf_counter", lambda: clock.now)
    assert seconds_of_answers(Rows(), clock, [(10, 1)]) == pytest.approx(5.0)
    assert seconds_of_answers(Rows(), clock, [(10, 1), (3, 11)]) == pytest.approx(5.0 + 3 * 1.5)
    assert seconds_of_answers(Rows(), clock, []) == 0.0


def test_rates_are_chosen_on_validation_rows_at_the_first_seed_alone(finished):
    _, folder, summary, _ = finished
    assert all(arm["learning_rate"] in (None, 0.01) for arm in summary["arms"].values())
    first, second = (json.loads((folder / f"seed-{seed}" / "seed.json").read_text()) for seed in (0, 1))
    for tried in first["validation_losses"].values():
        losses = dict(tried)
        assert set(losses) == {1e-9, 0.01}
        assert losses[0.01] < losses[1e-9]
    assert all([rate for rate, _ in tried] == [0.01] for tried in second["validation_losses"].values())
    assert sorted(path.name for path in (folder / "seed-1/arms/federated").iterdir()) == ["lr-0.01"]


def test_losses_are_those_of_the_arms_own_last_evaluation(finished):
    _, folder, summary, _ = finished
    events = [
        json.loads(x) for x in (folder / "seed-0/arms/federated/lr-0.01/events.jsonl").read_text().splitlines()
    ]
    last = [event for event in events if event["event"] == "evaluation"][-1]
    assert summary["arms"]["federated"]["per_seed"]["loss"][0] == pytest.approx(last["loss"], rel=1e-5)
    seeds = read_seeds(folder, [0, 1])
    assert client_losses(seeds[0], "federated") == pytest.approx(last["per_client"], rel=1e-5)


def test_local_clients_are_of_one_category(finished):
    _, folder, summary, _ = finished
    counts = json.loads((folder / "seed-0/clients.json").read_text())
    own = [summary["arms"][f"local-{i}"]["clients"][0].partition(":")[2] for i in (1, 2)]
    kinds = [[name for name, count in counts[client].items() if count] for client in own]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds[0] != kinds[1]


def test_all_arms_answer_the_questions(finished):
    _, folder, _, _ = finished
    from fedit.evaluation.answerfiles import read_answers

    files = sorted((folder / "answers").glob("*.jsonl"))
    assert len(files) == 9
    for path in files:
        _, answered = read_answers(path)
        assert [len(one.answers) for one in answered] == [2, 1, 1]
        assert answered[1].reference == ("one two",)


def test_answers_to_questions_are_measured(finished):
    _, folder, summary, _ = finished
    from fedit.evaluation.answerfiles import read_answers
    from fedit.evaluation.measures import evaluate_answers
    from fedit.evaluation.questions import load_questions

    ((name, measured),) = summary["question_sets"].items()
    assert set(measured) == set(summary["arms"])
    questions = load_questions(name)
    for path in (folder / "answers").glob("*.jsonl"):
        arm, answered = read_answers(path)
        own = evaluate_answers(questions, answered)
        assert measured[arm]["overall"] == json.loads(json.dumps(own["overall"]))
        assert measured[arm]["overall"]["constraints"]["prompts"] == 1
        assert measured[arm]["overall"]["rouge_l"] is not None


def test_the_report_holds_all_of_it(finished):
    _, folder, summary, _ = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    titles = ("Summary", "What was run", "Comparison", "Differences", "By category", "Answers side by side",
              "Question sets", "Answers to questions", "Who holds what",
              "Learning curves", "What each client gets", "Rounds",
              "Communication and time", "Learning rates", "Privacy and failures")  # fmt: skip
    places = [page.index(f">{title}<") for title in titles]
    assert places
    assert "Count." in page
    for name, arm in summary["arms"].items():
        assert name in page
        assert f"{arm['loss']:.3f}" in page
    assert {"curves.svg", "comparison-loss.svg", "arm-categories.pdf"} <= {
        path.name for path in (folder / "figures").iterdir()
    }
    # No training text: only the held-out rows that are shown.
    config = finished[0].config
    rows = [json.loads(line) for line in (folder.parent / "rows.jsonl").read_text().splitlines()]
    held = {row["instruction"] for row in json.loads((folder / "seed-0/held_out.json").read_text())}
    assert config.dataset.endswith("rows.jsonl")
    assert not [row for row in rows if row["instruction"] not in held and row["instruction"] in page]


def test_the_page_offers_the_chosen_arms(finished):
    _, folder, summary, _ = finished
    from fedit.ui.arms import find_arms

    found = find_arms([folder])
    assert set(found.arms) == set(summary["arms"])
    assert found.home == folder.resolve()


def test_the_report_is_written_again_from_the_folder(finished):
    _, folder, _, _ = finished
    from fedit.study.report import study_report

    assert study_report(folder) == study_report(folder)
    assert "2 seeds" in study_report(folder).subtitle


def test_a_finished_study_is_only_read(finished, monkeypatch):
    given, folder, summary, _ = finished
    monkeypatch.setattr(module, "prepare", lambda *args: pytest.fail("prepared again"))
    assert run_study(given, folder) == summary


def test_an_interrupted_study_goes_on_and_ends_the_same(finished, tmp_path):
    given, _, summary, _ = finished
    short = Settings(given.config, {}, given.study.model_copy(update={"questions": []}))
    out = tmp_path / "out"
    count = 0

    def stop(event):
        nonlocal count
        count += event["event"] == "round"
        if count == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(short, out, listener=stop)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("adapter_model.safetensors")}
    assert done
    again = run_study(short, out)
    assert again["arms"] == summary["arms"] | {
        name: {**arm, "seconds": again["arms"][name]["seconds"]} for name, arm in summary["arms"].items()
    }
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_another_study_does_not_go_into_the_same_folder(finished):
    given, folder, _, _ = finished
    for changed in (
        Settings(given.config.model_copy(update={"num_rounds": 3}), {}, given.study),
        Settings(given.config, {}, given.study.model_copy(update={"learning_rates": [0.01]})),
    ):
        with pytest.raises(RunFolderError, match="another study"):
            run_study(changed, folder)
    # How many resamples there are is no part of what was trained.
    more = Settings(given.config, {}, given.study.model_copy(update={"resamples": 60}))
    assert run_study(more, folder)["resamples"] == 60


@pytest.mark.parametrize(
    ("changes", "study", "words"),
    [
        ({}, {"learning_rates": [1e-4, 1e-3]}, "set validation"),
        ({"validation": 2, "early_stopping": 1}, {}, "equal budgets"),
        ({"compare": ["local"]}, {}, "study.arms"),
        ({"exact_match": True}, {"generate": False}, "study.generate"),
        ({}, {"local_clients": ["client-9"]}, "client-9"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(make_config, tmp_path, changes, study, words):
    with pytest.raises(ConfigError, match=words):
        run_study(Settings(make_config(**changes), {}, study_of(**study)), tmp_path / "out")
    assert not list(tmp_path.glob("out/seed-*/arms"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study.arms=centralised", "add federated"),
        ("study.arms=locals", "'locals'"),
        ("study.seds=2", "did you mean 'seeds'"),
        ("study.seeds=[1,1]", "twice"),
        ("study.learning_rates=[0.1,-1]", "above 0"),
    ],
)
def test_mistakes_in_a_studys_settings_are_named(text, words):
    with pytest.raises(ConfigError, match=words):
        settings.load(None, [text])


def test_losses_alone(make_config, tmp_path):
    given = Settings(make_config(), {}, study_of(arms=["base", "federated"], generate=False))
    arms = run_study(given, tmp_path / "out")["arms"]
    assert list(arms) == ["base", "federated"]
    assert "exact_match" not in arms["federated"]
    items = Items.read(tmp_path / "out/seed-0/items/federated.json")
    assert items.texts is None
    with pytest.raises(ValueError, match="generated"):
        items.column("rouge_l")


def test_worker_processes_give_the_same(finished, tmp_path):
    given, _, summary, _ = finished
    config = given.config.model_copy(update={"num_workers": 2})
    study = given.study.model_copy(update={"questions": [], "seeds": 1})
    arms = run_study(Settings(config, {}, study), tmp_path / "out")["arms"]
    for name, arm in arms.items():
        for metric, values in arm["per_seed"].items():
            assert values[0] == summary["arms"][name]["per_seed"][metric][0]
