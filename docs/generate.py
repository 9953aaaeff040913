"""Tables in the docs that are made from the code: run by ``make fix``, checked by the tests."""

import inspect
from collections.abc import Callable
from pathlib import Path

from fedit.cli.flags import default_text, section
from fedit.config import SECTIONS, RunConfig, StudyConfig
from fedit.data.partition import PARTITIONS
from fedit.strategies import STRATEGIES, build_strategy
from fedit.transforms import TRANSFORMS, build_transforms

DOCS = Path(__file__).parent


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
        "| name | what it does | options |",
        "|---|---|---|",
    ]
    for name in STRATEGIES:
        cls = type(build_strategy(name, {}))
        options = ", ".join(f"`{f}` = {v}" for f, v in vars(build_strategy(name, {})).items()) or "none"
        lines.append(f"| `{name}` | {(inspect.getdoc(cls) or '').splitlines()[0]} | {options} |")
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


PAGES: dict[str, Callable[[], str]] = {"settings.md": settings_page, "algorithms.md": algorithms_page}


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
