"""What clients run for themselves at the end of a run: the matrix, who is unseen, workers, and interruptions."""

import json
import math

import pytest
import torch

from fedit import arms, checkpoint, seeds, settings
from fedit.compute import Here, at_weight, question_weights, runnable
from fedit.data.examples import row_id
from fedit.errors import ConfigError
from fedit.evaluation.loss import row_losses
from fedit.launch import resume, run
from fedit.lora import with_product
from fedit.prepare import prepare
from fedit.report.record import read_run
from fedit.report.run_report import run_report
from fedit.store import ClientStore
from fedit.types import Broadcast, ClientTask, Likened, Running, own_adapter

WANTED = {
    "personal_evaluation": True,
    "partitioner": "dirichlet",
    "alpha": 0.5,
    "min_examples": 4,
    "num_clients": 4,
    "learning_rate": 0.05,
}
SHARES_A = '''
"""Only A is shared; B stays with its client."""

from dataclasses import dataclass

from fedit.strategies.base import Strategy


@dataclass(frozen=True)
class SharesA(Strategy):
    """The server averages A; every client keeps its B."""

    def shares(self, name):
        return name.endswith(".A")
'''


def read(folder):
    return json.loads((folder / "personal.json").read_text(encoding="utf-8"))


def events_of(folder, name):
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def measured_by_hand(config, running):
    """Return the loss of ``running`` in every category, through the model and nothing else."""
    job = prepare(config)
    model = job.model
    rows = job.tokens(job.held_out)
    (losses,) = row_losses(model, [runnable(job, running)], [rows])
    return dict(losses.report([example.category for example in job.held_out]).per_category)


# --- the matrix ---


def test_without_personal_models_everybody_runs_the_global_one(make_config, tmp_path):
    run(make_config(**WANTED), tmp_path / "r")
    content = read(tmp_path / "r")
    last = events_of(tmp_path / "r", "evaluation")[-1]
    assert content["round"] == 2
    assert content["global"]["per_category"] == last["per_category"]
    assert len(content["clients"]) == 4
    for client, row in content["clients"].items():
        assert row["personal"]["per_category"] == content["global"]["per_category"]
        assert row["global"] == row["personal"]["own"] == last["per_client"][client]
        assert row["personal"]["per_client"] == last["per_client"]
        assert "tuned" not in row
    assert content["models"]["seen"]["personal"]["gap_to_global"] == 0
    assert content["models"]["unseen"] == {}


def test_a_clients_row_is_its_own_tensors_with_the_servers(make_config, tmp_path):
    """As in FedSA-LoRA: the server's A with the client's B, read from where worker processes leave it."""
    (tmp_path / "mine.py").write_text(SHARES_A, encoding="utf-8")
    config = make_config(**WANTED, strategy=f"{tmp_path / 'mine.py'}:SharesA")
    run(config, tmp_path / "r")
    content = read(tmp_path / "r")
    server = checkpoint.newest(tmp_path / "r" / "server")
    store = ClientStore(tmp_path / "r" / "clients")
    found = set()
    for client, row in content["clients"].items():
        private = store.read(client, 3).private
        assert {name[-1] for name in private} == {"B"}
        expected = measured_by_hand(config, Running({**server.adapter, **private}, {}, server.scale))
        assert row["personal"]["per_category"] == pytest.approx(expected, abs=1e-6)
        found.add(tuple(expected.values()))
    assert len(found) == 4


def test_a_mixed_clients_row_is_the_mixture_of_outputs(make_config, tmp_path):
    config = make_config(**WANTED, strategy="feddpa", strategy_options={"weight": 0.25}, num_rounds=3)
    run(config, tmp_path / "r")
    server = checkpoint.newest(tmp_path / "r" / "server")
    state = ClientStore(tmp_path / "r" / "clients").read("client-0", 4)
    local = {n.removeprefix("local/"): t for n, t in state.memory.items() if n.startswith("local/")}
    joined = {
        name: torch.cat([server.adapter[name], local[name]])
        if name.endswith(".A")
        else torch.cat([0.75 * server.adapter[name], 0.25 * local[name]], dim=1)
        for name in local
    }
    row = read(tmp_path / "r")["clients"]["client-0"]
    expected = measured_by_hand(config, Running(joined, {}, server.scale))
    assert row["personal"]["per_category"] == pytest.approx(expected, abs=1e-5)


