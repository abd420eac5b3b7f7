"""The recorder: reproducible, resumable, and geometrically consistent. Needs the extra ``sim``."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rgb2pc_lib.data.clouds import project, read_ply, transform
from rgb2pc_lib.errors import InputError

try:
    from rgb2pc_lib.recordings import sim
    from rgb2pc_lib.recordings.sim_labels import GEOM, LABELS, SITE, pixel_labels
except InputError as error:  # no simulator, or no off-screen OpenGL
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")  # of Meta-World's experts
SMALL = sim.RecordConfig(size=64, steps=3, points=200)
TASK = "button-press-topdown"  # the shortest roll-outs
TOOL = Path(__file__).parents[2] / "tools" / "record_sim.py"


@pytest.fixture(scope="module")
def scene():
    scene = sim.Scene(TASK, SMALL)
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def episode(scene):
    return scene.record(3, sim.RANDOM)


def written(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes_whatever_came_before(tmp_path, scene, episode):
    for randomise in (sim.RANDOM, sim.FIXED):
        scene.record(4, sim.RANDOM)
        sim.write_episode(tmp_path / "a", TASK, "episode_0000", scene.record(3, randomise))
        fresh = sim.Scene(TASK, SMALL)
        sim.write_episode(tmp_path / "b", TASK, "episode_0000", fresh.record(3, randomise))
        fresh.close()
        files = written(tmp_path / "a")
        assert len(files) == 3 + 3 + 1
        assert files == written(tmp_path / "b")


def test_seeds_and_looks_differ(scene, episode):
    other, plain = scene.record(4, sim.RANDOM), scene.record(3, sim.FIXED)
    for different in (other, plain):
        assert np.mean(different.images[0] != episode.images[0]) > 0.3
        assert not np.allclose(different.state["world_to_camera"], episode.state["world_to_camera"])
    assert not np.array_equal(other.state["object"], episode.state["object"])
    for name in ("object", "tcp", "action", "time"):  # looks have no influence on physics
        np.testing.assert_array_equal(plain.state[name], episode.state[name])


def test_two_plain_episodes_share_the_camera(scene):
    a, b = scene.record(0), scene.record(1)
    np.testing.assert_allclose(a.state["world_to_camera"], b.state["world_to_camera"], atol=1e-12)


def test_points_lie_behind_their_pixels(episode):
    for image, cloud in zip(episode.images, episode.clouds, strict=True):
        assert len(cloud) == len(np.unique(cloud.uv, axis=0)) == SMALL.points
        assert cloud.uv.min() >= 0 and cloud.uv.max() < SMALL.size
        np.testing.assert_allclose(project(cloud.xyz, episode.state["K"]), cloud.uv + 0.5, atol=1e-3)
        u, v = cloud.uv.astype(int).T
        np.testing.assert_array_equal(image[v, u], cloud.rgb)


def test_camera_and_world_clouds_are_one_rigid_motion_apart(episode):
    world_scene = sim.Scene(TASK, dataclasses.replace(SMALL, frame="world"))
    world = world_scene.record(3, sim.RANDOM)
    world_scene.close()
    assert str(world.state["frame"]) == "world" and str(episode.state["frame"]) == "camera"
    low, high = np.array(SMALL.workspace)
    for a, b in zip(world.clouds, episode.clouds, strict=True):
        np.testing.assert_array_equal(a.uv, b.uv)
        np.testing.assert_allclose(transform(a.xyz, episode.state["world_to_camera"]), b.xyz, atol=1e-5)
        assert np.all((a.xyz > low) & (a.xyz < high))
        assert np.mean(a.xyz[:, 2] > sim.TABLE_TOP) == pytest.approx(SMALL.above_table, abs=0.01)


def test_depth_is_metric(episode):
    """The table plane comes out at height 0, and the button moves down by what its joint says."""
    state = episode.state
    world = transform(episode.clouds[0].xyz, np.linalg.inv(state["world_to_camera"]))
    assert np.median(np.abs(world[world[:, 2] < sim.TABLE_TOP, 2])) < 0.005
    moved = state["object"][-1] - state["object"][0]
    np.testing.assert_allclose(moved, [0, 0, state["joint"][-1] - state["joint"][0]], atol=1e-4)
    assert moved[2] < -0.05


def test_state_file(tmp_path, episode):
    sim.write_episode(tmp_path, TASK, "episode_0000", episode)
    with np.load(tmp_path / "state" / TASK / "episode_0000.npz", allow_pickle=False) as state:
        shapes, time = {name: state[name].shape for name in state}, state["time"]
        np.testing.assert_array_equal(state["actions"][time], state["action"])
        assert state["steps"].tolist() == ["step_0000", "step_0001", "step_0002"]
        assert state["time"][0] == 0 and state["progress"].tolist()[::2] == [0, 1]
        assert state["success"] and state["randomised"] and state["seed"] == 3
        np.testing.assert_array_equal(state["actions"][state["time"]], state["action"])
        whole = (state["time"][-1] + 1, 4)  # of every step that the expert took
    positions = {name: (3, 3) for name in ("tcp", "object", "K")} | {"goal": (3,), "world_to_camera": (4, 4)}
    rows = {name: (3,) for name in ("steps", "time", "progress", "opening", "joint")} | {
        "action": (3, 4),
        "actions": whole,
    }
    scalars = dict.fromkeys(("success", "randomised", "seed", "frame"), ())
    labels = {"labels": (3, SMALL.points), "label_names": (len(LABELS),)}
    assert shapes == positions | rows | scalars | labels | {"qpos": (3, 10), "actions": (int(time[-1]) + 1, 4)}


def test_labels_say_what_the_geometry_says(episode):
    """The gripper is robot, the button object, and nothing else is higher than the table's rims, which end at 12 cm."""
    state = episode.state
    assert state["label_names"].tolist() == list(LABELS) and state["labels"].dtype == np.uint8
    for i, (cloud, labels) in enumerate(zip(episode.clouds, state["labels"], strict=True)):
        world = transform(cloud.xyz, np.linalg.inv(state["world_to_camera"]))
        names = np.array(LABELS)[labels]
        assert set(names[world[:, 2] > 0.121]) == {"robot", "object"}
        assert (names[np.abs(world[:, 2]) < 1e-6] == "table").mean() > 0.95
        for name, place in (("robot", state["tcp"][i]), ("object", state["object"][i])):
            assert np.linalg.norm(world[names == name] - place, axis=1).min() < 0.06


