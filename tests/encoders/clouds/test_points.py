"""The point encoder: symmetry, its weights on disk, and what those of the sample are worth."""

import runpy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rgb2pc_lib.data.workspace import PROJECT, SAMPLE, Workspace
from rgb2pc_lib.encoders.clouds.extract_clouds import in_frame, list_clouds, read_cloud, turn
from rgb2pc_lib.encoders.clouds.points import PointConfig, PointEncoder, load_point_encoder, save_point_encoder
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError

TINY = PointConfig(hidden=32, embed_dim=32, octaves=4)


def test_points_may_come_in_any_order():
    encoder = PointEncoder(TINY)
    points, order = torch.rand(2, 40, 6), torch.randperm(40)
    out = encoder(points)
    assert out.shape == (2, 40, 32)
    torch.testing.assert_close(encoder(points[:, order]), out[:, order])
    torch.testing.assert_close(encoder.embed(points[:, order]), out.mean(1), atol=1e-6, rtol=1e-5)


def test_weights_survive_the_file(tmp_path):
    encoder = PointEncoder(TINY, seed=3)
    path = tmp_path / "new" / "w.safetensors"
    save_point_encoder(path, encoder, clouds=64)
    back = load_point_encoder(path)
    assert back.config == TINY and network_fingerprint(back) == network_fingerprint(encoder)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]
    whole = path.read_bytes()
    save_point_encoder(path, back, clouds=64)
    assert path.read_bytes() == whole
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=bad.name):
            load_point_encoder(bad)


@pytest.mark.parametrize(
    "tool, arguments", [("train_teacher", ["--recorded", "no/where"]), ("extract_teacher", ["--workspace", "no/where"])]
)
def test_tools_end_with_one_message(tool, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PROJECT / "tools" / f"{tool}.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: no/where") and said.count("\n") == 1


def test_shipped_weights_describe_the_sample():
    encoder, workspace = load_point_encoder(), Workspace.load(SAMPLE)
    paths = [episode[i] for episode in list_clouds(workspace.clouds).values() for i in (0, 7, 15)]
    clouds = [in_frame(read_cloud(p)[0], turn(p, encoder.config.frame, workspace.state)) for p in paths]
    points = torch.from_numpy(np.stack(clouds))
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
