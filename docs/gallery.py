"""Notebooks as pages of the site: with their results where they were executed, else with the figures they last saved.

    python docs/gallery.py            # executes the notebooks, one copy each into data/cache/executed

A copy is kept as long as its notebook stays the same, so an interrupted run goes on where it stopped.
"""

import json
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbformat.v4 import new_markdown_cell

from rgb2pc_lib.data.workspace import CACHE, FAST, PROJECT

NOTEBOOKS = sorted(PROJECT.glob("notebooks/*.ipynb"))
FIGURES = PROJECT / "figures"  # the report is committed there with its results
EXECUTED = CACHE / ("executed_fast" if FAST else "executed")
SAVED = re.compile(r'save_figure\(\w+, "(\w+)"')
FORMULA = re.compile(r"(\$\$?)([^$]+)\1")


def on_files(files, config):
    """Called once the files of `docs/` are listed: a page for each notebook, and the pictures on it."""
    for notebook in NOTEBOOKS:
        for name, content in page_of(notebook).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def page_of(notebook: Path) -> dict[str, str | bytes]:
    """Files of a notebook's page, by name: its text as Markdown, and its pictures."""
    copy = executed_copy(notebook)
    cells = []
    for cell in (nb := nbformat.read(copy or notebook, 4)).cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(lambda m: convert(m[2], "block" if m[1] == "$$" else "inline"), cell.source)
        figures = [] if copy or cell.cell_type != "code" else SAVED.findall(cell.source)
        saved = [name for name in figures if (FIGURES / f"{name}.json").exists()]  # else the notebook never saved it
        cells += [cell, *(new_markdown_cell(saved_figure(name)) for name in saved)]
    said = "With the results of one run." if copy else "Text and code, and the figures that the notebook last saved."
    nb.cells = [cells[0], new_markdown_cell(f'!!! note ""\n    {said}'), *cells[1:]]
    text, found = MarkdownExporter().from_notebook_node(nb, {"unique_key": notebook.stem})
    return {f"{notebook.stem}.md": text, **found["outputs"]}


def executed_copy(notebook: Path) -> Path | None:
    """The executed copy of a notebook, where there is one of the notebook as it is."""
    copy, committed = EXECUTED / notebook.name, FIGURES / notebook.name
    if copy.exists() and sources(copy) == sources(notebook):
        return copy
    return committed if committed.exists() else None


def sources(notebook: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(notebook, 4).cells]


def saved_figure(name: str) -> str:
    """A committed figure, with the commit that made it."""
    made = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))["commit"]
    return f"![{name}](../figures/{name}.png)\n\n<small>figures/{name}.png, made at commit {made}</small>"


def main() -> None:
    for notebook in NOTEBOOKS:
        copy = EXECUTED / notebook.name
        if copy.exists() and sources(copy) == sources(notebook):
            print(f"{notebook.stem}: executed before")
            continue
        print(f"{notebook.stem}: executing", flush=True)
        executed = static_copy(execute(notebook))
        EXECUTED.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, lambda path, nb=executed: nbformat.write(nb, path))


if __name__ == "__main__":
    from rgb2pc_lib.command_line import run_resumable
    from rgb2pc_lib.learning.runs import write_atomic
    from rgb2pc_lib.views.report_html import execute, static_copy

    run_resumable(main)
