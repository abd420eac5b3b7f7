"""The documentation: it builds without a warning, is complete, fetches nothing, and says what is so."""

import ast
import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from scripts import load_script

import rgb2pc_lib
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.compact import CompactConfig
from rgb2pc_lib.learning.config import Config

LIBRARY = PROJECT / "rgb2pc_lib"
NOTEBOOKS = sorted(PROJECT.glob("notebooks/*.ipynb"))
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(PROJECT.glob("docs/**/*.md"))]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def gallery():
    return load_script(PROJECT / "docs" / "gallery.py")


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(path, kind):
    """Blocks of code of a page, those of commands have no kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", read(path), re.MULTILINE | re.DOTALL)


# -- the site


def test_nothing_is_fetched(site):
    fetched = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?https?://[^>]*>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not fetched.findall(read(page)), page
    assert "https://unpkg.com/iframe-worker" not in read(site / "index.html")


def test_every_public_name_is_in_the_reference(site):
    shown = set(re.findall(r'id="rgb2pc_lib\.[\w.]+\.(\w+)"', read(site / "api" / "index.html")))
    assert set(rgb2pc_lib.__all__) <= shown


def test_every_module_is_in_the_reference_of_its_room(site):
    for path in LIBRARY.glob("*/**/*.py"):
        if path.name != "__init__.py":
            room = ".".join(path.relative_to(LIBRARY).parts[:-1])
            assert f'id="rgb2pc_lib.{room}.{path.stem}"' in read(site / "api" / f"{room}.html"), path


def test_fields_and_settings_are_explained(site):
    face = read(site / "api" / "index.html")
    assert "temperature of InfoNCE" in face and "length of a window, steps" in face  # shared(...) and option(...)
    assert "name -&gt; root of that expert's packs" in face  # a comment beside a field
    assert not re.search(r"option</span>|shared</span>", face)  # a signature shows defaults, not help


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_its_page_its_card_and_its_row(site, notebook):
    first = nbformat.read(notebook, 4).cells[0].source.splitlines()[0].removeprefix("# ")
    assert first.split("·")[0].strip() in read(site / "notebooks" / f"{notebook.stem}.html")
    cards = re.findall(
        r"^- !\[\]\((\S+)\)\n\s+\*\*\[.+?\]\((\S+)\)\*\*", read(PROJECT / "docs/gallery.md"), re.MULTILINE
    )
    picture = {target: picture for picture, target in cards}[f"../notebooks/{notebook.name}"]
    assert (PROJECT / "docs" / picture).is_file()
    assert f"](notebooks/{notebook.name})" in read(PROJECT / "README.md")


def test_the_picture_of_the_rooms_has_them_all():
    rooms = {path.parent.relative_to(LIBRARY).as_posix() for path in LIBRARY.glob("*/**/__init__.py")}
    assert rooms == set(re.findall(r'class="name"[^>]*>([a-z/]+)<', read(PROJECT / "docs/assets/rooms.svg")))


# -- pages of notebooks


def test_results_are_shown_of_a_notebook_that_was_executed_as_it_is(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "EXECUTED", tmp_path / "executed")
    (tmp_path / "executed").mkdir()
    notebook = tmp_path / "09_new.ipynb"
    cells = [new_markdown_cell("# 09 · New\n\n$a_m$"), new_code_cell('save_figure(figure, "umap", run=run)')]
    nbformat.write(new_notebook(cells=cells), notebook)
    page = gallery.page_of(notebook)
    assert list(page) == ["09_new.md"]
    assert "![umap](../figures/umap.png)" in page["09_new.md"] and "<math" in page["09_new.md"]

    cells[1].outputs = [
        new_output("stream", text="seen: 42\n"),
        new_output("display_data", {"image/png": PIXEL}),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "executed" / notebook.name)
    page = gallery.page_of(notebook)
    text, picture = page.pop("09_new.md"), next(iter(page.values()))
    assert "seen: 42" in text and "figures/umap.png" not in text and f"]({next(iter(page))})" in text
    assert picture.startswith(b"\x89PNG")

    cells[1].source += "  # changed since"
    cells[1].outputs = []
    nbformat.write(new_notebook(cells=cells), notebook)
    assert "seen: 42" not in gallery.page_of(notebook)["09_new.md"]


# -- what the pages say


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", read(page)):
        if ":" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_the_pages_imports_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("rgb2pc_lib"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_pages_have_the_flags_that_are_used(page):
    settings = {f"--{f.name}" for c in (Config, CompactConfig) for f in dataclasses.fields(c)}
    joined = "\n".join(blocks(page, "")).replace("\\\n", " ")
    for tool, rest in re.findall(r"(tools/\w+\.py)([^\n#]*)", joined):
        for flag in re.findall(r"(--\w+)", rest):
            in_tool = f'"{flag}"' in read(PROJECT / tool)
            assert in_tool or (tool.startswith("tools/train_") and flag in settings), f"{page.name}: {tool} {flag}"


def test_settings_named_in_the_pages_exist():
    known = {f.name for c in (Config, CompactConfig) for f in dataclasses.fields(c)}
    known |= set(re.findall(r'"--(\w+)"', "".join(read(path) for path in PROJECT.glob("tools/*.py"))))
    known |= {"help", "nproc_per_node", "no_onnx", "no_spatial"}  # of every tool, of torchrun, opposites of switches
    for page in PAGES:
        for flag in re.findall(r"`--(\w+)", read(page)):
            assert flag in known, f"{page.name}: --{flag}"


def test_files_named_in_the_guides_exist():
    for name, root in (("CONTRIBUTING.md", PROJECT), ("docs/architecture.md", LIBRARY)):
        named = re.findall(r"`([\w/]+/[\w/]+\.(?:py|md|toml|txt))`", read(PROJECT / name))
        assert len(named) > 10
        for path in named:
            assert (root / path).exists() or (PROJECT / path).exists(), f"{name}: {path}"


def test_targets_named_in_the_pages_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", read(PROJECT / "Makefile"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", read(page), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_citation_and_licence_agree_with_the_project():
    project = tomllib.loads(read(PROJECT / "pyproject.toml"))["project"]
    citation = yaml.safe_load(read(PROJECT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## {project['version']}" in read(PROJECT / "CHANGELOG.md")
    licence = read(PROJECT / "LICENSE")
    assert licence.split()[:4] == ["Apache", "License", "Version", "2.0,"] and "END OF TERMS" in licence