def test_what_is_run_at_another_scale_is_measured_at_that(make_config):
    job = prepare(make_config())
    adapter = job.model.initial(0)
    adapter = {name: torch.randn_like(tensor) for name, tensor in adapter.items()}
    assert runnable(job, Running(adapter, {}, 2.0)) == adapter  # alpha 8 at rank 4
    doubled = runnable(job, Running(adapter, {}, 4.0))
    halved = {name: tensor[:2] if name.endswith(".A") else tensor[:, :2] for name, tensor in adapter.items()}
    lower = runnable(job, Running(halved, {}, 2.0))  # alpha 8 at rank 2 is 4
    for name in adapter:
        factor = 2.0 if name.endswith(".B") else 1.0
        assert torch.equal(doubled[name], factor * adapter[name])
        assert torch.equal(lower[name], halved[name] / factor)
    ledger = with_product({}, adapter, 0.5)
    assert set(runnable(job, Running(adapter, ledger, 2.0))) == {*adapter, *(f"ledger/{n}" for n in ledger)}


def test_the_summary_is_what_the_rows_say(make_config, tmp_path):
    config = make_config(
        **WANTED, strategy="ditto", compare=["local"], compare_clients=2, max_new_tokens=2, unseen_clients=1
    )
    result = run(config, tmp_path / "r")
    content = read(tmp_path / "r")
    rows = {client: row for client, row in content["clients"].items() if row["seen"]}
    losses = [row["personal"]["own"] for row in rows.values()]
    mean = sum(losses) / len(losses)
    found = content["models"]["seen"]["personal"]
    assert found["clients"] == 3
    assert found["mean"] == pytest.approx(mean)
    assert found["worst_decile"] == max(losses)
    assert found["std"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in losses) / 3))
    gaps = [row["personal"]["own"] - row["global"] for row in rows.values()]
    assert found["gap_to_global"] == pytest.approx(sum(gaps) / 3)
    both = [row["personal"]["own"] - row["local"] for row in rows.values() if "local" in row]
    assert len(both) == 2
    assert found["gap_to_local"] == pytest.approx(sum(both) / 2)
    assert result.summary["personal"] == content["models"]
    assert events_of(tmp_path / "r", "personal")[0]["models"] == content["models"]


def test_a_client_alone_is_measured_by_the_run_that_trained_it(make_config, tmp_path):
    config = make_config(**WANTED, compare=["local"], compare_clients=1, max_new_tokens=2)
    run(config, tmp_path / "r")
    last = events_of(tmp_path / "r" / "arms" / "local.client-0", "evaluation")[-1]
    assert read(tmp_path / "r")["clients"]["client-0"]["local"] == last["per_client"]["client-0"]


# --- clients that no cohort has ---


def test_unseen_clients_are_in_no_cohort_and_get_the_global_model(make_config, tmp_path):
    config = make_config(**WANTED, unseen_clients=2, num_rounds=3, strategy="ditto", strategy_options={"lam": 0.0})
    run(config, tmp_path / "r")
    content = read(tmp_path / "r")
    unseen = set(content["unseen"])
    assert len(unseen) == 2
    for event in events_of(tmp_path / "r", "round"):
        assert not unseen & set(event["cohort"])
        assert len(event["cohort"]) == 2
    for client, row in content["clients"].items():
        same = row["personal"]["per_category"] == content["global"]["per_category"]
        assert same == (client in unseen) == (not row["seen"])
    assert content["models"]["unseen"]["personal"]["gap_to_global"] == 0


