"""Audits of tiny runs: of what was hardly trained, of what was learnt by heart, and of what privacy covers."""

import json

import pytest
import torch
from tiny import write_rows

from fedit import settings
from fedit.compute import Here
from fedit.data.examples import row_id
from fedit.engines.uploads import kept_uploads, read_upload
from fedit.errors import ConfigError, RunFolderError
from fedit.evaluation.loss import row_losses
from fedit.events import EventLog
from fedit.flower.submission import REFUSED
from fedit.launch import run
from fedit.prepare import assemble, prepare
from fedit.privacy.audit.drawn import Drawn
from fedit.privacy.audit.findings import too_few
from fedit.privacy.audit.rows import compared
from fedit.privacy.audit.run import AuditOptions, audit
from fedit.privacy.audit.secrets import secrets_of
from fedit.privacy.audit.shadows import plan
from fedit.privacy.audit.subjects import subjects_of

TINY = {
    "device": "cpu", "dtype": "fp32", "lora_r": 4, "lora_alpha": 8, "batch_size": 8, "max_length": 160,
    "prompt_template": "alpaca_short", "num_workers": 1, "eval_max_examples": 4,
}  # fmt: skip


def only_numbers(patch):
    """Leave out pictures and the report of runs, which take longer than tiny runs do."""
    for name in ("partition_figure", "learning_curves", "category_curves"):
        patch.setattr(f"fedit.report.summary.{name}", lambda *args, **options: None)
    patch.setattr("fedit.launch.write_report", lambda *args, **options: None)
    patch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tiny):
    """A run of three clients, two of whom hold canaries, and one of whose uploads are kept; and its audit."""
    folder = tmp_path_factory.mktemp("audit")
    write_rows(folder / "rows.jsonl", 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        only_numbers(patch)
        job = {"model": str(tiny), "dataset": str(folder / "rows.jsonl"), "num_clients": 3, "num_rounds": 2,
               "local_steps": 2, "held_out": 10, "canaries": 2, "keep_uploads": ["client-1"],
               "canaries_options": {"repetitions": [1, 3]}, "transforms": ["cast"],
               "learning_rate": 0.01}  # fmt: skip
        config = settings.from_values({**TINY, **job}, "test")
        run(config, folder / "run")
        said = []
        content = audit(folder / "run", AuditOptions(references=100, rows=40), said.append)
        yield config, folder / "run", content, said


def test_what_was_hardly_trained_gives_nothing_away(audited):
    _, folder, content, said = audited
    assert content == json.loads((folder / "audit.json").read_text())
    kinds = [(model["kind"], model["round"], model["client"]) for model in content["models"]]
    assert kinds == [
        ("base", 0, None), ("round", 1, None), ("upload", 1, "client-1"), ("upload", 2, "client-1"),
        ("final", 2, None),
    ]  # fmt: skip
    for model in (content["models"][0], content["models"][-1]):
        membership = model["membership"]
        assert membership["members"] == membership["others"] == 30
        assert all(one["auc"]["low"] <= 0.5 <= one["auc"]["high"] for one in membership["scores"].values())
        planted = model["canaries"]["by_repetitions"]
        assert [one["repetitions"] for one in planted] == [1, 3]
        assert all(one["extracted"] == 0 and one["exposure_mean"] < 5 for one in planted)
    upload = content["models"][3]["membership"]
    assert 10 <= upload["members"] == upload["others"] < 30
    assert "reference" in upload["scores"]
    assert "about" in said[0]


def test_the_report_shows_the_audit(audited):
    _, folder, _, _ = audited
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="leakage"' in page
    assert "Planted secrets, model by model" in page
    assert {"leakage-membership.svg", "leakage-rounds.svg", "leakage-exposure.svg"} <= {
        path.name for path in (folder / "figures").iterdir()
    }


def test_members_are_the_rows_that_were_drawn_and_no_canaries(audited):
    config, folder, _, _ = audited
    job = assemble(config, num_threads=1)
    drawn = Drawn(job, EventLog(folder).read(), folder)
    counts = drawn.until(2)
    said = [event for event in EventLog(folder).read() if event["event"] == "client"]
    lengths = {row_id(row): len(job.tokens([row])[0].ids) for client in job.seen for row in job.clients[client]}
    for client, own in counts.items():
        tokens = sum(event["tokens"] for event in said if event["client"] == client)
        assert sum(lengths[row] * times for row, times in own.items()) == tokens
    assert drawn.within("client-1", 1) + drawn.within("client-1", 2) == counts["client-1"]
    rows = compared(job, counts["client-1"], 40, client="client-1")
    planted = {row_id(canary.row) for canary in job.canaries}
    assert {row_id(row) for row in rows.members} <= set(counts["client-1"]) - planted
    assert [row.category for row in rows.members] == [row.category for row in rows.others]
    assert not {row_id(row) for row in rows.others} & {row_id(row) for row in job.corpus.examples}


def test_a_log_without_clients_leaves_what_they_keep(audited):
    config, folder, _, _ = audited
    job = assemble(config, num_threads=1)
    silent = [event for event in EventLog(folder).read() if event["event"] != "client"]
    assert Drawn(job, silent, folder).until(2) == Drawn(job, EventLog(folder).read(), folder).until(2)


def test_kept_uploads_are_what_the_server_sees(audited):
    """With everybody's upload the server's next adapter would be their mean: here of one client alone."""
    config, folder, _, _ = audited
    uploads = {number: read_upload(path) for number, (path,) in kept_uploads(folder).items()}
    assert sorted(uploads) == [1, 2]
    job = assemble(config, num_threads=1)
    states = {subject.round: subject.read() for subject in subjects_of(job, Here(job), folder, -1)
              if subject.kind in ("base", "round")}  # fmt: skip
    for number, upload in uploads.items():
        before = states[number - 1].adapter
        # Broadcasts are cast to half precision on their way.
        assert all(torch.allclose(upload.before.adapter[n], before[n], atol=1e-3) for n in before)
        assert any(not torch.equal(upload.before.adapter[n], upload.after.adapter[n]) for n in before)


def test_only_the_code_counts_in_the_loss_of_a_canary(audited):
    config, *_ = audited
    job = assemble(config, num_threads=1)
    secrets = secrets_of(job, job.canaries[:1], 5)
    (rows,) = secrets.rows
    codes = [job.tokenizer.decode(row.ids[row.supervised]) for row in rows]
    assert codes[0] == job.canaries[0].code
    assert len(set(codes)) == 6
    whole = row_losses(job.model, [job.model.initial(0)], [job.tokens([job.canaries[0].row])])[0]
    assert whole.counts[0] > rows[0].supervised.sum()


def test_shadows_have_a_price_and_need_an_even_number(audited):
    config, *_ = audited
    job = assemble(config, num_threads=1)
    found = plan(job, job.corpus.held_out, 4, passes=4.0)
    assert found.steps == round(4 * 15 / 8)
    assert found.tokens > 4 * found.steps * 8 * 10
    with pytest.raises(ConfigError, match="even number"):
        plan(job, job.corpus.held_out, 3, passes=1.0)


def test_what_cannot_be_audited_is_refused(tmp_path, make_config):
    with pytest.raises(RunFolderError, match="holds no run"):
        audit(tmp_path, AuditOptions())
    with pytest.raises(ConfigError, match="at least 100"):
        AuditOptions(references=1)
    with pytest.raises(ConfigError, match="clients take part"):
        prepare(make_config(keep_uploads=4))
    with pytest.raises(ConfigError, match="no client that takes part"):
        prepare(make_config(keep_uploads=["nobody"]))
    with pytest.raises(ConfigError, match="no option 'times'"):
        prepare(make_config(canaries=1, canaries_options={"times": 3}))
    with pytest.raises(ConfigError, match="leaves tensors with its clients"):
        run(make_config(strategy="fedsa_lora", keep_uploads=1), tmp_path / "kept")
    for name, value in (("canaries", 2), ("keep_uploads", 1)):
        assert REFUSED[name][0](make_config(**{name: value}))


# --- what was learnt by heart, and what privacy leaves of it ---


def test_too_few_rows_say_nothing(audited):
    config, *_ = audited
    job = assemble(config, num_threads=1)
    few = compared(job, [row_id(row) for row in job.clients["client-0"][:9]], 40)
    assert too_few(few).startswith(f"only {len(few.members)} rows")
    assert too_few(compared(job, [row_id(row) for row in job.corpus.examples], 40)) is None
