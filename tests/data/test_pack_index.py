"""The index of packs: what it knows is what the file says, and it is believed only while the file is the same."""

import os
import time

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.data import pack_index
from rgb2pc_lib.data.pack_index import PackIndex
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.sampling import lattice
from rgb2pc_lib.errors import InputError

NAMES = [f"step_{i:04d}" for i in range(6)]


def write(root, episode, value=1.0, dtype=torch.float16, old=True):
    path = tiny.write_pack(root, "push", episode, NAMES, np.full((6, 2, 3, 5), value), window=3, dtype=dtype)
    if old:  # written a minute ago
        os.utime(path, ns=(path.stat().st_mtime_ns, time.time_ns() - 60 * 10**9))
    return path


@pytest.fixture
def never_read(monkeypatch):
    """From when it is called, reading a pack fails."""

    def refuse(*_):
        raise AssertionError("the pack was read")

    return lambda: monkeypatch.setattr(FeaturePack, "open", refuse)


def reopened(root, cache, *paths, **more):
    index = PackIndex(root, cache)
    packs = [index.open(p, **more) for p in paths]
    index.save()
    return packs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_second_opening_reads_no_pack_and_says_the_same(tmp_path, never_read, dtype):
    root, cache = tmp_path / "vggt", tmp_path / "cache"
    paths = [write(root, f"ep_{i}", i, dtype) for i in range(3)]
    before = tiny.contents(root)
    first = reopened(root, cache, *paths, expert="vggt", raw_size=(640, 480))
    never_read()
    for a, b in zip(first, reopened(root, cache, *paths, expert="vggt", raw_size=(640, 480)), strict=True):
        for field in ("path", "source", "shape", "dtype", "copies", "box", "meta"):
            assert getattr(a, field) == getattr(b, field), field
        assert a.box[1] > 0, "the box is looked up for the expert and the image of today"
        for step in NAMES:
            assert torch.equal(a.frame(step), b.frame(step))
    assert tiny.contents(root) == before
    copies = [p.copies for p in reopened(root, cache, *paths)]
    assert copies[0] is copies[1] is copies[2], "episodes with the same names share them"


def test_a_changed_file_is_read_again(tmp_path):
    root, cache = tmp_path / "a", tmp_path / "cache"
    path = write(root, "ep", 1)
    reopened(root, cache, path)
    write(root, "ep", 2, old=False)  # as large as before
    (pack,) = reopened(root, cache, path)
    assert pack.frame("step_0000").unique().tolist() == [2]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="ep.pt: not a readable torch file"):
        reopened(root, cache, path)
    path.unlink()
    with pytest.raises(InputError, match="ep.pt"):
        reopened(root, cache, path)


def test_a_file_that_may_still_change_is_not_remembered(tmp_path):
    root, cache = tmp_path / "a", tmp_path / "cache"
    reopened(root, cache, write(root, "young", old=False))
    assert not cache.exists()


def test_a_file_that_changes_before_it_is_mapped(tmp_path):
    root = tmp_path / "a"
    path = write(root, "ep", 1)
    (pack,) = reopened(root, tmp_path / "cache", path)
    write(root, "ep", 2, old=False)
    with pytest.raises(InputError, match="ep.pt: has changed since it was opened"):
        pack.frame("step_0000")


def test_packs_that_are_gone_are_forgotten(tmp_path):
    root, cache = tmp_path / "a", tmp_path / "cache"
    paths = [write(root, f"ep_{i}") for i in range(2)]
    reopened(root, cache, *paths)
    paths[0].unlink()
    reopened(root, cache, write(root, "ep_2"))
    assert sorted(PackIndex(root, cache).packs) == ["push/ep_1.pt", "push/ep_2.pt"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0}', '{"version": 1, "root": "elsewhere"}'])
def test_a_damaged_index_is_made_anew(tmp_path, content):
    root, cache = tmp_path / "a", tmp_path / "cache"
    path = write(root, "ep")
    reopened(root, cache, path)
    (file,) = (cache / "pack_index").iterdir()
    whole = file.read_bytes()
    file.write_text(content)
    reopened(root, cache, path)
    assert file.read_bytes() == whole


def test_what_json_cannot_say_is_not_remembered(tmp_path):
    root, cache = tmp_path / "a", tmp_path / "cache"
    path = write(root, "ep")
    torch.save({**torch.load(path), "meta": {"num_frames": np.int64(6)}}, path)
    os.utime(path, ns=(0, 0))
    (pack,) = reopened(root, cache, path)
    assert pack.meta == {"num_frames": 6} and not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path):
    root, cache = tmp_path / "a", tmp_path / "cache"
    cache.write_text("a file")
    assert reopened(root, cache, write(root, "ep"))[0].steps == NAMES


def test_zarr_is_opened_anew(tmp_path):
    path = tiny.write_zarr(tmp_path / "a", "push", "ep", NAMES, np.ones((6, 2, 3, 5)))
    (pack,) = reopened(tmp_path / "a", tmp_path / "cache", path)
    assert pack.tokens("step_0001", lattice((2, 3)))[0].eq(1).all() and not (tmp_path / "cache").exists()


def test_two_roots_do_not_mix(tmp_path):
    a, b = (write(tmp_path / n, "ep", v) for n, v in (("a", 1), ("b", 2)))
    for _ in range(2):
        (x,), (y,) = reopened(tmp_path / "a", tmp_path / "c", a), reopened(tmp_path / "b", tmp_path / "c", b)
        assert (x.frame("step_0000").max(), y.frame("step_0000").max()) == (1, 2)
    assert pack_index.CACHE != tmp_path / "c"
