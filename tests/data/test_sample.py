"""The bundled sample is complete, small, and consistent with itself; no simulator needed."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgb2pc_lib.data.clouds import project, read_ply, transform

DATA = Path(__file__).parents[2] / "data"
SAMPLE = DATA / "sample"
STATES = sorted((SAMPLE / "state").glob("*/*.npz"))
SCALARS = {"success": "b", "randomised": "b", "seed": "i", "frame": "U"}
SHAPES = {"steps": (16,), "time": (16,), "progress": (16,), "opening": (16,), "joint": (16,), "goal": (3,)}
SHAPES |= {"tcp": (16, 3), "object": (16, 3), "action": (16, 4), "K": (3, 3), "world_to_camera": (4, 4)}


def test_everything_is_there_and_small():
    files = [p for p in SAMPLE.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 29.5e6
    steps = {f"{s.parent.name}/{s.stem}/step_{i:04d}" for s in STATES for i in range(16)}
    assert len(STATES) == 64 and len({s.parent.name for s in STATES}) == 8
    for kind, suffix in (("rgb", ".jpg"), ("clouds", ".ply")):
        found = {str(p.relative_to(SAMPLE / kind).with_suffix("")) for p in (SAMPLE / kind).rglob("*" + suffix)}
        assert found == steps
    assert len(files) == 2 * len(steps) + len(STATES)


def test_workspace_file_names_existing_data():
    raw = tomllib.loads((DATA / "sample.toml").read_text())
    for kind in ("rgb", "clouds", "state"):
        assert (DATA / raw["roots"][kind]).resolve() == SAMPLE / kind
    assert len(raw["experts"]) == 4


@pytest.mark.parametrize("task", sorted({s.parent.name for s in STATES}))
def test_task(task):
    for path in (SAMPLE / "state" / task).glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            state = dict(file)
        assert {k: state[k].shape for k in SHAPES} == SHAPES and state["qpos"].shape[0] == 16
        assert {k: state[k].dtype.kind for k in SCALARS} == SCALARS
        assert state["labels"].dtype == np.uint8 and state["labels"].shape == (16, 1024)
        seen = set(state["label_names"][np.unique(state["labels"])].tolist())
        assert {"table", "robot", "object"} <= seen <= {"table", "robot", "object", "distractor"}
        assert state["randomised"] or "distractor" not in seen
        assert state["success"] and state["frame"] == "camera"
        assert state["randomised"] == int(path.stem[-1]) % 2
        assert np.all(np.diff(state["time"]) > 0) and np.all(np.diff(state["progress"]) > 0)
        assert np.linalg.norm(state["object"] - state["object"][0], axis=1).max() > 0.05  # the task moves its object
        moves = np.ptp(state["joint"]) if np.isfinite(state["joint"]).all() else np.nan
        assert np.isnan(state["joint"]).all() or moves > 0.05

        K, world_to_camera = state["K"], state["world_to_camera"]
        for name in ("tcp", "object"):
            uv = project(transform(state[name], world_to_camera), K)
            assert uv.min() > 0 and uv.max() < 224, f"{path}: {name} leaves the image"
        for i, step in enumerate(state["steps"]):
            cloud = read_ply(SAMPLE / "clouds" / task / path.stem / f"{step}.ply")
            assert cloud.xyz.shape == (1024, 3) and len(np.unique(cloud.uv, axis=0)) == 1024
            assert cloud.uv.min() >= 0 and cloud.uv.max() <= 223
            np.testing.assert_allclose(project(cloud.xyz, K), cloud.uv + 0.5, atol=1e-3)
            tcp = transform(state["tcp"][i], world_to_camera)
            assert np.linalg.norm(cloud.xyz - tcp, axis=1).min() < 0.1  # some point near the gripper
            image = Image.open(SAMPLE / "rgb" / task / path.stem / f"{step}.jpg")
            assert image.size == (224, 224) and image.mode == "RGB"


def test_placements_of_a_task_differ():
    for task in sorted({s.parent.name for s in STATES}):
        states = [np.load(s, allow_pickle=False) for s in STATES if s.parent.name == task]
        placements = [np.r_[s["object"][0], s["goal"]].round(4) for s in states]  # one of the two may be fixed
        assert len(np.unique(placements, axis=0)) == 8, task
