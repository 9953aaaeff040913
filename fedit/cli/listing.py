"""``fedit list``: the names that settings accept, found without importing anything heavy."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer
from rich.console import Console, Group
from rich.text import Text

from fedit.cli.completion import kinds
from fedit.cli.output import AsJson, console, plain_table, print_json, working
from fedit.cli.sources import described
from fedit.errors import ConfigError, UnknownName

EPILOG = """Examples:

fedit list

fedit list strategies

fedit list strategies --model smollm2-135m-instruct --lora_r 8

fedit list partitions --json

fedit list settings"""

_SCHEDULES = {
    "constant": "the same learning rate throughout",
    "linear": "falls in a straight line to min_lr_ratio at the end of the last round",
    "cosine": "falls along half a cosine to min_lr_ratio at the end of the last round",
}
_TEMPLATES = {
    "auto": "the model's own chat template if it has one, else alpaca",
    "chat": "the model's own chat template",
    "alpaca": "Stanford Alpaca's two prompts, with and without an input",
    "alpaca_short": "Alpaca's headings without the introduction: fewer tokens",
    "vicuna": "Vicuna v1.1: USER and ASSISTANT on one line, many rounds",
    "FILE.jinja": "a Jinja template of your own, written like a chat template",
    "FILE.json": "a template in Shepherd's layout: prompt_input, prompt_no_input",
}
_MODELS = {
    "smollm2-135m-instruct": "the default: SmolLM2-135M-Instruct in 4 bits from the package index, no hub needed",
    "FOLDER": "a Hugging Face folder: config.json, safetensors, tokenizer.json",
    "FILE.gguf": "a GGUF file of a Llama model, converted once",
    "OWNER/NAME": "a hub id, from the local cache or downloaded",
}
_NEEDS = {
    "category": "a category for every row",
    "owner": "partition_by, or data with owners",
    "clusters": "no labels: rows are grouped by the base model, into num_clusters = 8",
    "manifest": "partition_file",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One name that a setting accepts.

    facts: further fields, for JSON and the long form; empty ones are not shown.
    """

    name: str
    summary: str
    facts: Mapping[str, object] = field(default_factory=dict)


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            autocompletion=kinds,
            help="strategies, transforms, partitions, selections, devices, stragglers, availabilities, templates, "
            "recipes, formats, schedules, models or settings. Default: all, in short.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For strategies: bytes that a client sends and receives on it.")
    ] = None,
    lora_r: Annotated[int, typer.Option("--lora_r", min=1, help="Rank for --model.")] = 16,
    as_json: AsJson = False,
) -> None:
    """List what settings accept: strategies, transforms, partitions, selections, templates, recipes and more.

    With a KIND each name comes with its options, what it needs and where it is from; strategies with what travels,
    whether the aggregate is exact and what they can be combined with, found by rehearsing them.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind", kind, KINDS)
    if model is not None and kind != "strategies":
        raise ConfigError("--model is for: fedit list strategies --model NAME")
    found = {name: read() for name, (_, read) in KINDS.items() if kind in (None, name)}
    if kind == "strategies":
        with working("rehearsing the algorithms …"):
            found[kind] = [_with_facts(entry, model, lora_r) for entry in found[kind]]
    if as_json:
        print_json(
            [
                {"kind": name, "name": entry.name, "summary": entry.summary, **entry.facts}
                for name, entries in found.items()
                for entry in entries
            ]
        )
    elif kind is None:
        _print_all(console(), found)
    else:
        _print_kind(console(), kind, found[kind])


def strategies() -> list[Entry]:
    """Return the algorithms, read from their source: importing one would import torch."""
    from fedit.strategies import STRATEGIES

    return _classes(STRATEGIES)


def transforms() -> list[Entry]:
    """Return what may happen to updates on their way, read from its source like the algorithms."""
    from fedit.transforms import TRANSFORMS

    return _classes(TRANSFORMS)


def _with_facts(entry: Entry, model: str | None, rank: int) -> Entry:
    """Return a strategy with what its own code says about it."""
    from fedit.facts import bytes_of_a_round, facts
    from fedit.strategies import build_strategy

    known = {name: value for name, value in facts(entry.name).as_dict().items() if name != "name"}
    if model is not None:
        from fedit.model.shapes import shapes_of
        from fedit.model.sources import resolve_model

        up, down = bytes_of_a_round(build_strategy(entry.name, {}), shapes_of(resolve_model(model), "auto"), rank)
        known |= {"bytes_up": round(up), "bytes_down": round(down)}
    return replace(entry, facts={**entry.facts, **known})


def selections() -> list[Entry]:
    """Return the policies of who takes part."""
    from fedit.selection import SELECTIONS

    return _classes(SELECTIONS)


def devices() -> list[Entry]:
    """Return what the virtual clock can be told of clients' devices."""
    from fedit.clock import DEVICES

    return [Entry("none", "there is no virtual clock"), *_classes(DEVICES)]


