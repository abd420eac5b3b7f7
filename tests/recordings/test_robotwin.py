"""RoboTwin episodes, written as its collector writes them: pixels, colours, projections, steps, and what goes wrong."""

import io
import runpy
import sys

import h5py
import numpy as np
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.data.clouds import project, read_ply, transform
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import PROJECT, Workspace
from rgb2pc_lib.encoders.clouds.extract_clouds import list_clouds
from rgb2pc_lib.encoders.extract import list_frames
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings.importers import import_recordings, import_workspace, write_workspace
from rgb2pc_lib.recordings.robotwin import RobotwinOptions, list_robotwin

FRAMES, H, W, POINTS = 5, 48, 64, 200
K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
GL = np.diag([1.0, -1, -1, 1])
HEAD = RobotwinOptions(camera="head_camera")


def jpeg(pixels):
    """As `cv2.imencode` writes an RGB array that it takes for BGR."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., ::-1]).save(file, format="JPEG", quality=95)
    return file.getvalue()


def camera_pose():
    """World to camera: at (0, -1, 1.5), looking down at the origin's far side."""
    forward = np.array([0, 0.8, -0.6])
    right = np.array([1.0, 0, 0])
    rotation = np.stack([right, np.cross(forward, right), forward])  # x right, y down, z forward
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ np.array([0, -1, 1.5])
    return pose


def scene(frame):
    """A smooth image with a strong red-blue contrast, and world points that carry the colours of their pixels."""
    v, u = np.mgrid[:H, :W]
    image = np.stack([200 - 2 * u, 60 + v + 3 * frame, 20 + u + v], -1).astype(np.uint8)
    rng = np.random.default_rng(frame)
    uv = np.stack([rng.integers(0, W, POINTS), rng.integers(0, H, POINTS)], 1)
    depth = rng.uniform(1, 2, POINTS)
    rays = np.c_[(uv + 0.5 - K[:2, 2]) / np.diag(K)[:2], np.ones(POINTS)]
    xyz = transform(rays * depth[:, None], np.linalg.inv(camera_pose()))
    return image, uv, np.c_[xyz, image[uv[:, 1], uv[:, 0]] / 255]


