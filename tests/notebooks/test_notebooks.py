"""Every notebook runs from top to bottom with a small profile, and keeps to the house rules."""

import ast
import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from rgb2pc_lib.data.workspace import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
MOST_LINES = 15  # of a cell, not counting empty ones


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, 4).cells


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All notebooks of a session share their trained runs, as they do for a person."""
    return tmp_path_factory.mktemp("runs")


def code(cells):
    return [c.source for c in cells if c.cell_type == "code"]


def parse(source):
    return compile(source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_runs_from_top_to_bottom(path, runs, tmp_path):
    notebook = nbformat.read(path, 4)
    environment = os.environ | {"RGB2PC_FAST": "1", "RGB2PC_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})  # from any folder
    tracked = {p: p.stat().st_mtime_ns for p in (PROJECT / "figures").iterdir()}
    client.execute(env=environment)
    assert tracked == {p: p.stat().st_mtime_ns for p in (PROJECT / "figures").iterdir()}
    assert not list(tmp_path.iterdir())  # and nothing is left behind there
    broken = [o["text"] for c in notebook.cells for o in c.get("outputs", []) if "Traceback" in str(o.get("text", ""))]
    assert not broken, broken


def test_is_stripped(path):
    out = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(path)], capture_output=True, text=True)
    assert out.returncode == 0, f"run nbstripout {path.name}: {out.stdout}{out.stderr}"
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")


def test_has_its_parts(path, cells):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    first = cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for part in ("Goal", "Inputs", "Outputs", "Runtime"):
        assert f"**{part}**" in first.source
    assert "versions(" in code(cells)[0]
    headings = [line for c in cells if c.cell_type == "markdown" for line in c.source.splitlines() if line[:1] == "#"]
    assert [h.strip("# ").lower() for h in headings[-2:]] == ["what we saw", "what next"]


def test_settings_stand_in_one_cell(cells):
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    for node in parse(tagged[0].source).body:
        assert isinstance(node, ast.Assign) and all(t.id.isupper() for t in node.targets), ast.unparse(node)


def test_cells_are_short_and_define_nothing(cells):
    for source in code(cells):
        assert sum(bool(line.strip()) for line in source.splitlines()) <= MOST_LINES, source
        assert not [line for line in source.splitlines() if line.lstrip()[:1] in ("!", "%")], source
        for node in ast.walk(parse(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)), source
        assert "sys.path" not in source and "os.system" not in source and "subprocess" not in source
        assert str(PROJECT) not in source
