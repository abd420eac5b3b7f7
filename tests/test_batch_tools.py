"""Every tool that works on many items: a bad one, wherever it is, costs itself alone and is told with its remedy."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from scripts import load_script

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.encoders.images import Expert, ImageEncoder, square

ITEMS = 3


def load(name):
    return load_script(PROJECT / "tools" / f"{name}.py")


def frames(root, monkeypatch):
    """Episodes of frames through a toy encoder."""
    for e in range(ITEMS):
        folder = root / "source" / "push" / f"ep_{e}"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (40 * e, 10 * i, 0)).save(folder / f"step_{i}.png")
    tool = load("extract_features")
    toy = Expert("toy", 3, square(8, 2), 8, 4)
    toy = ImageEncoder(**vars(toy), features=lambda x: F.adaptive_avg_pool2d(x, 2), weights="none")
    monkeypatch.setattr(tool, "EXPERTS", {"toy": ""})
    monkeypatch.setattr(tool, "locate_weights", lambda *_: None)
    monkeypatch.setattr(tool, "load_encoder", lambda *_: toy)
    words = ["--encoder", "toy", "--rgb_root", root / "source", "--out", root / "out", "--window", "2", "--stride", "1"]
    return tool.main, words, lambda e: root / "source" / "push" / f"ep_{e}" / "step_2.png", root / "out/features_toy"


def clouds(root, monkeypatch):
    tiny.write_clouds(root / "source", ITEMS)
    (root / "mine.toml").write_text('[roots]\nclouds = "source"\n')

    def main(words):
        monkeypatch.setattr(sys, "argv", ["extract_teacher", *words])
        try:
            runpy.run_path(str(PROJECT / "tools" / "extract_teacher.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    words = ["--workspace", root / "mine.toml", "--frame", "world", "--out", root / "out"]
    return main, words, lambda i: root / "source" / "task" / "episode_0000" / f"step_{i:04d}.ply", root / "out"


def clouds_in_batches(root, monkeypatch):
    main, words, item, out = clouds(root, monkeypatch)
    return main, [*words, "--batch", "2"], item, out


def packs(root, monkeypatch):
    names = [f"step_{i:04d}" for i in range(5)]
    for e in range(ITEMS):
        tokens = np.random.default_rng(e).normal(size=(5, 2, 2, 3))
        tiny.write_pack(root / "source", "push", f"ep_{e}", names, tokens)
    words = ["--from", root / "source", "--out", root / "out"]
    return load("pack_features").main, words, lambda e: root / "source" / "push" / f"ep_{e}.pt", root / "out"


def images(root, monkeypatch):
    for i in range(ITEMS):
        (root / "source").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(root / "source" / f"step_{i}.png")
    one = Embedder("one", lambda images, cameras: (torch.from_numpy(images[:, :2, 0, 0].astype(np.float32)), None))
    monkeypatch.setattr(Embedder, "from_run", lambda *_: one)
    words = ["runs/x", root / "source", "--batch", "2", "--out", root / "out" / "e.npz"]
    return load("embed").main, words, lambda i: root / "source" / f"step_{i}.png", root / "out"


@pytest.mark.parametrize("bad", range(ITEMS))
@pytest.mark.parametrize("batch", [frames, clouds, clouds_in_batches, packs, images])
def test_a_bad_item_costs_itself_alone(tmp_path, monkeypatch, capsys, batch, bad):
    (tmp_path / "whole").mkdir()
    main, words, item, out = batch(tmp_path / "whole", monkeypatch)
    assert main([str(w) for w in words]) == 0 and not list(out.glob("*faults.txt"))
    expected = made(out)
    main, words, item, out = batch(tmp_path, monkeypatch)
    whole = item(bad).read_bytes()
    item(bad).write_bytes(whole[: len(whole) // 2])
    before = tiny.contents(tmp_path / "source")
    capsys.readouterr()
    for _ in range(2):  # a second time it finds the same
        assert main([str(w) for w in words]) == 2
        said, (report,) = capsys.readouterr().err, out.glob("*faults.txt")
        assert "1 left out, the others are done" in said and str(report) in said
        assert str(item(bad)) in (listed := report.read_text()) and re.search("it is (cut short|damaged)", listed)
        assert all(line in said for line in listed.splitlines())
        others = made(out)
        assert others and len(others) >= len(expected) * (ITEMS - 1) // ITEMS
        assert all(equal(others[name], expected[name]) for name in others)
    assert tiny.contents(tmp_path / "source") == before
    item(bad).write_bytes(whole)
    assert main([str(w) for w in words]) == 0 and not list(out.glob("*faults.txt"))
    again = made(out)
    assert again.keys() == expected.keys() and all(equal(again[name], expected[name]) for name in again)


def test_processes_wait_for_each_other_and_tell_their_faults_once(tmp_path):
    """The rank with the bad cloud is done first; torchrun would end the others if it left before they are done."""
    main = tmp_path / "clouds"
    tiny.write_clouds(main, 8)
    (tmp_path / "mine.toml").write_text('[roots]\nclouds = "clouds"\n')
    for i in range(1, 8, 2):  # the second process has nothing but these
        (main / "task" / "episode_0000" / f"step_{i:04d}.ply").write_text("no cloud")
    words = [
        str(PROJECT / "tools" / "extract_teacher.py"),
        "--workspace",
        tmp_path / "mine.toml",
        "--frame",
        "world",
        "--out",
    ]
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *words,
        tmp_path / "out",
    ]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode != 0 and done.stderr.count("4 left out, the others are done") == 1
    assert [p.name for p in (tmp_path / "out").glob("*.txt")] == ["faults.txt"]
    assert sorted(p.name[:9] for p in (tmp_path / "out").rglob("*.pt")) == [f"step_{i:04d}" for i in range(0, 8, 2)]


def made(out: Path) -> dict:
    """name -> what was made of an item."""
    files = {p.relative_to(out).as_posix(): torch.load(p, weights_only=True) for p in sorted(out.rglob("*.pt"))}
    for path in out.glob("*.npz"):
        with np.load(path) as z:
            files |= dict(zip(z["names"].tolist(), z["embeddings"].tolist(), strict=True))
    assert not [p for p in out.rglob("*") if p.is_file() and p.suffix not in (".pt", ".npz", ".txt")]
    return files


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return all(equal(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):  # encoded in other company, it is rounded otherwise
        return torch.allclose(one.float(), other.float(), atol=2e-3, rtol=2e-3)
    return one == other
