"""Pages, figures and the notebook that are made from the code: run by ``make fix``, checked by the tests."""

import inspect
from collections.abc import Callable
from pathlib import Path

from docs.api_page import api_page
from docs.cli_page import cli_page
from docs.figures import FIGURES
from docs.notebook import notebook
from fedit.cli.flags import default_text, section
from fedit.config import SECTIONS, RunConfig, StudyConfig
from fedit.data.partition import PARTITIONS
from fedit.facts import bytes_of_a_round, facts
from fedit.strategies import STRATEGIES, build_strategy
from fedit.transforms import TRANSFORMS, build_transforms

DOCS = Path(__file__).parent

SMOLLM2 = [(576, 576), (576, 192), (576, 192), (576, 576)] * 30
"""(in, out) of the attention projections of SmolLM2-135M."""


def settings_page() -> str:
    """Return the reference of all settings."""
    lines = [
        "# Settings",
        "",
        "Every setting of a job, by section. In a job file (YAML or TOML) a setting stands at the top or in its",
        "section; on the command line `name=value` and `--name value` mean the same.",
        "This page is generated from the code.",
    ]
    for name in SECTIONS:
        lines += ["", f"## {name}", "", "| setting | default | what it does |", "|---|---|---|"]
        for setting, field in RunConfig.model_fields.items():
            if section(field) == name:
                text = (field.description or "").replace("\n", " ").replace("|", "\\|")
                lines.append(f"| `{setting}` | {_code(default_text(field))} | {text} |")
    lines += [
        "",
        "## study",
        "",
        "What `fedit study` compares; in a job file the section `study`, on the command line `study.name=value`.",
        "",
        "| setting | default | what it does |",
        "|---|---|---|",
    ]
    for setting, field in StudyConfig.model_fields.items():
        text = (field.description or "").replace("\n", " ").replace("|", "\\|")
        default = field.get_default(call_default_factory=True)
        shown = ", ".join(default) if isinstance(default, list) else str(default)
        lines.append(f"| `study.{setting}` | {_code(shown)} | {text} |")
    return "\n".join(lines) + "\n"


def algorithms_page() -> str:
    """Return the tables of strategies, transforms and partitions."""
    lines = [
        "# Strategies, transforms and partitions",
        "",
        "This page is generated from the code.",
        "",
        "## Strategies",
        "",
        "| name | paper | what it does | options |",
        "|---|---|---|---|",
    ]
    known = [facts(name) for name in STRATEGIES]
    for own in known:
        strategy = build_strategy(own.name, {})
        options = ", ".join(f"`{f}` = {v}" for f, v in vars(strategy).items()) or "none"
        summary = (inspect.getdoc(type(strategy)) or "").splitlines()[0]
        papers = ", ".join(f"[{id}](https://arxiv.org/abs/{id})" for id in own.arxiv)
        lines.append(f"| `{own.name}` | {papers} | {summary} | {options} |")
    lines += [
        "",
        "## What travels, and what goes together",
        "",
        "Found by rehearsing each algorithm's own code without a model (`fedit/rehearsal.py`). *Exact*: the new",
        "model is the mean of the clients' models. *Mixed ranks*: clients may have ranks of their own",
        "(`client_ranks`). *Secure aggregation* and *central DP*: it needs the cohort's mean and nothing",
        "else; what it sends beside the adapter comes under one clip with it. Bytes are those of one client in a",
        "round on SmolLM2-135M's attention layers, r=16, float32, the mean over the first three rounds of eight",
        "clients.",
        "",
        "| name | sends | receives | MB up | MB down | exact | mixed ranks | secure aggregation | central DP |",
        "|---|---|---|---:|---:|---|---|---|---|",
    ]
    for own in known:
        up, down = (amount / 1e6 for amount in bytes_of_a_round(build_strategy(own.name, {}), SMOLLM2, 16))
        can = (own.exact, own.mixed_ranks, own.secure_aggregation, own.central_dp)
        marks = " | ".join("yes" if able else "no" for able in can)
        lines.append(f"| `{own.name}` | {own.uploads} | {own.downloads} | {up:.2f} | {down:.2f} | {marks} |")
    lines += [
        "",
        "Momentum, moments and control variates of servers and clients live in the coordinates of the factors",
        "and mean something only while these stay. A job has one strategy, so none of them is carried over a",
        "change of basis, such as a singular value decomposition, that another algorithm makes.",
    ]
    lines += [
        "",
        "## Transforms",
        "",
        "What happens to updates and broadcasts on their way; see [communication](communication.md).",
        "",
        "| name | what it does | options |",
        "|---|---|---|",
    ]
    for name in TRANSFORMS:
        (transform,) = build_transforms([{name: {}}])
        options = ", ".join(f"`{f}` = {v}" for f, v in vars(transform).items()) or "none"
        lines.append(f"| `{name}` | {(inspect.getdoc(transform) or '').splitlines()[0]} | {options} |")
    lines += ["", "## Partitions", "", "| name | needs | what it does | options |", "|---|---|---|---|"]
    for name, scheme in PARTITIONS.items():
        options = ", ".join(f"`{option}`" for option in sorted(scheme.options)) or "none"
        lines.append(f"| `{name}` | {scheme.needs or 'nothing'} | {scheme.summary} | {options} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "algorithms.md": algorithms_page,
    "cli.md": cli_page,
    "api.md": api_page,
    "../examples/quickstart.ipynb": notebook,
    **{f"pictures/{name}": draw for name, draw in FIGURES.items()},
}
"""Path from here -> what makes its content."""


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
