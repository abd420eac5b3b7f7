"""The public face: its names are explained by examples that are true, and it costs nothing to import.

Every example in the library's docstrings is run here, in the project's folder. Beside the names of its own module and
the public ones an example may use what `given` makes.
"""

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import rgb2pc_lib
from rgb2pc_lib import CompactConfig, CompactRun, Config, FeaturePack, Run, judged_config, line_up, train, train_compact
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy import frames, targets

LIBRARY = PROJECT / "rgb2pc_lib"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PROPERTIES = (property, functools.cached_property)
OPTIONAL = "recordings/sim.py"  # the simulator is an extra, and slow to import
METHODS = {  # what users call beside the names themselves
    "Workspace": ["load", "require", "only"],
    "FeaturePack": ["open", "tokens", "frame"],
    "Config": ["with_workspace", "command", "changes", "from_json"],
    "Run": ["open", "holds", "metrics", "student", "embeddings"],
    "CompactRun": ["compact", "spatial"],
    "Embedder": ["from_run", "__call__", "look", "stream"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What examples find: a workspace, a pack of it, a finished run, its compact student, a line-up of trained runs."""
    root = tmp_path_factory.mktemp("given")
    made = tiny.make(root, "left")
    experts = {"dinov3": made.experts["left"], "vggt": made.experts["right"]}
    workspace = dataclasses.replace(made, experts=experts, rgb=tiny.write_frames(root / "rgb", made))
    small = {"batch_size": 16, "fuse_dim": 16, "eval_every": 0}
    with pytest.MonkeyPatch.context() as patch:
        for module in (targets, frames):  # what is derived from tiny frames does not pile up in the project
            patch.setattr(module, "CACHE", root / "cache")
        fused = Config(fusion="moe", steps=20, save_dir=str(root / "run"), **small).with_workspace(workspace)
        config = dataclasses.replace(judged_config(workspace, steps=2), **small, amp="off")
        rows = line_up(config, 1, root / "line-up")
        for each in (fused, *(c for _, c in rows)):
            list(train(each))
        settings = CompactConfig(run=str(fused.folder), save_dir=str(root / "compact"), size=32, steps=2, batch_size=16)
        list(train_compact(settings))
        yield {
            "workspace": workspace,
            "pack": FeaturePack.open(experts["dinov3"] / "push" / "ep_0.pt"),
            "run": Run.open(fused.folder),
            "compact": CompactRun.open(settings.folder),
            "config": config,
            "rows": rows,
        }


def examples(module: str) -> list[doctest.DocTest]:
    """Those of a module and of all that is defined in it."""
    return doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), module)


def modules() -> list[str]:
    """Those with examples that are to be run."""
    paths = [p for p in sorted(LIBRARY.rglob("*.py")) if ">>>" in p.read_text() and not p.match(OPTIONAL)]
    return [".".join(p.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for p in paths]


@pytest.mark.parametrize("name", modules())
def test_examples_are_true(name, given, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    public = {public: getattr(rgb2pc_lib, public) for public in rgb2pc_lib.__all__}
    said = []
    for test in examples(name):
        folder = tmp_path / test.name
        folder.mkdir()
        usual = {"np": np, "pd": pd, "torch": torch, "folder": folder}
        test.globs = usual | public | given | vars(sys.modules[name])
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", rgb2pc_lib.__all__)
def test_every_public_name_is_explained_by_examples_that_are_run(name):
    public = getattr(rgb2pc_lib, name)
    for thing in (public, *(getattr(public, method) for method in METHODS.get(name, ()))):
        found = {test.name: test.examples for test in examples(thing.__module__)}
        here = found[f"{thing.__module__}.{thing.__qualname__}"]
        assert here and not any(e.options.get(doctest.SKIP) for e in here), f"{thing.__qualname__}: no example is run"
    classes = inspect.getmro(public) if inspect.isclass(public) else ()
    for made in (c for c in classes if c.__module__.startswith("rgb2pc_lib")):
        for part in vars(made):
            member = getattr(made, part)
            if not part.startswith("_") and (inspect.isroutine(member) or isinstance(member, PROPERTIES)):
                assert inspect.getdoc(member), f"{made.__name__}.{part} says nothing"


def test_the_face_names_what_it_offers():
    assert len(rgb2pc_lib.__all__) == len(set(rgb2pc_lib.__all__)) and set(METHODS) <= set(rgb2pc_lib.__all__)
    assert dir(rgb2pc_lib) == rgb2pc_lib.__all__ == sorted(rgb2pc_lib.__all__)
    with pytest.raises(
        AttributeError, match="has no attribute 'Trainer'; it offers Camera, CompactConfig, CompactRun, Config"
    ):
        rgb2pc_lib.Trainer  # noqa: B018


def test_checkers_are_told_the_same_names_and_homes():
    nodes = [n for n in ast.walk(ast.parse((LIBRARY / "__init__.py").read_text())) if isinstance(n, ast.ImportFrom)]
    told = [(n.module, a.name, a.asname) for n in nodes for a in n.names if n.module.startswith("rgb2pc_lib.")]
    assert sorted(told) == sorted((f"rgb2pc_lib.{home}", name, name) for name, home in rgb2pc_lib._HOME.items())


def test_importing_the_face_loads_nothing_heavy():
    words = [sys.executable, "-X", "importtime", "-c", "import rgb2pc_lib"]
    lines = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True).stderr.splitlines()
    times = {line.split("|")[-1].strip(): int(line.split("|")[1]) for line in lines[1:]}  # name -> microseconds in all
    assert not {"torch", "pandas", "matplotlib", "numpy"} & times.keys()
    assert [name for name in times if name.startswith("rgb2pc_lib.")] == []
    assert times["rgb2pc_lib"] < 200_000


# -- the face is the only place that offers what is made elsewhere


@functools.cache
def defined(path: Path) -> set[str]:
    """Names that a module makes itself, at its top level."""
    names, bodies = set(), [ast.parse(path.read_text()).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            elif isinstance(node, (ast.If, ast.Try)):
                bodies += [node.body, node.orelse]
    return names


def code(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imported(path: Path):
    """Module of the library and name, for everything that a file imports by name from it."""
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.ImportFrom) and re.match(r"rgb2pc_lib\b", node.module or ""):
            yield from ((node.module, alias.name) for alias in node.names)


def test_everything_is_imported_from_its_home_or_from_the_face():
    folders, wrong = ("rgb2pc_lib", "tools", "tests", "benchmarks", "notebooks"), []
    for path in [p for f in folders for p in (PROJECT / f).rglob("*") if p.suffix in (".py", ".ipynb")]:
        for module, name in imported(path):
            home = PROJECT.joinpath(*module.split("."))
            if (home / f"{name}.py").exists() or (home / name).is_dir():
                continue
            if name not in (rgb2pc_lib.__all__ if home == LIBRARY else defined(home.with_suffix(".py"))):
                wrong.append(f"{path.relative_to(PROJECT)}: {module} does not make {name}")
    assert not wrong, "\n".join(wrong)