def test_who_is_unseen_follows_from_the_seed(make_config):
    drawn = {seed: prepare(make_config(**WANTED, unseen_clients=1, seed=seed)).unseen for seed in range(6)}
    assert drawn[0] == prepare(make_config(**WANTED, unseen_clients=1, seed=0)).unseen
    assert len(set(drawn.values())) > 1


def test_baselines_leave_unseen_clients_out_too(make_config):
    job = prepare(make_config(**WANTED, unseen_clients=2, compare=["local", "centralised"], compare_clients=4))
    names = arms.baseline_names(job)
    assert not {name.partition(":")[2] for name in names} & job.unseen
    assert set(arms.named(job, "centralised", {1: 10}).clients["everyone"]) == set(job.seen)
    assert set(arms.federated(job).clients) == set(job.seen)
    assert set(arms.tuned(job).clients) == set(job.clients)


def test_somebody_has_to_be_left_to_train(make_config):
    with pytest.raises(ConfigError, match="unseen_clients is 4, but there are 4 clients"):
        prepare(make_config(**WANTED, unseen_clients=4))


def test_a_cohort_of_more_than_are_left_is_refused(make_config):
    with pytest.raises(ConfigError, match="clients_per_round is 4, but there are 3 clients"):
        prepare(make_config(**WANTED, unseen_clients=1, clients_per_round=4))


# --- fine-tuning ---


def test_fine_tuning_goes_on_from_what_a_client_runs_and_changes_nothing_else(make_config, tmp_path):
    plain = make_config(**WANTED, unseen_clients=1)
    config = make_config(**WANTED, unseen_clients=1, personal_steps=3)
    run(plain, tmp_path / "plain")
    run(config, tmp_path / "r")
    one, two = read(tmp_path / "plain"), read(tmp_path / "r")
    assert one["global"] == two["global"]
    job = prepare(config)
    server = checkpoint.newest(tmp_path / "r" / "server")
    for client, row in two["clients"].items():
        assert row["personal"] == one["clients"][client]["personal"]
        assert row["tuned"]["per_category"] != row["personal"]["per_category"]
    arm = arms.tuned(job)
    assert (arm.training(1).steps, arm.training(1).epochs, arm.training(1).num_rounds) == (3, None, 1)
    # By hand: three steps from the global adapter, on the client's own rows.
    task = ClientTask(
        1,
        "client-1",
        Broadcast(server.adapter, scale=server.scale),
        arm.training(1),
        seeds.derive(0, "tune", "client-1"),
    )
    update = Here(job).worker(arm, tmp_path / "elsewhere").train(task)
    tuned = {name: server.adapter[name] + update.delta[name] for name in update.delta}
    expected = measured_by_hand(config, Running(tuned, {}, server.scale))
    assert two["clients"]["client-1"]["tuned"]["per_category"] == pytest.approx(expected, abs=1e-5)


def test_feddpas_local_adapter_is_trained_after_the_last_round(make_config, tmp_path):
    """FedDPA-F by hand: from the run's first adapter, three steps beside 0.75 of the frozen global one."""
    options = {"weight": 0.25, "afterwards": True}
    config = make_config(**WANTED, strategy="feddpa", strategy_options=options, personal_steps=3)
    run(config, tmp_path / "r")
    content, job = read(tmp_path / "r"), prepare(config)
    server = checkpoint.newest(tmp_path / "r" / "server")
    fresh, ledger = job.model.initial(0), with_product({}, server.adapter, 0.75 * server.scale)
    arm = arms.tuned(job)
    task = ClientTask(
        1,
        "client-1",
        Broadcast(fresh, ledger, scale=0.25 * server.scale),
        arm.training(1),
        seeds.derive(0, "tune", "client-1"),
    )
    update = Here(job).worker(arm, tmp_path / "elsewhere").train(task)
    local = {name: fresh[name] + update.delta[name] for name in fresh}
    expected = measured_by_hand(config, Running(local, ledger, 0.25 * server.scale))
    row = content["clients"]["client-1"]
    assert row["tuned"]["per_category"] == pytest.approx(expected, abs=1e-5)
    assert row["personal"]["per_category"] == content["global"]["per_category"]


