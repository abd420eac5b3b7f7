"""Workspace files: what is read, and one clear message for everything that is wrong with them."""

import shutil
from pathlib import Path

import pytest

from rgb2pc_lib.data.listing import natural_key
from rgb2pc_lib.data.workspace import CACHE, PROJECT, RUNS, SAMPLE, Workspace, home, parse_expert_root
from rgb2pc_lib.errors import InputError

GOOD = """
name = "mine"
teacher_tag = "pointbert"
[roots]
teacher = "PC/ULIP_FEAT_PT_POINT"
rgb = "../rgb"
clouds = "/data/clouds"
[experts]
vggt = "features_vggt"
dinov3 = "~/features_dinov3"
"""


def write(folder, text):
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder / "mine.toml"


def test_roots_count_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "w").mkdir()
    workspace = Workspace.load(write(tmp_path / "w", GOOD))
    assert workspace == Workspace(
        teacher=tmp_path / "w" / "PC" / "ULIP_FEAT_PT_POINT",
        experts={"vggt": tmp_path / "w" / "features_vggt", "dinov3": Path("/home/someone/features_dinov3")},
        rgb=tmp_path / "rgb",
        clouds=Path("/data/clouds"),
        teacher_tag="pointbert",
        name="mine",
    )
    assert list(workspace.experts) == ["vggt", "dinov3"]


def test_name_is_the_files_by_default(tmp_path):
    assert Workspace.load(write(tmp_path, "")) == Workspace(name="mine")


def test_the_bundled_one(tmp_path):
    sample = Workspace.load(SAMPLE)
    assert sample.name == "sample" and len(sample.experts) >= 4
    sample.require("rgb", "clouds", "state")
    assert all(CACHE in root.parents for root in (sample.teacher, *sample.experts.values())), "what is derived"


@pytest.mark.parametrize(
    "text, message",
    [
        ("[roots", "expected a TOML workspace file"),
        ("[roots]\nteachers = 'a'", r"unknown key\(s\) teachers; expected name, teacher_tag"),
        ("vggt = 'a'", r"unknown key\(s\) vggt"),
        ("[roots]\nrgb = 7", "expected text in quotes for rgb"),
        ("[experts]\nvggt = ['a', 'b']", "expected text in quotes for vggt"),
        ("experts = 'a'", r"expected tables \[roots\] and \[experts\]"),
        ("roots = ['a']", r"expected tables \[roots\] and \[experts\]"),
        ("teacher_tag = 7", "expected text in quotes for teacher_tag"),
        ("name = true", "expected text in quotes for name"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"mine\.toml: {message}"):
        Workspace.load(write(tmp_path, text))


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: no such workspace file; copy data/sample\.toml"):
        Workspace.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="expected a TOML workspace file"):
        Workspace.load(tmp_path)
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"mine\.toml: expected a TOML workspace file"):
        Workspace.load(tmp_path / "mine.toml")


def test_require(tmp_path):
    workspace = Workspace(teacher=tmp_path, experts={"a": tmp_path, "b": tmp_path / "none"}, name="mine")
    assert workspace.require("teacher") is workspace
    with pytest.raises(InputError, match=r"none: the b root is not a folder$"):
        workspace.require("teacher", "experts")
    with pytest.raises(InputError, match="'mine' names no rgb root"):
        workspace.require("rgb")
    with pytest.raises(InputError, match="no expert is named: give --vis_roots"):
        Workspace().require("experts")
    with pytest.raises(InputError, match="bundled sample: run `make features`"):
        Workspace(teacher=CACHE / "no" / "such").require("teacher")


def test_only():
    workspace = Workspace(experts={"a": Path("a"), "b": Path("b")})
    assert workspace.only("b").experts == {"b": Path("b")} and list(workspace.only("b", "a").experts) == ["b", "a"]
    with pytest.raises(InputError, match=r"expert\(s\) c not in the workspace; it has a, b"):
        workspace.only("a", "c")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("vggt=/data/a", ("vggt", "/data/a")),
        ("vggt=/data/a=b", ("vggt", "/data/a=b")),
        ("/data/features_da3", ("da3", "/data/features_da3")),
        ("features_dinov3_base_224/", ("dinov3", "features_dinov3_base_224")),
        ("/a=b/features_croco", ("croco", "/a=b/features_croco")),
    ],
)
def test_expert_roots(text, expected):
    assert parse_expert_root(text) == (expected[0], Path(expected[1]))


@pytest.mark.parametrize("text", ["/data/vggt", "=/data/a", "features_", "/data/features_"])
def test_expert_roots_without_a_name(text):
    with pytest.raises(InputError, match="cannot tell the expert's name; write NAME="):
        parse_expert_root(text)


def test_natural_order():
    names = ["step_2", "step_10", "step_1", "a", "10", "9", "step_1b", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "step_1", "step_1b", "step_2", "step_10"]


def test_what_is_made_lies_in_a_folder_of_its_workspace(tmp_path):
    assert home() == home(PROJECT / "data" / ".." / "data" / "sample.toml") == RUNS
    copy = tmp_path / "mine.toml"
    shutil.copy(SAMPLE, copy)  # which still calls itself "sample"
    assert home(copy) == RUNS / "mine" and home(copy, "elsewhere") == PROJECT / "elsewhere"
    assert home(copy, str(tmp_path)) == tmp_path


def test_a_notebook_shows_the_sentence_alone():
    assert InputError("x.toml: no such file")._render_traceback_() == ["InputError: x.toml: no such file"]
