"""Whole tiny runs: what the folder holds, what the numbers add up to, and what is refused."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tiny import write_rows

from fedit import checkpoint, settings
from fedit.errors import ConfigError, DataError, RoundError, RunFolderError, UserError
from fedit.launch import read_config, resume, run
from fedit.model.export import read_adapter
from fedit.prepare import prepare
from fedit.runfolder import only_worker
from fedit.training import Optimisation, TrainingFailed


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def named(events, name):
    return [event for event in events if event["event"] == name]


def compared(clients, *arms):
    return {"compare": list(arms), "compare_clients": clients, "max_new_tokens": 2}


# --- what a run leaves ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """One run with everything on, pictures included."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "rows.jsonl", 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        config = settings.from_values(
            {
                "model": str(tiny),
                "device": "cpu",
                "dtype": "fp32",
                "dataset": str(folder / "rows.jsonl"),
                "lora_r": 4,
                "lora_alpha": 8,
                "num_clients": 4,
                "clients_per_round": 2,
                "num_rounds": 3,
                "local_steps": 2,
                "batch_size": 4,
                "learning_rate": 0.01,
                "held_out": 2,
                "validation": 1,
                "max_length": 96,
                "max_new_tokens": 4,
                "compare": ["local", "centralised"],
                "compare_clients": 2,
                "num_workers": 1,
            },
            "test",
        )
        heard = []
        result = run(config, folder / "run", listener=heard.append)
    return config, result, heard


def test_the_summary_has_the_numbers_that_scripts_read(finished):
    config, result, _ = finished
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    for when in ("before", "after"):
        assert {"loss", "perplexity", "token_accuracy", "example_loss", "exact_match", "per_client"} <= set(
            summary["held_out"][when]
        )
        assert summary["held_out"][when]["loss"] > 0
    assert summary["held_out"]["after"]["loss"] < summary["held_out"]["before"]["loss"]
    assert set(summary["per_category"]) == {"copy", "upper", "count"}
    for pair in summary["per_category"].values():
        assert {type(pair["before"]), type(pair["after"])} == {float}
    assert summary["rounds"] == config.num_rounds == 3
    assert summary["adapter_round"] == 3
    assert summary["clients"] == 4
    assert summary["failed_updates"] == 0
    assert summary["held_out_rows"] == 6
    assert summary["seconds"] > 0


def test_the_summary_adds_up_what_events_say(finished):
    _, result, _ = finished
    summary, events = result.summary, events_of(result.folder)
    rounds = named(events, "round")
    for name in ("tokens", "bytes_up", "bytes_down"):
        assert summary[name] == sum(event[name] for event in rounds)
    parameters = named(events, "arm_started")[0]["trainable_parameters"]
    assert (
        {event["bytes_up"] for event in rounds}
        == {event["bytes_down"] for event in rounds}
        == {2 * 4 * parameters}
    )
    clients = named(events, "client")
    assert summary["tokens"] == sum(event["tokens"] for event in clients)
    evaluations = {event["round"]: event["loss"] for event in named(events, "evaluation")}
    assert list(evaluations) == [0, 1, 2, 3]
    assert summary["held_out"]["before"]["loss"] == evaluations[0]
    assert summary["held_out"]["after"]["loss"] == evaluations[3]


def test_every_event_has_its_name_and_round(finished):
    _, result, heard = finished
    logs = sorted(result.folder.rglob("events.jsonl"))
    assert len(logs) == 6
    for log in logs:
        for event in events_of(log.parent):
            assert isinstance(event["event"], str)
            assert isinstance(event["round"], int)
            assert isinstance(event["arm"], str)
    assert {"estimate", "step", "evaluating", "answering", "reporting"} <= {event["event"] for event in heard}
    assert all("event" in event and "round" in event for event in heard)
    assert heard[0]["event"] == "estimate"
    assert heard[-1]["event"] == "finished"


def test_cohorts_have_the_size_asked_for_and_every_client_an_event(finished):
    _, result, _ = finished
    events = events_of(result.folder)
    for event in named(events, "round"):
        assert len(event["cohort"]) == 2
        told = [e["client"] for e in named(events, "client") if e["round"] == event["round"]]
        assert told == event["cohort"]
        assert event["delivered"] == 2
        assert event["train_loss"] > 0
        assert {"aggregation_bias", "update_norm_mean", "pairwise_cosine", "diversity"} <= set(event)


def test_the_arms_are_compared_at_equal_budgets(finished):
    config, result, _ = finished
    arms = result.summary["arms"]
    assert list(arms) == [
        "base",
        "federated",
        "local:client-0",
        "local_total:client-0",
        "local:client-1",
        "local_total:client-1",
        "centralised",
    ]
    for arm in arms.values():
        assert set(arm["per_category"]) == {"copy", "upper", "count"}
        assert arm["loss"] > 0
        assert 0 <= arm["exact_match"] <= 1
    assert arms["base"]["tokens"] == 0
    assert arms["base"]["loss"] == result.summary["held_out"]["before"]["loss"]
    assert arms["federated"]["loss"] == result.summary["held_out"]["after"]["loss"]

    logs = {}
    for path in result.folder.rglob("events.jsonl"):
        events = events_of(path.parent)
        logs[events[0]["arm"]] = events

    def per_round(arm):
        return {e["round"]: e["tokens"] for e in named(logs[arm], "round")}

    federated = per_round("federated")
    for arm in ("centralised", "local_total:client-0", "local_total:client-1"):
        for round, tokens in per_round(arm).items():
            assert federated[round] <= tokens < federated[round] + config.batch_size * config.max_length
    for arm in ("local:client-0", "local:client-1"):
        assert sum(e["steps"] for e in named(logs[arm], "client")) == config.num_rounds * config.local_steps


def test_the_round_adapters_and_the_result_are_one(finished):
    _, result, _ = finished
    saved = read_adapter(result.adapter)
    state = checkpoint.load(result.folder / "server", 3)
    assert set(saved) == set(state.adapter)
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.adapter.items())


def test_a_run_folder_holds_no_base_weights_and_no_pickles(finished, tiny):
    _, result, _ = finished
    files = [path for path in result.folder.rglob("*") if path.is_file()]
    assert [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")] == []
    assert [p for p in files if p.name.startswith(".") or p.name.endswith(".tmp")] == []
    base = (tiny / "model.safetensors").stat().st_size
    adapter = (result.adapter / "adapter_model.safetensors").stat().st_size
    for path in result.folder.rglob("*.safetensors"):
        assert path.stat().st_size < min(base, 4 * adapter)  # with two moments a parameter


def test_nothing_in_what_is_shared_tells_about_this_machine(finished, tiny):
    config, result, _ = finished
    private = [str(tiny.parent), str(Path(config.dataset).parent), str(Path.home()), "/tmp"]
    for name in ("adapter_config.json", "README.md"):
        for folder in (result.adapter, *result.folder.glob("arms/*/adapter")):
            text = (folder / name).read_text()
            assert [part for part in private if part in text] == []
            assert re.findall(r"(?<![\w.:/])/(?:\w+/)+\w+", text) == []
    assert "rows.jsonl" in (result.adapter / "README.md").read_text()


def test_settings_are_kept_and_read_back(finished):
    config, result, _ = finished
    assert read_config(result.folder) == config
    assert yaml.safe_load((result.folder / "resolved.yaml").read_text())["num_rounds"] == 3


def test_the_folder_says_with_what_it_was_made(finished):
    _, result, _ = finished
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "platform", "cores"} <= set(environment)


