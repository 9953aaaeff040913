"""Studies of several algorithms: what they sent, equal bytes, clients with models of their own."""

import json

import numpy as np
import pytest
from hypothesis import given as property_of
from hypothesis import strategies as st
from rich.console import Console
from tiny import write_rows

from fedit import settings
from fedit.cli.studytables import print_study
from fedit.errors import ConfigError
from fedit.settings import Settings
from fedit.strategies import build_variant
from fedit.study.run import run_study
from fedit.study.traffic import MEGA, course_of

NAMES = ["fedit", "ffa_lora", "fedsa_lora", "flora", "ravan", "fed_sb(bases=first_update)"]
ARMS = [f"federated:{name}" for name in NAMES]


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("algorithms")
    write_rows(folder / "rows.jsonl", 60)
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
                "clients_per_round": 3,
                "num_rounds": 3,
                "local_steps": 2,
                "batch_size": 4,
                "held_out": 3,
                "validation": 2,
                "max_length": 96,
                "eval_every": 1,
                "num_workers": 1,
            },
            "test",
        )
        study = settings.load(
            None,
            [
                "study.strategies=[fedit, ffa_lora, fedsa_lora, flora, ravan, {fed_sb: {bases: first_update}}]",
                "study.arms=base,federated",
                "study.generate=false",
                "study.seeds=2",
                "study.learning_rates=1e-9,0.01",
                "study.resamples=50",
            ],
        ).study
        yield Settings(config, {}, study)


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "out"
    return folder, run_study(given, folder)


def events_of(folder, name, seed=0, rate="0.01"):
    (found,) = [
        path
        for path in folder.glob(f"seed-{seed}/arms/*/lr-{rate}/events.jsonl")
        if f'"strategy": "{name}"' in path.read_text()
    ]
    return [json.loads(line) for line in found.read_text().splitlines()]


def test_strategies_are_arms_in_the_order_they_are_named(finished):
    folder, summary = finished
    assert list(summary["arms"]) == ["base", *ARMS]
    assert summary["strategies"] == NAMES
    assert json.loads((folder / "summary.json").read_text()) == summary
    # Differences are to the strategy that is named first.
    assert "vs_federated" not in summary["arms"]["federated:fedit"]
    assert "vs_federated" in summary["arms"]["federated:ravan"]
    for path in (folder / "seed-0/arms").iterdir():
        assert not set(path.name) & set('()= :"')


def test_a_variant_was_trained_with_its_option(finished):
    folder, _ = finished
    up = [event["bytes_up"] for event in events_of(folder, NAMES[-1]) if event["event"] == "round"]
    # Round 1 sends plain factors, later ones the small matrices: so does first_update alone.
    assert up[0] > up[1] == up[2]


def test_costs_are_those_of_the_events(finished):
    folder, summary = finished
    for name, role in zip(NAMES, ARMS, strict=True):
        arm = summary["arms"][role]
        per_seed = []
        for seed in (0, 1):
            rate = f"{arm['learning_rate']:g}"
            rounds = [e for e in events_of(folder, name, seed, rate) if e["event"] == "round"]
            errors = [e["aggregation_error"] for e in rounds if "aggregation_error" in e]
            ups = [e["bytes_up"] / e["delivered"] for e in rounds]
            downs = [e["bytes_down"] / len(e["cohort"]) for e in rounds]
            per_seed.append([np.mean(ups), np.mean(downs), np.mean(errors) if errors else np.nan])
        expected = np.mean(per_seed, axis=0)
        error = np.nan if arm["aggregation_error"] is None else arm["aggregation_error"]
        found = [arm["client_bytes_up"], arm["client_bytes_down"], error]
        assert found == pytest.approx(list(expected), nan_ok=True)
    arms = summary["arms"]
    assert arms["federated:flora"]["aggregation_error"] < 1e-4 < arms["federated:fedit"]["aggregation_error"]
    assert arms["federated:ffa_lora"]["client_bytes_up"] < arms["federated:fedit"]["client_bytes_up"]


def test_a_strategy_whose_b_stays_with_clients_is_judged_by_their_models(finished):
    folder, summary = finished
    arms = summary["arms"]
    kept = arms["federated:fedsa_lora"]
    assert [role for role in ARMS if arms[role]["partial"]] == ["federated:fedsa_lora"]
    # The server's model answers as the base does, what clients run does not: they chose the rate that learns.
    assert kept["loss"] == pytest.approx(arms["base"]["loss"])
    assert kept["learning_rate"] == 0.01
    assert kept["per_client"]["mean"] < arms["base"]["per_client"]["mean"] - 0.01
    # Of their models no losses of single rows are kept, and so there is nothing to draw from.
    assert "ci" not in kept["per_client"]
    assert "ci" in arms["federated:fedit"]["per_client"]
    assert "clients_mean" not in kept["vs_federated"]
    personal = [json.loads(path.read_text()) for path in folder.glob("seed-0/arms/*/lr-0.01/personal.json")]
    assert [set(one["losses"]) for one in personal] == [{f"client-{i}" for i in range(4)}]
    tried = json.loads((folder / "seed-0/seed.json").read_text())["validation_losses"]["federated:fedsa_lora"]
    assert dict(map(tuple, tried))[0.01] == personal[0]["validation"] < dict(map(tuple, tried))[1e-9]


