"""The audit of a finished run: every model beside the rows and secrets that it may have learnt by heart."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedit.compute import Here
from fedit.data import DEPLOYMENT
from fedit.data.manifest import Partition
from fedit.errors import ConfigError, RunFolderError
from fedit.events import EventLog
from fedit.files import read_json, write_json
from fedit.job import Job
from fedit.launch import CANARIES, check_same, same_settings
from fedit.prepare import assemble
from fedit.privacy.audit.drawn import Drawn, total
from fedit.privacy.audit.exposure import CHANCE, can_extrapolate
from fedit.privacy.audit.findings import Auditor, too_few
from fedit.privacy.audit.rows import FEWEST, Compared
from fedit.privacy.audit.scores import lira
from fedit.privacy.audit.secrets import secrets_of
from fedit.privacy.audit.separation import LEVEL
from fedit.privacy.audit.shadows import Plan, plan, shadow_confidence
from fedit.privacy.audit.subjects import Subject, subjects_of
from fedit.privacy.ledger import FILE as LEDGER
from fedit.privacy.ledger import Ledger
from fedit.reading import parse_json
from fedit.report.record import AUDIT
from fedit.report.run_report import run_report
from fedit.report.write import write_report
from fedit.runfolder import only_worker, read_identity, read_summary

FORMAT = "fedit-audit-1"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How much is looked at.

    rows:       most rows of either kind, trained on and held out, in a comparison.
    references: secrets that a canary is ranked among.
    rounds:     most rounds whose states and uploads are looked at; 0: all.
    shadows:    shadow models for LiRA, an even number; 0: none.
    """

    rows: int = 500
    references: int = 1000
    rounds: int = 5
    shadows: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", FEWEST), ("references", 100), ("rounds", 0), ("shadows", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; expected at least {least}.")


def audit(folder: Path, options: AuditOptions, say: Say = lambda text: None) -> dict[str, object]:
    """Audit the finished simulation in ``folder``; write ``audit.json``, add it to the report and return it.

    Raises:
        RunFolderError: there is no finished run, its rows are elsewhere, or they changed.
        ConfigError: an option cannot work with it.
    """
    identity = read_identity(folder)
    if read_summary(folder) is None:
        raise RunFolderError(f"the run in {folder} is not finished; go on with: fedit resume {folder}")
    config = same_settings(folder, identity)
    _refuse_deployments(folder)
    with only_worker(folder):
        job = assemble(config, say, config.num_threads or os.cpu_count() or 1)
        check_same(job, folder, identity)
        _check_canaries(job, folder)
        content = _content(job, folder, options, say)
        write_json(folder / AUDIT, content)
        write_report(run_report(folder), folder, pdf=False)
    return content


def _check_canaries(job: Job, folder: Path) -> None:
    """Make sure that the canaries which the settings give are those that were planted."""
    path = folder / CANARIES
    try:
        planted = parse_json(path.read_bytes()) if path.is_file() else []
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    if planted != [canary.as_dict() for canary in job.canaries]:
        raise RunFolderError(f"{path} does not hold the canaries that the run's settings give; start a new run.")


def _refuse_deployments(folder: Path) -> None:
    if Partition.load(folder / "partition.json").scheme == DEPLOYMENT:
        raise RunFolderError(
            f"the rows of the run in {folder} are with its sites; an audit needs those that were trained on, so "
            "it is for simulations."
        )


def _content(job: Job, folder: Path, options: AuditOptions, say: Say) -> dict[str, object]:
    """Return the content of ``audit.json``."""
    compute = Here(job)
    events = EventLog(folder).read()
    subjects = subjects_of(job, compute, folder, options.rounds or -1)
    final, base = subjects[-1], subjects[0].read().adapter
    secrets = secrets_of(job, job.canaries, options.references)
    drawn = Drawn(job, events, folder)
    claim = _claim(job, folder)
    delta = float(str(claim["delta"])) if claim else 0.0
    auditor = Auditor(job, drawn, secrets, base, options.rows, final.round, delta)
    rows = auditor.rows(final)
    planned = _planned(job, drawn, rows, final, options)
    _tell_cost(compute, auditor, subjects, planned, say)
    models = []
    for subject in subjects:
        say(f"looking at {name_of(subject)}")
        models.append(_looked_at(auditor, subject, planned, say))
    return {
        "format": FORMAT,
        "round": final.round,
        "options": asdict(options),
        "confidence": LEVEL,
        "chance_exposure": CHANCE,
        "extrapolation": "skew normal" if can_extrapolate() else "left out: SciPy is not installed",
        "claim": claim,
        "shadows": None if planned is None else asdict(planned),
        "models": models,
        "warnings": _warnings(models),
    }


def _claim(job: Job, folder: Path) -> dict[str, object] | None:
    """Return what the run claims to have spent at most, on any unit, as its ledger says; None without a claim."""
    path = folder / LEDGER
    if not path.is_file():
        return None
    delta = float(read_json(path)["delta"])
    return {"unit": job.config.privacy, "epsilon": Ledger(path, delta).most().value, "delta": delta}


def _planned(job: Job, drawn: Drawn, rows: Compared, final: Subject, options: AuditOptions) -> Plan | None:
    """Return what shadows take, where some are asked for and there are rows for them."""
    if options.shadows == 0 or too_few(rows):
        return None
    counts = total(drawn.until(final.round))
    return plan(job, rows.all, options.shadows, sum(counts.values()) / len(counts))


def _tell_cost(
    compute: Here, auditor: Auditor, subjects: Sequence[Subject], planned: Plan | None, say: Say
) -> None:
    per_token = compute.seconds_per_token()
    tokens = sum(map(auditor.tokens, subjects))
    # A forward pass costs about a third of a training pass.
    say(f"{len(subjects)} models, about {tokens:,} tokens to read: about {tokens * per_token / 3:,.0f} s")
    if planned is not None:
        say(
            f"{planned.shadows} shadows of {planned.steps:,} steps, about {planned.tokens:,} tokens to train on: "
            f"about {planned.tokens * per_token:,.0f} s"
        )


def _looked_at(auditor: Auditor, subject: Subject, planned: Plan | None, say: Say) -> dict[str, object]:
    """Return what is found of one model, for JSON."""
    model, rows = subject.read(), auditor.rows(subject)
    found: dict[str, object] = {"kind": subject.kind, "round": subject.round, "client": subject.client or None}
    if why := too_few(rows):
        found["membership"] = {"members": len(rows.members), "others": len(rows.others), "left_out": why}
    else:
        scores = auditor.scores(subject, model, rows)
        if planned is not None and subject.kind == "final":
            shadows, inside = shadow_confidence(auditor.job, rows.all, planned, say)
            scores |= lira(scores["loss"], shadows, inside)
        found["membership"] = auditor.membership(rows, scores)
    if (canaries := auditor.canaries(subject, model)) is not None:
        found["canaries"] = canaries
    return found


def name_of(subject: Subject) -> str:
    """Return what a model is called."""
    match subject.kind:
        case "base":
            return "the base"
        case "final":
            return f"the final adapter, of round {subject.round}"
        case "upload":
            return f"the upload of {subject.client} in round {subject.round}"
    return f"the adapter after round {subject.round}"


def _warnings(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what makes the numbers less than they seem."""
    scores = models[0]["membership"].get("scores", {})
    apart = [name for name, found in scores.items() if not found["auc"]["low"] <= 0.5 <= found["auc"]["high"]]
    if not apart:
        return []
    return [
        f"The base, which saw neither, already tells the rows apart by {', '.join(apart)}: held-out rows differ "
        "in kind from those that were trained on (as those of the embedded skills do on purpose), and what these "
        "scores find is no sign of membership alone. Go by the loss against a reference, or take held-out rows "
        "from the same source."
    ]
