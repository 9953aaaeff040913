"""The tools whose files can be imported, and the one call that does it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedit.errors import ConfigError, DataError, UnknownName
from fedit.migration import fedllm_bench, flowertune, openfedllm, shepherd
from fedit.migration.base import Draft, Imported, refuse_used, write

TOOLS: Mapping[str, tuple[str, Callable[[Sequence[Path], Draft], None]]] = {
    "shepherd": (shepherd.NAME, shepherd.read),
    "openfedllm": (openfedllm.NAME, openfedllm.read),
    "fedllm-bench": (fedllm_bench.NAME, fedllm_bench.read),
    "flowertune": (flowertune.NAME, flowertune.read),
}
"""Name on the command line -> the tool's own name, and what reads its files."""


def import_from(tool: str, paths: Sequence[Path], out: Path) -> Imported:
    """Read files of ``tool`` and write a job, and what belongs to it, into the new folder ``out``.

    Raises:
        UserError: a file is missing, broken or of something else, or ``out`` is not empty.
    """
    if tool not in TOOLS:
        raise UnknownName("tool", tool, TOOLS)
    if not paths:
        raise ConfigError("nothing to import is named.")
    refuse_used(out)
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder {path}.")
    name, read = TOOLS[tool]
    draft = Draft(name, out)
    read(paths, draft)
    return write(draft)
