"""A run means the same from wherever it is opened."""

import dataclasses
import subprocess
import sys

import pytest

from rgb2pc_lib.data.workspace import PROJECT, Workspace, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train


def test_configs_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    workspace = Workspace(teacher=PROJECT / "data/teacher", experts={"a": tmp_path / "a"}, rgb=PROJECT / "data/rgb")
    made = []
    for folder in (PROJECT, PROJECT / "tests", tmp_path):
        monkeypatch.chdir(folder)
        made.append(Config(save_dir=portable(PROJECT / "runs" / "x")).with_workspace(workspace))
        assert made[-1].folder == PROJECT / "runs" / "x"
        assert made[-1].workspace.teacher == workspace.teacher and made[-1].workspace.experts == workspace.experts
    assert made[0] == made[1] == made[2]
    assert made[0].pc_root == "data/teacher" and made[0].save_dir == "runs/x"  # nothing of this machine in it
    assert "--save_dir runs/x" in made[0].command()
    monkeypatch.chdir(PROJECT / "tests")
    assert portable("here") == "tests/here"  # what a person types counts from where that person is
    assert portable("") == portable(None) == ""


def test_the_command_line_counts_from_the_working_folder(left, tmp_path):
    words = "--pc_root teacher --vis_roots features_left --save_dir run --steps 2 --batch_size 8 --fuse_dim 8".split()
    tool = [sys.executable, str(PROJECT / "tools" / "train_rgb2pc_distill.py")]
    (tmp_path / "teacher").symlink_to(left.teacher)
    (tmp_path / "features_left").symlink_to(left.experts["left"])
    out = subprocess.run([*tool, *words], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    run = Run.open(tmp_path / "run")
    assert run.config.pc_root == str(tmp_path / "teacher") and "\nrun: " in out.stdout


def test_changes_name_what_can_change_the_numbers():
    one = Config(lr=0.1, save_dir="runs/a", num_threads=1)
    other = dataclasses.replace(one, lr=0.2, save_dir="runs/b", num_threads=2, log_every=1)
    assert one.changes(other) == {"lr": (0.1, 0.2)}
    assert not one.changes(dataclasses.replace(other, lr=0.1))


def test_one_folder_has_one_writer(left, tmp_path):
    config = Config(steps=3, batch_size=8, fuse_dim=8, save_dir=str(tmp_path)).with_workspace(left)
    first = train(config)
    next(first)
    with pytest.raises(InputError, match="is being trained by another"):
        next(train(config, resume=True))
    first.close()
    assert len(list(train(config, resume=True))) == 2
