"""The label-free teacher: symmetry, what training learns, and reproducibility."""

import runpy
import sys

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.workspace import PROJECT, SAMPLE, Workspace
from rgb2pc_lib.encoders.clouds.extract_clouds import fingerprint, list_clouds, read_cloud
from rgb2pc_lib.encoders.clouds.points import (
    ContrastiveConfig,
    PointConfig,
    PointEncoder,
    contrastive,
    load_clouds,
    load_point_encoder,
    rotation,
    save_point_encoder,
    two_views,
)
from rgb2pc_lib.errors import InputError

TINY = PointConfig(hidden=32, embed_dim=32, octaves=4)
SHORT = ContrastiveConfig(steps=60, episodes=4, points=32, head=16, warmup=5)


def clouds(episodes=8, steps=8, points=96, seed=0):
    """A fixed table and a ball that stands elsewhere at each step: only the ball tells steps of an episode apart."""
    rng = np.random.default_rng(seed)
    table = rng.uniform([-0.4, 0.2, 0.8], [0.4, 0.22, 1.2], (episodes * steps, points, 3))
    ball = rng.uniform([-0.3, -0.2, 0.9], [0.3, 0.1, 1.1], (episodes * steps, 1, 3))
    half = points // 2
    table[:, :half] = ball + rng.normal(0, 0.02, (episodes * steps, half, 3))
    colour = np.broadcast_to(rng.uniform(size=(episodes * steps, 1, 3)), table.shape)  # says nothing about the place
    data = np.concatenate([table, colour], -1).astype(np.float32)
    return torch.from_numpy(data), torch.arange(episodes).repeat_interleave(steps), ball[:, 0]


def trained(config=SHORT, seed=0):
    points, episode, _ = clouds()
    encoder = PointEncoder(TINY, seed)
    return encoder, list(contrastive(encoder, points, episode, config))


@pytest.fixture(scope="module")
def learned():
    return trained()


def retrieval(encoder, points):
    """How often the one half of a cloud finds its other half among all clouds."""
    order = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        halves = [F.normalize(encoder.embed(points[:, part]), dim=-1) for part in order.chunk(2)]
    return ((halves[0] @ halves[1].T).argmax(1) == torch.arange(len(points))).float().mean().item()


def place_error(encoder, points, target):
    """Median error (m) of a linear map from embeddings to the target, fitted on the one half, judged on the other."""
    with torch.inference_mode():
        z = encoder.embed(points).double().numpy()
    z = np.c_[(z - z.mean(0)) / z.std(0), np.ones(len(z))]
    fit = np.arange(len(z)) < len(z) // 2
    weights = np.linalg.solve(z[fit].T @ z[fit] + np.eye(z.shape[1]), z[fit].T @ target[fit])
    return np.median(np.linalg.norm(z[~fit] @ weights - target[~fit], axis=1))


def test_points_may_come_in_any_order():
    encoder = PointEncoder(TINY)
    points, order = torch.rand(2, 40, 6), torch.randperm(40)
    out = encoder(points)
    assert out.shape == (2, 40, 32)
    torch.testing.assert_close(encoder(points[:, order]), out[:, order])
    torch.testing.assert_close(encoder.embed(points[:, order]), out.mean(1), atol=1e-6, rtol=1e-5)


def test_training_finds_what_moves(learned):
    encoder, figures = learned
    points, _, ball = clouds(episodes=24, seed=1)  # never seen in training
    untrained = PointEncoder(TINY)
    assert np.mean([f["loss"] for f in figures[-5:]]) < 0.5 * figures[0]["loss"]
    assert retrieval(encoder, points) > 2 * retrieval(untrained, points)
    assert place_error(encoder, points, ball) < 0.7 * place_error(untrained, points, ball)


def test_the_seed_decides_every_weight(learned):
    torch.manual_seed(5)  # the global generator plays no part
    state = torch.random.get_rng_state()
    again, figures = trained()
    assert fingerprint(again) == fingerprint(learned[0])
    assert figures == learned[1]
    assert torch.equal(state, torch.random.get_rng_state())
    assert fingerprint(PointEncoder(TINY, seed=1)) != fingerprint(PointEncoder(TINY, seed=0))
    other, _ = trained(ContrastiveConfig(**{**vars(SHORT), "seed": 1, "steps": 2}))
    same, _ = trained(ContrastiveConfig(**{**vars(SHORT), "steps": 2}))
    assert fingerprint(other) != fingerprint(same)


