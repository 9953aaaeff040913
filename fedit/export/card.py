"""The card of an export: what the model is, what it was trained with, what came out, how to load it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PureWindowsPath

import yaml
from huggingface_hub import ModelCardData

from fedit.data.manifest import Partition
from fedit.data.templates import get_template
from fedit.export.subject import Subject, source_of
from fedit.model.export import public_name
from fedit.model.loading import load_tokenizer
from fedit.model.sources import ModelSource
from fedit.runfolder import read_config, read_identity, read_summary

_PRECISION = {
    "auto": "bf16 where the processor multiplies in it, else fp32",
    **{name: name for name in ("bf16", "fp32", "fp64")},
}
_LIMITS = """What a federation teaches is what its clients' rows say; nobody has looked at all of them. Held-out
loss compares models on rows like these and says nothing of truth or harm. The base model's licence and limits
apply."""


def write_card(subject: Subject, folder: Path, *, library: str, how: str, relation: str) -> None:
    """Write ``README.md``.

    library:  the hub's name of what loads the folder.
    how:      Markdown that says how to load it; "{base}" stands for the base model.
    relation: to its base, one of the hub's words: adapter, finetune, quantized, merge.
    """
    source = source_of(subject)
    base = public_name(source)
    run = Path(subject.run) if subject.run is not None else None
    facts = {"base model": base, **_facts(subject, source)}
    parts = [
        f"---\n{_metadata(subject, source, library, relation)}\n---",
        f"# {subject.name}",
        f"A language model tuned on instructions by federated learning: {_what(subject)}. Made by "
        f"fedit {version('fedit')}.",
        how.replace("{base}", base).strip(),
        "## What it is\n\n" + _table(("", ""), list(facts.items())),
    ]
    if run is not None:
        parts += _results(subject, run)
        parts.append(f"## Settings\n\n```yaml\n{_settings(run)}```")
    parts.append(f"## Limits\n\n{_LIMITS}")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def public_value(value: object) -> object:
    """Return a setting for others to read: files and folders of this machine by their names alone."""
    if isinstance(value, dict):
        return {name: public_value(own) for name, own in value.items()}
    if isinstance(value, list):
        return [public_value(own) for own in value]
    if not isinstance(value, str):
        return value
    file, colon, rest = value.rpartition(".py:")
    if colon:
        return f"{_last(file)}.py:{rest}"
    local = value.startswith(("/", "~", "./", "../")) or value.count("/") > 1 or Path(value).exists()
    return _last(value) if local or PureWindowsPath(value).drive else value


def _last(path: str) -> str:
    return PureWindowsPath(path).name  # takes both kinds of slashes


def _what(subject: Subject) -> str:
    trained = "all its weights" if subject.kind == "full" else f"adapters ({subject.kind})"
    return f"clients trained {trained} on rows that did not leave them, and a server put the results together"


def _metadata(subject: Subject, source: ModelSource, library: str, relation: str) -> str:
    base = public_name(source)
    on_hub = source.origin in ("hub", "wheel")
    data: list[str] = []
    if subject.run is not None:
        dataset = read_config(subject.run).dataset
        data = [dataset] if dataset == public_value(dataset) and dataset.count("/") == 1 else []
    card = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=relation if on_hub else None,
        library_name=library,
        pipeline_tag="text-generation",
        datasets=data or None,
        tags=["federated-learning", "instruction-tuning", *(["lora"] if subject.kind == "lora" else [])],
    )
    return card.to_yaml()


def _facts(subject: Subject, source: ModelSource) -> dict[str, object]:
    tuned = subject.tuned
    facts: dict[str, object] = {
        "base weights": _origin(source),
        "base model fingerprint": source.fingerprint,
        "base while it was trained": f"{tuned.bits} bits" if tuned.bits != 16 else _PRECISION[tuned.dtype],
        "tuning": f"LoRA, rank {tuned.rank}, scale {tuned.scale:g}" if subject.kind == "lora" else subject.kind,
        "prompt template": public_value(_template(subject, source)),
    }
    if subject.run is None:
        return facts
    config, summary = read_config(subject.run), read_summary(subject.run) or {}
    facts |= {
        "strategy": public_value(config.strategy),
        "dataset": public_value(config.dataset),
        "rounds": summary.get("adapter_round", config.num_rounds),
    }
    if (subject.run / "partition.json").is_file():
        partition = Partition.load(subject.run / "partition.json")
        facts["clients"] = f"{len(partition.clients)}, rows dealt by {config.partitioner} ({partition.hash[:12]})"
    facts["data fingerprint"] = read_identity(subject.run).get("data")
    return facts


def _template(subject: Subject, source: ModelSource) -> str:
    """Return the template's name, of "auto" the one that it stands for."""
    name = subject.tuned.template
    return get_template(name, load_tokenizer(source)).name if name == "auto" else name


def _results(subject: Subject, run: Path) -> list[str]:
    """Return sections of what a finished run measured; they are about its federated model alone."""
    summary = read_summary(run)
    if summary is None or subject.name != run.name:
        return []
    parts = []
    held_out = summary.get("held_out")
    if isinstance(held_out, Mapping) and "after" in held_out:
        rows = [("all", held_out["before"]["loss"], held_out["after"]["loss"])]
        categories = summary.get("per_category")
        if isinstance(categories, Mapping):
            rows += [(name, own["before"], own["after"]) for name, own in sorted(categories.items())]
        shown = [(name, f"{before:.3f}", f"{after:.3f}") for name, before, after in rows]
        parts.append(
            f"## Results\n\nHeld-out loss on {summary.get('held_out_rows', 'some')} rows that no client trained "
            "on.\n\n" + _table(("category", "base model", "tuned"), shown)
        )
    privacy = summary.get("privacy")
    if isinstance(privacy, Mapping) and "epsilon" in privacy:
        parts.append(
            f"## Privacy\n\nDifferentially private: epsilon {privacy['epsilon']:.3g} at delta "
            f"{privacy.get('delta', 0):.3g}; protected are single {privacy.get('level', 'client')}s."
        )
    return parts


def _settings(run: Path) -> str:
    values = public_value(read_config(run).model_dump(mode="json"))
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _origin(source: ModelSource) -> str:
    if source.origin == "wheel":
        return f"4-bit GGUF from the PyPI package {source.revision}, dequantised"
    return f"{source.origin}, revision {source.revision}" if source.revision else source.origin


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