def test_pixel_labels_of_a_known_picture():
    segmentation = np.array([[[1, GEOM], [-1, -1]], [[0, SITE], [0, GEOM]]])
    assert pixel_labels(segmentation, np.array([3, 2], np.uint8)).tolist() == [[2, 0], [5, 3]]


def test_resuming_keeps_what_is_finished_and_gives_the_same_episodes(tmp_path):
    whole, root = tmp_path / "whole", tmp_path / "resumed"
    outcomes = list(sim.record_task(whole, TASK, 3, config=SMALL))
    assert [o[2] for o in outcomes] == ["recorded"] * 3
    list(sim.record_task(root, TASK, 2, config=SMALL))
    (root / "state" / TASK / "episode_0001.npz").unlink()  # interrupted while writing
    (root / "rgb" / TASK / "episode_0001" / "step_0009.jpg").touch()
    untouched = root / "rgb" / TASK / "episode_0000" / "step_0000.jpg"
    before = untouched.stat().st_mtime_ns
    outcomes = list(sim.record_task(root, TASK, 3, config=SMALL))
    assert [o[2] for o in outcomes] == ["kept", "recorded", "recorded"]
    assert untouched.stat().st_mtime_ns == before
    assert written(root) == written(whole)
    with pytest.raises(InputError, match="episode_0000.npz: expected .* points = 100, found 200"):
        list(sim.record_task(root, TASK, 3, config=dataclasses.replace(SMALL, points=100)))


