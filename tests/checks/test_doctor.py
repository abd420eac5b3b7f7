"""The doctor: every planted fault is found, with the remedy that helps; what is sound is called so."""

import functools
import json
import os
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scripts import load_script

from rgb2pc_lib.checks import roots
from rgb2pc_lib.checks.doctor import examine
from rgb2pc_lib.data import pairing
from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.teacher import teacher_table
from rgb2pc_lib.data.workspace import PROJECT, SAMPLE, Workspace
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

STEPS = [f"step_{i:04d}" for i in range(12)]

tool = load_script(PROJECT / "tools" / "doctor.py")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for module in (roots, pairing):
        monkeypatch.setattr(module, "teacher_table", functools.partial(teacher_table, cache=tmp_path / "cache"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """All roots, sound: 2 tasks of 8 episodes."""
    root = tmp_path_factory.mktemp("template")
    made = tiny.make(root, episodes=8)
    tiny.write_frames(root / "rgb", made)
    rng = np.random.default_rng(0)
    for task in ("push", "pull"):
        for e in range(8):
            for step in STEPS:
                path = root / "clouds" / task / f"ep_{e}" / f"{step}.ply"
                path.parent.mkdir(parents=True, exist_ok=True)
                colours = rng.integers(0, 256, (5, 3), dtype=np.uint8)
                write_ply(path, Cloud(rng.uniform(0, 1, (5, 3)).astype(np.float32), colours))
            state = root / "state" / task / f"ep_{e}.npz"
            state.parent.mkdir(parents=True, exist_ok=True)
            np.savez(state, steps=np.array(STEPS), tcp=rng.normal(size=(12, 3)))
    lines = ["[roots]", *(f'{k} = "{k}"' for k in ("teacher", "rgb", "clouds", "state")), "[experts]"]
    lines += [f'{name} = "features_{name}"' for name in tiny.CHANNELS]
    (root / "mine.toml").write_text("\n".join(lines))
    return root


@pytest.fixture
def mine(tmp_path, template):
    shutil.copytree(template, tmp_path / "data")
    return Workspace.load(tmp_path / "data" / "mine.toml")


@dataclass
class Old:
    per_frame_features: torch.Tensor


def pack(workspace, name="left", task="push", episode=0):
    return workspace.experts[name] / task / f"ep_{episode}.pt"


def features(path, change):
    raw = torch.load(path, weights_only=True)
    change(raw["per_frame_features"])
    torch.save(raw, path)


def step(workspace, kind, episode, number, task="pull"):
    endings = {"teacher": ".ply.ulip_tiny.pt", "rgb": ".png", "clouds": ".ply"}
    return getattr(workspace, kind) / task / f"ep_{episode}" / f"{STEPS[number]}{endings[kind]}"


def spoil_teacher(workspace, episode, number, value=None, width=tiny.TEACHER_WIDTH, task="pull"):
    path = step(workspace, "teacher", episode, number, task)
    raw = torch.load(path, weights_only=True)
    raw["pc_feat"] = torch.ones(5, width) if value is None else torch.full_like(raw["pc_feat"], value)
    torch.save(raw, path)


def picture(path, mode="RGB", size=(40, 40), colour=0, **save):
    Image.new(mode, size, colour).save(path, **save)


def rewrite(path, **arrays):
    with np.load(path) as z:
        np.savez(path, **{**z, **arrays})


def unfinished_zarr(w):
    pack(w, "right", "pull", 7).unlink()
    path = tiny.write_zarr(w.experts["right"], "pull", "ep_7", STEPS, np.ones((12, *tiny.GRID, 10)), dtype="f2")
    chunk = next(p for p in sorted((path / "per_frame_features").rglob("*")) if p.is_file() and p.suffix != ".json"
                 and not p.name.startswith(".z"))  # fmt: skip
    chunk.unlink()


# letter of the kind -> name -> (plant it, root, kind, remedy)
FAULTS = {
    "A": {
        "a NaN token": (lambda w: features(pack(w), lambda f: f[0, 0, 0, 0].fill_(torch.nan)),
                        "left", "numbers", "extract it again, with --dtype"),
        "tokens that were never written": (lambda w: features(pack(w, episode=1), lambda f: f[0].zero_()),
                                           "left", "numbers", "extract it again"),
        "a teacher's NaN": (lambda w: spoil_teacher(w, 0, 0, torch.nan), "teacher", "numbers", "re-extract this step"),
        "a point of no position": (lambda w: write_nan(step(w, "clouds", 0, 0)),
                                   "clouds", "numbers", "remove those points"),
    },
    "B": {
        "an episode twice": (lambda w: (pack(w, episode=2).with_suffix(".zarr")).mkdir(),
                             "left", "names", "keep one of the two"),
        "a frame twice": (lambda w: picture(step(w, "rgb", 1, 2).with_suffix(".jpg")), "rgb", "names", "keep one"),
        "frames of two cameras": (lambda w: two_cameras(step(w, "rgb", 2, 0).parent),
                                  "rgb", "names", "each camera a task"),
        "a step twice": (lambda w: step(w, "teacher", 1, 1).with_suffix(".zarr").mkdir(),
                         "teacher", "names", "keep one of the two"),
    },
    "C": {
        "hidden files": (lambda w: (step(w, "rgb", 0, 0).parent / "._step_0000.png").write_text("x"),
                         "rgb", "unread", "nothing needs to be done"),
        "another kind": (lambda w: picture(step(w, "rgb", 0, 0).with_suffix(".bmp")), "rgb", "unread", "save them as"),
    },
    "D": {
        "a transparent frame": (lambda w: picture(step(w, "rgb", 0, 0), "RGBA", colour=(9, 9, 9, 0)),
                                "rgb", "files", "save it without its alpha channel"),
        "a turned frame": (lambda w: picture(step(w, "rgb", 4, 11), size=(40, 30), exif=turned()),
                                   "rgb", "sizes", "bring the frames of an episode to one size"),
    },
    "E": {
        "another model's pack": (lambda w: tiny.write_pack(w.experts["left"], "push", "ep_3", STEPS,
                                                           np.ones((12, *tiny.GRID, 13))),
                                 "left", "sizes", "extract all episodes with the same model"),
        "another grid in meta": (lambda w: tiny.write_pack(w.experts["left"], "push", "ep_4", STEPS,
                                                           np.ones((12, *tiny.GRID, 12)), grid=[5, 5]),
                                 "left", "files", "correct 'grid' and 'box'"),
        "images of another shape": (lambda w: tiny.write_pack(w.experts["left"], "push", "ep_5", STEPS,
                                                              np.ones((12, *tiny.GRID, 12)), raw_size=[30, 40]),
                                    "left", "sizes", "raw_size"),
        "names of another length": (lambda w: misname(pack(w, episode=6)), "left", "names", "name every frame"),
        "chunks that are not there": (unfinished_zarr, "right", "files", "re-extract it"),
        "another teacher's width": (lambda w: spoil_teacher(w, 7, 11, width=7, task="push"),
                                    "teacher", "sizes", "keep one teacher"),
        "an episode that is not there": (lambda w: pack(w, "right", "push", 7).unlink(),
                                         "right", "missing", "extract what is missing"),
        "a teacher's step that is not there": (lambda w: step(w, "teacher", 3, 5).unlink(),
                                               "teacher", "missing", "tools/extract_teacher.py"),
        "millimetres": (lambda w: write_ply(step(w, "clouds", 7, 5),
                                            Cloud(np.array([[0, 0, 0], [500, 0, 900]], np.float32))),
                        "clouds", "sizes", "give metres"),
    },
    "F": {
        "a pointer of Git LFS": (lambda w: pack(w, "right", "push", 0).write_text(
            "version https://git-lfs.github.com/spec/v1\n"), "right", "files", "git lfs pull"),
        "a web page": (lambda w: pack(w, "right", "push", 1).write_text("<!DOCTYPE html><html>"),
                       "right", "files", "download the file itself"),
        "an empty file": (lambda w: pack(w, "right", "push", 2).write_text(""), "right", "files", "re-extract it"),
        "a cut file": (lambda w: os.truncate(pack(w, "right", "push", 3), 3000), "right", "files", "re-extract it"),
        "a pickled object": (lambda w: torch.save(Old(torch.ones(1)), pack(w, "right", "push", 4)),
                             "right", "files", "tools/pack_features.py"),
        "a bare tensor": (lambda w: torch.save(torch.ones(2, 2), pack(w, "right", "push", 5)),
                          "right", "files", "--rgb_root FRAMES"),
        "a link that leads nowhere": (lambda w: relink(pack(w, "right", "push", 6)),
                                      "right", "files", "fetch that file"),
    },
    "G": {
        "a damaged state": (lambda w: os.truncate(w.state / "pull" / "ep_0.npz", 100),
                            "state", "files", "restore it"),
        "a state of other steps": (lambda w: rewrite(w.state / "pull" / "ep_4.npz", steps=np.array(["a"] * 12)),
                                   "state", "missing", "exclude the episode"),
        "a state of another shape": (lambda w: rewrite(w.state / "pull" / "ep_5.npz", tcp=np.zeros((12, 2))),
                                     "state", "files", "restore it"),
        "no state": (lambda w: (w.state / "pull" / "ep_6.npz").unlink(), "state", "missing", "add it"),
    },
    "H": {
        "what an extraction left out": (lambda w: (w.experts["left"] / "faults.txt").write_text("..."),
                                        "left", "unfinished", "run that tool again"),
    },
}  # fmt: skip


def write_nan(path):
    header = (
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    path.write_text(header + "0 0 1\nnan 0 1\n")


def two_cameras(folder):
    for path in list(folder.iterdir()):
        picture(path.with_name(path.name.replace("step_", "other_")))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return exif


def misname(path):
    raw = torch.load(path, weights_only=True)
    torch.save({**raw, "frame_paths": raw["frame_paths"][1:]}, path)


def relink(path):
    path.unlink()
    path.symlink_to(path.with_name("elsewhere.pt"))


def holds(found, root, kind, remedy) -> bool:
    return any(f.root == root and f.kind == kind and remedy in f.remedy for f in found.findings)


@pytest.mark.parametrize("letter, name", [(k, name) for k, faults in FAULTS.items() for name in faults])
def test_each_fault_is_found_alone_with_its_remedy(mine, letter, name):
    plant, root, kind, remedy = FAULTS[letter][name]
    plant(mine)
    found = examine(mine)
    assert holds(found, root, kind, remedy), found.findings
    assert kind in roots.KINDS and found.usable.loc["skip", "steps"] > 0
    known = all(not f.loses for f in found.findings)
    assert found.status == (0 if known else 1)


def test_what_is_sound_is_called_so(mine, tmp_path):
    before = tiny.contents(tmp_path / "data")
    found = examine(mine, file="mine.toml")
    assert (found.status, found.verdict, found.excluded) == (0, "sound", {})
    assert not [f for f in found.findings if f.loses] and tiny.contents(tmp_path / "data") == before
    assert found.there["episodes"].tolist() == [16] * 6 and found.there.loc["clouds", "steps"] == 192
    assert found.usable[["steps", "episodes"]].to_numpy().tolist() == [[192, 16]] * 3
    command = "python tools/train_rgb2pc_distill.py --workspace mine.toml --save_dir runs/mine"
    assert found.command == command and found.lines()[-2:] == ["mine: sound", f"next: {command}"]


def test_all_faults_at_once_and_training_without_them(mine, tmp_path, capsys):
    for faults in FAULTS.values():
        for plant, *_ in faults.values():
            plant(mine)
    for name in ("left", "right"):  # what stays sound besides pull/ep_3, ep_7
        assert pack(mine, name, "pull", 3).exists()
    before = tiny.contents(tmp_path / "data")
    words = ["--workspace", str(tmp_path / "data" / "mine.toml")]
    assert tool.main([*words, "--json", "--exclude-out", str(tmp_path / "bad.toml")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "usable with losses" and "--exclude " + str(tmp_path / "bad.toml") in told["next"]
    assert all(len(f["examples"]) <= 3 and f["count"] >= len(f["examples"]) for f in told["findings"])
    found = examine(mine)
    lacking = [n for faults in FAULTS.values() for n, (_, *wanted) in faults.items() if not holds(found, *wanted)]
    assert lacking == []
    assert tiny.contents(tmp_path / "data") == before
    left = Exclusions.read(tmp_path / "bad.toml")
    assert "push/ep_0" in left.out and "pull/ep_0/step_0000" not in left.out | {"pull/ep_0": ""}

    assert tool.main([*words, "--exclude", str(tmp_path / "bad.toml")]) == 1  # frames and clouds are as bad as before
    again = examine(mine.excluding([str(tmp_path / "bad.toml")]))
    assert not [f for f in again.findings if f.loses and f.kind in ("files", "names", "numbers") and f.root in
                ("teacher", "left", "right")]  # fmt: skip
    config = Config(steps=2, batch_size=8, student_tokens=8, fuse_dim=8, eval_every=0, save_dir=str(tmp_path / "run"))
    list(train(config.with_workspace(mine.excluding([str(tmp_path / "bad.toml")]))))
    assert Run(tmp_path / "run").finished


def test_deep_reads_what_a_sample_does_not(mine):
    features(pack(mine, episode=3), lambda f: f[4, 1, 2, 2].fill_(torch.inf))
    flipped = pack(mine, "right", "push", 4)
    data = bytearray(flipped.read_bytes())
    at = data.find(b"\x00" * 8, len(data) // 2) or len(data) // 2
    data[len(data) // 2] ^= 4
    assert at
    flipped.write_bytes(data)
    spoil_teacher(mine, 1, 6, torch.inf)
    os.truncate(step(mine, "rgb", 2, 7), 90)
    write_nan(step(mine, "clouds", 5, 3))
    assert examine(mine).status == 0
    found = examine(mine, deep=True)
    assert found.status == 1
    wanted = [("left", "numbers", "--dtype"), ("right", "files", "copy or extract it again"),
              ("teacher", "numbers", "re-extract this step"), ("rgb", "files", "record or copy this frame again"),
              ("clouds", "numbers", "remove those points")]  # fmt: skip
    assert [w for w in wanted if not holds(found, *w)] == []
    assert found.excluded.keys() == {"push/ep_3", "push/ep_4", "pull/ep_1/step_0006"}


def test_a_shifted_teacher_is_seen_by_a_deep_look(mine):
    files = [step(mine, "teacher", 2, i) for i in range(12)]
    contents = [f.read_bytes() for f in files]
    for i, file in enumerate(files):
        file.write_bytes(contents[max(i - 2, 0)])
    assert not [f for f in examine(mine).findings if f.kind == "time"]
    (found,) = [f for f in examine(mine, deep=True).findings if f.kind == "time"]
    assert (
        found.examples == ("pull/ep_2: its RGB foretells the teacher of +2 steps best",) and "[shift]" in found.remedy
    )
    assert not found.loses
    mended = examine(mine.excluding(["pull/ep_2 shift +2"]), deep=True)
    assert not [f for f in mended.findings if f.kind == "time"]


def test_names_that_would_meet_if_they_counted_alike(mine):
    for folder in (mine.teacher / "push", mine.teacher / "pull"):
        for episode in list(folder.iterdir()):
            episode.rename(folder / episode.name.replace("ep_", "ep_000"))
    found = examine(mine)
    assert found.status == 2 and holds(found, "left", "names", "name them alike")


def test_settings_that_cannot_work(tmp_path):
    few = examine(tiny.make(tmp_path, episodes=1))
    assert few.status == 2 and holds(few, "training", "settings", "at least two episodes a task are needed")
    assert few.verdict == "not usable" and few.command.startswith("python tools/doctor.py")
    two = examine(tiny.make(tmp_path / "more", episodes=2))
    assert two.status == 0 and holds(two, "training", "settings", "give --batch_size 12")
    assert two.command.endswith("--batch_size 12")


def test_what_is_not_there_is_told_with_what_makes_it(mine, tmp_path):
    shutil.rmtree(mine.experts["left"])
    found = examine(mine)
    assert found.status == 2 or holds(found, "left", "missing", "correct the path, or make it")
    bare = Workspace(rgb=mine.rgb, clouds=mine.clouds, teacher=tmp_path / "none", experts={"xfeat": tmp_path / "x"})
    found = examine(bare, file="mine.toml")
    assert found.status == 2
    assert found.command == "python tools/extract_features.py --encoder xfeat --workspace mine.toml"
    assert any(need.startswith("disk, extracted: xfeat") for need in found.needs)
    assert examine(Workspace()).status == 2
    two = mine.teacher / "push" / "ep_0" / "step_0000.ply.ulip_other.pt"
    shutil.copy(step(mine, "teacher", 0, 0), two)
    assert holds(examine(mine), "teacher", "names", "teacher_tag")


def test_the_bundled_sample_is_sound(tmp_path, capsys):
    sample = Workspace.load(SAMPLE)
    experts = {name: root for name, root in sample.experts.items() if (root / "hammer").is_dir()}
    if not experts or not (sample.teacher / "hammer").is_dir():
        pytest.skip("the sample's packs are not extracted yet: make features")
    found = examine(sample.only(*experts))
    assert found.verdict == "sound" and not found.findings
    assert found.usable.loc["error"].tolist() == [1024, 64, ""]
    assert found.command.startswith("python tools/train_rgb2pc_distill.py --workspace")
