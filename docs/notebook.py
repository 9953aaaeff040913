"""The notebook of the quickstart, made from its script, whose cells begin with ``# %%``."""

import json
import re
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.MULTILINE)


def notebook() -> str:
    """Return the notebook in the format 4.5 of nbformat, without outputs."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": [_cell(kind, text, place) for place, (kind, text) in enumerate(cells())],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def cells() -> list[tuple[str, str]]:
    """Return (kind, text) of every cell of the script, "markdown" or "code"."""
    parts = _CELL.split(SCRIPT.read_text(encoding="utf-8"))[1:]
    found = []
    for marker, text in zip(parts[::2], parts[1::2], strict=True):
        if marker:
            prose = [line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines()]
            found.append(("markdown", "\n".join(prose)))
        else:
            found.append(("code", text.strip()))
    return found


def _cell(kind: str, text: str, place: int) -> dict[str, object]:
    cell: dict[str, object] = {
        "cell_type": kind,
        "id": f"cell-{place}",
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell
