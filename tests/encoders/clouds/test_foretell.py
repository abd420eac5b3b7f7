"""Training the teacher: what foretelling finds without a label, and that every draw follows from the seed."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.encoders.clouds.foretell import ForetellConfig, Recorded, foretell, load_recorded, moved, rotations
from rgb2pc_lib.encoders.clouds.points import PointConfig, PointEncoder
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError

TINY = PointConfig(hidden=32, embed_dim=32, octaves=4)
SHORT = ForetellConfig(steps=80, batch=32, points=64, warmup=5, ahead=(0, 1, 7), tilt=5.0, shift=0.02)


def recorded(episodes=8, steps=8, points=96, seed=0) -> Recorded:
    """A table, a hand and a ball that lies elsewhere in each episode: the hand moves to the ball; nobody names it."""
    rng = np.random.default_rng(seed)
    n = episodes * steps
    cloud = rng.uniform([-0.4, 0.2, 0.8], [0.4, 0.22, 1.2], (n, points, 3))
    ball, hand = (rng.uniform([-0.3, -0.2, 0.9], [0.3, 0.1, 1.1], (episodes, 1, 3)) for _ in range(2))
    way = np.linspace(0, 1, steps)[None, :, None]
    at = (hand + way * (ball - hand)).reshape(n, 3)
    balls = np.repeat(ball[:, 0], steps, 0)
    third = points // 3
    cloud[:, :third] = balls[:, None] + rng.normal(0, 0.02, (n, third, 3))
    cloud[:, third : 2 * third] = at[:, None] + rng.normal(0, 0.01, (n, third, 3))
    colour = np.broadcast_to(rng.uniform(size=(n, 1, 3)), cloud.shape)  # says nothing about the place
    told = (torch.from_numpy(x).float() for x in (at, np.zeros(n), balls))
    episode = torch.arange(episodes).repeat_interleave(steps)
    return Recorded(torch.from_numpy(np.concatenate([cloud, colour], -1)).half(), episode, *told)


def trained(config=SHORT, data=None):
    encoder = PointEncoder(TINY, seed=0)
    return encoder, list(foretell(encoder, data or recorded(), config))


@pytest.fixture(scope="module")
def learned():
    return trained(dataclasses.replace(SHORT, steps=250), recorded(32))


def place_error(encoder, points, target):
    """Median error (m) of a linear map from embeddings to the target, fitted on the one half, judged on the other."""
    with torch.inference_mode():
        z = encoder.embed(points).double().numpy()
    z = np.c_[(z - z.mean(0)) / z.std(0), np.ones(len(z))]
    fit = np.arange(len(z)) < len(z) // 2
    weights = np.linalg.solve(z[fit].T @ z[fit] + np.eye(z.shape[1]), z[fit].T @ target[fit])
    return np.median(np.linalg.norm(z[~fit] @ weights - target[~fit], axis=1))


def test_foretelling_finds_what_nobody_named(learned):
    encoder, figures = learned
    data, untrained = recorded(episodes=48, seed=1), PointEncoder(TINY)  # never seen in training
    assert np.mean([f["foretold"] for f in figures[-20:]]) < 0.5 * figures[0]["foretold"]
    points, ball = data.points.float(), data.object.numpy()
    assert place_error(encoder, points, ball) < 0.7 * place_error(untrained, points, ball)


def test_contrast_and_labels_are_terms_of_their_own():
    _, both = trained(dataclasses.replace(SHORT, steps=30, contrast=0.5))
    assert set(both[0]) == {"foretold", "InfoNCE", "accuracy"}
    assert np.mean([f["accuracy"] for f in both[-5:]]) > both[0]["accuracy"]
    _, told = trained(dataclasses.replace(SHORT, steps=60, supervised=True))
    assert np.mean([f["foretold"] for f in told[-5:]]) < told[0]["foretold"]


def test_the_seed_decides_every_weight():
    short = dataclasses.replace(SHORT, steps=3, contrast=0.5)
    first, figures = trained(short)
    torch.manual_seed(5)  # the global generator plays no part
    state = torch.random.get_rng_state()
    again, same = trained(short)
    assert network_fingerprint(again) == network_fingerprint(first) and figures == same
    assert torch.equal(state, torch.random.get_rng_state())
    other, _ = trained(dataclasses.replace(short, seed=1))
    assert network_fingerprint(other) != network_fingerprint(first)


def test_a_cloud_and_what_is_told_of_it_move_as_one():
    data = recorded(episodes=2, steps=4)
    data.points[..., 3:] = (torch.arange(96)[:, None] / 96).half()  # the colour tells which point it is
    still = dataclasses.replace(SHORT, jitter=0, tilt=0, shift=0, colour=0, grey=0)
    turned = dataclasses.replace(still, tilt=10.0, shift=0.05)
    clouds, at = data.points.float(), data.tcp[:, None]
    (a, p), (b, q) = (moved(clouds, at, c, 2, torch.Generator().manual_seed(3)) for c in (still, turned))
    first, second = a[..., 3].chunk(2)
    assert not any(set(x.tolist()) & set(y.tolist()) for x, y in zip(first, second, strict=True))
    for i in range(16):  # one rigid motion explains every point of a cloud and the position told of it
        x, y = (torch.cat([c[i, :, :3], t[i % 8]]).double() for c, t in ((a, p), (b, q)))
        u, _, v = torch.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
        torch.testing.assert_close((x - x.mean(0)) @ u @ v, y - y.mean(0), atol=1e-5, rtol=0)
        assert 0.001 < (y - x).norm(dim=1).mean() < 0.3
    grey, _ = moved(clouds, at, dataclasses.replace(still, grey=1), 1, torch.Generator())
    assert (grey[..., 3:] == 0.5).all()


def test_rotations_follow_their_vectors():
    quarter = rotations(torch.tensor([[0.0, 0.0, torch.pi / 2]]))[0]
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def write_state(root, steps, **more):
    path = root / "state" / "task" / "episode_0000.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    places = np.arange(3.0 * steps).reshape(steps, 3)
    state = {
        "tcp": places,
        "object": places + 1,
        "opening": np.arange(steps),
        "frame": "camera",
        "world_to_camera": pose,
    }
    np.savez(path, steps=[f"step_{i:04d}" for i in range(steps)], **state | more)


def test_what_was_recorded_is_told_in_the_frame_of_the_clouds(tmp_path):
    tiny.write_clouds(tmp_path / "clouds")
    write_state(tmp_path, 3)
    data = load_recorded(tmp_path, frame="camera", progress=False)
    assert data.points.shape == (3, 20, 6) and data.episode.tolist() == [0, 0, 0]
    assert data.tcp[1].tolist() == [4, 6, 8] and data.object[1].tolist() == [5, 7, 9]
    world = load_recorded(tmp_path, progress=False)
    assert world.tcp[1].tolist() == [3, 4, 5] and world.object[1].tolist() == [4, 5, 6]
    shift = data.points[..., :3] - world.points[..., :3]
    torch.testing.assert_close(shift, torch.tensor([1, 2, 3]).half().expand(3, 20, 3), atol=2e-3, rtol=0)
    assert load_recorded(tmp_path, tmp_path, progress=False).episode.tolist() == [0, 0, 0, 1, 1, 1]


def test_training_refuses_what_does_not_fit(tmp_path):
    root = tiny.write_clouds(tmp_path / "clouds")
    with pytest.raises(InputError, match=r"episode_0000\.npz: expected tcp"):
        load_recorded(tmp_path, progress=False)
    write_state(tmp_path, 10)
    data = load_recorded(tmp_path, progress=False)
    with pytest.raises(InputError, match="at least 1 step"):
        ForetellConfig(steps=0)
    with pytest.raises(InputError, match="clouds of 20 points"):
        next(foretell(PointEncoder(TINY), data, ForetellConfig()))
    write_ply(root / "task" / "episode_0000" / "step_0009.ply", Cloud(np.zeros((7, 3), np.float32)))
    with pytest.raises(InputError, match="found 7 to 20 points"):
        load_recorded(tmp_path, progress=False)