def test_equal_bytes_takes_the_last_evaluation_within_the_budget(given, finished):
    folder, _ = finished
    megabytes = 0.05
    study = given.study.model_copy(update={"byte_budget_megabytes": megabytes})
    equal = run_study(Settings(given.config, {}, study), folder)["equal_bytes"]
    assert equal["budget_bytes"] == megabytes * MEGA
    assert equal["given"]
    assert set(equal["arms"]) == set(ARMS) - {"federated:fedsa_lora"}
    for name, role in zip(NAMES, ARMS, strict=True):
        if role not in equal["arms"]:
            continue
        own, losses, rounds = equal["arms"][role], [], []
        for seed in (0, 1):
            sent = tokens = 0
            for event in events_of(folder, name, seed):
                if event["event"] == "round":
                    sent += event["bytes_up"] + event["bytes_down"]
                    tokens += event["tokens"]
                elif event["event"] == "evaluation" and sent <= megabytes * MEGA:
                    loss, round = event["loss"], event["round"]
            losses.append(loss)
            rounds.append(round)
        assert own["per_seed"] == losses
        assert own["rounds"] == rounds
        assert own["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert own["bytes"] <= megabytes * MEGA
        assert own["ci_over"] == ("seeds and rows" if own["finished"] else "seeds")
        assert own["ci"][0] <= own["loss"] <= own["ci"][1]
    reached = {tuple(own["rounds"]) for own in equal["arms"].values()}
    assert len(reached) > 1  # the budget tells them apart
    difference = equal["arms"]["federated:ffa_lora"]["vs_first"]["difference"]
    assert difference == pytest.approx(
        equal["arms"]["federated:ffa_lora"]["loss"] - equal["arms"]["federated:fedit"]["loss"], rel=1e-4, abs=1e-6
    )


def test_by_itself_the_budget_is_that_of_the_thriftiest(given, finished):
    folder, _ = finished
    summary = run_study(given, folder)
    equal = summary["equal_bytes"]
    least = min(("federated:ravan", ARMS[-1]), key=lambda role: summary["arms"][role]["bytes_up"])
    assert equal["arms"][least]["finished"]
    arm = summary["arms"][least]
    assert equal["budget_bytes"] == arm["bytes_up"] + arm["bytes_down"]


def test_the_report_shows_both_comparisons(given, finished):
    folder, _ = finished
    summary = run_study(given, folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## Strategies" in text
    assert "At equal bytes" in text
    assert "not comparable" in text
    assert "fed_sb(bases=first_update)" in text
    assert (folder / "figures/strategies-bytes-1.svg").is_file()
    console = Console(record=True, width=160)
    print_study(console, summary, folder)
    printed = console.export_text()
    assert "fedsa_lora *" in printed
    assert "loss at" in printed


def test_an_interrupted_study_goes_on_and_ends_the_same(given, finished, tmp_path):
    names = [NAMES[2], NAMES[-1]]
    short = Settings(given.config, {}, given.study.model_copy(update={"seeds": 1, "strategies": names}))
    for count in (2, 8):
        left = count

        def stop(event):
            nonlocal left
            left -= event["event"] == "round"
            if left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_study(short, tmp_path / "out", listener=stop)
    arms = run_study(short, tmp_path / "out")["arms"]
    for role in (ARMS[2], ARMS[-1]):
        expected = finished[1]["arms"][role]
        assert arms[role]["per_seed"]["loss"][0] == expected["per_seed"]["loss"][0]
        assert arms[role]["client_bytes_up"] == expected["client_bytes_up"]
        assert arms[role]["learning_rate"] == expected["learning_rate"]
    (one,), (two,) = (
        [path.read_text() for path in folder.glob("seed-0/arms/*/lr-0.01/personal.json")]
        for folder in (tmp_path / "out", finished[0])
    )
    assert one == two


@pytest.mark.slow
def test_worker_processes_build_variants_from_their_names(given, finished, tmp_path):
    config = given.config.model_copy(update={"num_workers": 2})
    study = given.study.model_copy(update={"seeds": 1, "strategies": [NAMES[2], NAMES[-1]]})
    arms = run_study(Settings(config, {}, study), tmp_path / "out")["arms"]
    for role in (ARMS[2], ARMS[-1]):
        expected = finished[1]["arms"][role]
        assert arms[role]["per_seed"]["loss"][0] == expected["per_seed"]["loss"][0]


def test_options_that_cannot_work_are_said_before_anything_is_trained(given, tmp_path):
    study = given.study.model_copy(update={"strategies": ["fedit", "fed_sb(bases=best)"]})
    with pytest.raises(ConfigError, match="'bases'"):
        run_study(Settings(given.config, {}, study), tmp_path / "out")
    assert not list(tmp_path.glob("out/seed-*/arms"))


@property_of(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100), st.integers(1, 50)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.floats(0, 1200),
)
def test_the_point_within_a_budget_is_the_last_one(rounds, every, budget):
    events = [{"event": "evaluation", "round": 0, "loss": 9.0}]
    for i, (up, down, tokens) in enumerate(rounds, start=1):
        row = {"cohort": ["a"], "delivered": 1, "bytes_up": up, "bytes_down": down, "tokens": tokens}
        events.append({"event": "round", "round": i, **row})
        if i % every == 0 or i == len(rounds):
            events.append({"event": "evaluation", "round": i, "loss": 9.0 - i})
    point = course_of(events).at(budget)
    assert point.bytes == sum(up + down for up, down, _ in rounds[: point.round]) <= budget or point.round == 0
    assert point.tokens == sum(tokens for _, _, tokens in rounds[: point.round])
    later = [p for p in course_of(events).points if p.round > point.round]
    assert all(p.bytes > budget for p in later)


@pytest.mark.parametrize("name", ["algorithms-mini", "algorithms"])
def test_the_recipes_name_the_algorithms_for_low_rank_adapters(name):
    found = settings.load(name)
    aware = {"fedit", "ffa_lora", "rolora", "fedsa_lora", "fedsvd", "flexlora", "fedex_lora", "flora",
             "fedmomentum", "lora_fair", "fedrot_lora", "hetlora", "fed_sb", "ravan"}  # fmt: skip
    assert {type(build_variant(own)) for own in found.study.strategies} == {type(build_variant(n)) for n in aware}
    assert found.study.num_seeds == 3
    assert found.study.byte_budget_megabytes != "auto"
    assert found.config.eval_every == 1
    assert found.config.validation > 0