def stragglers() -> list[Entry]:
    """Return the policies for slow clients."""
    from fedit.pace import STRAGGLERS

    return _classes(STRAGGLERS)


def availabilities() -> list[Entry]:
    """Return when clients can be asked."""
    from fedit.availability import AVAILABILITIES

    return _classes(AVAILABILITIES)


def partitions() -> list[Entry]:
    """Return the partition schemes."""
    from fedit.data.partition import PARTITIONS

    entries = []
    for scheme in PARTITIONS.values():
        parameters = inspect.signature(scheme.function).parameters
        options: dict[str, object] = {}
        for option, kind in scheme.option_types().items():
            default = parameters[option].default
            given_by = "partition_file" if option == "path" else option
            options[given_by] = {
                "type": kind.__name__,
                "default": None if default is inspect.Parameter.empty else default,
            }
        needs = _NEEDS.get(scheme.needs, scheme.needs) if scheme.needs else ""
        entries.append(Entry(scheme.name, scheme.summary, {"needs": needs, "options": options}))
    return entries


def templates() -> list[Entry]:
    """Return the prompt templates, with the prompt where it does not depend on the model."""
    from fedit.data.rounds import ROUND_TEMPLATES

    entries = []
    for name in (*_TEMPLATES, *(name for name in ROUND_TEMPLATES if name not in _TEMPLATES)):
        known = ROUND_TEMPLATES.get(name)
        prompt = known("").without_context if known else ""
        entries.append(Entry(name, _TEMPLATES.get(name, ""), {"prompt": prompt}))
    return entries


def recipes() -> list[Entry]:
    """Return the job files that come with fedit."""
    from fedit.settings import recipes as recipe_files

    return [Entry(name, _first_comment(path), {"path": str(path)}) for name, path in recipe_files().items()]


def formats() -> list[Entry]:
    """Return the row formats."""
    from fedit.data.schemas import SCHEMAS

    entries = [Entry("auto", "the first of the formats below whose fields the first row has")]
    for schema in SCHEMAS.values():
        optional = [column for role, column in schema.columns.items() if role in ("context", "category")]
        entries.append(Entry(schema.name, schema.shape, {"optional": optional}))
    return entries


def schedules() -> list[Entry]:
    """Return the learning-rate schedules."""
    from fedit.config import RunConfig

    names = get_args(RunConfig.model_fields["lr_schedule"].annotation)
    return [Entry(name, _SCHEDULES[name]) for name in names]


def models() -> list[Entry]:
    """Return what ``model`` may be."""
    return [Entry(name, summary) for name, summary in _MODELS.items()]


def settings() -> list[Entry]:
    """Return all settings, in the order of their sections."""
    from fedit.cli.flags import section
    from fedit.config import RunConfig

    entries = []
    for name, info in RunConfig.model_fields.items():
        default = info.get_default(call_default_factory=True)
        plain = default.given() if hasattr(default, "given") else default
        facts: dict[str, object] = {
            "section": section(info),
            "default": plain,
            "choices": choices(info.annotation),
        }
        entries.append(Entry(name, " ".join((info.description or "").split()), facts))
    return entries


