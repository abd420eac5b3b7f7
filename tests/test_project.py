"""The house: dependencies agree wherever they are written, each has its reason, and the rules of the code hold."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from rgb2pc_lib.data.workspace import PROJECT

ROOMS = [  # arrows run downwards: a room imports from itself and from the rows below, never from above or beside it
    ["views/widgets"],
    ["views"],
    ["judging/loop"],
    ["judging"],
    ["deploy", "checks"],
    ["encoders/clouds", "recordings"],
    ["encoders"],
    ["learning"],
    ["data"],
    ["data/files"],
    [""],  # errors and the command line's shared part
]
LIBRARY = PROJECT / "rgb2pc_lib"
MODULES = [p for p in sorted(LIBRARY.rglob("*.py")) if p != LIBRARY / "__init__.py"]
FULL = 16  # modules; a room that holds more wants to be two


def room_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).parts[:-1]
    return "/".join(parts)


def imports(path: Path):
    """Every module of the library that a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rgb2pc_lib":
            for name in node.names:  # "from rgb2pc_lib.learning import ranks" names a module, or something in one
                inner = LIBRARY.joinpath(*node.module.split(".")[1:], f"{name.name}.py")
                yield inner if inner.exists() else LIBRARY.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "rgb2pc_lib":
                    yield LIBRARY.joinpath(*name.name.split(".")[1:]).with_suffix(".py")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~!\[; ]", requirement)[0].lower()


def pins(lines) -> dict[str, str]:
    return dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line.split("#")[0])


def project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def test_environment_constraints_and_pyproject_agree():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pip = pins(next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict)))
    constraints = pins((PROJECT / "constraints.txt").read_text().splitlines())
    core = project()["dependencies"] + project()["optional-dependencies"]["encoders"]
    assert set(pip) == {name_of(r) for r in core}
    for name, version in pip.items():
        assert constraints.get(name, version) == version
    assert constraints["torch"] == "2.13.0"


def test_every_dependency_has_its_reason():
    for file, pattern in (("pyproject.toml", r'^\s+"[a-z0-9-]+[<>=\["]'), ("environment.yml", r"^\s+- [a-z0-9-]+==")):
        for line in (PROJECT / file).read_text().splitlines():
            if re.match(pattern, line):
                assert "#" in line, f"{file}: no reason beside {line.strip()}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_arrows_run_downwards(path):
    row = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    home = room_of(path)
    for target in imports(path):
        assert target.exists(), f"{path}: imports {target}"
        there = room_of(target)
        assert there == home or row[there] > row[home], f"{home or 'the root'} imports {target.relative_to(LIBRARY)}"
        if target.name == "sim.py":
            raise AssertionError("the simulator is optional: nothing in the library imports it")


def test_rooms_say_what_they_are_and_are_not_crowded():
    rooms = sorted({path.parent for path in MODULES} - {LIBRARY})
    assert {room_of(room / "x.py") for room in rooms} == {room for rooms in ROOMS for room in rooms} - {""}
    for room in rooms:
        tree = ast.parse((room / "__init__.py").read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree), f"{room}: expected one sentence and nothing else"
        assert len(list(room.glob("*.py"))) - 1 <= FULL, f"{room.name} is crowded"
        assert (PROJECT / "tests" / room.relative_to(LIBRARY)).is_dir(), f"{room.name} has no tests of its own"


def test_no_file_is_read_unsafely():
    unsafe = re.compile(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|pickle\.load")
    for path in [*PROJECT.glob("rgb2pc_lib/**/*.py"), *PROJECT.glob("tools/*.py"), *PROJECT.glob("notebooks/*.ipynb")]:
        assert not unsafe.search(path.read_text()), path


def test_figures_in_the_repository_are_light_and_say_how_they_were_made():
    listed = subprocess.run(["git", "ls-files", "figures"], cwd=PROJECT, capture_output=True, text=True).stdout.split()
    pictures = [PROJECT / name for name in listed if name.endswith(".png")]
    for path in pictures:
        assert path.stat().st_size < 300e3, f"{path.name}: heavier than 300 KB"
        assert json.loads(path.with_suffix(".json").read_text())["commit"], path.name
    assert not [name for name in listed if Path(name).suffix not in (".png", ".json", ".ipynb")]