def test_failed_rollouts_are_passed_over_and_said_so(tmp_path, monkeypatch):
    record = sim.Scene.record

    def fail_on_seed_5(self, seed, randomise):
        episode = record(self, seed, randomise)
        return episode if seed != 5 else dataclasses.replace(episode, state=episode.state | {"success": False})

    monkeypatch.setattr(sim.Scene, "record", fail_on_seed_5)
    outcomes = list(sim.record_task(tmp_path, TASK, 2, first_seed=5, randomise="fixed", config=SMALL))
    assert outcomes == [("episode_0000", 5, "failed"), ("episode_0000", 6, "recorded"), ("episode_0001", 7, "recorded")]


def test_scenes_do_not_disturb_each_other(scene, episode):
    forgotten = sim.Scene(TASK, SMALL)
    open_too = sim.Scene(TASK, SMALL)
    before = open_too._draw()
    del forgotten
    np.testing.assert_array_equal(open_too._draw(), before)
    open_too.close()
    open_too.close()  # twice does no harm
    np.testing.assert_array_equal(scene.record(3, sim.RANDOM).images, episode.images)
    assert np.ptp(before) > 50


def test_an_expert_without_time_fails_without_images():
    scene = sim.Scene(TASK, dataclasses.replace(SMALL, max_length=5))
    episode = scene.record(0)
    scene.close()
    assert not episode.success and episode.images == [] and episode.clouds == []


