"""Whole tiny runs with privacy: what is written, what is withheld, what is refused, and the commands."""

import json

import pytest
from tiny import write_rows
from typer.testing import CliRunner

from fedit import arms, settings
from fedit.cli.app import app
from fedit.compute import Here
from fedit.errors import ConfigError
from fedit.events import EventLog
from fedit.federation import train
from fedit.launch import resume, run
from fedit.prepare import prepare

pytest.importorskip("dp_accounting")


def cli(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("private")
    write_rows(folder / "rows.jsonl", 60)
    values = {
        "model": str(tiny),
        "device": "cpu",
        "dtype": "fp32",
        "dataset": str(folder / "rows.jsonl"),
        "lora_r": 2,
        "num_clients": 6,
        "clients_per_round": 1.0,
        "num_rounds": 3,
        "local_steps": 1,
        "batch_size": 2,
        "held_out": 2,
        "max_length": 64,
        "num_workers": 1,
        "weighting": "uniform",
        "privacy": "client",
        "privacy_options": {"clip_norm": 0.05, "noise_multiplier": 1.0, "max_epsilon": 6},
    }

    def build(**changes):
        return settings.from_values({**values, **changes}, "test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        yield build


@pytest.fixture(scope="module")
def ended(job, tmp_path_factory):
    """A run that ends before its budget is overspent, interrupted once."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    told = []

    class Killed(Exception):
        pass

    def listen(event):
        told.append(event)
        if event["event"] == "evaluation" and event["round"] == 1:
            raise Killed

    with pytest.raises(Killed):
        run(job(num_rounds=9), folder, listener=listen)
    return folder, resume(folder, listener=told.append), told


def test_the_rounds_end_within_the_budget_and_the_last_model_is_kept(ended):
    folder, result, told = ended
    (end,) = [event for event in told if event["event"] == "budget_spent"]
    own = result.summary["privacy"]
    assert result.summary["rounds"] == end["round"] < 9
    assert result.summary["adapter_round"] == end["round"]
    assert own["budget_spent"]
    assert own["epsilon"] == end["epsilon"] <= 6
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    # The round that was interrupted after its release was done again, and both are paid for.
    (charge,) = json.loads((folder / "privacy.json").read_text())["units"][""]
    assert charge["steps"] == end["round"] + 1


def test_records_are_free_of_single_clients(ended):
    folder, result, _ = ended
    events = EventLog(folder).read()
    assert not [e for e in events if e["event"] in ("client", "client_failed", "client_dropped")]
    for event in events:
        if event["event"] == "round":
            assert (event["cohort"], event["delivered"], event["failed"], event["train_loss"]) == ([], 0, 0, None)
            assert event["withheld"]
            assert not {"update_norm_mean", "aggregation_bias", "pairwise_cosine", "diversity"} & set(event)
        if event["event"] == "evaluation":
            assert (event["per_client"], event["clients"]) == ({}, {})
    assert "client-0" not in json.dumps([event for event in events if event["event"] == "round"])
    assert result.summary["tokens"] > 0


def test_what_was_promised_and_spent_stands_in_summary_report_and_command(ended):
    folder, result, _ = ended
    own = result.summary["privacy"]
    assert f"epsilon {own['epsilon']:.3g} at delta" in (folder / "summary.md").read_text()
    html = (folder / "report.html").read_text()
    assert f"epsilon {own['epsilon']:.3g}" in html
    assert "held-out and validation rows" in html
    told = json.loads(cli("privacy", "report", folder, "--json"))
    assert told["guarantees"][0]["value"].startswith("epsilon ")
    assert len(told["threat_model"]) == 4
    text = cli("privacy", "report", folder)
    assert "Not protected" in text
    assert "trusted to clip" in text


def test_arms_of_a_study_have_ledgers_of_their_own(job, tmp_path):
    prepared = prepare(job(num_rounds=1))
    for name in ("federated:ffa_lora", "federated:fedsvd"):
        folder = tmp_path / name.partition(":")[2]
        folder.mkdir()
        done = train(prepared, Here(prepared), arms.named(prepared, name, {}), folder, EventLog(folder, arm=name))
        assert done.round == 1
        assert (folder / "privacy.json").is_file()
    with pytest.raises(ConfigError, match="'FLoRA' reads single updates"):
        arms.named(prepared, "federated:flora", {})


@pytest.mark.slow
def test_a_budget_becomes_the_noise_that_all_rounds_can_do_with(job):
    prepared = prepare(job(privacy_options={"clip_norm": 0.05, "epsilon": 5.0}))
    assert set(prepared.config.privacy_options) == {"clip_norm", "noise_multiplier", "max_epsilon"}
    privacy = arms.federated(prepared).privacy(None)
    for _ in range(3):
        assert privacy.affords_a_round()
        privacy.charge()
    assert 4.98 <= privacy.spent().value <= 5.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strategy": "krum"}, "'Krum' reads single updates"),
        ({"strategy": "fedex_lora"}, "'FedExLoRA' reads single updates"),
        ({"selection": "oort"}, "no noise covers"),
        ({"min_clients": 2}, "leave it at 1"),
        ({"personal_evaluation": True}, "personal_evaluation measures"),
        ({"privacy_options": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 0.5}}, "'delta' is 0.5"),
        (
            {"privacy_options": {"clip_norm": 1.0, "noise_multiplier": 0.2, "max_epsilon": 1}},
            "a single round spends",
        ),
    ],
)
def test_what_cannot_be_private_is_refused_before_anything_is_trained(job, changes, named):
    with pytest.raises(ConfigError, match=named):
        prepare(job(**changes))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"privacy": "client", "privacy_options": {}}, "weighting to uniform"),
        ({"privacy_options": {"clip_norm": 1.0}}, "privacy is none"),
        ({"secure_aggregation_options": {"threshold": 2}}, "secure_aggregation is off"),
    ],
)
def test_options_that_nothing_would_read_are_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        settings.from_values(values, "test")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip_norm": 1.0}, "exactly one of noise_multiplier and epsilon"),
        ({"clip_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 1.0}, "exactly one of"),
        ({"noise_multiplier": 1.0}, "needs privacy_options for: clip_norm"),
        ({"clip_norm": 0.0, "noise_multiplier": 1.0}, "'clip_norm' is 0.0; expected more than 0"),
        ({"clip_norm": float("inf"), "noise_multiplier": 1.0}, "'clip_norm' is inf"),
        ({"clip_norm": 1.0, "noise_multiplier": -1.0}, "'noise_multiplier' is -1.0"),
        ({"clip_norm": 1.0, "epsilon": 0.0}, "'epsilon' is 0.0"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "quantile": 1.0}, "'quantile' is 1.0"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "delta": 2.0}, "'delta' is 2.0"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "noise": 2.0}, "no option 'noise'"),
    ],
)
def test_options_that_cannot_work_are_named(options, named):
    from fedit.privacy import build_privacy

    with pytest.raises(ConfigError, match=named):
        build_privacy("client", options)


def test_epsilon_and_calibrate_are_inverse_commands():
    known = ("--sampling-rate", 1.0, "--steps", 2, "--delta", 1e-3, "--json")
    noise = json.loads(cli("privacy", "calibrate", "--epsilon", 3, *known))["noise_multiplier"]
    back = json.loads(cli("privacy", "epsilon", "--noise-multiplier", noise, *known))
    assert 2.99 <= back["epsilon"] <= 3
    assert back["epsilon_rdp"] >= back["epsilon"]
    assert json.loads(cli("privacy", "epsilon", "--noise-multiplier", 0, *known))["epsilon"] is None


def test_a_plan_says_what_a_job_comes_to_and_what_would_help(tmp_path, job):
    file = tmp_path / "job.yaml"
    import yaml

    file.write_text(yaml.safe_dump(job(clients_per_round=3).model_dump(mode="json", exclude_defaults=True)))
    found = json.loads(cli("privacy", "plan", file, "--json"))
    assert found["parameters"] == 896
    assert found["noise_std"] == pytest.approx(0.05 / 3)
    assert found["noise_to_signal"] == pytest.approx(896**0.5 / 3)
    assert found["rounds_afforded"] == 0  # which a run would refuse
    advice = " ".join(found["advice"])
    for word in ("selection=poisson", "a cohort of 30", "strategy=ffa_lora", "lora_r=1"):
        assert word in advice
    assert "times the largest signal" in cli("privacy", "plan", file)


def test_a_plan_of_private_steps_is_that_of_the_client_whom_they_cost_most(tmp_path, job):
    from fedit.privacy.accounting import epsilon
    from fedit.privacy.plan import plan

    config = job(
        privacy="example", clients_per_round=0.5, local_steps=4, num_rounds=4,
        privacy_options={"clip_norm": 0.1, "noise_multiplier": 1.0, "max_epsilon": 4.0, "delta": 1e-3},
    )  # fmt: skip
    found = plan(config)
    fewest = min(prepare(config).sizes.values())
    assert found.examples == fewest
    assert found.epsilon.value == pytest.approx(epsilon(1.0, 2 / fewest, 4 * 4, 1e-3).value)
    assert found.likely_epsilon.value == pytest.approx(epsilon(1.0, 2 / fewest, 4 * 2, 1e-3).value)
    afforded = [rounds for rounds in range(5) if epsilon(1.0, 2 / fewest, 4 * rounds, 1e-3).value <= 4]
    assert found.affords == (None if afforded[-1] == 4 else afforded[-1])
    assert found.parameters == 896
    assert found.noise_to_signal == pytest.approx(896**0.5 / 2)
    assert found.round_noise == pytest.approx(896**0.5 / 2 / (4 * 3) ** 0.5)
    assert json.dumps(found.as_dict())
    assert any("most_rounds" in line for line in found.lines())
    fewer = plan(config.model_copy(update={"privacy_options": {**config.privacy_options, "most_rounds": 1}}))
    assert fewer.rounds == fewer.likely == 1
    assert fewer.epsilon.value < found.likely_epsilon.value
    with pytest.raises(ConfigError, match="privacy is none"):
        plan(job(privacy="none", privacy_options={}))


def test_a_run_without_privacy_says_so(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "events.jsonl").write_text('{"event": "arm_started", "round": 0}\n')
    assert "nothing was added to hide it" in cli("privacy", "report", tmp_path)
