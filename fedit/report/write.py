"""A report's files: a page, its Markdown and JSON twins, and its figures."""

import json
from pathlib import Path

from fedit import files
from fedit.report.charts.svg import svg_file
from fedit.report.document import Document, data
from fedit.report.html import html
from fedit.report.markdown import markdown


def write_report(document: Document, folder: Path, *, pdf: bool = True) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``figures/``, and return the page's path.

    pdf: also write each figure as PDF, for which matplotlib is loaded; a second or two.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    for figure in document.figures():
        picture = svg_file(figure.chart, title=figure.title, description=figure.alt)
        files.write_text(folder / "figures" / f"{figure.name}.svg", picture)
        if pdf:
            from fedit.report.charts.pdf import pdf_file

            files.write_bytes(folder / "figures" / f"{figure.name}.pdf", pdf_file(figure.chart))
    files.write_text(folder / "report.md", markdown(document))
    content = json.dumps(data(document), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / "report.json", content + "\n")
    page = folder / "report.html"
    files.write_text(page, html(document))
    return page
