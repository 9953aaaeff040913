"""The pages as they lie in the repository: links, navigation, the notebook, figures."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from docs.build import CODE, documents, targets  # noqa: E402
from docs.figures import FIGURES, TEXT, WIDTH  # noqa: E402
from docs.notebook import cells, notebook  # noqa: E402

DOCS = ROOT / "docs"
PAGES = sorted(path for path in documents() if path.suffix == ".md")
PHONE = 358
"""Pixels that a figure has on a phone of 390, between the margins."""


def headings(path: Path) -> set[str]:
    """Return the anchors that a forge gives the headings of a page."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    anchors: list[str] = []
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        repeated = anchors.count(slug)
        anchors.append(f"{slug}-{repeated}" if repeated else slug)
    return set(anchors)


def test_links_to_headings_lead_somewhere():
    lost = []
    for page in PAGES:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
            to = (page.parent / target).resolve() if target else page
            if anchor not in headings(to):
                lost.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert lost == []


def paths_in(navigation: object) -> list[str]:
    """Return the pages of a navigation, from top to bottom."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [path for part in parts for path in paths_in(part)]


def test_every_page_is_in_the_navigation_of_the_site_once():
    # As the builder reads it: its own tags in the file are of no interest here.
    listed = paths_in(yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(listed) == len(set(listed))
    # One page lists the decisions; the site's build makes it.
    own = {str(path.relative_to(ROOT)) for path in PAGES if path.parent != DOCS / "decisions"}
    missing = own - set(listed)
    assert missing == set(), "add them to nav in docs/site/mkdocs.yml"
    assert set(listed) - own == {"docs/decisions/README.md", "benchmarks/README.md"}


def test_the_page_of_all_pages_names_every_page():
    named = set(targets(DOCS / "README.md"))
    own = {path for path in PAGES if DOCS in path.parents and path.parent != DOCS / "decisions"}
    assert own - named - {DOCS / "README.md"} == set(), "add them to docs/README.md"


def test_pages_show_no_picture_from_elsewhere():
    for page in PAGES:
        assert not re.search(r"!\[[^]]*\]\(\w+:|<(img|script|iframe|link)\b", page.read_text(encoding="utf-8")), (
            page
        )


def test_the_notebook_has_the_form_of_nbformat():
    content = json.loads(notebook())
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    common = {"cell_type", "id", "metadata", "source"}
    kinds = {"markdown": common, "code": common | {"execution_count", "outputs"}}
    assert all(set(cell) == kinds[cell["cell_type"]] for cell in content["cells"])
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) > 5
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    assert "".join(content["cells"][1]["source"]) == cells()[1][1]


def test_every_cell_of_the_notebook_compiles_and_needs_no_command_line():
    code = [text for kind, text in cells() if kind == "code"]
    assert len(code) >= 3
    for text in code:
        compile(text, "cell", "exec")
        assert "sys.argv" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_cell_by_cell(tmp_path):
    kernel = "import json, sys\nspace = {'__name__': '__main__'}\n"
    kernel += "for cell in json.load(sys.stdin):\n    exec(cell, space)"
    code = [
        "".join(cell["source"])
        for cell in json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    done = subprocess.run(
        [sys.executable, "-c", kernel],
        input=json.dumps(code),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "held-out loss" in done.stdout
    assert "round 2:" in done.stdout
    assert (tmp_path / "runs/quickstart/report.html").is_file()


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_can_be_read_on_a_phone_and_in_both_schemes(name):
    text = FIGURES[name]()
    drawn = ElementTree.fromstring(text)
    assert TEXT * PHONE / WIDTH >= 11
    assert {child.tag.rpartition("}")[2] for child in drawn} >= {"title", "desc", "style"}
    assert "prefers-color-scheme:dark" in text
    # A ground of its own: ink never stands on the ground of a page that follows another setting.
    ground = next(part for part in drawn if part.tag.endswith("rect"))
    assert (ground.get("width"), ground.get("fill")) == (f"{WIDTH:.0f}", "var(--surface)")
    colours = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert all(text.count(f"--{colour}:") == 2 for colour in colours), "each colour in light and in dark"
    for part in drawn.iter():
        if part.tag.endswith("text"):
            assert 0 <= float(part.get("x", "nan")) <= WIDTH