def test_people_get_a_report_with_pictures(finished):
    _, result, _ = finished
    text = (result.folder / "summary.md").read_text()
    for picture in ("partition", "curves", "categories"):
        assert (result.folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (result.folder / f"{picture}.svg").read_text()
    for name in re.findall(r"\]\((\S+?)\)", text):
        assert (result.folder / name).is_file()
    assert "centralised" in text


def test_a_finished_run_is_returned_and_nothing_is_done(finished, monkeypatch):
    _, result, _ = finished
    monkeypatch.setattr("fedit.launch.prepare", lambda config: pytest.fail("a finished run was prepared again"))
    assert resume(result.folder).summary == result.summary


def test_a_folder_that_holds_a_run_is_refused(finished):
    config, result, _ = finished
    before = (result.folder / "events.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"already holds a run.*fedit resume"):
        run(config, result.folder)
    assert (result.folder / "events.jsonl").read_bytes() == before


# --- the same settings, the same bits ---


def test_a_run_is_reproducible_and_does_not_listen_to_the_global_seed(make_config, tmp_path):
    config = make_config(lora_dropout=0.1, clients_per_round=2)
    one = run(config, tmp_path / "one")
    with torch.random.fork_rng():
        torch.manual_seed(123)
        two = run(config, tmp_path / "two")
    assert (one.adapter / "adapter_model.safetensors").read_bytes() == (
        two.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert (one.adapter / "README.md").read_bytes() == (two.adapter / "README.md").read_bytes()
    other = run(make_config(lora_dropout=0.1, clients_per_round=2, seed=1), tmp_path / "other")
    assert other.summary["held_out"] != one.summary["held_out"]


@pytest.mark.parametrize("weighting", ["tokens", "uniform"])
def test_weights_are_what_was_asked_for(make_config, tmp_path, weighting):
    run(
        make_config(weighting=weighting, num_rounds=1, partitioner="quantity", alpha=1.0, min_examples=5),
        tmp_path / "r",
    )
    clients = named(events_of(tmp_path / "r"), "client")
    expected = [e["supervised_tokens"] if weighting == "tokens" else 1 for e in clients]
    assert [e["weight"] for e in clients] == expected


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "gemma2", "phi3"])
def test_other_architectures_run(make_config, model_folder, tmp_path, kind):
    result = run(make_config(model=str(model_folder(kind)), num_rounds=1, lora_dropout=0.1), tmp_path / "r")
    assert result.summary["held_out"]["after"]["loss"] > 0


# --- evaluation, stopping, pruning ---


def evaluated(folder):
    return [event["round"] for event in named(events_of(folder), "evaluation")]


@pytest.mark.parametrize(("every", "rounds"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
def test_the_first_the_last_and_every_so_many_rounds_are_evaluated(make_config, tmp_path, every, rounds):
    result = run(make_config(num_rounds=5, eval_every=every, local_steps=1), tmp_path / "r")
    assert evaluated(tmp_path / "r") == rounds
    assert result.summary["adapter_round"] == 5


def validation(folder):
    return {e["round"]: e["validation_loss"] for e in named(events_of(folder), "evaluation")}


def test_early_stopping_keeps_the_best_round(make_config, tmp_path):
    """A learning rate that is far too high makes every round worse than none."""
    config = make_config(num_rounds=40, early_stopping=2, validation=2, learning_rate=3.0, keep_rounds=1)
    result = run(config, tmp_path / "r")
    losses = validation(tmp_path / "r")
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2
    assert result.summary["rounds"] == best + 2 < 40
    assert result.summary["adapter_round"] == best
    (stopped,) = named(events_of(tmp_path / "r"), "stopped_early")
    assert stopped["round"] == best + 2
    assert checkpoint.rounds(tmp_path / "r" / "server") == sorted({best, best + 2})
    after = {e["round"]: e["loss"] for e in named(events_of(tmp_path / "r"), "evaluation")}[best]
    assert result.summary["held_out"]["after"]["loss"] == after
    saved = read_adapter(result.adapter)
    state = checkpoint.load(tmp_path / "r" / "server", best)
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.adapter.items())


def test_without_worse_rounds_nothing_stops(make_config, tmp_path):
    result = run(make_config(num_rounds=4, early_stopping=2, validation=2, learning_rate=0.005), tmp_path / "r")
    losses = list(validation(tmp_path / "r").values())
    assert losses == sorted(losses, reverse=True)
    assert result.summary["rounds"] == result.summary["adapter_round"] == 4
    assert named(events_of(tmp_path / "r"), "stopped_early") == []


@pytest.mark.parametrize(("keep", "left"), [(0, [0, 1, 2, 3]), (2, [2, 3])])
def test_as_many_rounds_are_kept_as_asked(make_config, tmp_path, keep, left):
    run(make_config(num_rounds=3, keep_rounds=keep, local_steps=1), tmp_path / "r")
    assert checkpoint.rounds(tmp_path / "r" / "server") == left


def test_nothing_held_out_means_no_loss_not_a_perfect_one(make_config, tmp_path):
    """A loss of 0.000 nats would be read as perfect."""
    try:
        result = run(make_config(held_out=0, num_rounds=1), tmp_path / "r")
    except UserError:
        return
    assert result.summary["held_out"]["after"]["loss"] is None


# --- clients that fail ---


@pytest.fixture
def failing(monkeypatch):
    """Make chosen (round, client number of rows) fail."""

    def choose(predicate):
        next_rows = Optimisation.next_rows

        def sometimes(self):
            if predicate(self.job.round, self.job.data_seed):
                raise TrainingFailed("out of memory on a single example of up to 96 tokens")
            return next_rows(self)

        monkeypatch.setattr(Optimisation, "next_rows", sometimes)

    return choose


def test_a_client_that_fails_is_reported_and_the_run_goes_on(make_config, tmp_path, failing):
    from fedit.seeds import derive

    bad = derive(0, "data", "client-1")
    failing(lambda round, data_seed: round == 1 and data_seed == bad)
    result = run(make_config(), tmp_path / "r")
    (failure,) = named(events_of(tmp_path / "r"), "client_failed")
    assert (failure["client"], failure["round"]) == ("client-1", 1)
    assert "out of memory" in failure["reason"]
    assert result.summary["failed_updates"] == 1
    assert [e["failed"] for e in named(events_of(tmp_path / "r"), "round")] == [1, 0]


def test_three_empty_rounds_end_the_run_with_the_cause(make_config, tmp_path, failing):
    failing(lambda round, data_seed: round >= 2)
    with pytest.raises(RoundError, match=r"round 4.*client-0: out of memory"):
        run(make_config(num_rounds=9), tmp_path / "r")
    assert not (tmp_path / "r" / "summary.json").exists()
    assert checkpoint.rounds(tmp_path / "r" / "server") == [0, 1, 2, 3, 4]


def test_too_few_updates_leave_the_adapter(make_config, tmp_path, failing):
    from fedit.seeds import derive

    failing(lambda round, data_seed: round == 2 and data_seed != derive(0, "data", "client-0"))
    run(make_config(num_rounds=3, min_clients=2), tmp_path / "r")
    states = [checkpoint.load(tmp_path / "r" / "server", round).adapter for round in range(4)]
    name = next(iter(states[0]))
    assert torch.equal(states[1][name], states[2][name])
    assert not torch.equal(states[2][name], states[3][name])
    assert [e["aggregated"] for e in named(events_of(tmp_path / "r"), "round")] == [True, False, True]


def test_more_clients_asked_for_than_a_round_has_are_refused_before_training(make_config, tmp_path):
    with pytest.raises(ConfigError, match="min_clients"):
        run(make_config(min_clients=3, clients_per_round=2), tmp_path / "r")


def test_baselines_are_single_clients_whatever_a_federation_needs(make_config, tmp_path):
    config = make_config(
        min_clients=2, num_rounds=3, compare=["centralised", "local"], compare_clients=1, max_new_tokens=2
    )
    result = run(config, tmp_path / "r")
    arms = result.summary["arms"]
    assert arms["centralised"]["loss"] < arms["base"]["loss"]
    assert arms["local:client-0"]["tokens"] > 0


# --- clients with any name ---


@pytest.fixture
def owned(tmp_path):
    def write(owners):
        path = tmp_path / "owned.jsonl"
        rows = [
            {"instruction": f"say {owner} {index}", "output": f"{owner} {index}", "who": owner}
            for owner in owners
            for index in range(10)
        ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return {
            "dataset": str(path),
            "partitioner": "natural",
            "partition_by": "who",
            "num_clients": None,
            "num_rounds": 1,
            "held_out": 0.1,
        }

    return write


def test_clients_are_the_owners_of_rows(make_config, owned, tmp_path):
    run(make_config(**owned(["ann", "bob"])), tmp_path / "r")
    (event,) = named(events_of(tmp_path / "r"), "round")
    assert event["cohort"] == ["ann", "bob"]
    (evaluation,) = named(events_of(tmp_path / "r"), "evaluation")[-1:]
    assert set(evaluation["per_client"]) == {"ann", "bob"}


def test_an_owner_cannot_write_outside_the_run_folder(make_config, owned, tmp_path):
    folder = tmp_path / "deep" / "run"
    run(make_config(**owned(["../../../../outside", "a/b"]), **compared(2, "local")), folder)
    allowed, inputs = (folder, tmp_path / "cache"), ("owned.jsonl", "rows.jsonl")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in inputs]
    assert [path for path in written if not any(place in path.parents for place in allowed)] == []
    depths = [len(path.relative_to(folder / "arms").parts) for path in (folder / "arms").rglob("events.jsonl")]
    assert depths == [2] * 4


def test_owners_whose_names_look_alike_in_a_folder_are_still_two(make_config, owned, tmp_path):
    config = make_config(**owned(["team:a", "team-a"]), **compared(2, "local"))
    arms = run(config, tmp_path / "r").summary["arms"]
    assert arms["local:team:a"]["loss"] != arms["local:team-a"]["loss"]
    assert len(list((tmp_path / "r" / "arms").rglob("adapter_model.safetensors"))) == 4


@pytest.mark.parametrize(
    "owner", ["line\u2028separator", "詩" * 60, "x" * 300], ids=["separator", "long in Chinese", "long"]
)
def test_any_owner_may_take_part(make_config, owned, tmp_path, owner):
    config = make_config(**owned(["ann", owner]), **compared(2, "local"))
    assert run(config, tmp_path / "r").summary["clients"] == 2


# --- what cannot work is said before anything is trained ---


def test_a_folder_that_cannot_be_made_is_a_user_error(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        run(make_config(), tmp_path / "file" / "run")


def test_a_missing_data_file_is_a_data_error_and_leaves_no_run(make_config, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run(make_config(dataset=str(tmp_path / "none.jsonl")), tmp_path / "r")
    assert not (tmp_path / "r" / "run.json").exists()
    run(make_config(num_rounds=1), tmp_path / "r")  # the folder is still free


def test_more_clients_than_there_are_are_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match="clients_per_round is 7, but there are 3"):
        run(make_config(clients_per_round=7), tmp_path / "r")


def test_rows_longer_than_the_model_reads_are_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"max_length is 1000, but model .* at most 512"):
        run(make_config(max_length=1000), tmp_path / "r")


def test_answers_after_the_longest_prompts_work_or_are_refused(make_config, model_folder, tmp_path):
    """A model of learned positions has none left after a prompt as long as its context."""
    rows = [{"instruction": f"{i} " + "x" * 600, "output": "y"} for i in range(20)]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    long = {"model": str(model_folder("gpt2")), "dataset": str(path), "max_length": 512, "exact_match": True}
    with contextlib.suppress(ConfigError):
        run(make_config(**long, num_rounds=1, local_steps=1, batch_size=2), tmp_path / "r")


def test_a_check_that_cannot_grade_is_refused_before_training(make_config, tmp_path):
    rows = [{"instruction": f"q{i}", "output": f"a{i}", "check": {"kind": "exact"}} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for graded in ({"exact_match": True}, {"compare": ["local"]}):
        with pytest.raises(DataError, match=r"^rows\.jsonl:\d+: the check .* 'value' is None"):
            run(make_config(dataset=str(path), **graded), tmp_path / "r")
    assert prepare(make_config(dataset=str(path))).held_out[0].check == '{"kind":"exact"}'


def test_an_unknown_strategy_fails_at_once(make_config, tmp_path):
    with pytest.raises(ConfigError, match="unknown strategy 'fedavgg'"):
        run(make_config(strategy="fedavgg"), tmp_path / "r")


def test_a_strategy_from_a_file_runs(make_config, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedit.strategies.base import Strategy\n"
        "@dataclass(frozen=True)\n"
        "class OnlyB(Strategy):\n"
        "    def trains(self, name, round):\n"
        "        return name.endswith('.B')\n"
    )
    run(make_config(strategy=f"{tmp_path / 'mine.py'}:OnlyB"), tmp_path / "r")
    start, end = (checkpoint.load(tmp_path / "r" / "server", round).adapter for round in (0, 2))
    for name in start:
        assert torch.equal(start[name], end[name]) == name.endswith(".A")


def test_two_processes_do_not_work_in_one_folder(make_config, tmp_path):
    with only_worker(tmp_path), pytest.raises(RunFolderError, match="another process"):
        run(make_config(), tmp_path)
    assert not (tmp_path / "run.lock").exists()


def test_a_run_says_once_why_it_takes_the_general_path(make_config, model_folder, tmp_path):
    heard = []
    run(make_config(model=str(model_folder("gpt2"))), tmp_path / "gpt2", listener=heard.append)
    run(make_config(), tmp_path / "llama", listener=heard.append)
    run(make_config(fast_path=False), tmp_path / "off", listener=heard.append)
    told = [event["text"] for event in heard if event["event"] == "preparing" and "fast path" in event["text"]]
    assert told == [
        "training through transformers and PEFT, slower than fedit's fast path: "
        "models of type gpt2 are not known to it"
    ]
