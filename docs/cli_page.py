"""The reference of the command line, made from the commands themselves."""

from collections.abc import Iterator

import click
import typer.main

from fedit.cli.app import app
from fedit.config import RunConfig


def cli_page() -> str:
    """Return the reference of all commands."""
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "`fedit COMMAND --help` says the same in the terminal. This page is generated from the code.",
        "",
        "Exit codes: 0 well, 2 something you gave cannot work, 1 a failure, 130 interrupted",
        "([errors](errors.md)). `fedit --debug COMMAND …` shows tracebacks, `fedit --version` the version,",
        "`fedit --install-completion` completes commands in your shell.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    commands = list(_commands(root, "fedit"))
    for name, command in commands:
        lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {_paragraphs(command)[0]} |")
    for name, command in commands:
        lines += _section(name, command)
    return "\n".join(lines) + "\n"


def _commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    for own, command in getattr(group, "commands", {}).items():
        if getattr(command, "commands", None):
            yield from _commands(command, f"{name} {own}")
        elif not command.hidden:
            yield f"{name} {own}", command


def _section(name: str, command: click.Command) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    settings = [param for param in options if param.name in RunConfig.model_fields]
    takes_settings = len(settings) > len(RunConfig.model_fields) / 2
    own = [param for param in options if not (takes_settings and param in settings)]
    usage = " ".join([name, *(_named(param) for param in arguments), *(["[OPTIONS]"] if options else [])])
    lines = ["", f"## {name}", "", "```text", usage, "```"]
    for paragraph in _paragraphs(command):
        lines += ["", paragraph]
    explained = [param for param in arguments if getattr(param, "help", None)]
    if explained or own:
        lines += ["", "| | default | |", "|---|---|---|"]
        lines += [f"| `{_in_table(_named(param))}` | | {_prose(_plain(param.help))} |" for param in explained]
        lines += [f"| {_spelt(param)} | {_default(param)} | {_prose(_plain(param.help))} |" for param in own]
    if takes_settings:
        lines += [
            "",
            "Every [setting](settings.md) is an option too: `--num_rounds 3` and `num_rounds=3` mean the same.",
        ]
    examples = [line.strip() for line in _plain(command.epilog).splitlines() if line.strip().startswith("fedit ")]
    examples += [
        line.partition(":")[2].strip() for line in _plain(command.epilog).splitlines() if "Example: " in line
    ]
    if examples:
        lines += ["", "Examples:", "", "```sh", *examples, "```"]
    return lines


def _paragraphs(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help."""
    return [_prose(part) for part in _plain(command.help).split("\n\n") if part.strip()]


def _plain(text: str | None) -> str:
    """Return help as it is shown: the terminal's markup needs a bracket escaped."""
    return (text or "").replace("\\[", "[").replace("\f", "")


def _prose(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def _named(param: click.Parameter) -> str:
    name = param.metavar or (param.name or "").upper()
    return name if param.required or name.startswith("[") else f"[{name}]"


def _spelt(param: click.Parameter) -> str:
    """Return an option's names, with what they take."""
    names = [*param.opts, *param.secondary_opts]
    kind = "" if param.is_flag else f" {_kind(param)}"
    return ", ".join(f"`{_in_table(name + kind)}`" for name in names)


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _kind(param: click.Parameter) -> str:
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return "|".join(str(choice) for choice in param.type.choices)
    return {"integer": "NUMBER", "float": "NUMBER", "integer range": "NUMBER", "float range": "NUMBER"}.get(
        param.type.name, param.type.name.upper()
    )


def _default(param: click.Parameter) -> str:
    value = param.default
    if value is None or callable(value) or isinstance(value, bool) or value in ("", (), []):
        return ""
    return f"`{value}`"
