"""Where tensors lie in files, and what stays mapped: never more than the limit, never advice about what is gone."""

import gc
import os

import numpy as np
import pytest
import torch

from rgb2pc_lib.data import mapped, system
from rgb2pc_lib.data.mapped import Frames, Stored, find
from rgb2pc_lib.data.packs import FeaturePack

PATHS = [[f"step_{i + j}.png" for j in range(2)] for i in range(3)]


def write(path, seed=0, **more):
    features = torch.randn(3, 2, 4, 4, 64, generator=torch.Generator().manual_seed(seed)).half()
    torch.save({**more, "per_frame_features": features, "frame_paths": PATHS}, path)
    return features


@pytest.mark.parametrize("first", [{}, {"features": torch.arange(1000)}, {"meta": {"a": torch.ones(7)}}])
def test_the_place_found_holds_the_tensor(tmp_path, first):
    written = write(tmp_path / "ep.pt", **first)
    loaded = torch.load(tmp_path / "ep.pt", mmap=True)["per_frame_features"]
    stored = find(tmp_path / "ep.pt", loaded)
    raw = (tmp_path / "ep.pt").read_bytes()[stored.offset :][: written.nbytes]
    assert np.array_equal(np.frombuffer(raw, np.float16), written.flatten().numpy())
    assert torch.equal(stored.map(tmp_path / "ep.pt"), written)


def test_two_tensors_of_one_size_leave_doubt(tmp_path):
    """Then the map that torch made is kept, and the values are right all the same."""
    written = write(tmp_path / "ep.pt", features=torch.ones(3 * 2 * 4 * 4 * 64).half())
    pack = FeaturePack.open(tmp_path / "ep.pt")
    assert not isinstance(pack.source, Stored) and torch.equal(pack.frame("step_1"), written[pack.where("step_1")])


@pytest.fixture
def asked(monkeypatch):
    """What the system was told: (address, size) of what is unmapped."""
    told = []
    Frames.give_back(0)
    monkeypatch.setattr(system, "unmap", lambda start, size: told.append((start, size)))
    yield told
    Frames.give_back(0)


def open_frames(path, seed=0):
    write(path, seed)
    return FeaturePack.open(path)


def test_the_longest_mapped_are_given_back(tmp_path, asked, monkeypatch):
    pack = open_frames(tmp_path / "ep.pt")
    size = 4 * 4 * 64 * 2
    monkeypatch.setattr(mapped, "KEPT", 3 * size)
    out = np.empty((1, 64), np.float16)
    order = [(0, 0), (0, 1), (1, 0), (0, 0), (1, 1), (2, 0)]
    for place in order:
        pack.read(place, np.zeros(1, int), out)
    start = pack.features.ctypes.data
    assert asked == [(start, size), (start + size, size)], "frames 0 and 1: one that is read again keeps its turn"
    pack.read((0, 0), np.zeros(1, int), out)
    assert len(asked) == 3


def test_nothing_is_said_about_a_map_that_is_gone(tmp_path, asked):
    packs = [open_frames(tmp_path / f"{i}.pt", i) for i in range(2)]
    for pack in packs:
        pack.read((0, 0), np.zeros(1, int), np.empty((1, 64), np.float16))
    kept = packs[1].features.ctypes.data
    del pack, packs[0]
    gc.collect()
    Frames.give_back(0)
    assert [start for start, _ in asked] == [kept]


@pytest.mark.skipif(os.name != "posix", reason="the system takes no advice")
def test_frames_that_vanished_from_memory_are_asked_for_again(tmp_path, asked, monkeypatch):
    pack = open_frames(tmp_path / "ep.pt")
    wanted, there = [], True
    monkeypatch.setattr(system, "will_need", lambda start, size: wanted.append(start))
    monkeypatch.setattr(system, "in_memory", lambda address: there)
    pack.read((0, 0), np.zeros(1, int), np.empty((1, 64), np.float16))
    for _ in range(20):
        pack.frames.will_need(pack.number((0, 0)))
    assert not wanted
    there = False  # the system ran short of memory
    for _ in range(32):
        pack.frames.will_need(pack.number((0, 0)))
    assert wanted, "one in 32 is looked at"
    before = len(wanted)
    for _ in range(4):
        pack.frames.will_need(pack.number((0, 0)))
    assert len(wanted) == before + 4 and len(asked) == 1, "and then all"
