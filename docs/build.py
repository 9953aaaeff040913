"""Builds the site out of the Markdown pages, without a network: ``make docs``, or ``python -m docs.build DIR``.

The pages are copied into a folder of their own with the layout of the repository, so that links between them, and
to recipes and examples, lead to the same places in a clone, on a forge and in the site.
"""

import html
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "docs" / "site"
DECISIONS = Path("docs/decisions")
PICTURES = frozenset({".png", ".svg"})

FOLDER_LINK = re.compile(r"(\]\([^):#\s]+/)\)")
BAR_IN_CODE = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1\s*$", re.MULTILINE | re.DOTALL)


def build(site: Path) -> None:
    """Build the site into the folder ``site``, in place of what is there.

    Raises:
        SystemExit: the builder finds fault with a page.
    """
    with tempfile.TemporaryDirectory() as room:
        shutil.copy(CONFIG / "mkdocs.yml", room)
        shutil.copytree(CONFIG / "theme", Path(room, "theme"))
        pages = Path(room, "pages")
        stage(pages)
        zensical = Path(sysconfig.get_path("scripts"), "zensical")
        built = subprocess.run(
            [str(zensical), "build", "--strict"], cwd=room, capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise SystemExit(built.stdout + built.stderr)
        shutil.rmtree(site, ignore_errors=True)
        site.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(room, "site"), site)


def stage(pages: Path) -> None:
    """Copy the documents, and every file that they link to, into the folder ``pages``."""
    waiting = list(documents())
    staged: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in staged:
            continue
        staged.add(path)
        place = pages / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if path.suffix == ".md":
            place.write_text(as_built(path.read_text(encoding="utf-8")), encoding="utf-8")
            waiting += [target for target in targets(path) if target.is_file()]
    shutil.copy(CONFIG / "theme" / "style.css", pages)
    (pages / DECISIONS / "README.md").write_text(decisions_page(), encoding="utf-8")


def as_built(text: str) -> str:
    r"""Return a page's text as the builder needs it, where that differs from what a forge does.

    A link to a folder leads to its first page, and an escaped bar in the code of a table is a bar.

    >>> as_built("| `a\\|b` | [x](folder/) |")
    '| <code>a&#124;b</code> | [x](folder/README.md) |'
    """
    text = BAR_IN_CODE.sub(
        lambda found: f"<code>{html.escape(found[1]).replace(chr(92) + '|', '&#124;')}</code>", text
    )
    return FOLDER_LINK.sub(r"\1README.md)", text)


def documents() -> Iterator[Path]:
    """Yield the pages and pictures of ``docs`` and the Markdown files beside it."""
    yield from ROOT.glob("*.md")
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix == ".md" or path.suffix in PICTURES:
            yield path


def targets(page: Path) -> list[Path]:
    """Return the files and folders that a page links to, whether they exist or not."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in LINK.findall(text) if ":" not in link]


def decisions_page() -> str:
    """Return the list of decisions, which a folder is on a forge."""
    lines = ["# Decisions", "", "Why things are as they are, one page a decision.", ""]
    for path in sorted((ROOT / DECISIONS).glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        number, _, name = title.partition(". ")
        lines.append(f"- [{number}. {name}]({path.name})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
