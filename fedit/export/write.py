"""An export, whole or not at all."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedit.errors import ConfigError, RunFolderError, UnknownName
from fedit.export.card import public_value, write_card
from fedit.export.formats import FORMATS, Options
from fedit.export.subject import Subject, are_personal, find_clients, find_subject, source_of
from fedit.files import new_folder, write_json
from fedit.model.export import public_name

RECORD = "export.json"
"""Says of a folder that it is an export, and of what."""

ALL = "all"


@dataclass(frozen=True, slots=True)
class Exported:
    """An export on disk: its folder, files and their sizes, `RECORD`'s content, what the user should know."""

    folder: Path
    files: dict[str, int]
    record: dict[str, object]
    notes: list[str]


def export(
    run: Path,
    to: str,
    out: Path,
    *,
    options: Options | None = None,
    clients: Sequence[str] = (),
    model: str | None = None,
    template: str | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the tuned model in ``run`` in the format ``to`` into the folder ``out``.

    run:     a run, an arm of one, or a PEFT folder of a LoRA adapter.
    clients: ids of clients whose own models are exported instead of the federated one; "all": everybody's.
    model, template: win over what the run says.
    replace: whether an older export in ``out`` gives way; anything else that is there never does.

    Raises:
        ConfigError: an option is none of this format's.
        ModelError: the format cannot hold what was trained; nothing is written.
        RunFolderError: ``out`` is there already, or cannot be written.
    """
    if to not in FORMATS:
        raise UnknownName("format", to, FORMATS)
    chosen, how = FORMATS[to], options or Options()
    chosen.check(to, how)
    check_target(out, replace=replace)
    subject = find_subject(run, model=model, template=template)
    subjects = _chosen(subject, clients, several=chosen.several)
    with new_folder(out) as folder:
        facts = chosen.write(subjects, folder, how, say)
        single = subjects[0] if len(subjects) == 1 else subject
        write_card(single, folder, library=chosen.library, how=chosen.how, relation=chosen.relation)
        record = {**_record(single, to), **facts}
        write_json(folder / RECORD, record)
    return Exported(out, sizes(out), record, [subject.note] if subject.note else [])


def check_target(out: Path, *, replace: bool) -> None:
    """Make sure that an export may be written to ``out``.

    Raises:
        RunFolderError: something is there that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise RunFolderError(f"{out} is there already and holds no export, so it stays; choose another --out.")
    if not replace:
        raise RunFolderError(f"{out} holds an export already; choose another --out, or add --replace.")


def sizes(folder: Path) -> dict[str, int]:
    """Return the files below ``folder``, by their paths in it, and their sizes in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _chosen(subject: Subject, clients: Sequence[str], *, several: bool) -> list[Subject]:
    """Return the models to export."""
    if not clients:
        return [subject, *find_clients(subject)] if several and are_personal(subject) else [subject]
    found = find_clients(subject, None if ALL in clients else list(dict.fromkeys(clients)))
    if len(found) > 1 and not several:
        names = ", ".join(name for name, own in FORMATS.items() if own.several)
        raise ConfigError(
            f"a folder of this format holds one model, and {len(found)} are asked for; use --to {names}."
        )
    return found


def _record(subject: Subject, to: str) -> dict[str, object]:
    """Return what `RECORD` holds of a model; nothing of this machine."""
    tuned, source = subject.tuned, source_of(subject)
    digest = hashlib.sha256(f"{tuned.scale}".encode())
    for name, tensor in sorted(tuned.adapter.items()):
        digest.update(f" {name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "format": to,
        "fedit": version("fedit"),
        "name": subject.name,
        "tuning": subject.kind,
        "rank": tuned.rank if subject.kind == "lora" else None,
        "base": public_name(source),
        "base_fingerprint": source.fingerprint,
        "template": public_value(tuned.template),
        "adapter_sha256": digest.hexdigest() if tuned.adapter else None,
    }
