import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.look import (
    SIDE,
    TokenColours,
    cloud_scene,
    cloud_trace,
    in_camera_frame,
    look,
    look_figure,
    overlay,
)


def colours(pairing):
    return {name: TokenColours.fit(packs) for name, packs in pairing.packs.items()}


@pytest.fixture
def seen(tmp_path):
    """Two episodes with RGB of 32 x 24 pixels; the last steps of "right" are missing."""
    ws = tiny.make(tmp_path / "data", "left", tasks=("push",), episodes=2)
    rng = np.random.default_rng(0)
    for episode in ("ep_0", "ep_1"):
        folder = tmp_path / "rgb" / "push" / episode
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8)).save(folder / f"step_{i:04d}.png")
    path = ws.experts["right"] / "push" / "ep_1.pt"
    path.unlink()
    names = [f"step_{i:04d}" for i in range(10)]
    tiny.write_pack(path.parents[1], "push", "ep_1", names, rng.normal(size=(10, 4, 4, 10)))
    return Workspace(teacher=ws.teacher, experts=ws.experts, rgb=tmp_path / "rgb", name="seen")


def test_everything_of_one_step_with_its_place(seen):
    pairing = pair(seen)
    found = look(seen, pairing, colours(pairing), "push", "ep_1", "step_0005")
    assert found.rgb.shape == (24, 32, 3) and found.drawn_over.shape == (48, 64, 3)
    assert found.grids["left"].shape == (round(SIDE * 24 / 32), SIDE, 3)  # the image's own proportions
    match = found.match
    assert (match["status"] == "ok").all()
    assert match.loc["RGB", "file"] == "push/ep_1/step_0005.png"
    assert match.loc["teacher", "file"] == "push/ep_1/step_0005.ply.ulip_tiny.pt"
    window, frame = pairing.packs["left"]["push", "ep_1"].where("step_0005")
    assert match.loc["left", "place"] == f"window {window}, frame {frame}, one of 4 copies"


def test_what_is_missing_says_why(seen):
    pairing = pair(seen)
    found = look(seen, pairing, colours(pairing), "push", "ep_1", "step_0011")
    assert found.grids["right"] is None and found.grids["left"] is not None
    assert found.match.loc["right", "status"] == "step not in the episode"
    figure = look_figure(found, "push")
    figure.canvas.draw()
    assert "step not in the episode" in [t.get_text() for a in figure.axes for t in a.texts]
    with pytest.raises(InputError, match="no step push/ep_1/step_0099"):
        look(seen, pairing, {}, "push", "ep_1", "step_0099")


def test_the_same_token_has_the_same_colour_at_every_step(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"step_{i:04d}" for i in range(8)]
    for episode in ("ep_0", "ep_1"):
        tokens = rng.normal(size=(8, 3, 5, 6)) * [9, 5, 3, 1, 1, 1]
        tokens[:, 1, 2] = [4, -2, 1, 0, 0, 0]  # one place that never changes
        tiny.write_pack(tmp_path, "push", episode, names, tokens)
    packs = {("push", e): FeaturePack.open(tmp_path / "push" / f"{e}.pt") for e in ("ep_0", "ep_1")}
    paint = TokenColours.fit(packs, frames=16)
    pictures = [paint(packs["push", e].frame(s)) for e in ("ep_0", "ep_1") for s in names]
    assert len({tuple(p[1, 2]) for p in pictures}) == 1 and len({tuple(p[0, 0]) for p in pictures}) > 10
    assert np.array_equal(pictures[3], TokenColours.fit(packs, frames=16)(packs["push", "ep_0"].frame(names[3])))
    strongest = np.abs(paint.axes[:, 0]).argmax()
    assert strongest == 0 and paint.axes[0, 0] > 0  # the direction of most variance, with a fixed sign


def test_fewer_channels_than_colours(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(6, 2, 2, 2))
    path = tiny.write_pack(tmp_path, "push", "ep_0", [f"step_{i:04d}" for i in range(6)], tokens)
    pack = FeaturePack.open(path)
    assert TokenColours.fit({("push", "ep_0"): pack})(pack.frame("step_0001")).shape == (2, 2, 3)


def test_a_grid_lies_where_its_box_does(tmp_path):
    path = tmp_path / "push" / "ep_0.pt"
    path.parent.mkdir(parents=True)
    names = [f"step_{i:04d}" for i in range(4)]
    torch.save({"per_frame_features": torch.randn(1, 4, 2, 2, 5), "frame_paths": [names],
                "meta": {"box": [0.0, 0.25, 1.0, 0.75]}}, path)  # fmt: skip
    (tmp_path / "teacher").mkdir()
    pairing = pair(ws := Workspace(teacher=tmp_path / "teacher", experts={"band": tmp_path}))
    grid = look(ws, pairing, colours(pairing), "push", "ep_0", "step_0001").grids["band"]
    assert (grid[: SIDE // 4] == 255).all() and (grid[-SIDE // 4 :] == 255).all()
    assert (grid[SIDE // 4 : 3 * SIDE // 4] != 255).any()


def test_points_are_drawn_at_their_pixels_and_near_ones_on_top():
    image = np.full((20, 30, 3), 40, np.uint8)
    uv = np.array([[10, 5], [10, 5], [29, 19], [30, 0]], np.float32)
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    xyz = np.array([[0, 0, 2], [0, 0, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    picture = overlay(image, Cloud(xyz, rgb, uv))
    assert picture.shape == (40, 60, 3)
    assert picture[10, 20].tolist() == [0, 255, 0]  # the nearer of two
    assert picture[39, 59].tolist() == [0, 0, 255]
    assert not (picture == 9).all(-1).any()  # outside the image
    assert len(np.unique(picture[20:30, :40])) == 1  # elsewhere: grey
    assert np.array_equal(overlay(image, None), overlay(image, Cloud(xyz)))
    depth = overlay(image, Cloud(xyz, None, uv))  # without colours of their own: by depth
    assert not np.array_equal(depth, overlay(image, None))


def test_clouds_in_the_camera_frame_are_recognised():
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-0.5, -0.5, 1], [0.5, 0.5, 2], size=(100, 3)).astype(np.float32)
    uv = xyz[:, :2] / xyz[:, 2:] * 200 + 112
    assert in_camera_frame(Cloud(xyz, uv=uv)) and not in_camera_frame(Cloud(xyz[:, [0, 2, 1]], uv=uv))
    assert not in_camera_frame(Cloud(xyz))
    assert cloud_scene(Cloud(xyz, uv=uv))["camera"]["up"]["y"] == -1 and cloud_scene(None)["camera"]["up"]["z"] == 1
    assert cloud_scene(None)["aspectmode"] == "data" and cloud_scene(None)["xaxis"]["title"] == "x (m)"


def test_the_drawn_cloud_has_its_own_colours_and_is_thinned():
    cloud = Cloud(np.zeros((20000, 3), np.float32), np.tile(np.array([[255, 0, 16]], np.uint8), (20000, 1)))
    trace = cloud_trace(cloud)
    assert set(trace["marker.color"]) == {"#ff0010"} and 4096 < len(trace["x"]) <= 8192
    assert cloud_trace(None)["x"] == []