def test_views_are_disjoint_and_the_batch_moves_as_one():
    points, _, _ = clouds(episodes=2, steps=4)
    points[..., 3:] = torch.arange(96)[:, None] / 96  # the colour tells which point it is
    still = ContrastiveConfig(points=32, jitter=0, tilt=0, shift=0, colour=0, grey=0)
    moved = ContrastiveConfig(points=32, jitter=0, tilt=10, shift=0.05, colour=0, grey=0)
    a, b = (two_views(points, c, torch.Generator().manual_seed(3)) for c in (still, moved))
    first, second = a[..., 3].chunk(2)
    assert not any(set(x.tolist()) & set(y.tolist()) for x, y in zip(first, second, strict=True))
    x, y = a[..., :3].flatten(0, 1).double(), b[..., :3].flatten(0, 1).double()
    u, _, v = torch.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))  # one rigid motion explains every point
    torch.testing.assert_close((x - x.mean(0)) @ u @ v, y - y.mean(0), atol=1e-5, rtol=0)
    assert 0.001 < (y - x).norm(dim=1).mean() < 0.3
    grey = two_views(points, ContrastiveConfig(points=32, grey=1), torch.Generator())
    assert (grey[..., 3:] == 0.5).all()


def test_rotation_follows_the_rotation_vector():
    quarter = rotation(torch.tensor([0.0, 0.0, torch.pi / 2]))
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_weights_survive_the_file(tmp_path, learned):
    path = tmp_path / "new" / "w.safetensors"
    save_point_encoder(path, learned[0], clouds=64)
    back = load_point_encoder(path)
    assert back.config == TINY and fingerprint(back) == fingerprint(learned[0])
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]
    whole = path.read_bytes()
    save_point_encoder(path, back, clouds=64)
    assert path.read_bytes() == whole
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=bad.name):
            load_point_encoder(bad)


def test_training_refuses_clouds_that_do_not_fit(tmp_path):
    root = tiny.write_clouds(tmp_path / "clouds")
    points, episode = load_clouds(root, progress=False)
    assert points.shape == (3, 20, 6) and episode.tolist() == [0, 0, 0]
    assert load_clouds(root, root, progress=False)[1].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="steps: expected at least 1"):
        next(contrastive(PointEncoder(TINY), points, episode, ContrastiveConfig(steps=0)))
    with pytest.raises(InputError, match="clouds of 20 points"):
        next(contrastive(PointEncoder(TINY), points, episode))
    write_ply(root / "task" / "episode_0000" / "step_0009.ply", Cloud(np.zeros((7, 3), np.float32)))
    with pytest.raises(InputError, match="found 7 to 20 points"):
        load_clouds(root, progress=False)


@pytest.mark.parametrize(
    "tool, arguments", [("train_teacher", ["--clouds", "no/where"]), ("extract_teacher", ["--workspace", "no/where"])]
)
def test_tools_end_with_one_message(tool, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PROJECT / "tools" / f"{tool}.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: no/where: ") and said.count("\n") == 1


def test_shipped_weights_describe_the_sample():
    encoder, root = load_point_encoder(), Workspace.load(SAMPLE).clouds
    paths = [episode[i] for episode in list_clouds(root).values() for i in (0, 7, 15)]
    points = torch.from_numpy(np.stack([read_cloud(p)[0] for p in paths]))
    with torch.inference_mode():
        z = encoder.embed(points)
        half = encoder.embed(points[:, ::2])
    assert z.shape == (192, 256) and z.isfinite().all() and 0.01 < z.std() < 100
    spectrum = torch.linalg.svdvals(z - z.mean(0)) ** 2
    share = spectrum / spectrum.sum()
    assert torch.exp(-(share * (share + 1e-12).log()).sum()) > 5  # effective rank (Roy and Vetterli 2007)
    centred = F.normalize(z - z.mean(0), dim=-1)
    other = F.normalize(half - z.mean(0), dim=-1)  # every second point gives nearly the same embedding
    assert (centred * other).sum(-1).median() > 0.95
