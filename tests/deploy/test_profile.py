"""What a frame costs: every way is measured, every part is told, and parts make up the whole."""

import json

import numpy as np
import pytest
import tiny_weights
import torch
from PIL import Image
from scripts import load_script

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy import profile as module
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.deploy.export import export_onnx
from rgb2pc_lib.deploy.profile import WHOLE, profile
from rgb2pc_lib.encoders.rays import CHANNELS
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, build_student


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    run, network = CompactRun(tmp_path_factory.mktemp("compact")), Compact("resnet18", 32, 8).eval()
    run.save_compact(network, "resnet18")
    run.file("config.json").write_text(CompactConfig(size=32).to_json())
    run.file("summary.json").write_text('{"n_train": 1, "n_held_out": 1, "held-out": {}}')
    return run


def told(table, way):
    """What holds for the lines of every way; its parts."""
    rows = table[table["way"] == way].set_index("part")
    parts = rows.drop(index=WHOLE)
    assert rows.loc[WHOLE, "share"] == 1 and (parts["share"] > 0).all() and (rows["ms, median"] > 0).all()
    assert (rows["ms, 95 %"] >= rows["ms, median"]).all()
    assert rows.loc[WHOLE, "frames/s"] == pytest.approx(1000 / rows.loc[WHOLE, "ms, median"])
    assert parts[["frames/s", "memory, MB"]].isna().all(axis=None)
    return list(parts.index)


def test_a_compact_student_through_torch_and_onnx(compact):
    """In processes of their own, as a user runs it."""
    pytest.importorskip("onnxruntime")
    export_onnx(compact.compact(), compact.folder)
    table = profile(compact, "cpu", repeats=4)
    assert table["way"].unique().tolist() == ["torch, cpu", "ONNX, cpu"]
    for way in table["way"].unique():
        assert told(table, way) == ["resizing", "network"]
    assert (table["memory, MB"].dropna() > 0).all()


def test_every_expert_has_its_share(tmp_path):
    """VGGT, which sees windows, CroCo, and a camera's rays, without a process of their own."""
    weights = {name: str(tiny_weights.save(name, tmp_path / name)) for name in ("vggt", "croco")}
    run, channels = Run(tmp_path), {"vggt": 64, "croco": 32, "rays": CHANNELS}
    run.file("config.json").write_text(Config(fuse_dim=8, vis_roots=dict.fromkeys(channels, "x")).to_json())
    run.save_student(build_student(run.config, channels, 4), channels, torch.zeros(4))
    seen = {"mean": 0, "most": 0, "told": True, "window": 3, "stride": 1, "causal": True}
    summary = {"n_train": 1, "n_held_out": 1, "held-out": {}, "gates": dict.fromkeys(channels, 0.5)}
    run.file("summary.json").write_text(json.dumps(summary | {"look_ahead": {"vggt": seen}}))
    frames = [np.zeros((16, 112, 3), np.uint8)]
    found = module._measure(str(tmp_path), "torch", "cpu", weights, frames, 3, 1)
    assert len(found.frames) == 3 and found.parameters > 0
    assert told(module._table("torch, cpu", found.frames, 1.0), "torch, cpu") == ["vggt", "croco", "rays", "student"]


def test_the_tool_prints_it_or_says_what_is_missing(compact, tmp_path, monkeypatch, capsys):
    tool = load_script(PROJECT / "tools" / "embed.py")
    seen = []

    def measured(run, device, weights, frames):
        seen.append([frame.shape for frame in frames])
        return module._table("torch, cpu", [{WHOLE: (0.02, 0.02), "network": (0.01, 0.01)}] * 4, 100.0)

    monkeypatch.setattr(tool, "profile", measured)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    assert tool.main([str(compact.folder), "--profile"]) == 0
    assert tool.main([str(compact.folder), str(tmp_path / "a.png"), "--profile"]) == 0 and seen == [[], [(6, 8, 3)]]
    out = capsys.readouterr().out
    assert "ms, median" in out and "frames/s" in out and "50.00" in out and "network" in out
    for words in ([], [str(tmp_path / "a.png")], ["--out", "x.npz"]):
        assert tool.main([str(compact.folder), *words]) == 2
        assert "expected frames to embed and --out FILE to write, or --profile" in capsys.readouterr().err
