"""Rays of a calibrated camera: where points of the scene lie, whoever moves the camera; packs, and clear errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_script

from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.workspace import SAMPLE, Workspace
from rgb2pc_lib.encoders.rays import CHANNELS, GRID, SOMEWHERE, Camera, extract_rays, live_rays, plucker, ray_tokens
from rgb2pc_lib.errors import InputError

K = np.array([[300.0, 0, 160], [0, 280, 120], [0, 0, 1]])
SIZE = 240, 320


def camera(rng):
    """A pose that sees the origin of the world, `[4, 4]`."""
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, [*rng.uniform(-0.05, 0.05, 2), rng.uniform(0.6, 1.5)]
    return pose


def test_a_point_lies_on_the_ray_of_the_place_that_shows_it():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose, point = camera(rng), rng.uniform(-0.1, 0.1, 3)
        u, v, w = K @ (pose[:3, :3] @ point + pose[:3, 3])
        column, row = u / w, v / w
        rays = plucker(K, pose, SIZE, SIZE)  # one place a pixel
        d, moment = np.split(rays[int(row), int(column)], 2)
        assert np.linalg.norm(d) == pytest.approx(1) and d @ moment == pytest.approx(0, abs=1e-9)
        off = np.linalg.norm(np.cross(point, d) - moment)  # how far the ray passes the point, m
        assert off < 0.003 * w / 0.6  # half a pixel's diagonal there
        wrong = rays[(int(row) + 60) % SIZE[0], int(column)]
        assert np.linalg.norm(np.cross(point, wrong[:3]) - wrong[3:]) > 10 * off


def test_tokens_tell_cameras_and_places_apart():
    rng = np.random.default_rng(1)
    a, b = (ray_tokens(K, camera(rng), SIZE) for _ in range(2))
    assert a.shape == (*GRID, CHANNELS) and a.dtype == np.float32 and np.abs(a).max() <= 1
    places = a.reshape(-1, CHANNELS)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[~np.eye(len(places), dtype=bool)]
    assert apart.min() > 0.05 and np.linalg.norm(a - b, axis=-1).min() > 0.1


@pytest.fixture
def episode(tmp_path):
    """Three frames of a camera that moves; a function that writes their state."""
    folder = tmp_path / "rgb" / "push" / "ep_0"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", SIZE[::-1]).save(folder / f"step_{i:04d}.png")
    poses = np.stack([camera(np.random.default_rng(i)) for i in range(3)])

    def write(**changes):
        state = {"steps": np.array([f"step_{i:04d}" for i in range(3)]), "K": K, "world_to_camera": poses} | changes
        file = tmp_path / "state" / "push" / "ep_0.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{name: array for name, array in state.items() if array is not None})
        return tmp_path / "rgb", tmp_path / "state", tmp_path / "features_rays"

    return write, poses


def test_a_moving_camera_has_tokens_of_its_own_at_each_step(episode):
    write, poses = episode
    rgb, state, out = write()
    assert extract_rays(rgb, state, out, progress=False) == (1, 0)
    pack = FeaturePack.open(out / "push" / "ep_0.pt")
    for i, pose in enumerate(poses):
        found = pack.frame(f"step_{i:04d}").float().numpy()
        np.testing.assert_allclose(found, ray_tokens(K, pose, SIZE), atol=1e-3)
    assert extract_rays(rgb, state, out, progress=False) == (0, 1)
    write(world_to_camera=poses[::-1].copy())
    with pytest.raises(InputError, match=r"ep_0.pt: this pack was made with weights .*; delete"):
        extract_rays(rgb, state, out, progress=False)


def test_intrinsics_of_another_size_are_told(episode, caplog):
    write, poses = episode
    off = K + [[0, 0, 0.15 * SIZE[1]], [0, 0, -0.15 * SIZE[0]], [0, 0, 0]]  # more than cameras are off
    for fitting in (K, off):
        extract_rays(*write(K=fitting)[:2], Path(write()[2]) / str(fitting[0, 2]), progress=False)
        live_rays()(torch.zeros(1, *SIZE, 3), [Camera(fitting, poses[0])])
    live_rays()(torch.zeros(1, *SIZE, 3), [SOMEWHERE])  # what a look costs, anywhere
    assert not caplog.text
    extract_rays(*write(K=np.diag([2, 2, 1]) @ K), progress=False)
    told = "expert rays: K has its principal point at (320, 240), far from the middle of frames of 320 x 240 pixels"
    assert told in caplog.text and "scale it to theirs" in caplog.text
    live_rays()(torch.zeros(2, *SIZE, 3), [Camera(K, poses[0]), Camera(np.diag([0.5, 0.5, 1]) @ K, poses[1])])
    assert "at (80, 60), far from the middle of frames of 320 x 240" in caplog.text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"K": None}, "expected the camera of its frames, found no K; add it from the calibration"),
        ({"K": None, "world_to_camera": None}, "found no K and world_to_camera"),
        ({"K": np.eye(4)}, r"K: expected 3 x 3, or one a step, found \[4, 4\]"),
        ({"K": np.zeros((3, 3))}, "K cannot be inverted"),
        ({"world_to_camera": np.zeros((4, 4))}, "world_to_camera cannot be inverted"),
        ({"steps": np.array(["step_0000", "step_0001", "other"])}, "found none of 1 of them, such as step_0002"),
    ],
)
def test_what_is_wrong_with_a_camera_is_said_and_nothing_is_left(episode, changes, said):
    rgb, state, out = episode[0](**changes)
    with pytest.raises(InputError, match=rf"ep_0.npz: .*{said}"):
        extract_rays(rgb, state, out, progress=False)
    assert not out.exists() or not list(out.rglob("*.pt"))
    faults = Faults()
    assert extract_rays(rgb, state, out, faults=faults, progress=False) == (0, 0) and len(faults.found) == 1


def test_the_command_on_the_sample(tmp_path, capsys):
    tool = load_script(Path(__file__).parents[2] / "tools/extract_rays.py")
    sample = Workspace.load(SAMPLE)
    mine = tmp_path / "mine.toml"
    mine.write_text(
        f'[roots]\nteacher = "{sample.teacher}"\nrgb = "{sample.rgb}"\nstate = "{sample.state}"\n[experts]\n'
        'rays = "features_rays"\n'
    )
    assert tool.main(["--workspace", str(mine), "--tasks", "hammer"]) == 0
    assert "rays: 8 packs written, 0 kept" in capsys.readouterr().out
    table = pair(Workspace.load(mine), ["hammer"]).table
    assert len(table) == 128
    with pytest.raises(InputError, match="names no expert rays; add a line rays = FOLDER"):
        tool.main(["--workspace", str(SAMPLE)])
    mine.write_text(mine.read_text().replace("\nrgb =", "\nrgb.front =").replace("\nrays =", "\nrays.front ="))
    assert tool.main(["--workspace", str(mine), "--tasks", "hammer"]) == 0
    mine.write_text(mine.read_text().replace("rays.front", "daisy.front"))
    with pytest.raises(InputError, match="names no expert rays@front; add a line rays.front = FOLDER"):
        tool.main(["--workspace", str(mine)])