@pytest.mark.parametrize("afterwards", [False, True])
def test_feddpa_weighs_the_local_adapter_anew_for_every_question(make_config, tmp_path, afterwards):
    """By hand: prompts one by one through transformers, then every row under a model of its own."""
    options = {"weight": 0.5, "likened": 2, "afterwards": afterwards}
    config = make_config(
        **WANTED, strategy="feddpa", strategy_options=options, num_rounds=3, personal_steps=2 * afterwards
    )
    run(config, tmp_path / "r")
    kind = "tuned" if afterwards else "personal"
    row, job = read(tmp_path / "r")["clients"]["client-1"], prepare(config)
    server = checkpoint.newest(tmp_path / "r" / "server")
    general = Running(server.adapter, {}, server.scale)
    if afterwards:
        arm, fresh = arms.tuned(job), job.model.initial(0)
        sent = Broadcast(fresh, with_product({}, server.adapter, 0.5 * server.scale), scale=0.5 * server.scale)
        task = ClientTask(1, "client-1", sent, arm.training(1), seeds.derive(0, "tune", "client-1"))
        update = Here(job).worker(arm, tmp_path / "elsewhere").train(task)
        local = {name: fresh[name] + update.delta[name] for name in fresh}
    else:
        local = own_adapter(ClientStore(tmp_path / "r" / "clients").read("client-1", 4).memory, "local")
    running = Running(local, {}, 1.0, Likened(general, 0.5, 2))

    def state(ids):
        job.model.load(local, scale=server.scale)
        with torch.no_grad():
            out = job.model.base.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return out.hidden_states[-1][0, -1].double()

    mine = sorted(job.clients["client-1"], key=lambda e: seeds.derive(0, "likened", "client-1", row_id(e)))[:2]
    known = [state(ids) for ids in job.prompts(mine)]
    losses, weights = {}, []
    for example, ids in zip(job.held_out, job.prompts(job.held_out), strict=True):
        asked = state(ids)
        cosines = [float(torch.cosine_similarity(asked, one, dim=0)) for one in known]
        weights.append(0.5 * max(sum(cosines) / 2, 0.0))
        ledger = with_product({}, server.adapter, (1 - weights[-1]) * server.scale)
        model = runnable(job, Running(local, ledger, weights[-1] * server.scale))
        (one,) = row_losses(job.model, [model], [job.tokens([example])])
        sums, counts = losses.get(example.category, (0.0, 0))
        losses[example.category] = (sums + float(one.sums[0]), counts + int(one.counts[0]))
    assert len(set(weights)) > 2
    found = question_weights(job, "client-1", running, job.held_out)
    assert found.tolist() == pytest.approx(weights, abs=1e-5)
    expected = {category: sums / counts for category, (sums, counts) in losses.items()}
    assert row[kind]["per_category"] == pytest.approx(expected, abs=1e-5)
    if not afterwards:
        constant = measured_by_hand(config, at_weight(running, 0.5))
        assert row[kind]["per_category"] != pytest.approx(constant, abs=1e-5)


