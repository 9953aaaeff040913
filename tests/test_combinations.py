"""Settings of different parts in one tiny run: every algorithm, and pairs of features that meet somewhere."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from fedit import arms, prepare
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.launch import resume, run
from fedit.strategies import STRATEGIES

KEEPING = {
    "centred_clipping",
    "clustered",
    "ditto",
    "fed_sb",
    "fedadam",
    "fedasync",
    "fedbuff",
    "feddpa",
    "feddyn",
    "fedex_lora",
    "fedmomentum",
    "fedsa_lora",
    "flexlora",
    "flora",
    "fltrust",
    "hetlora",
    "rolora",
    "scaffold",
}
"""Algorithms that keep something between rounds besides the adapter, or do something else in the second one."""

NEEDED = {
    "fltrust": {"strategy_options": {"root_client": "client-0"}},
    "fedbuff": {"strategy_options": {"buffer_size": 3}, "devices": "equal", "clients_per_round": 3},
    "fedasync": {"devices": "equal", "clients_per_round": 3},
    "scaffold": {"optimizer": "sgd", "learning_rate": 0.1},
    "feddyn": {"optimizer": "sgd", "learning_rate": 0.1},
}
COMPRESSED = {"packed": ["quantize", "zstd"], "sparse": [{"top_k": {"fraction": 0.1}}]}
PERSONAL = {"personal_evaluation": True, "personal_steps": 1}


class Killed(BaseException):
    """Stands for the end of the process."""


def in_the_second_round(event):
    if event["event"] in ("step", "client") and event["round"] == 2:
        raise Killed


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Leave out what makes files outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def settings_of(make_config):
    """Return the settings of a small federation with an algorithm, and with what that cannot do without."""

    def make(strategy="fedit", **changes) -> RunConfig:
        small = {
            "num_clients": 7,
            "local_steps": 1,
            "batch_size": 2,
            "held_out": 1,
            "eval_max_examples": 3,
            "stack_clients": 3,
            "strategy": strategy,
        }
        return make_config(**{**small, **NEEDED.get(strategy, {}), **changes})

    return make


def events_of(folder, name=None):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [e for e in events if name in (None, e["event"])]


def timeless(folder):
    kept = [e for e in events_of(folder) if e["event"] != "resumed"]
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in kept]


def states(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def assert_all_delivered(folder):
    assert not events_of(folder, "client_failed")
    rounds = events_of(folder, "round")
    assert len(rounds) == 2
    assert all(event["aggregated"] for event in rounds)


@pytest.mark.parametrize(
    "strategy", [name if name in KEEPING else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
)
def test_every_algorithm_goes_on_with_the_same_bits(settings_of, tmp_path, strategy):
    config = settings_of(strategy)
    run(config, tmp_path / "whole")
    assert_all_delivered(tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", listener=in_the_second_round)
    resume(tmp_path / "killed")
    assert states(tmp_path / "killed") == states(tmp_path / "whole")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_algorithm_learns_the_same_whether_clients_are_stacked_or_not(settings_of, tmp_path, strategy):
    for width in (1, 3):
        run(settings_of(strategy, stack_clients=width), tmp_path / str(width))
    one, three = (load_file(tmp_path / w / "adapter" / "adapter_model.safetensors") for w in "13")
    assert set(one) == set(three)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, three[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "ditto", "scaffold"])
def test_several_workers_give_the_same_bits(settings_of, importable, tmp_path, strategy):
    for workers in (1, 2):
        run(settings_of(strategy, num_workers=workers), tmp_path / str(workers))
    assert states(tmp_path / "1") == states(tmp_path / "2")


# --- pairs that work ---


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "fed_sb", "transforms": COMPRESSED["packed"]},
        {"strategy": "scaffold", "transforms": COMPRESSED["sparse"]},
        {"strategy": "hetlora", "client_ranks": [4, 2, 3], **PERSONAL},
        {"strategy": "feddpa", **PERSONAL, "unseen_clients": 1},
        {"strategy": "scaffold", "selection": "oort", "clients_per_round": 3},
        {"strategy": "fltrust", "selection": "power_of_choice", "clients_per_round": 3},
        {"tuning": "dora", "strategy": "fedadam", "transforms": COMPRESSED["packed"]},
        {"strategy": "krum", "attack": ["alie"], "attackers": 1},
        *(
            pytest.param({"strategy": strategy, "transforms": COMPRESSED[kind]}, marks=pytest.mark.slow)
            for kind in COMPRESSED
            for strategy in ("fedit", "fedsa_lora", "ditto", "clustered", "rolora", "fedbuff")
        ),
        *(
            pytest.param({"strategy": strategy, **PERSONAL}, marks=pytest.mark.slow)
            for strategy in ("fedit", "fedsa_lora", "ditto", "clustered", "fed_sb", "flora")
        ),
        *(
            pytest.param({"strategy": strategy, "client_ranks": [4, 2, 3]}, marks=pytest.mark.slow)
            for strategy in ("flexlora", "flora", "fedmomentum")
        ),
        *(
            pytest.param({"tuning": tuning, "strategy": strategy}, marks=pytest.mark.slow)
            for tuning in ("dora", "full", "ia3", "vera", "prefix")
            for strategy in ("fedit", "fedadam", "scaffold")
        ),
    ],
    ids=lambda changes: "-".join(map(str, changes.values()))[:60],
)
def test_a_pair_of_features_runs(settings_of, tmp_path, changes):
    run(settings_of(**changes), tmp_path / "run")
    assert_all_delivered(tmp_path / "run")


@pytest.mark.parametrize("strategy", ["flora", pytest.param("fedex_lora", marks=pytest.mark.slow)])
def test_early_stopping_keeps_the_ledger_of_the_best_round(settings_of, tmp_path, strategy):
    config = settings_of(strategy, validation=1, early_stopping=1, num_rounds=4, learning_rate=30.0)
    result = run(config, tmp_path / "run")
    losses = {e["round"]: e["validation_loss"] for e in events_of(tmp_path / "run", "evaluation")}
    best = min(losses, key=losses.get)
    assert best < max(losses), "the rate is too small to make the loss rise"
    assert result.summary["held_out"]["after"]["loss"] == pytest.approx(
        next(e["loss"] for e in events_of(tmp_path / "run", "evaluation") if e["round"] == best)
    )


@pytest.mark.parametrize(
    "strategy", ["fedit", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ditto", "flora"))]
)
def test_preferences_are_learnt_by_any_algorithm(settings_of, preferences, tmp_path, strategy):
    run(settings_of(strategy, objective="dpo", dataset=str(preferences), **PERSONAL), tmp_path / "run")
    assert_all_delivered(tmp_path / "run")


@pytest.fixture
def preferences(dataset, tmp_path):
    """The rows as preferences of their answer over the same backwards."""
    path = tmp_path / "preferences.jsonl"
    rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": row["output"][::-1] + " x"}
        for row in rows
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


# --- seams that were open once ---


@pytest.mark.parametrize("attack", ["sign_flip", "alie", "wrong_rank", "nan"])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_an_attack_is_on_the_update_and_not_on_its_compressed_form(settings_of, tmp_path, attack, kind):
    """A hostile client knows the transforms: what it sends can be read, and is refused for what it says."""
    config = settings_of(attack=[attack], attackers=1, transforms=COMPRESSED[kind], num_rounds=1)
    run(config, tmp_path / "run")
    reasons = [event["reason"] for event in events_of(tmp_path / "run", "client_failed")]
    expected = {"wrong_rank": "has shape", "nan": "not finite"}.get(attack)
    assert len(reasons) == (expected is not None)
    assert all(expected in reason for reason in reasons)


def test_a_compressed_sign_flip_changes_what_the_federation_learns(settings_of, tmp_path):
    transforms = COMPRESSED["packed"]
    for name, changes in (("clean", {}), ("flipped", {"attack": ["sign_flip"], "attackers": 6})):
        run(settings_of(transforms=transforms, num_rounds=1, **changes), tmp_path / name)
    clean, flipped = (
        load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("clean", "flipped")
    )
    agreement = sum(float((clean[name] * flipped[name]).sum()) for name in clean if name.endswith("lora_B.weight"))
    assert agreement < 0


@pytest.mark.parametrize("tuning", ["full", "ia3", pytest.param("vera", marks=pytest.mark.slow), "prefix"])
def test_clients_can_be_measured_that_train_no_factors(settings_of, tmp_path, tuning):
    run(settings_of(tuning=tuning, **PERSONAL), tmp_path / "run")
    personal = json.loads((tmp_path / "run" / "personal.json").read_text())
    assert personal["models"]["seen"]["personal"]["gap_to_global"] == pytest.approx(0, abs=1e-9)
    assert personal["models"]["seen"]["tuned"]["clients"] == 7
    assert personal["models"]["seen"]["tuned"]["gap_to_global"] != 0


def test_baselines_train_at_the_servers_rank_where_clients_have_others(settings_of, tmp_path):
    config = settings_of(
        "flexlora",
        client_ranks=[2, 4],
        compare=["local", "centralised"],
        compare_clients=1,
        max_new_tokens=2,
    )
    result = run(config, tmp_path / "run")
    assert {"local:client-0", "centralised"} <= set(result.summary["arms"])


@pytest.mark.parametrize("root", [f"client-{n}" for n in (0, 2, 6)])
def test_who_takes_part_in_every_round_is_waited_for_however_slow(settings_of, tmp_path, root):
    config = settings_of(
        "fltrust",
        strategy_options={"root_client": root},
        stragglers="over_select",
        stragglers_options={"factor": 2.0},
        devices="lognormal",
        clients_per_round=3,
    )
    run(config, tmp_path / "run")
    assert all(event["aggregated"] for event in events_of(tmp_path / "run", "round"))
    assert all(event["cohort"].count(root) == 1 for event in events_of(tmp_path / "run", "round"))
    assert root not in {event["client"] for event in events_of(tmp_path / "run", "client_failed")}


def test_neither_a_trusted_client_nor_an_attacker_is_unseen(settings_of):
    for number in range(7):
        job = prepare.prepare(
            settings_of(
                "fltrust",
                strategy_options={"root_client": f"client-{number}"},
                unseen_clients=5,
                attack=["sign_flip"],
                attackers=1,
            )
        )
        assert len(job.unseen) == 5
        assert not job.unseen & {f"client-{number}", *job.hostile}


def test_a_server_tunes_on_answers_after_learning_preferences(settings_of, preferences, tmp_path):
    config = settings_of(objective="dpo", dataset=str(preferences), defence_steps=2, validation=2)
    run(config, tmp_path / "run")
    (defended,) = events_of(tmp_path / "run", "defended")
    assert defended["loss"] > 0
    with pytest.raises(ConfigError, match="forget_policy adds rows without rejected answers"):
        settings_of(objective="dpo", dataset=str(preferences), attack=["forget_policy"])


def test_another_algorithm_beside_the_jobs_is_checked_against_all_settings(settings_of):
    job = prepare.prepare(settings_of("flexlora", client_ranks=[4, 2]))
    assert arms.federated(job, "flora").strategy != job.strategy
    with pytest.raises(ConfigError, match="has one rank for all"):
        arms.federated(job, "fedit")
    job = prepare.prepare(settings_of(clients_per_round=3))
    with pytest.raises(ConfigError, match="needs at least 5 clients a round"):
        arms.federated(job, "krum")


@pytest.mark.parametrize("strategy", ["krum", "bulyan", "fltrust", "fedit"])
def test_a_rank_is_found_for_rules_that_need_a_large_cohort(settings_of, strategy):
    job = prepare.prepare(settings_of(strategy, lora_r="auto", upload_megabytes=0.02))
    assert job.config.rank >= 1
