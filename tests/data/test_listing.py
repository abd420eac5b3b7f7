"""Kinds B and C: every folder is listed in one way, what is no data never is, and two sources never share a key."""

import os

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from rgb2pc_lib.checks.sources import rgb_file
from rgb2pc_lib.data.listing import entries, first, natural_key, step_name, steps, tasks, timeline, walk
from rgb2pc_lib.data.packs import FeaturePack, list_packs
from rgb2pc_lib.data.teacher import list_teacher
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.deploy.frames import read_frames
from rgb2pc_lib.encoders.clouds.extract_clouds import list_clouds
from rgb2pc_lib.encoders.extract import list_frames
from rgb2pc_lib.errors import InputError

NAMES = [f"step_{i:04d}" for i in range(4)]


def make_packs(root):
    for episode in ("ep_0", "ep_1"):
        tiny.write_pack(root, "push", episode, NAMES, np.ones((4, 2, 2, 3)))


def make_teacher(root):
    for episode in ("ep_0", "ep_1"):
        tiny.write_teacher(root, "push", episode, NAMES, np.ones((4, 3)), np.random.default_rng(0))


def make_frames(root):
    for episode in ("ep_0", "ep_1"):
        (root / "push" / episode).mkdir(parents=True)
        for name in NAMES:
            Image.new("RGB", (4, 4)).save(root / "push" / episode / f"{name}.png")


# root -> (how it is made, its listing, an ending of its files)
LISTINGS = {
    "packs": (make_packs, list_packs, ".pt"),
    "teacher": (make_teacher, list_teacher, ".ply.ulip_tiny.pt"),
    "frames": (make_frames, list_frames, ".png"),
    "clouds": (lambda root: tiny.write_clouds(root), list_clouds, ".ply"),
    "files below": (make_frames, lambda root: walk(root, ".png"), ".png"),
    "embedding": (make_frames, lambda root: [name for _, name, _ in read_frames([root])], ".png"),
    "first": (make_frames, lambda root: first(root / "push" / "ep_0", ".png"), ".png"),
    "tasks": (make_frames, tasks, ".png"),
    "one frame": (make_frames, lambda root: rgb_file(Workspace(rgb=root), "push", "ep_0", "step_0002"), ".png"),
}
FOREIGN = (".DS_Store", "._{name}", ".{name}.tmp", "Thumbs.db", "desktop.ini", "{name}~", "~${name}", ".hidden{ending}")
FOREIGN_FOLDERS = ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", ".zarr")


@pytest.mark.parametrize("listing", LISTINGS)
def test_what_is_no_data_changes_no_listing(tmp_path, listing):
    make, read, ending = LISTINGS[listing]
    make(tmp_path)
    expected = read(tmp_path)
    assert expected
    folders = [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]
    for folder in folders:
        real = next((p.name for p in folder.iterdir() if p.name.endswith(ending)), f"x{ending}")
        for name in FOREIGN:
            (folder / name.format(name=real, ending=ending)).write_bytes(b"junk")
        for name in FOREIGN_FOLDERS:
            inner = folder / name / "push" / "ep_0"
            inner.mkdir(parents=True)
            (inner / f"step_0000{ending}").write_bytes(b"junk")
            (folder / name / f"step_0001{ending}").write_bytes(b"junk")
    assert read(tmp_path) == expected


def twice(root, *names):
    for name in names:
        Image.new("RGB", (4, 4)).save(root / "push" / "ep_0" / name)


@pytest.mark.parametrize(
    "names",
    [("step_7.png", "step_7.jpg"), ("step_7.png", "step_7.JPG"), ("step_7.jpeg", "step_7.jpg")],
)
def test_one_step_in_two_files_is_refused_and_named(tmp_path, names):
    (tmp_path / "push" / "ep_0").mkdir(parents=True)
    twice(tmp_path, *names)
    with pytest.raises(InputError, match="this step is also there as step_7"):
        steps(tmp_path, (".png", ".jpg", ".jpeg"))
    faults = {}
    assert steps(tmp_path, (".png", ".jpg", ".jpeg"), faults) == {} and list(faults) == [("push", "ep_0")]


APART = [
    "step_1", "step_01", "Step_1", "step_1.5", "step_1.50", "step_10", "step-1", "étape_1", "étape_2", "a.b.1", "a.c.1",
    "1700000000.25", "1700000000.5", "left_0007", "right_0007", "step_1 copy", "100%", "x.0001", "x.0002",
]  # fmt: skip


def test_names_that_differ_stay_apart_in_every_key():
    assert len({step_name(f"/data/{name}.png") for name in APART}) == len(APART)
    assert len({tuple(natural_key(name)) for name in APART}) == len(APART)
    for system in ("C:\\data\\ep\\{}.png", "/a/b/{}.jpg", "{}.ply", "{}.ply.ulip_pointbert.v2.pt"):
        assert [step_name(system.format(name)) for name in APART] == APART


def test_frames_of_two_folders_with_one_last_name_are_refused(tmp_path):
    path = tiny.write_pack(tmp_path, "push", "ep_0", NAMES, np.ones((4, 2, 2, 3)))
    raw = torch.load(path, weights_only=True)
    raw["frame_paths"] = [["/a/0.png", "/b/0.png", "/a/1.png", "/b/1.png"]]
    torch.save(raw, path)
    with pytest.raises(InputError, match="two frames, /a/0.png and /b/0.png, would both be the step '0'"):
        FeaturePack.open(path)


def test_links_keep_their_own_names(tmp_path):
    for i in range(3):
        (tmp_path / "store" / f"take{i}").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "store" / f"take{i}" / "frame_0.png")
    (tmp_path / "rgb" / "push").mkdir(parents=True)
    for i in range(3):
        os.symlink(tmp_path / "store" / f"take{i}", tmp_path / "rgb" / "push" / f"ep_{i}")
    assert list(list_frames(tmp_path / "rgb")) == [("push", f"ep_{i}") for i in range(3)]
    os.symlink(tmp_path / "rgb", tmp_path / "rgb" / "push" / "loop")
    assert len(walk(tmp_path / "rgb", ".png")) == 3  # and it ends


@pytest.mark.parametrize(
    "names, order",
    [
        (["step_10", "step_9", "step_100"], ["step_9", "step_10", "step_100"]),
        (["9.5", "10.25", "10.125"], ["9.5", "10.125", "10.25"]),
        (["cam2_0001", "cam2_0000"], ["cam2_0000", "cam2_0001"]),
        (["000010_cam0", "000009_cam0"], ["000009_cam0", "000010_cam0"]),
        (["2026-01-02_09-59-59", "2026-01-02_10-00-00"], ["2026-01-02_09-59-59", "2026-01-02_10-00-00"]),
        (["1699999999999", "1700000000000"], ["1699999999999", "1700000000000"]),
    ],
)
def test_time_comes_from_the_number_that_counts_or_a_clock(names, order):
    assert list(timeline(names)) == order
    found = timeline(names)
    assert sorted(found.values()) == list(found.values()) and len(set(found.values())) == len(names)


def test_a_folder_that_may_not_be_listed_says_so(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\)"):
        entries(tmp_path)