def test_shares_of_questions_add_up_to_all_of_them(make_config):
    """What worker processes do: each takes some of the rows, and zeros stand for the others."""
    job = prepare(make_config(**WANTED))
    start = job.model.initial(0)
    drawn = [{n: torch.randn_like(t) for n, t in start.items()} for _ in range(2)]
    running = Running(drawn[0], {}, 1.0, Likened(Running(drawn[1], {}, 2.0), 0.7, 3))
    here = Here(job)
    whole = here.likened_losses("client-0", running, "held_out")
    parts = [here.likened_losses("client-0", running, "held_out", (k, 3)) for k in range(3)]
    total = parts[0] + parts[1] + parts[2]
    assert torch.equal(total.counts, whole.counts)
    torch.testing.assert_close(total.sums, whole.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_worker_processes_weigh_questions_alike(make_config, tmp_path):
    config = make_config(**WANTED, strategy="feddpa", strategy_options={"likened": 2}, num_threads=1)
    run(config, tmp_path / "one")
    run(config.model_copy(update={"num_workers": 2}), tmp_path / "two")
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    for client, row in one["clients"].items():
        assert two["clients"][client]["personal"]["per_category"] == pytest.approx(
            row["personal"]["per_category"], abs=1e-6
        )


def test_an_adapter_that_would_be_trained_afterwards_without_steps_is_refused(make_config):
    with pytest.raises(ConfigError, match="set personal_evaluation=true and personal_steps"):
        prepare(make_config(strategy="feddpa", strategy_options={"afterwards": True}))


def test_fine_tuning_without_the_evaluation_is_refused():
    with pytest.raises(ConfigError, match="personal_steps are for personal_evaluation"):
        settings.from_values({"personal_steps": 2}, "test")


# --- processes and interruptions ---


@pytest.mark.parametrize("strategy", ["ditto", "feddpa", "clustered"])
def test_a_run_killed_at_any_moment_ends_with_the_same_matrix(make_config, tmp_path, strategy):
    class Killed(BaseException):
        pass

    def killer(moment):
        heard = 0

        def listen(event):
            nonlocal heard
            heard += 1
            if heard == moment:
                raise Killed

        return listen

    config = make_config(**WANTED, strategy=strategy, personal_steps=1, unseen_clients=1, num_rounds=3)
    heard = []
    run(config, tmp_path / "whole", listener=heard.append)
    names = [event["event"] for event in heard]
    for moment in (len(names) // 2, names.index("personal") + 1, len(names) - 1):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(config, folder, listener=killer(moment))
        resume(folder)
        assert read(folder) == read(tmp_path / "whole")
        assert len(events_of(folder, "personal")) == 1
        ours, theirs = (
            {p.relative_to(f): p.read_bytes() for p in f.rglob("*.safetensors")}
            for f in (folder, tmp_path / "whole")
        )
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_worker_processes_give_the_same_matrix(make_config, tmp_path):
    config = make_config(**WANTED, strategy="feddpa", personal_steps=2, unseen_clients=1, num_threads=1)
    run(config, tmp_path / "one")
    run(config.model_copy(update={"num_workers": 2}), tmp_path / "two")
    assert read(tmp_path / "one") == read(tmp_path / "two")


# --- the report ---


def test_the_report_shows_models_against_categories(make_config, tmp_path):
    config = make_config(**WANTED, strategy="fedper", personal_steps=1, unseen_clients=1)
    run(config, tmp_path / "r")
    document = run_report(tmp_path / "r")
    (section,) = [section for section in document.sections if section.anchor == "personal"]
    figures = {figure.name: figure.chart for figure in document.figures() if figure.name.startswith("personal-")}
    assert set(figures) == {"personal-personal", "personal-tuned"}
    content = read(tmp_path / "r")
    for kind, chart in ((name.removeprefix("personal-"), chart) for name, chart in figures.items()):
        assert chart.rows[0] == "global"
        assert chart.columns == ("copy", "count", "upper")
        (marked,) = [name for name in chart.rows if name.endswith("(unseen)")]
        assert marked.removesuffix(" (unseen)") == content["unseen"][0]
        for name, values, own in zip(chart.rows[1:], chart.values[1:], chart.totals[1:], strict=True):
            row = content["clients"][name.removesuffix(" (unseen)")][kind]
            assert values == tuple(row["per_category"][column] for column in chart.columns)
            assert own == row["own"]
    assert section.title == "What clients run for themselves"
    assert read_run(tmp_path / "r").personal == content


def test_a_run_without_it_has_no_such_section(make_config, tmp_path):
    run(make_config(), tmp_path / "r")
    assert not (tmp_path / "r" / "personal.json").exists()
    assert "personal" not in [section.anchor for section in run_report(tmp_path / "r").sections]
