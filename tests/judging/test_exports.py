"""Every kind of ONNX file of a compact student in one table, and the ledger of its spatial tokens: a whole tiny way."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from rgb2pc_lib.deploy import frames, targets
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.deploy.compress import train_compact
from rgb2pc_lib.judging.exports import judge_exports, lost
from rgb2pc_lib.judging.ledger import FUSED, TEACHER, advantage_kept, compact_hops, expert_hops, quality
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory, left):
    """A fused student and two compact ones, the second without spatial tokens."""
    root = tmp_path_factory.mktemp("runs")
    for task in ("push", "pull"):
        (root / "state" / task).mkdir(parents=True)
        for e in range(8):
            draw = np.random.default_rng([e, len(task)])
            state = {"tcp": draw.normal(size=(12, 3)), "object": draw.normal(size=(12, 3)), "frame": np.array("camera")}
            pose = np.eye(4)
            pose[:3, 3] = draw.normal(size=3)  # a camera that stands elsewhere in every episode
            state |= {"steps": np.array([f"step_{i:04d}" for i in range(12)]), "world_to_camera": pose}
            np.savez(root / "state" / task / f"ep_{e}.npz", **state)
    workspace = dataclasses.replace(left, rgb=tiny.write_frames(root / "rgb", left), state=root / "state")
    small = {"amp": "off", "eval_every": 0, "batch_size": 16}
    config = Config(**small, steps=40, fuse_dim=16, save_dir=str(root / "run")).with_workspace(workspace)
    given = {**small, "run": str(root / "run"), "size": 32, "steps": 3}
    with pytest.MonkeyPatch.context() as patch:
        for module in (targets, frames):
            patch.setattr(module, "CACHE", root / "cache")
        list(train(config))
        summary = json.loads((root / "run" / "summary.json").read_text()) | {"teacher_frame": "world"}
        (root / "run" / "summary.json").write_text(json.dumps(summary))
        for name, spatial in (("both", True), ("plain", False)):
            list(train_compact(CompactConfig(**given, spatial=spatial, save_dir=str(root / name))))
        yield Run.open(root / "run"), CompactRun.open(root / "both"), CompactRun.open(root / "plain")


def test_the_ledger_judges_spatial_tokens_beside_the_embedding(runs):
    fused, both, plain = runs
    found = quality({"both": both, "plain": plain}, fused)
    wide = found.long.pivot_table(index="measure", columns="hop", values="value", sort=False)
    assert compact_hops(found.long) == ["both", "plain"] and expert_hops(found.long) == ["left", "right"]
    with_places = {"left", "right", FUSED, "both"}
    for measure in ("R2 places: tcp", "places: tcp cm", "R2 places: distance", "places: task accuracy"):
        assert set(wide.columns[wide.loc[measure].notna()]) == with_places
    assert wide.loc["R2 tcp"].notna().all() and TEACHER in wide
    assert wide.at["spatial R2", "both"] == both.summary["held-out"]["spatial R2"]
    kept = advantage_kept(found, "both").set_index("measure")
    assert {"R2 tcp", "R2 places: tcp"} <= set(kept.index)
    assert not [m for m in advantage_kept(found, "plain")["measure"] if "places" in m]


def test_each_file_has_its_column(runs):
    pytest.importorskip("onnxruntime")
    fused, both, _ = runs
    table = judge_exports(both, repeats=1)
    assert list(table) == ["torch", "fp32", "fp16", "int8"]
    assert table.loc["MB", "int8"] < 0.3 * table.loc["MB", "fp32"] < 0.6 * table.loc["MB", "torch"]
    assert (table.loc["CPU ms a frame"] > 0).all() and table.loc["relative", "fp32"] < 1e-4
    assert table.loc["spatial cosine", "fp16"] > 0.999
    judged = quality({"both": both}, fused).long.set_index(["hop", "measure"])["value"]
    for measure in ("R@1", "R2 tcp", "R2 object", "R2 places: tcp"):
        assert table.loc[measure, "torch"] == pytest.approx(judged["both", measure], abs=1e-6)
        assert np.isfinite(table.loc[measure]).all()
    assert table.loc["R@1", "fp32"] == pytest.approx(table.loc["R@1", "torch"], abs=0.05)
    missed = lost(table)
    assert list(missed) == ["fp32", "fp16", "int8"] and not {"MB", "cosine"} & set(missed.index)
    assert missed.loc["R2 tcp", "int8"] == pytest.approx(table.loc["R2 tcp", "torch"] - table.loc["R2 tcp", "int8"])
    assert both.file("exports.csv").exists()
