"""What is seen live gives what was extracted from the same recorded frame, for every representation."""

import dataclasses

import numpy as np
import pytest
import toy

from rgb2pc_lib import CompactConfig, InputError, train_compact
from rgb2pc_lib.judging.loop.compared import line_up
from rgb2pc_lib.judging.loop.representations import (
    CompactStudent,
    Pooled,
    SpatialTokens,
    State,
    Student,
    Teacher,
    features_file,
    prepare,
    read_features,
)
from rgb2pc_lib.judging.loop.scenes import Compression, own_state


@pytest.fixture(scope="module")
def compact(recorded):
    root = recorded.config.folder.parent
    settings = CompactConfig(
        run=str(recorded.config.folder), save_dir=str(root / "compact"), size=32, steps=2, batch_size=16
    )
    list(train_compact(settings))
    return settings.folder


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
    live, stored = one.live(fitted, recorded.compression)(seen), fitted["x"][rows]
    assert live.shape == stored.shape == (len(rows), fitted["x"].shape[1]) and live.dtype == np.float32
    spread = fitted["x"].std(0).mean() if fitted["x"].size else 1.0
    np.testing.assert_allclose(live, stored, atol=0.02 * spread)  # packs and teacher files hold 16 bits
    if fitted["x"].shape[1] and not name.startswith("full state"):
        assert np.abs(live - stored[::-1]).max() > 0.2 * spread  # and steps differ by far more than that
    np.testing.assert_allclose(own_state(seen), recorded.demonstrations.own[rows], atol=1e-6)


def test_without_the_recordings_compression_frames_differ(recorded):
    seen, rows = replayed(recorded)
    frames = [toy.Image.open(recorded.frames[row]) for row in rows]
    for one, frame in zip(seen, frames, strict=True):
        np.testing.assert_array_equal(recorded.compression(one.image), np.asarray(frame))
    assert Compression()(seen[0].image) is seen[0].image
    assert any(np.any(one.image != np.asarray(frame)) for one, frame in zip(seen, frames, strict=True))


def test_features_are_made_once_and_again_when_their_source_changes(recorded, tmp_path):
    first = prepare("pooled", Pooled(("daisy",)), recorded, tmp_path)
    path = features_file(tmp_path, "pooled")
    written = path.stat().st_mtime_ns
    assert prepare("pooled", Pooled(("daisy",)), recorded, tmp_path) == first
    assert path.stat().st_mtime_ns == written
    assert prepare("pooled", Pooled(("daisy",), 4), recorded, tmp_path) != first


def test_components_know_training_steps_only(recorded):
    fitted = Pooled(("daisy",), 4, 8).features(recorded)
    training = recorded.demonstrations.training
    np.testing.assert_allclose(fitted["x"][training].mean(0), 0, atol=1e-3)
    assert np.abs(fitted["x"][~training].mean(0)).max() > 1e-2


def test_line_up_has_a_variant_for_every_seed(recorded):
    second = dataclasses.replace(recorded.config, seed=1)
    found = line_up([("weighted", recorded.config), ("weighted", second)])
    assert list(found)[:2] == ["full state", "proprioception"] and list(found)[4:6] == ["teacher", "weighted"]
    assert len(found["weighted"]) == 2 and len(found["daisy"]) == 1
    assert {"experts concatenated", "daisy 4x4, 256 PCs", "weighted, spatial tokens, 256 PCs"} <= set(found)


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
    error = off.live({}, Compression())(looks) - exact.live({}, Compression())(looks)
    assert np.abs(error[:, 3:]).max() == 0 and np.abs(error[:, :3].std(0) - 0.02).max() < 0.002
    assert np.abs(error[:, :3].mean(0)).max() < 0.002