KINDS: dict[str, tuple[str, Callable[[], list[Entry]]]] = {
    "strategies": ("strategy=NAME: the algorithm", strategies),
    "transforms": ("transforms=[NAME, ...]: what happens to updates on their way", transforms),
    "partitions": ("partitioner=NAME: who holds which row", partitions),
    "selections": ("selection=NAME: who takes part in a round", selections),
    "devices": ("devices=NAME: speeds and bandwidths on the virtual clock", devices),
    "stragglers": ("stragglers=NAME: what a round does with slow clients", stragglers),
    "availabilities": ("availability=NAME: when clients can be asked", availabilities),
    "templates": ("prompt_template=NAME: how a row becomes text", templates),
    "recipes": ("fedit run NAME: jobs that come with fedit", recipes),
    "formats": ("data_format=NAME: how rows are written", formats),
    "schedules": ("lr_schedule=NAME: how the learning rate changes", schedules),
    "models": ("model=NAME: the base model", models),
    "settings": ("NAME=VALUE: everything a job can say", settings),
}


def _classes(table: Mapping[str, str]) -> list[Entry]:
    """Return what the classes of a table say of themselves."""
    found = {name: described(*target.split(":")) for name, target in table.items()}
    return [Entry(name, summary, facts) for name, (summary, facts) in found.items()]


def choices(annotation: object) -> list[str]:
    """Return the names that a setting is limited to, also where it takes a list of them."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in choices(inner)]


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").lstrip().splitlines()[:1]
    return first[0].lstrip("# ").strip() if first and first[0].startswith("#") else ""


def _print_all(out: Console, found: Mapping[str, list[Entry]]) -> None:
    for kind, entries in found.items():
        out.print(Text.assemble((kind, "bold cyan"), (f"  {KINDS[kind][0]}", "dim")))
        if kind == "settings":
            out.print(f"  {len(entries)} settings; see them all with: fedit list settings")
            continue
        table = plain_table()
        table.show_header = False
        table.add_column(no_wrap=True)
        table.add_column()
        for entry in entries:
            table.add_row(Text(f"  {entry.name}"), Text(entry.summary, style="dim"))
        out.print(table if entries else Text("  none", style="dim"))
        out.print()


def _print_kind(out: Console, kind: str, entries: list[Entry]) -> None:
    out.print(Text(KINDS[kind][0], style="bold"))
    group = ""
    table = plain_table()
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column()
    for entry in entries:
        here = str(entry.facts.get("section", ""))
        if here != group:
            group = here
            table.add_row(Text(group, style="bold cyan"), "")
        table.add_row(Text(f"  {entry.name}", style="bold"), Group(Text(entry.summary), *_details(kind, entry)))
    out.print(table)


def _details(kind: str, entry: Entry) -> list[Text]:
    """Return the lines under an entry's summary."""
    facts = entry.facts
    lines = []
    for name in ("paper", "needs", "prompt", "path"):
        if value := facts.get(name):
            lines.append(f"{name}: {str(value)!r}" if name == "prompt" else f"{name}: {value}")
    if "uploads" in facts:
        lines += _properties(facts)
    if isinstance(optional := facts.get("optional"), list):
        lines.append(f"optional: {', '.join(optional)}")
    if isinstance(options := facts.get("options"), dict):
        lines += [_option(option, what) for option, what in options.items()]
    if kind == "settings" and (default := facts["default"]) not in (None, [], {}):
        choices = facts["choices"]
        listed = f" ({', '.join(choices)})" if isinstance(choices, list) and choices else ""
        lines.append(f"default: {str(default).lower() if isinstance(default, bool) else default}{listed}")
    return [Text(line, style="dim") for line in lines]


def _properties(facts: Mapping[str, object]) -> list[str]:
    """Return what is known of a strategy, in words."""
    travels = f"sends {facts['uploads']}; receives {facts['downloads']}"
    if "bytes_up" in facts:
        up, down = (float(str(facts[name])) / 1e6 for name in ("bytes_up", "bytes_down"))
        travels += f"; {up:.2f} MB up, {down:.2f} MB down a client and round"
    can = {
        "exact": "exact aggregate",
        "mixed_ranks": "mixed ranks",
        "secure_aggregation": "secure aggregation",
        "central_dp": "central DP",
    }
    able = [words for name, words in can.items() if facts[name]]
    unable = [words for name, words in can.items() if not facts[name]]
    return [
        travels,
        *([f"yes: {', '.join(able)}"] if able else []),
        *([f"no: {', '.join(unable)}"] if unable else []),
    ]


def _option(name: str, what: Mapping[str, object]) -> str:
    default = "" if what["default"] is None else f" = {what['default']}"
    return f"option {name}{default}" + (f": {what['help']}" if what.get("help") else "")