def test_opengl_that_is_missing_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(sim.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert sim.choose_gl() == "egl"
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(InputError, match="libosmesa6"):
        sim.choose_gl()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"episodes": 0}, "expected 1 episode or more"),
        ({"jpeg_quality": 100}, "quality of 1 to 95"),
        ({"randomise": "some"}, "randomise: expected fixed, half, mostly, random; found 'some'"),
        ({"task": "hamer"}, "task: expected one of assembly, .*; found 'hamer'"),
        ({"config": dataclasses.replace(SMALL, points=9999)}, "points: expected at most .* found 9999"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        list(sim.record_task(**{"root": tmp_path, "task": TASK, "episodes": 1, "config": SMALL} | change))
    with pytest.raises(InputError, match="frame: expected camera or world, found 'base'"):
        sim.RecordConfig(frame="base")
    box = ((0.4, 0.3, 0.0), (0.3, 0.4, 0.5))
    for bad in ({"above_table": 1.5}, {"cell": -0.1}, {"after_success": -1}, {"workspace": box}, {"steps": 301},
                {"view": sim.View(fovy=180.0)}, {"view": sim.View(distance=0.0)}):  # fmt: skip
        with pytest.raises(InputError, match=f"^{next(iter(bad))}: "):
            sim.RecordConfig(**bad)


def test_command_line_refuses_in_one_message(tmp_path):
    command = [sys.executable, TOOL, "--out", tmp_path / "out", "--tasks", TASK, "hamer"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: task: ") and "'hamer'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_command_line_records(tmp_path):
    flags = ["--tasks", f"{TASK}-v3", "--episodes", "2", "--first_seed", "7", "--steps", "2", "--size", "48"]
    command = [sys.executable, TOOL, "--out", tmp_path, *flags, "--points", "64", "--frame", "world"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "2 episodes recorded, 0 kept, 0 seeds failed" in done.stdout, done.stderr
    assert len(read_ply(tmp_path / "clouds" / TASK / "episode_0001" / "step_0001.ply")) == 64
    with np.load(tmp_path / "state" / TASK / "episode_0001.npz") as state:
        assert state["seed"] == 8 and state["randomised"] and state["frame"] == "world"


def test_a_thin_ring_is_not_lost_in_its_cloud():
    """Every cell of space above the table is as likely to give a point, so what is near the camera takes no more."""
    scene = sim.Scene("assembly", dataclasses.replace(sim.STANDARD, steps=2))
    labels = scene.record(5).state["labels"]
    scene.close()
    shares = (labels == LABELS.index("object")).mean(1)
    assert shares.min() > 0.12 and (labels == LABELS.index("table")).mean() < 0.2


@pytest.mark.parametrize("randomise, random", [("fixed", 0), ("half", 4), ("mostly", 6), ("random", 8)])
def test_how_many_looks_are_random(randomise, random):
    assert sum(index % 4 in sim.LOOKS[randomise] for index in range(8)) == random


def test_driven_from_outside_it_shows_what_was_recorded(scene, episode):
    """Whoever acts as the expert did sees what was recorded, to the last pixel and point."""
    kept = dict(zip(episode.state["time"].tolist(), range(len(episode.images)), strict=True))
    scene.begin(3, True)
    solved = False
    for time, action in enumerate(episode.state["actions"]):
        if time in kept:
            seen = scene.look()
            image, cloud = episode.images[kept[time]], episode.clouds[kept[time]]
            np.testing.assert_array_equal(seen.image, image)
            np.testing.assert_array_equal(seen.cloud.uv, cloud.uv)
            np.testing.assert_array_equal(seen.cloud.xyz, cloud.xyz)
            for name in ("tcp", "object", "opening", "joint"):
                np.testing.assert_allclose(seen.state[name], episode.state[name][kept[time]], atol=1e-6)
            np.testing.assert_array_equal(seen.state["goal"], episode.state["goal"])
        solved = scene.act(action) or solved
    assert solved
    scene.begin(3, False)
    plain = scene.look(cloud=False)
    assert plain.cloud is None and np.mean(plain.image != episode.images[0]) > 0.3


def test_actions_are_cut_to_what_the_robot_takes(scene):
    scene.begin(3)
    scene.act(np.array([9.0, 0, 0, 0]))
    far = scene.look(cloud=False).state["tcp"]
    scene.begin(3)
    scene.act(np.array([1.0, 0, 0, 0]))
    np.testing.assert_allclose(scene.look(cloud=False).state["tcp"], far, atol=1e-7)


def test_further_cameras_change_nothing_else(tmp_path, episode):
    config = dataclasses.replace(SMALL, more=("corner", "wrist"))
    (tmp_path / "state" / TASK).mkdir(parents=True)
    scene = sim.Scene(TASK, config)
    found = scene.record(3, sim.RANDOM)
    assert np.array_equal(found.images, episode.images)
    assert all(np.array_equal(a.xyz, b.xyz) for a, b in zip(found.clouds, episode.clouds, strict=True))
    assert found.state.keys() == episode.state.keys()
    assert [len(frames) for frames in found.more.values()] == [3, 3]
    corner, wrist = (np.array(found.more[name], float) for name in config.more)
    for view in (corner, wrist):
        assert view.std() > 20 and np.abs(view - np.array(found.images)).mean() > 10
    assert np.abs(wrist[0] - wrist[-1]).mean() > np.abs(corner[0] - corner[-1]).mean()  # it goes where the hand goes
    sim.write_episode(tmp_path, TASK, "episode_0000", found)
    scene.close()
    assert [*sim.record_task(tmp_path, TASK, 1, 3, "random", config)] == [("episode_0000", 3, "kept")]
    (tmp_path / "rgb_wrist" / TASK / "episode_0000" / "step_0001.jpg").unlink()
    with pytest.raises(InputError, match="expected an episode with wrist = 3, found 2"):
        [*sim.record_task(tmp_path, TASK, 1, 3, "random", config)]
    with pytest.raises(InputError, match="cameras: expected corner, wrist; found 'top'"):
        dataclasses.replace(SMALL, more=("top",))
