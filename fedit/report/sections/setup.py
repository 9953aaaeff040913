"""What was run: settings, fingerprints, versions, and how to run it again."""

import json
from collections.abc import Mapping, Sequence

from fedit.report.document import Block, Code, Column, Fact, Facts, Row, Section, Table, Text


def settings_section(
    facts: Sequence[Fact],
    settings: Mapping[str, object],
    defaults: Mapping[str, object],
    origins: Sequence[Fact],
    *,
    repeat: str = "",
) -> Section:
    """Return what was run.

    facts:   the few settings that say most; settings, defaults: all of them.
    origins: fingerprints, versions and machine; repeat: the command that runs it again.
    """
    rows = {name: Row((name, _plain(value), _plain(defaults.get(name)))) for name, value in settings.items()}
    changed = tuple(row for name, row in rows.items() if settings[name] != defaults.get(name))
    same = tuple(Row(row.cells[:2]) for name, row in rows.items() if settings[name] == defaults.get(name))
    columns = (Column("setting"), Column("value"), Column("default"))
    blocks: list[Block] = [
        Facts(tuple(facts)),
        Table("Settings that differ from their defaults", columns, changed, folded=True, printed=True),
        Table("Settings left at their defaults", columns[:2], same, folded=True),
        Facts(tuple(origins), folded="Fingerprints, versions and machine"),
    ]
    if repeat:
        blocks += [Text("The same again:"), Code(repeat)]
    return Section("What was run", "setup", tuple(blocks))


def _plain(value: object) -> str:
    """Return a setting as a job file writes it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
