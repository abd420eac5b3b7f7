"""One HTML file of the report: an executed notebook, without its code, that needs no network and no kernel."""

from __future__ import annotations

import copy
import html
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.errors import InputError

NOTEBOOK = PROJECT / "notebooks" / "report.ipynb"
AUTHORS = "authors"  # tag of a cell that the page leaves out


def execute(notebook: Path = NOTEBOOK, **parameters) -> nbformat.NotebookNode:
    """The notebook, executed with these settings in place of its own.

    Raises InputError with the notebook's words when a cell fails, and for a setting it does not have.
    """
    nb = nbformat.read(notebook, 4)
    at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
    unknown = [k for k in parameters if not re.search(rf"^{k} = ", nb.cells[at].source, re.M)]
    if unknown:
        raise InputError(f"{notebook.name}: has no setting {', '.join(unknown)}")
    if parameters:
        lines = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
        nb.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    client = NotebookClient(nb, timeout=3600, store_widget_state=False, resources={"metadata": {"path": str(PROJECT)}})
    try:
        client.execute(env=os.environ | {"PLOTLY_RENDERER": "notebook"})
    except CellExecutionError as e:
        raise InputError(f"{notebook.name}: {e.ename}: {e.evalue}") from None
    return nb


def static_copy(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook with its texts, tables and pictures alone, for sites that host code; no scripts, no bars."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not _scripted(o)]
    nb.metadata.pop("widgets", None)
    return nb


def _scripted(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    return "<script" in data.get("text/html", "") or any("plotly" in kind or "widget" in kind for kind in data)


def write_html(nb: nbformat.NotebookNode, out: Path, title: str = "rgb2pc report") -> Path:
    """An executed notebook as one file, without its code. The page may fetch nothing: its policy forbids it."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(_for_readers(nb))
    body = _FETCHED.sub("", body)  # plotly asks for MathJax, which nothing here needs
    links = "".join(f'<li><a href="#{there}">{text}</a></li>' for there, text in _HEADING.findall(body))
    contents = f'<nav aria-label="Contents"><b>Contents</b><ol>{links}</ol></nav>' if links else ""
    body = body.replace("</h1>", f"</h1>{contents}", 1)
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body=body)
    write_atomic(Path(out), lambda p: p.write_text(page, encoding="utf-8"))
    return Path(out)


def _for_readers(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what only its authors need: cells tagged "authors", and the table of goal and runtime at the top."""
    nb = copy.deepcopy(nb)
    nb.cells = [c for c in nb.cells if AUTHORS not in c.metadata.get("tags", [])]
    if nb.cells and nb.cells[0].cell_type == "markdown":
        lines = nb.cells[0].source.splitlines()
        nb.cells[0].source = "\n".join(line for line in lines if not line.startswith("|"))
    return nb


_FETCHED = re.compile(r"<script[^<>]*\bsrc=.https?://[^<>]*>\s*</script>")
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"')
_STYLE = """
nav { background: #f6f6f6; padding: .6rem 1rem; border-radius: 4px } nav ol { columns: 18rem 3; margin: .3rem 0 }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1, h2 { line-height: 1.2; margin-top: 2.2rem } h2 { border-bottom: 1px solid #ddd; padding-bottom: .2rem }
img, svg { max-width: 100% } .anchor-link, .prompt, .output_stderr, .jp-OutputPrompt { display: none }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; margin: .6rem 0 }
th, td { padding: .25rem .5rem; text-align: left; border-bottom: 1px solid #eee; vertical-align: top }
.numbers { font-size: 12px } .numbers th, .numbers td { padding: .25rem .35rem }
.numbers td, .numbers thead th { text-align: right } .numbers td, .numbers tbody th { white-space: nowrap }
.texts td { overflow-wrap: anywhere } .texts thead { display: none }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .5rem .8rem; font-size: 13px; overflow-wrap: anywhere }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; font-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; worker-src blob:">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""
