"""LeRobot data sets in the published layout (v3): the right frames of shared videos, images in tables, state."""

import io
import json
import runpy
import sys

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import PROJECT, Workspace
from rgb2pc_lib.encoders.extract import list_frames
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings.importers import choose_camera, import_recordings, import_workspace, slug, slugs
from rgb2pc_lib.recordings.lerobot import list_lerobot

FPS, H, W = 10, 48, 64
EPISODES = ((7, "Pick up the cube"), (12, "Push it!"), (5, "Pick up the cube"), (4, "Push it!"))
VIDEO_OF = (0, 0, 0, 1)  # three episodes share the first file, so two begin inside of it
TOP, WRIST = "observation.images.top", "observation.images.wrist"


def picture(episode, frame, camera=TOP):
    """A bright block whose place tells the frame, on a ground that tells the episode."""
    v, u = np.mgrid[:H, :W]
    image = np.stack([40 + u // 2 + 20 * episode, 60 + v, 90 + 0 * u], -1).astype(np.uint8)
    row, column = divmod(frame, 6)
    image[16 * row : 16 * row + 14, 10 * column : 10 * column + 10] = [250, 30, 30]
    return image if camera == TOP else 255 - image


def write_video(path, images):
    """One key frame at the start alone: every other frame is told by those before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "8", "g": "1000"})
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": "frame.png"}


def write(root, kind="video", version="v3.0"):
    """A data set of two cameras; its data lie in two files, its videos too."""
    feature = {"dtype": kind, "shape": [H, W, 3], "names": ["height", "width", "channels"]}
    depth = feature | {"info": {"video.is_depth_map": True}}
    features = {TOP: feature, WRIST: feature, "observation.images.depth": depth}
    for name, shape in {"observation.state": [3], "action": [2], "timestamp": [1], "frame_index": [1]}.items():
        features[name] = {"dtype": "float32", "shape": shape, "names": None}
    path = "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info = {
        "codebase_version": version, "fps": FPS, "features": features, "total_episodes": len(EPISODES),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": f"videos/{path}" if kind == "video" else None,
    }  # fmt: skip
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    rows, tables, videos = [], {0: [], 1: []}, {0: [], 1: []}
    for e, (length, task) in enumerate(EPISODES):
        video, data = VIDEO_OF[e], e // 2
        row = {"episode_index": e, "tasks": [task], "length": length, "data/chunk_index": 0, "data/file_index": data}
        for camera in (TOP, WRIST):
            if kind == "video":
                begin = len(videos[video]) / FPS
                row |= {
                    f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": video,
                    f"videos/{camera}/from_timestamp": begin, f"videos/{camera}/to_timestamp": begin + length / FPS,
                }  # fmt: skip
        rows.append(row)
        videos[video] += [(e, i) for i in range(length)]
        for i in range(length):
            frame = {"episode_index": e, "frame_index": i, "timestamp": np.float32(i / FPS)}
            frame |= {"observation.state": [e, i, 0.5], "action": [-i, e]}
            tables[data].append(frame | ({} if kind == "video" else {c: png(picture(e, i, c)) for c in (TOP, WRIST)}))
    pq.write_table(pa.Table.from_pylist(rows), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    for data, frames in tables.items():
        (root / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(frames[::-1]), root / "data" / "chunk-000" / f"file-{data:03d}.parquet")
    for video, frames in videos.items() if kind == "video" else ():
        for camera in (TOP, WRIST):
            name = path.format(video_key=camera, chunk_index=0, file_index=video)
            write_video(root / "videos" / name, [picture(*frame, camera) for frame in frames])
    return root


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lerobot") / "cubes")


def nearest_frame(image, camera=TOP):
    """Which (episode, frame) an image is most like, and its mean difference from it, of 255."""
    every = [(e, i) for e, (length, _) in enumerate(EPISODES) for i in range(length)]
    errors = [abs(image.astype(float) - picture(*frame, camera)).mean() for frame in every]
    return every[int(np.argmin(errors))], min(errors)


@pytest.mark.parametrize(("kind", "camera", "most"), [("video", "top", 2.5), ("video", WRIST, 2.5), ("image", TOP, 0)])
def test_every_step_is_its_own_frame(kind, camera, most, video, tmp_path):
    source = video if kind == "video" else write(tmp_path / "cubes", "image")
    before = tiny.contents(source)
    recordings = list_lerobot(source, camera)
    assert import_recordings(recordings, source, tmp_path / "out", image="png", progress=False) == (4, 0)
    assert tiny.contents(source) == before
    found = list_frames(tmp_path / "out" / "rgb")
    assert {name: len(files) for name, files in found.items()} == {
        ("pick-up-the-cube", "episode_0000"): 7, ("pick-up-the-cube", "episode_0002"): 5,
        ("push-it", "episode_0001"): 12, ("push-it", "episode_0003"): 4,
    }  # fmt: skip
    for (_, episode), files in found.items():
        for i, file in enumerate(files):
            assert file.name == f"step_{i:04d}.png"
            frame, error = nearest_frame(read_image(file), WRIST if camera == WRIST else TOP)
            assert frame == (int(episode[-4:]), i) and error <= most


def test_every_nth_frame_and_its_state(video, tmp_path):
    import_recordings(list_lerobot(video, "top"), video, tmp_path / "out", every=5, progress=False)
    files = list_frames(tmp_path / "out" / "rgb")[("push-it", "episode_0001")]
    assert [f.name for f in files] == ["step_0000.jpg", "step_0005.jpg", "step_0010.jpg"]
    assert [nearest_frame(read_image(f))[0] for f in files] == [(1, 0), (1, 5), (1, 10)]
    with np.load(tmp_path / "out" / "state" / "push-it" / "episode_0001.npz", allow_pickle=False) as state:
        assert state["steps"].tolist() == ["step_0000", "step_0005", "step_0010"]
        np.testing.assert_allclose(state["timestamp"], [0, 0.5, 1.0])
        np.testing.assert_array_equal(state["qpos"], [[1, 0, 0.5], [1, 5, 0.5], [1, 10, 0.5]])
        np.testing.assert_array_equal(state["action"], [[0, 1], [-5, 1], [-10, 1]])
        np.testing.assert_allclose(state["progress"], np.array([0, 5, 10]) / 11, rtol=1e-6)


def episodes_of(root):
    return root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"


def change(path, **columns):
    """Rewrite columns of a table, each by a function of its old values."""
    rows = pq.read_table(path).to_pylist()
    for name, new in columns.items():
        for row in rows:
            row[name] = new(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def frames_of(recording):
    return [nearest_frame(image)[0] for image, _ in recording.read(range(recording.frames))]


def all_right(root):
    for e, (recording, (length, _)) in enumerate(zip(list_lerobot(root, "top"), EPISODES, strict=True)):
        assert frames_of(recording) == [(e, i) for i in range(length)]


def test_frames_are_counted_where_clocks_do_not_tell_them(tmp_path):
    root, begin = write(tmp_path / "cubes"), f"videos/{TOP}/from_timestamp"
    for data in (root / "data").rglob("*.parquet"):  # a recorder that lost frames, whose video has those that are left
        change(data, timestamp=lambda row: np.float32(row["timestamp"] * 1.3 + 0.04))
    all_right(root)
    change(episodes_of(root), **{begin: lambda row: row[begin] * 1.06})  # as seconds of a video at another rate
    all_right(root)


def test_frames_that_nothing_tells_are_refused(tmp_path):
    root, begin = write(tmp_path / "cubes"), f"videos/{TOP}/from_timestamp"
    change(episodes_of(root), **{f"videos/{TOP}/file_index": lambda row: 0})  # the last one lies in the next file
    recordings = list_lerobot(root, "top")
    assert [frames_of(recordings[e]) for e in (1, 2)] == [[(e, i) for i in range(EPISODES[e][0])] for e in (1, 2)]
    for recording in recordings[::3]:  # two say that they lie at the same place
        with pytest.raises(InputError, match="file-000.mp4: .* others lie there too, and of 24 frames there"):
            frames_of(recording)
    change(episodes_of(root), **{begin: lambda row: row[begin] + (0.05 if row["episode_index"] < 2 else 9)})
    for recording, off in zip(list_lerobot(root, "top")[:3], ("0.50", "0.50", "90.00"), strict=True):
        with pytest.raises(InputError, match=f"file-000.mp4: expected a frame at .* off by up to {off} frames"):
            frames_of(recording)
    video = root / "videos" / TOP / "chunk-000" / "file-000.mp4"
    for damage, said in ((lambda: video.write_bytes(b"no video"), "expected a readable video"),
                         (video.unlink, "expected a readable video.*no such file")):  # fmt: skip
        damage()
        with pytest.raises(InputError, match=f"file-000.mp4: {said}"):
            frames_of(list_lerobot(root, "top")[0])


def test_rows_are_found_by_what_they_say_of_themselves(tmp_path):
    root = write(tmp_path / "cubes", "image")
    change(episodes_of(root), **{"data/file_index": lambda row: 0})  # as a converter leaves it at the file's end
    (root / "data" / "chunk-000" / "._file-000.parquet").write_bytes(b"what macOS leaves")
    (root / "meta" / "episodes" / "chunk-000" / "._file-000.parquet").write_bytes(b"what macOS leaves")
    all_right(root)
    first, second = sorted((root / "data").rglob("file*.parquet"))
    rows = pq.read_table(first).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[1:]), first)  # the last frame of episode 1 lies in the next file
    pq.write_table(pa.Table.from_pylist([*pq.read_table(second).to_pylist(), rows[0]]), second)
    all_right(root)
    change(second, frame_index=lambda row: min(row["frame_index"], 3))
    with pytest.raises(InputError, match="expected the frames 0 to 4 of episode 2, found 3 in place of 4"):
        frames_of(list_lerobot(root, "top")[2])


def test_columns_of_numbers_are_kept_and_all_others_told(tmp_path, caplog):
    root = write(tmp_path / "cubes", "image")
    info = json.loads((root / "meta" / "info.json").read_text())
    for name, kind in (("observation.effort", "float64"), ("say", "string")):
        info["features"][name] = {"dtype": kind, "shape": [1]}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    large = 2**40  # microseconds, say: not one of them survives 32 bits
    for data in (root / "data").rglob("*.parquet"):
        change(data, say=lambda row: "go", time=lambda row: large)
        change(data, **{"observation.effort": lambda row: [1e300, 2.0]})
    state = list_lerobot(root, "top")[0].state(range(0, 7, 3))
    assert state["source.time"].tolist() == [large] * 3  # "time" is ours
    assert state["observation.effort"].tolist() == [[1e300, 2.0]] * 3
    assert "say" not in state and f"{WRIST} (image)" in caplog.text and "say (string)" in caplog.text


def test_tasks_of_different_words_are_different_tasks(tmp_path):
    root = write(tmp_path / "cubes", "image")
    words = ["Push it", "push it!", "抓取方块", "?"]
    change(episodes_of(root), tasks=lambda row: [words[row["episode_index"]]])
    tasks = [r.task for r in list_lerobot(root, "top")]
    assert len(set(tasks)) == 4 and tasks[2] == "抓取方块" and all(t.startswith("push-it-") for t in tasks[:2])
    long = slugs(["grasp the handle " * 30, "grasp the handle " * 31])
    assert len(set(long.values())) == 2 and all(len(s.encode()) < 250 for s in long.values())


def test_bad_data_sets_are_told(video, tmp_path):
    with pytest.raises(InputError, match="info.json: expected the description of a LeRobot data set"):
        list_lerobot(tmp_path)
    with pytest.raises(InputError, match=f"expected one camera.*found {TOP}, {WRIST}$"):  # depth is no camera
        list_lerobot(video)
    with pytest.raises(InputError, match="expected format v3, found v2.1; convert it"):
        list_lerobot(write(tmp_path / "old", "image", "v2.1"), TOP)
    cut = write(tmp_path / "cut", "image")
    path = cut / "data" / "chunk-000" / "file-001.parquet"
    pq.write_table(pq.read_table(path).slice(2), path)
    with pytest.raises(InputError, match=r"file-001.parquet: expected 4 frames, found 2 rows of episode 3"):
        import_recordings(list_lerobot(cut, TOP), cut, tmp_path / "out", progress=False)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="file-001.parquet: expected a parquet file with"):
        import_recordings(list_lerobot(cut, TOP), cut, tmp_path / "out", progress=False)
    assert import_recordings(list_lerobot(cut, TOP)[:2], cut, tmp_path / "out", progress=False) == (0, 2)


def test_the_tool_makes_a_workspace(video, tmp_path, monkeypatch, capsys):
    words = ["import_lerobot", "--source", video, "--camera", "top", "--out", tmp_path / "out", "--name", "My cubes"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(str(PROJECT / "tools" / "import_lerobot.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("4 episodes written, 0 kept; the workspace: ")
    workspace = Workspace.load(tmp_path / "out" / "my-cubes.toml").require("rgb", "state")
    assert workspace.clouds is None and workspace.name == "my-cubes"


def test_names(tmp_path):
    assert slug("  Put the (red) cube_2 on it.") == "put-the-red-cube_2-on-it"
    assert choose_camera(None, ["only"], tmp_path) == "only"
    assert choose_camera("top", ["top", "images.top"], tmp_path) == "top"  # else it could not be named
    with pytest.raises(InputError, match="a camera called 'front', found none"):
        choose_camera("front", [], tmp_path)


def test_several_cameras(video, tmp_path):
    recordings = list_lerobot(video, "top", WRIST)
    assert import_recordings(recordings, video, tmp_path / "out", every=5, image="png", progress=False) == (4, 0)
    for folder, camera in (("rgb", TOP), ("rgb_wrist", WRIST)):
        files = list_frames(tmp_path / "out" / folder)[("push-it", "episode_0001")]
        assert [f.name for f in files] == ["step_0000.png", "step_0005.png", "step_0010.png"]
        assert [nearest_frame(read_image(f), camera)[0] for f in files] == [(1, 0), (1, 5), (1, 10)]
    said = import_workspace(recordings, video, tmp_path / "out", "cubes", every=5, image="png")
    assert said.startswith("0 episodes written, 4 kept")
    workspace = Workspace.load(tmp_path / "out" / "cubes.toml")
    assert list(workspace.cameras) == ["top", "wrist"] and workspace.rgb == tmp_path / "out" / "rgb"
    assert workspace.experts["vggt@wrist"] == tmp_path / "out" / "features_vggt@wrist"
    (tmp_path / "out" / "rgb_wrist" / "push-it" / "episode_0001" / "step_0005.png").unlink()
    again = import_recordings(recordings, video, tmp_path / "out", every=5, image="png", progress=False)
    assert again == (1, 3)
    with pytest.raises(InputError, match="expected each camera once, found observation.images.top, obs"):
        list_lerobot(video, "top", TOP)
