"""The geometry expert: it learns depth where depth can be told, its weights on disk, and what the shipped ones know."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.simdepth import DepthConfig, DepthNetwork, load_network, save_simdepth
from rgb2pc_lib.encoders.simdepth_training import DepthTraining, errors, learn, load_surfaces, recoloured
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError

TINY = DepthConfig(size=32, stem=8, channels=16)
POSE = np.array([[1, 0, 0, 0.1], [0, 0, -1, 0.2], [0, 1, 0, 0.3], [0, 0, 0, 1]], float)  # world to camera


@pytest.fixture
def recorded(tmp_path):
    """Two episodes in which a pixel's depth follows from its red: 1 m where there is none, 2 m where it is full."""
    rng = np.random.default_rng(0)
    for episode in ("episode_0000", "episode_0001"):
        steps = [f"step_{i:04d}" for i in range(8)]
        for step in steps:
            image = np.repeat(np.repeat(rng.integers(0, 2, (2, 2, 3)) * 255, 16, 0), 16, 1).astype(np.uint8)
            uv = rng.integers(0, 32, (40, 2)).astype(np.float32)
            z = 1 + image[uv[:, 1].astype(int), uv[:, 0].astype(int), 0] / 255
            xyz = np.stack([(uv[:, 0] - 16) / 30 * z, (uv[:, 1] - 16) / 30 * z, z], 1).astype(np.float32)
            folder = tmp_path / "rgb" / "push" / episode
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{step}.jpg", quality=95)
            (tmp_path / "clouds" / "push" / episode).mkdir(parents=True, exist_ok=True)
            write_ply(tmp_path / "clouds" / "push" / episode / f"{step}.ply", Cloud(xyz, None, uv))
        (tmp_path / "state" / "push").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "state" / "push" / f"{episode}.npz", steps=steps, frame="camera", world_to_camera=POSE)
    return tmp_path


def test_what_is_loaded_is_where_the_recorder_saw_it(recorded):
    data = load_surfaces(recorded, size=32, progress=False)
    assert data.images.shape == (16, 3, 32, 32) and data.uv.shape == (16, 40, 2)
    assert set(data.depth.unique().tolist()) == {1.0, 2.0}
    camera = data.place.double() @ torch.from_numpy(POSE[:3, :3]).mT + torch.from_numpy(POSE[:3, 3])
    torch.testing.assert_close(camera[..., 2].float(), data.depth, atol=1e-5, rtol=0)
    pixel = ((data.uv.float() + 1) / 2 * 32 - 0.5).round().long()  # back to (u, v)
    red = data.images[torch.arange(16)[:, None], 0, pixel[..., 1], pixel[..., 0]]
    assert ((red > 127) == (data.depth > 1.5)).float().mean() > 0.95  # JPEG blurs edges


def test_depth_is_learned_from_what_shows_it(recorded):
    data = load_surfaces(recorded, size=32, progress=False)
    network = DepthNetwork(TINY)
    figures = list(learn(network, data, DepthTraining(steps=120, batch=16, colour=0.0, warmup=10)))
    assert figures[0]["depth"] > 30 and figures[-1]["depth"] < 30  # cm; the mean is off by 50
    assert figures[-1]["place"] < figures[0]["place"] / 2
    assert not network.training
    off = errors(network, data)
    assert off.shape == (16, 2) and off[:, 0].mean() < 0.25 and not data.randomised.any()
    again = list(learn(DepthNetwork(TINY), data, DepthTraining(steps=3, batch=16)))
    assert again == list(learn(DepthNetwork(TINY), data, DepthTraining(steps=3, batch=16)))


def test_weights_survive_the_file(tmp_path):
    network, path = DepthNetwork(TINY, seed=3), tmp_path / "new" / "w.safetensors"
    save_simdepth(path, network, frames=16)
    back = load_network(path)
    assert back.config == TINY and network_fingerprint(back) == network_fingerprint(network)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(back(images), network.eval()(images))
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=bad.name):
            load_network(bad)


def test_shipped_weights_know_the_sample_and_where_its_tokens_lie():
    data = load_surfaces(PROJECT / "data" / "sample", size=192, every=9, progress=False)  # never trained on
    network = load_network()
    off = errors(network, data).mean(0)
    assert off[0] < 0.06 and off[1] < 0.08  # of the depth; m
    mirrored = errors(network, dataclasses.replace(data, uv=-data.uv)).mean(0)
    assert (mirrored > 2 * off).all()


def test_a_changed_colour_stays_an_image():
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(recoloured(images, 0.0, torch.Generator()), images)
    changed = recoloured(images, 0.5, torch.Generator().manual_seed(0))
    assert changed.min() >= 0 and changed.max() <= 1 and (changed - images).abs().mean() > 0.05


def test_what_cannot_be_learned_from_is_named(recorded):
    state = recorded / "state" / "push" / "episode_0001.npz"
    np.savez(state, steps=[f"step_{i:04d}" for i in range(8)], frame="world")
    with pytest.raises(InputError, match="episode_0001.npz: expected clouds in a camera's frame"):
        load_surfaces(recorded, size=32, progress=False)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch": 1}])
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(InputError, match="expected at least 1 step and 2 frames a batch"):
        DepthTraining(**bad)
