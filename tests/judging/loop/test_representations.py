"""What is seen live gives what was extracted from the same recorded frame, for every representation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import toy

from rgb2pc_lib import CompactConfig, Embedder, InputError, train, train_compact
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.encoders.rays import Camera, extract_rays
from rgb2pc_lib.judging.loop.compared import line_up
from rgb2pc_lib.judging.loop.representations import (
    CompactStudent,
    Pooled,
    Source,
    SpatialTokens,
    State,
    Student,
    Teacher,
    features_file,
    prepare,
    read_features,
)
from rgb2pc_lib.judging.loop.scenes import Recorder, cameras_of, own_state
from rgb2pc_lib.learning.prepare import Data


@pytest.fixture(scope="module")
def compact(recorded):
    root = recorded.config.folder.parent
    settings = CompactConfig(
        run=str(recorded.config.folder), save_dir=str(root / "compact"), size=32, steps=2, batch_size=16
    )
    list(train_compact(settings))
    return settings.folder


@pytest.fixture(scope="module")
def calibrated(recorded):
    """The demonstrations with one visual expert and the rays of the camera, and a student of both."""
    was, root = recorded.config.workspace, recorded.config.folder.parent
    extract_rays(was.rgb, was.state, root / "features_rays", progress=False)
    experts = {"daisy": was.experts["daisy"], "rays": root / "features_rays"}
    config = recorded.config.with_workspace(dataclasses.replace(was, experts=experts))
    config = dataclasses.replace(config, steps=10, save_dir=str(root / "calibrated-seed0"))
    list(train(config))
    return Source(config, Data.open(config), recorded.demonstrations)


def replayed(source, episode=2):
    """Looks at the kept steps of a recorded episode, live, and their numbers among the demonstrations."""
    rows = np.flatnonzero((source.demonstrations.keys["episode"] == f"episode_{episode:04d}").to_numpy())
    state = np.load(source.config.workspace.state / "reach" / f"episode_{episode:04d}.npz")
    table, seen = toy.Table("reach"), []
    table.begin(int(state["seed"]), bool(episode % 2))
    for time, action in enumerate(state["actions"]):
        if time in state["time"]:
            seen.append(table.look(True))
        table.act(action)
    return seen, rows


def every(source, compact):
    run = source.config.folder
    return {
        "full state": State(("object", "goal", "joint")),
        "full state, object 1 cm off": State(("object", "goal", "joint"), 0.01),
        "proprioception": State(),
        "teacher": Teacher(),
        "student": Student(run),
        "compact": CompactStudent(compact),
        "spatial": SpatialTokens(run, width=8),
        "daisy": Pooled(("daisy",)),
        "daisy in blocks": Pooled(("daisy",), 4),
        "both, as components": Pooled(("daisy", "efficientnet"), 4, 8),
    }


NAMES = [
    "full state", "full state, object 1 cm off", "proprioception", "teacher", "student", "compact", "spatial", "daisy",
    "daisy in blocks", "both, as components",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("episode", [2, 3])
def test_live_equals_recorded(recorded, compact, name, episode, tmp_path):
    one = every(recorded, compact)[name]
    prepare(name, one, recorded, tmp_path)
    fitted = read_features(features_file(tmp_path, name))
    seen, rows = replayed(recorded, episode)
    live, stored = one.live(fitted, recorded.recorder)(seen), fitted["x"][rows]
    assert live.shape == stored.shape == (len(rows), fitted["x"].shape[1]) and live.dtype == np.float32
    spread = fitted["x"].std(0).mean() if fitted["x"].size else 1.0
    np.testing.assert_allclose(live, stored, atol=0.02 * spread)  # packs and teacher files hold 16 bits
    if fitted["x"].shape[1] and not name.startswith("full state"):
        assert np.abs(live - stored[::-1]).max() > 0.2 * spread  # and steps differ by far more than that
    np.testing.assert_allclose(own_state(seen), recorded.demonstrations.own[rows], atol=1e-6)


@pytest.mark.parametrize("kind", ["student", "spatial", "blocks"])
def test_a_calibrated_camera_is_told_live(calibrated, kind, tmp_path):
    run = calibrated.config.folder
    one = {"student": Student(run), "spatial": SpatialTokens(run, width=8), "blocks": Pooled(("rays",), 4)}[kind]
    prepare(kind, one, calibrated, tmp_path)
    fitted = read_features(features_file(tmp_path, kind))
    seen, rows = replayed(calibrated, 3)
    live = one.live(fitted, calibrated.recorder)
    spread = fitted["x"].std(0).mean()
    np.testing.assert_allclose(live(seen), fitted["x"][rows], atol=0.02 * spread)
    other = [dataclasses.replace(s, state=s.state | {"world_to_camera": np.eye(4)}) for s in seen]
    assert np.abs(live(other) - live(seen)).max() > 0.2 * spread
    unknown = [dataclasses.replace(s, state={k: v for k, v in s.state.items() if k != "K"}) for s in seen]
    with pytest.raises(InputError, match=f"expert rays: expected the camera of each of {len(seen)} frames, found none"):
        live(unknown)


def test_frames_and_their_cameras_give_the_embeddings_of_a_calibrated_run(calibrated):
    seen, rows = replayed(calibrated)
    images, cameras = np.stack([read_image(calibrated.frames[row]) for row in rows]), cameras_of(seen)
    embedder = Embedder.from_run(calibrated.config.folder)
    stored = Student(calibrated.config.folder).features(calibrated)["x"][rows]
    found, spread = embedder(images, cameras), stored.std(0).mean()
    np.testing.assert_allclose(found, stored, atol=0.02 * spread)
    stream = embedder.stream()
    one_by_one = [stream(image, camera).embedding for image, camera in zip(images, cameras, strict=True)]
    np.testing.assert_allclose(one_by_one, found, atol=1e-5)
    both = embedder.stream(cameras=2)
    np.testing.assert_allclose(both(images[:2], cameras[:2]).embedding, found[:2], atol=1e-5)
    with pytest.raises(InputError, match="expected the Camera of each of 2 frames, found 1"):
        both(images[:2], cameras[0])
    with pytest.raises(InputError, match="give K and world_to_camera beside the frames"):
        embedder(images)
    for wrong, said in (
        (Camera(np.eye(4), np.eye(4)), "found \\[4, 4\\]"),
        (Camera(np.eye(3), np.zeros((4, 4))), "no camera"),
    ):
        with pytest.raises(InputError, match=said):
            stream(images[0], wrong)


def test_without_the_recordings_compression_frames_differ(recorded):
    seen, rows = replayed(recorded)
    frames = [toy.Image.open(recorded.frames[row]) for row in rows]
    for one, frame in zip(seen, frames, strict=True):
        np.testing.assert_array_equal(recorded.recorder.frame(one.image), np.asarray(frame))
    assert Recorder().frame(seen[0].image) is seen[0].image
    assert any(np.any(one.image != np.asarray(frame)) for one, frame in zip(seen, frames, strict=True))


def test_cameras_are_given_by_name_and_one_that_is_not_there_is_refused():
    front, wrist = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    seen, both = toy.Glance(front, None, {}, {"wrist": wrist}), Recorder(cameras=("front", "wrist"))
    assert both.moment(seen, ["daisy@wrist"])["wrist"] is wrist and both.moment(seen, ["daisy"]) is front
    assert list(both.moment(seen, ["daisy@wrist", "rays@front"])) == ["front", "wrist"]
    for recorder, found in ((both, "front, wrist"), (Recorder(), "none")):
        with pytest.raises(InputError, match=f"camera head: expected one .* names {found}; name it .* rgb.head"):
            recorder.moment(seen, ["daisy@head"])


def test_features_are_made_once_and_again_when_their_source_changes(recorded, tmp_path):
    first = prepare("pooled", Pooled(("daisy",)), recorded, tmp_path)
    path = features_file(tmp_path, "pooled")
    written = path.stat().st_mtime_ns
    assert prepare("pooled", Pooled(("daisy",)), recorded, tmp_path) == first
    assert path.stat().st_mtime_ns == written
    assert prepare("pooled", Pooled(("daisy",), 4), recorded, tmp_path) != first
    training = ~recorded.demonstrations.training
    split = dataclasses.replace(
        recorded, demonstrations=dataclasses.replace(recorded.demonstrations, training=training)
    )
    assert Pooled(("daisy",), 4, 8).made_from(split) != Pooled(("daisy",), 4, 8).made_from(recorded)


def test_components_know_training_steps_only(recorded):
    fitted = Pooled(("daisy",), 4, 8).features(recorded)
    training = recorded.demonstrations.training
    np.testing.assert_allclose(fitted["x"][training].mean(0), 0, atol=1e-3)
    assert np.abs(fitted["x"][~training].mean(0)).max() > 1e-2


def test_line_up_has_a_variant_for_every_seed(recorded):
    second = dataclasses.replace(recorded.config, seed=1)
    config = dataclasses.replace(recorded.config, teacher_pooling="mean+max")
    found = line_up([("weighted", recorded.config), ("weighted", second)], config)
    assert found["teacher"] == [Teacher(pooling="mean+max")]
    assert list(found)[:2] == ["full state", "proprioception"] and list(found)[4:6] == ["teacher", "weighted"]
    assert len(found["weighted"]) == 2 and len(found["daisy"]) == 1
    assert {"experts concatenated", "daisy 4x4, 256 PCs", "weighted, spatial tokens, 256 PCs"} <= set(found)
    with pytest.raises(InputError, match="expected a name once, found two of compact, a; rename a folder"):
        line_up([], config, [Path("one/a"), Path("other/a")])


def test_what_sees_nothing_of_the_scene_is_left_out(recorded):
    root = recorded.config.vis_roots["daisy"]
    config = dataclasses.replace(recorded.config, vis_roots={"daisy": root, "rays": root})
    alone = dataclasses.replace(config, vis_roots={"rays": root})
    found = line_up([("weighted", config), ("rays only", alone)], config)
    assert {"weighted", "daisy", "experts concatenated 4x4, 256 PCs"} <= set(found)
    assert not [name for name in found if "rays" in name]


def test_other_teachers_and_other_data_are_refused(recorded, tmp_path, left):
    from rgb2pc_lib.encoders.clouds.points import PointConfig, PointEncoder, save_point_encoder

    other = tmp_path / "other.safetensors"
    save_point_encoder(other, PointEncoder(PointConfig(), seed=5))
    with pytest.raises(InputError, match="expected features of pointnet"):
        Teacher(weights=other).features(recorded)
    keys = recorded.demonstrations.keys.assign(episode="episode_9999")
    strangers = dataclasses.replace(recorded, demonstrations=dataclasses.replace(recorded.demonstrations, keys=keys))
    with pytest.raises(InputError, match=r"reach/episode_9999/step_0000.*; train it on this workspace"):
        Student(recorded.config.folder).features(strangers)


def test_an_object_is_misplaced_by_as_much_as_is_said_and_nothing_else_is():
    rng = np.random.default_rng(0)
    told = {"object": rng.uniform(-0.3, 0.3, (2000, 3)), "goal": rng.uniform(-0.3, 0.3, (2000, 3))}
    exact, off = State(("object", "goal")), State(("object", "goal"), 0.02)
    looks = [toy.Glance(None, None, {k: v[i] for k, v in told.items()}) for i in range(2000)]
    error = off.live({}, Recorder())(looks) - exact.live({}, Recorder())(looks)
    assert np.abs(error[:, 3:]).max() == 0 and np.abs(error[:, :3].std(0) - 0.02).max() < 0.002
    assert np.abs(error[:, :3].mean(0)).max() < 0.002
