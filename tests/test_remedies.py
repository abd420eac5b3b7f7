"""Every reader, on files that are not what they should be: made anew only where something shows damage."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from rgb2pc_lib.data.clouds import Cloud, count_points, read_ply, write_ply
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.files.guarded import read_json, read_npz
from rgb2pc_lib.data.files.weights import read_weights
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pictures import image_size, read_image, read_video
from rgb2pc_lib.data.states import read_state
from rgb2pc_lib.data.teacher import TeacherFile, read_points
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings.convert import read_inert

AGAIN = ("again", "re-extract", "restore", "from a copy", "make it anew")  # what only damage calls for


def pack(folder):
    return tiny.write_pack(folder, "push", "ep_0", [f"step_{i}" for i in range(4)], np.ones((4, 2, 2, 3)))


def teacher(folder):
    path = folder / "step_0.ply.ulip_x.pt"
    torch.save({"pc_feat": torch.ones(500, 8)}, path)
    return path


def cloud(folder):
    write_ply(folder / "a.ply", Cloud(np.random.default_rng(0).uniform(size=(50, 3)).astype(np.float32)))
    return folder / "a.ply"


def picture(folder, ending="png"):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"a.{ending}")
    return folder / f"a.{ending}"


def state(folder):
    np.savez(folder / "ep_0.npz", steps=np.array(["step_0"]), tcp=np.ones((1, 3)))
    return folder / "ep_0.npz"


def weights(folder):
    save_file({"a": torch.ones(300)}, folder / "w.safetensors", {"student": "{}"})
    return folder / "w.safetensors"


def video(folder):
    av = pytest.importorskip("av")
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for value in range(0, 200, 20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder / "a.mp4"


def text(name, content):
    def make(folder):
        (folder / name).write_text(content)
        return folder / name

    return make


# reader -> (how a whole file is made, how it is read)
READERS = {
    "pack": (pack, FeaturePack.open),
    "old pack": (pack, read_inert),
    "teacher": (teacher, lambda p: read_points(TeacherFile(p))),
    "cloud": (cloud, read_ply),
    "cloud's header": (cloud, count_points),
    "PNG": (picture, read_image),
    "JPEG": (lambda f: picture(f, "jpg"), read_image),
    "image's size": (picture, image_size),
    "video": (video, lambda p: list(read_video(p))),
    "state": (state, read_state),
    "npz": (state, read_npz),
    "JSON": (text("a.json", '{"a": [1, 2, 3]}'), read_json),
    "workspace": (text("a.toml", 'name = "a"\n'), Workspace.load),
    "exclusion list": (text("a.toml", '[exclude]\n"a/b" = "c"\n'), Exclusions.read),
    "weights": (weights, lambda p: read_weights(p, "student", {}, "restore it from a copy")),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>please</body></html>\n"


def link(path: Path):
    path.unlink()
    path.symlink_to(path.with_name("gone"))


# what a file is instead -> (how it comes to be, what helps)
INSTEAD = {
    "nothing": (lambda p: p.unlink(), ("check its path", "no such", "copy data/sample.toml")),
    "a link that leads nowhere": (link, ("fetch that file too", "no such")),
    "a pointer of Git LFS": (lambda p: p.write_bytes(LFS), ("git lfs pull",)),
    "a web page": (lambda p: p.write_bytes(PAGE), ("download the file itself",)),
}


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("reader", READERS)
def test_what_was_never_such_a_file_is_not_to_be_made_anew(tmp_path, reader, instead):
    make, read = READERS[reader]
    path = make(tmp_path)
    read(path)
    spoil, helps = INSTEAD[instead]
    spoil(path)
    with pytest.raises(InputError) as e:
        read(path)
    said = str(e.value)
    assert path.name in said and "\n" not in said and any(h in said for h in helps), said
    assert not any(word in said.rpartition("; ")[2] for word in AGAIN), said


@pytest.mark.parametrize("reader", [r for r in READERS if r not in ("JSON", "workspace", "exclusion list")])
def test_what_is_cut_or_empty_is_to_be_made_anew(tmp_path, reader):
    make, read = READERS[reader]
    path = make(tmp_path)
    for size in (path.stat().st_size // 2, 0):
        if size and reader in ("cloud's header", "image's size"):  # which stands before the cut
            continue
        os.truncate(path, size)
        with pytest.raises(InputError) as e:
            read(path)
        said = str(e.value)
        assert any(word in said.rpartition("; ")[2] for word in AGAIN), said


@pytest.mark.parametrize("reader", [r for r in READERS if r not in ("JSON", "npz", "weights")])  # of our own making
def test_another_kind_of_file_is_said_to_be_one(tmp_path, reader):
    """Whole, but of another kind: what helps is to write or to name the right kind."""
    make, read = READERS[reader]
    path = make(tmp_path)
    path.write_bytes(b"step, x, y, z\n" + b"1, 2.0, 3.0, 4.0\n" * 40)
    with pytest.raises(InputError) as e:
        read(path)
    said = str(e.value)
    assert not any(word in said.rpartition("; ")[2] for word in AGAIN), said