def write(path, pointcloud="plain", cameras=("head_camera", "left_camera"), parameters="both", rgb="padded"):
    """An episode in the layout of RoboTwin's collector. The images and the pixels of the points of each frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, uv, points = map(np.array, zip(*map(scene, range(FRAMES)), strict=True))
    outside = transform(np.array([[9.0, 0, 1], [0, 0, -1]]), np.linalg.inv(camera_pose()))  # beside and behind
    fill = np.zeros((FRAMES, 10, 6))
    points = np.concatenate([points, np.tile(np.c_[outside, np.ones((2, 3))], (FRAMES, 1, 1)), fill], 1)
    with h5py.File(path, "w") as f:
        for name in cameras:
            group = f.create_group(f"observation/{name}")
            seen = images if name == "head_camera" else 255 - images
            encoded = [jpeg(image) for image in seen]
            if rgb == "padded":
                longest = max(map(len, encoded))
                group.create_dataset("rgb", data=[e.ljust(longest, b"\0") for e in encoded], dtype=f"S{longest}")
            elif rgb == "bytes":
                group.create_dataset("rgb", (FRAMES,), h5py.vlen_dtype(np.uint8))
                for i, e in enumerate(encoded):
                    group["rgb"][i] = np.frombuffer(e, np.uint8)
            else:
                group["rgb"] = seen
            if parameters:
                group["intrinsic_cv"] = np.tile(K, (FRAMES, 1, 1))
            if parameters == "both":
                group["extrinsic_cv"] = np.tile(camera_pose()[:3], (FRAMES, 1, 1))
            if parameters in ("both", "gl"):
                group["cam2world_gl"] = np.tile(np.linalg.inv(camera_pose()) @ GL, (FRAMES, 1, 1))
        if pointcloud == "plain":
            f["pointcloud"] = points
        elif pointcloud == "by camera":
            f["pointcloud/head_camera"] = points
        elif pointcloud == "none":
            f["pointcloud"] = np.zeros((FRAMES, 0))
        for side in ("left", "right"):
            f[f"joint_action/{side}_arm"] = np.arange(FRAMES * 6.0).reshape(FRAMES, 6) + (side == "right")
            f[f"joint_action/{side}_gripper"] = np.linspace(1, 0, FRAMES)
            f[f"endpose/{side}_endpose"] = np.tile([0.1, 0.2, 0.9, 1, 0, 0, 0], (FRAMES, 1))
        f["joint_action/vector"] = np.arange(FRAMES * 14.0).reshape(FRAMES, 14)
    return images, uv


def imported(root, options=HEAD, **more):
    """The workspace of everything below `root`/data, and the numbers of episodes written and kept."""
    source = root / "data"
    counts = import_recordings(list_robotwin(source, options), source, root / "out", progress=False, **more)
    return Workspace.load(write_workspace(root / "out", "robotwin")), counts


@pytest.fixture
def episode(tmp_path):
    return tmp_path / "data" / "beat_block" / "demo_clean" / "data" / "episode0.hdf5"


@pytest.mark.parametrize("rgb", ["padded", "bytes", "raw"])
def test_images_and_steps(episode, tmp_path, rgb):
    images, _ = write(episode, rgb=rgb)
    before = tiny.contents(tmp_path / "data")
    options = RobotwinOptions(camera="head_camera", channels="bgr")
    workspace, counts = imported(tmp_path, options, image="png")
    assert counts == (1, 0) and tiny.contents(tmp_path / "data") == before
    files = list_frames(workspace.rgb)[("beat_block", "demo_clean_episode0")]
    assert [f.name for f in files] == [f"step_{i:04d}.png" for i in range(FRAMES)]
    for file, image in zip(files, images, strict=True):
        error = abs(read_image(file).astype(float) - image).mean()
        assert error == 0 if rgb == "raw" else error < 2
    jpg = tmp_path / "again"
    import_recordings(list_robotwin(tmp_path / "data", HEAD), tmp_path / "data", jpg, 2, "jpg", progress=False)
    files = list_frames(jpg / "rgb")[("beat_block", "demo_clean_episode0")]
    assert [f.name for f in files] == ["step_0000.jpg", "step_0002.jpg", "step_0004.jpg"]
    assert abs(read_image(files[1]).astype(float) - images[2]).mean() < 2.5


@pytest.mark.parametrize("pointcloud", ["plain", "by camera"])
@pytest.mark.parametrize("parameters", ["both", "gl"])
def test_clouds_come_into_the_camera_with_their_pixels(episode, tmp_path, pointcloud, parameters):
    images, uv = write(episode, pointcloud, parameters=parameters)
    workspace, _ = imported(tmp_path)
    files = list_clouds(workspace.clouds)[("beat_block", "demo_clean_episode0")]
    assert len(files) == FRAMES
    for i, file in enumerate(files):
        cloud = read_ply(file)
        assert len(cloud) == POINTS  # neither the rows of zeros, nor what is beside or behind the camera
        np.testing.assert_array_equal(cloud.uv, uv[i])
        np.testing.assert_allclose(project(cloud.xyz, K), uv[i] + 0.5, atol=1e-3)
        assert cloud.xyz[:, 2].min() > 0.99 and cloud.xyz[:, 2].max() < 2.01
        np.testing.assert_array_equal(cloud.rgb, images[i][uv[i][:, 1], uv[i][:, 0]])
    with np.load(workspace.state / "beat_block" / "demo_clean_episode0.npz", allow_pickle=False) as state:
        np.testing.assert_allclose(state["world_to_camera"], camera_pose(), atol=1e-9)
        np.testing.assert_array_equal(state["K"], K)
        assert state["frame"] == "camera" and state["steps"].tolist() == [f"step_{i:04d}" for i in range(FRAMES)]
        np.testing.assert_allclose(state["progress"], np.linspace(0, 1, FRAMES))
        np.testing.assert_array_equal(state["qpos"], np.arange(FRAMES * 14.0).reshape(FRAMES, 14))
        np.testing.assert_allclose(state["left_tcp"], np.tile([0.1, 0.2, 0.9], (FRAMES, 1)))


def test_without_parameters_clouds_stay_in_the_world(episode, tmp_path):
    write(episode, parameters=None)
    workspace, _ = imported(tmp_path)
    cloud = read_ply(list_clouds(workspace.clouds)[("beat_block", "demo_clean_episode0")][3])
    assert cloud.uv is None and len(cloud) == POINTS + 2
    np.testing.assert_allclose(cloud.xyz[:POINTS], scene(3)[2][:, :3], atol=1e-6)
    with np.load(workspace.state / "beat_block" / "demo_clean_episode0.npz") as state:
        assert state["frame"] == "world" and "K" not in state


def test_a_pose_without_intrinsics_moves_the_cloud_all_the_same(episode, tmp_path):
    write(episode, parameters="both")
    with h5py.File(episode, "r+") as f:
        del f["observation/head_camera/intrinsic_cv"]
    workspace, _ = imported(tmp_path)
    cloud = read_ply(list_clouds(workspace.clouds)[("beat_block", "demo_clean_episode0")][0])
    assert cloud.uv is None and 0.99 < cloud.xyz[:POINTS, 2].min() and cloud.xyz[:POINTS, 2].max() < 2.01
    with np.load(workspace.state / "beat_block" / "demo_clean_episode0.npz") as state:
        assert state["frame"] == "camera" and "K" not in state


def test_parameters_and_clouds_fit_the_frames(episode, tmp_path):
    for name, array, message in (
        ("observation/head_camera/intrinsic_cv", np.tile(K, (2, 1, 1)), r"\[5, 3, 3\], found \[2, 3, 3\]"),
        ("observation/head_camera/extrinsic_cv", np.zeros((5, 7)), r"\[5, 3, 4\] or \[5, 4, 4\], found \[5, 7\]"),
        ("pointcloud", np.zeros((4, 9, 6)), r"pointcloud \[5, N, 6\], found \[4, 9, 6\]"),
    ):
        write(episode)
        with h5py.File(episode, "r+") as f:
            del f[name]
            f[name] = array
        with pytest.raises(InputError, match=f"episode0.hdf5: expected .*{message}"):
            imported(tmp_path)
    write(episode)
    with h5py.File(episode, "r+") as f:  # given once for all frames
        del f["observation/head_camera/intrinsic_cv"]
        f["observation/head_camera/intrinsic_cv"] = K
    assert imported(tmp_path)[1] == (1, 0)


def test_without_clouds_there_are_frames_alone(episode, tmp_path):
    write(episode, "none")
    write(episode.with_name("episode1.hdf5"), None)
    workspace, counts = imported(tmp_path)
    assert counts == (2, 0) and workspace.clouds is None and len(list_frames(workspace.rgb)) == 2


def test_a_moving_camera_is_told_for_every_step(episode, tmp_path):
    write(episode, "none")
    with h5py.File(episode, "r+") as f:
        f["observation/head_camera/extrinsic_cv"][3, 0, 3] += 0.1
    workspace, _ = imported(tmp_path, every=2)
    with np.load(workspace.state / "beat_block" / "demo_clean_episode0.npz") as state:
        assert state["world_to_camera"].shape == (3, 4, 4) and state["K"].shape == (3, 3)
        assert state["time"].tolist() == [0, 2, 4] and state["progress"].tolist() == [0, 0.5, 1]


def test_clouds_that_are_in_the_camera_already(episode, tmp_path):
    _, uv = write(episode)
    with h5py.File(episode, "r+") as f:
        points = f["pointcloud"][:]
        points[:, :POINTS, :3] = transform(points[:, :POINTS, :3], camera_pose())
        f["pointcloud"][:] = points
    workspace, _ = imported(tmp_path, RobotwinOptions("head_camera", cloud_frame="camera"))
    cloud = read_ply(list_clouds(workspace.clouds)[("beat_block", "demo_clean_episode0")][0])
    np.testing.assert_array_equal(cloud.uv[:POINTS], uv[0])
    with h5py.File(episode, "r+") as f:
        points[..., :3] = [0, 0, -5]  # nowhere near
        f["pointcloud"][:] = points
    with pytest.raises(InputError, match="points in sight of head_camera, found none in 5 frames.*--cloud_frame"):
        import_recordings(list_robotwin(tmp_path / "data", HEAD), tmp_path / "data", tmp_path / "b", progress=False)


def test_the_order_of_colours_is_checked_against_the_points(episode, tmp_path):
    write(episode)
    with pytest.raises(InputError, match=r"colours differ from their pixels of head_camera by \d+ .*--channels bgr"):
        imported(tmp_path, RobotwinOptions("head_camera", channels="rgb"))
    assert not list((tmp_path / "out").rglob("*.npz"))
    assert imported(tmp_path)[1] == (1, 0)  # the interrupted import is begun again


def test_an_import_goes_on_and_does_not_mix(episode, tmp_path, monkeypatch):
    for i in range(3):
        write(episode.with_name(f"episode{i}.hdf5"))
    workspace, _ = imported(tmp_path)
    whole = tiny.contents(tmp_path / "out")
    (workspace.state / "beat_block" / "demo_clean_episode1.npz").unlink()
    stale = workspace.rgb / "beat_block" / "demo_clean_episode1" / "step_0099.jpg"
    stale.write_bytes(b"left over")
    assert imported(tmp_path)[1] == (1, 2)
    again = tiny.contents(tmp_path / "out")
    assert {k: v[1] for k, v in again.items()} == {k: v[1] for k, v in whole.items()}
    with pytest.raises(InputError, match="episode0.npz: imported otherwise.*choose another --out"):
        imported(tmp_path, every=2)
    toml = tmp_path / "out" / "robotwin.toml"
    toml.write_text('name = "mine"\n')
    assert Workspace.load(write_workspace(tmp_path / "out", "robotwin")).name == "mine"  # the user's own is kept
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    recordings = list_robotwin(tmp_path / "data", HEAD)
    assert import_recordings(recordings, tmp_path / "data", tmp_path / "shared", progress=False) == (1, 0)


def test_names_follow_the_files(tmp_path):
    for place in ("stack/demo_random/data/episode3.hdf5", "stack/episode10.h5"):
        write(tmp_path / "data" / place, "none")
    found = [(r.task, r.episode) for r in list_robotwin(tmp_path / "data", HEAD)]
    assert sorted(found) == [("stack", "demo_random_episode3"), ("stack", "episode10")]
    same = tmp_path / "data" / "copy" / "stack" / "episode10.hdf5"
    write(same, "none")
    with pytest.raises(InputError, match="several recordings would be called stack/episode10"):
        imported(tmp_path)


def test_links_keep_the_names_of_their_own_paths(tmp_path):
    blobs, tasks = tmp_path / "blobs", ("stack", "open")
    for n, task in enumerate(tasks):
        write(blobs / f"{n}f3a9", "none")
        link = tmp_path / "snapshot" / task / "demo_clean" / "data" / "episode0.hdf5"
        link.parent.mkdir(parents=True)
        link.symlink_to(blobs / f"{n}f3a9")
        (link.parent / "._episode0.hdf5").write_bytes(b"what macOS leaves")
    found = [(r.task, r.episode) for r in list_robotwin(tmp_path / "snapshot", HEAD)]
    assert sorted(found) == [("open", "demo_clean_episode0"), ("stack", "demo_clean_episode0")]
    assert [(r.task, r.episode) for r in list_robotwin(link, HEAD)] == [("open", "demo_clean_episode0")]


def test_arrays_of_one_name_stay_apart_and_what_is_left_out_is_told(episode, caplog):
    write(episode, "none")
    with h5py.File(episode, "r+") as f:
        f["state/left_arm"] = np.full((FRAMES, 6), 7.0)
        f["joint_action/time"] = np.arange(FRAMES) / 30
        f["joint_action/notes"] = np.arange(3)
        f["observation/head_camera/depth"] = np.zeros((FRAMES, H, W))
    state = list_robotwin(episode, HEAD)[0].state(range(FRAMES))
    assert (state["left_arm"] == 7).all() and state["joint_action.left_arm"][1].tolist() == [6, 7, 8, 9, 10, 11]
    assert "time" not in state and state["joint_action.time"][3] == 0.1
    for name in ("observation/left_camera/rgb", "observation/head_camera/depth", "joint_action/notes"):
        assert name in caplog.text
    assert "head_camera/rgb" not in caplog.text and "left_gripper" not in caplog.text


def test_numbers_of_clouds_fit_or_are_refused(episode, tmp_path):
    write(episode, parameters=None)
    with h5py.File(episode, "r+") as f:
        f["pointcloud"][..., 3:] *= 255
        f["pointcloud"][1, :, 3:] = 1  # nearly black bytes of a frame are no shares of white
    workspace, _ = imported(tmp_path)
    cloud = read_ply(list_clouds(workspace.clouds)[("beat_block", "demo_clean_episode0")][0])
    np.testing.assert_array_equal(cloud.rgb[:POINTS], (scene(0)[2][:, 3:] * 255).round())
    for value, said in ((np.nan, "finite positions"), (1e9, "positions that 32 bits can tell")):
        with h5py.File(episode, "r+") as f:
            f["pointcloud"][2, :, 0] = np.linspace(value, value + 1, POINTS + 12)
        with pytest.raises(InputError, match=f"episode0.hdf5: cloud 2: expected {said}"):
            import_recordings(list_robotwin(episode, HEAD), episode.parent, tmp_path / "again", progress=False)


def test_later_files_give_frames_and_joints(tmp_path):
    path = tmp_path / "data" / "stack" / "episode0.hdf5"
    path.parent.mkdir(parents=True)
    images = [scene(i)[0] for i in range(FRAMES)]
    encoded = [jpeg(image) for image in images]
    with h5py.File(path, "w") as f:
        f.create_dataset("vision/cam_head/colors", data=encoded, dtype=f"S{max(map(len, encoded))}")
        f["vision/cam_head/shape"] = np.array([H, W, 3])
        f["state/left_arm_joint_states"] = np.arange(FRAMES * 6.0).reshape(FRAMES, 6)
    workspace, _ = imported(tmp_path, RobotwinOptions())
    file = list_frames(workspace.rgb)[("stack", "episode0")][1]
    assert abs(read_image(file).astype(float) - images[1]).mean() < 2.5
    with np.load(workspace.state / "stack" / "episode0.npz") as state:
        assert state["left_arm_joint_states"].shape == (FRAMES, 6)


def test_bad_files_are_named(episode, tmp_path):
    with pytest.raises(InputError, match="expected RoboTwin episodes .*found none"):
        list_robotwin(tmp_path)
    write(episode)
    with pytest.raises(InputError, match="a camera called 'front', found head_camera, left_camera"):
        list_robotwin(tmp_path / "data", RobotwinOptions("front"))
    with pytest.raises(InputError, match="expected one camera, or --camera"):
        list_robotwin(tmp_path / "data")
    with pytest.raises(InputError, match="must not be written into its source"):
        import_recordings(list_robotwin(episode, HEAD), episode, episode.parent / "out")
    with h5py.File(episode, "r+") as f:
        rgb = f["observation/head_camera/rgb"]
        rgb[2] = b"no picture"
    with pytest.raises(
        InputError, match="episode0.hdf5: frame 2 of observation/head_camera: expected an encoded image"
    ):
        imported(tmp_path)
    with h5py.File(episode, "w") as f:
        f["action"] = np.zeros(3)
    with pytest.raises(InputError, match="episode0.hdf5: expected frames in observation.*found action"):
        list_robotwin(tmp_path / "data")
    episode.write_bytes(b"nothing")
    with pytest.raises(InputError, match="episode0.hdf5: expected an HDF5 file"):
        list_robotwin(tmp_path / "data")


def test_the_tool_and_a_missing_package(episode, tmp_path, monkeypatch, capsys):
    write(episode)
    words = ["import_robotwin", "--source", tmp_path / "data", "--out", tmp_path / "out", "--camera", "head_camera"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(str(PROJECT / "tools" / "import_robotwin.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("1 episodes written, 0 kept; the workspace: ")
    workspace = Workspace.load(tmp_path / "out" / "robotwin.toml").require("rgb", "clouds", "state")
    assert workspace.teacher == tmp_path / "out" / "teacher" and "dinov3" in workspace.experts
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PROJECT / "tools" / "import_robotwin.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "pip install -e '.[import]'" in said and said.count("\n") == 1


def test_a_bad_episode_costs_itself_alone(episode, tmp_path, monkeypatch, capsys):
    paths = [episode.with_name(f"episode{i}.hdf5") for i in range(4)]
    for path in paths:
        write(path, "none")
    whole = paths[2].read_bytes()
    paths[1].write_bytes(b"nothing")  # told when it is listed
    with h5py.File(paths[2], "r+") as f:  # told when it is read
        f["observation/head_camera/rgb"][FRAMES - 1] = b"no picture"

    def run():
        words = ["import_robotwin", "--source", tmp_path / "data", "--out", tmp_path / "out", "--camera", "head_camera"]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(PROJECT / "tools" / "import_robotwin.py"), run_name="__main__")
        return stop.value.code, capsys.readouterr()

    status, said = run()
    assert status == 2 and said.out.startswith("2 episodes written, 0 kept")
    report = (tmp_path / "out" / "faults.txt").read_text()
    assert "episode1.hdf5: expected an HDF5 file" in report and "episode2.hdf5: frame 4 of" in report
    assert {e for _, e in list_frames(tmp_path / "out" / "rgb")} == {"demo_clean_episode0", "demo_clean_episode3"}
    paths[2].write_bytes(whole)
    status, said = run()
    assert status == 2 and said.out.startswith("1 episodes written, 2 kept")
    assert "episode2" not in (tmp_path / "out" / "faults.txt").read_text()


def test_an_episode_appears_when_it_is_whole(episode, tmp_path, monkeypatch):
    write(episode)
    out, recordings = tmp_path / "out", list_robotwin(episode, HEAD)
    seen = []
    save = Image.Image.save

    def look(image, file, kind, **options):
        seen.append([p.name for p in old.iterdir()])
        save(image, file, kind, **options)

    old = out / "rgb" / "beat_block" / "demo_clean_episode0"  # what an older version left half-written
    old.mkdir(parents=True)
    (old / "step_0099.jpg").write_bytes(b"left over")
    leftover = old.with_name(f".{old.name}.0123abcd.partial")  # and a killed import
    leftover.mkdir()
    (leftover / "step_0000.jpg").write_bytes(b"left over")
    monkeypatch.setattr(Image.Image, "save", look)
    import_recordings(recordings, episode, out, progress=False)
    assert seen == [["step_0099.jpg"]] * FRAMES and not leftover.exists()
    assert sorted(p.name for p in old.iterdir()) == [f"step_{i:04d}.jpg" for i in range(FRAMES)]
    (out / "state" / "beat_block" / "demo_clean_episode0.npz").unlink()
    (old / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="demo_clean_episode0: is to be written anew, but holds notes.txt too"):
        import_recordings(recordings, episode, out, progress=False)
    (old / "notes.txt").unlink()
    (old / "step_0003.jpg").unlink()
    assert import_recordings(recordings, episode, out, progress=False) == (1, 0)
    (old / "step_0003.jpg").unlink()  # the state file is there, its frames are not
    assert import_recordings(recordings, episode, out, progress=False) == (1, 0)
    assert import_recordings(recordings, episode, out, progress=False) == (0, 1)


def test_several_cameras(tmp_path, episode, caplog):
    images, _ = write(episode)
    one, _ = imported(tmp_path, HEAD)
    caplog.clear()
    (tmp_path / "two" / "data").parent.mkdir()
    (tmp_path / "data").rename(tmp_path / "two" / "data")
    options = RobotwinOptions("head_camera", more=("left_camera",))
    recordings = list_robotwin(tmp_path / "two" / "data", options)
    import_workspace(recordings, tmp_path / "two" / "data", tmp_path / "two" / "out", "robotwin", image="png")
    assert "left_camera/rgb" not in caplog.text  # it is not left out
    workspace = Workspace.load(tmp_path / "two" / "out" / "robotwin.toml")
    assert list(workspace.cameras) == ["head_camera", "left_camera"]
    for camera, expected in (("head_camera", images), ("left_camera", 255 - images)):
        (files,) = list_frames(workspace.cameras[camera]).values()
        assert len(files) == FRAMES
        assert np.abs(np.stack([read_image(f) for f in files]).astype(float) - expected).mean() < 4
    clouds = [sorted(w.clouds.rglob("*.ply")) for w in (one, workspace)]
    assert len(clouds[0]) == FRAMES and [a.read_bytes() for a in clouds[0]] == [b.read_bytes() for b in clouds[1]]
