"""ULIP's PointBERT: its sampling and grouping by known answers, official checkpoints, and parity with the original."""

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ulip import SMALL, official, random_state

from rgb2pc_lib.encoders.clouds import ulip
from rgb2pc_lib.encoders.clouds.extract_clouds import load_cloud_encoder
from rgb2pc_lib.encoders.clouds.ulip import (
    Ulip,
    farthest_points,
    nearest,
    propagate,
    read_checkpoint,
    unit_sphere,
)
from rgb2pc_lib.errors import InputError


@pytest.fixture
def small(monkeypatch):
    """The two encoders with fewer blocks, groups and points."""
    monkeypatch.setattr(ulip, "CONFIGS", SMALL)
    return SMALL


def clouds(batch=2, points=64, seed=0):
    return torch.rand(batch, points, 6, generator=torch.Generator().manual_seed(seed))


def kernel_sampling(xyz, number):
    """What the original's GPU code does, thread by thread: a scan with strides, then a tree of comparisons."""
    N = len(xyz)
    threads = min(512, 1 << (N.bit_length() - 1))
    index = np.arange(-(-N // threads) * threads).reshape(-1, threads)  # a column is what one thread looks at
    padded = np.full((index.size, 3), 0, np.float32)
    padded[:N] = xyz
    usable = ((padded**2).sum(1) > 1e-3) & (np.arange(index.size) < N)
    distance, chosen = np.full(index.size, 1e10, np.float32), [0]
    for _ in range(number - 1):
        d = padded - padded[chosen[-1]]
        distance = np.minimum(distance, d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1] + d[:, 2] * d[:, 2])
        seen = np.where(usable, distance, -1)[index]
        best, where = seen.max(0), index[seen.argmax(0), np.arange(threads)]
        where = np.where(best < 0, 0, where)
        half = threads // 2
        while half:
            other = best[half : 2 * half] > best[:half]
            where[:half] = np.where(other, where[half : 2 * half], where[:half])
            best[:half] = np.maximum(best[:half], best[half : 2 * half])
            half //= 2
        chosen.append(int(where[0]))
    return chosen


def test_farthest_points_by_hand():
    line = torch.tensor([[[0.01, 0, 0], [1, 0, 0], [0.02, 0, 0], [-0.9, 0, 0], [0.4, 0, 0]]])
    # 0 comes first though it lies too near to the origin; 2 does as well and is never chosen while others are there
    assert farthest_points(line, 4)[0].tolist() == [0, 1, 3, 4]
    assert farthest_points(torch.zeros(1, 3, 3), 3)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("points", [1, 3, 40, 513, 1500])
def test_farthest_points_follow_the_threads(points):
    rng = np.random.default_rng(points)
    scattered = rng.normal(0, 0.5, (points, 3)).astype(np.float32)
    lattice = rng.integers(-2, 3, (points, 3)).astype(np.float32)  # full of equal distances and of equal points
    both = torch.from_numpy(np.stack([scattered, lattice]))
    found = farthest_points(both, min(points, 90))
    for mine, xyz in zip(found.tolist(), (scattered, lattice), strict=True):
        assert mine == kernel_sampling(xyz, len(mine))


def test_nearest_and_propagation_by_hand():
    xyz = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [10, 0, 0]]])
    centres = xyz[:, [0, 3]]
    assert [set(row) for row in nearest(centres, xyz, 2)[0].tolist()] == [{0, 1}, {2, 3}]
    features = torch.tensor([[[0.0, 1], [1, 1]]])  # the second channel: weights sum to 1
    mixed = propagate(features, centres, xyz)[0]
    torch.testing.assert_close(mixed[:, 1], torch.ones(4))
    torch.testing.assert_close(mixed[:, 0], torch.tensor([0, 1 / 82, 4 / 68, 1]), atol=1e-6, rtol=0)


def test_a_cloud_is_turned_upright_and_scaled():
    points = torch.tensor([[[0.0, -1, 2, 9, 9, 9], [0, 3, 2, 9, 9, 9]]])
    camera, world = unit_sphere(points), unit_sphere(points, "world")
    assert camera[0, :, :3].tolist() == [[0, 1, 0], [0, -1, 0]]  # what is higher in the image is higher
    assert world[0, :, :3].tolist() == [[0, 0, 1], [0, 0, -1]]
    assert (camera[..., 3:] == 9).all()
    assert unit_sphere(torch.ones(1, 4, 6)).isfinite().all()  # all points at one place
    moved = clouds()
    moved[..., :3] = 3 * moved[..., :3] + 5
    torch.testing.assert_close(unit_sphere(moved), unit_sphere(clouds()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ulip", "ulip2"])
def test_embedding_and_points_share_one_projection(name, small, tmp_path):
    state = random_state(SMALL[name])
    network = read_checkpoint(name, official(tmp_path / "w.pt", state))
    points = unit_sphere(clouds())
    with torch.inference_mode():
        pooled, per_point = network(points)
        cls, tokens, centres = network.point_encoder(points)
    assert pooled.shape == (2, SMALL[name].embed_dim) and per_point.shape == (2, 64, SMALL[name].embed_dim)
    assert pooled.std() > 0.01 and per_point.std(1).mean() > 0.001  # the clouds and the points differ
    first = farthest_points(points[..., :3], 16)[0, 5]  # the point that is the sixth centre keeps its token
    expected = torch.cat([cls[0], tokens[0, 5]]) @ state["pc_projection"]
    torch.testing.assert_close(per_point[0, first], expected, atol=1e-4, rtol=1e-3)
    expected = torch.cat([cls, tokens.max(1).values], -1) @ state["pc_projection"]
    torch.testing.assert_close(pooled, expected)


def test_the_order_of_points_and_the_other_clouds_do_not_matter(small, tmp_path):
    encoder = load_cloud_encoder("ulip2", official(tmp_path / "w.pt", random_state(SMALL["ulip2"])))
    points = clouds(3)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(63)])  # the first point starts the sampling
    with torch.inference_mode():
        every, alone = encoder.features(points), encoder.features(points[1:2, order])
    torch.testing.assert_close(alone["pc_feat"][0], every["pc_feat"][1, order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(alone["pooled"][0], every["pooled"][1], atol=1e-4, rtol=1e-3)
    painted = points.clone()
    painted[..., 3:] = 1 - painted[..., 3:]
    assert (encoder.features(painted)["pooled"] - every["pooled"]).abs().max() > 1e-3
    plain = load_cloud_encoder("ulip", official(tmp_path / "v.pt", random_state(SMALL["ulip"])))
    assert torch.equal(plain.features(painted)["pooled"], plain.features(points)["pooled"])  # ULIP sees no colour


def test_official_files_are_read_with_what_stands_beside_the_weights(small, tmp_path):
    state, config = random_state(SMALL["ulip"]), SMALL["ulip"]
    numpy_values = {"best_acc1": np.float64(60.3), "best": np.float32(1), "step": np.int64(3)}
    for path in (
        official(tmp_path / "a.pt", state, **numpy_values),
        tmp_path / "old.pt",
        tmp_path / "bare.pt",
    ):
        if path.name == "old.pt":  # torch before 1.6
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        if path.name == "bare.pt":
            torch.save(state, path)
        read = read_checkpoint("ulip", path, config).state_dict()
        assert all(torch.equal(read[name], value) for name, value in state.items())
    made_by = {load_cloud_encoder("ulip", tmp_path / "a.pt", frame=f).made_by for f in ("camera", "world")}
    assert len(made_by) == 2  # features of turned clouds are not mixed with those of others


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_missing_and_wrong_weights_are_told(small, tmp_path, capsys):
    with pytest.raises(InputError, match=r"ulip2': no weights.*huggingface.co/.*10k-xyzrgb.*BSD-3.*--weights"):
        load_cloud_encoder("ulip2")
    with pytest.raises(InputError, match="none.pt: no such file; download .*checkpoint_pointbert.pt"):
        load_cloud_encoder("ulip", tmp_path / "none.pt")
    other = official(tmp_path / "other.pt", random_state(SMALL["ulip2"]))
    with pytest.raises(InputError, match=r"other.pt: .*found 3 blocks.*--encoder ulip2"):
        load_cloud_encoder("ulip", other)
    state = random_state(SMALL["ulip"])
    state.pop("pc_projection")
    with pytest.raises(InputError, match="for pc_projection: none"):
        load_cloud_encoder("ulip", official(tmp_path / "part.pt", state))
    torch.save({"state_dict": state, "args": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\3\4 cut")
    for bad in ("trap.pt", "cut.pt"):
        with pytest.raises(InputError, match=f"{bad}: expected a checkpoint of ulip"):
            load_cloud_encoder("ulip", tmp_path / bad)
    assert "code ran" not in capsys.readouterr().out


# -- parity with the original, where a checkout of it is at hand


@pytest.fixture
def original(monkeypatch):
    """`models.pointbert.point_encoder` of a checkout of github.com/salesforce/ULIP; its GPU operations are replaced."""
    folder = os.environ.get("RGB2PC_ULIP")
    if not folder:
        pytest.skip("RGB2PC_ULIP names no checkout of github.com/salesforce/ULIP")
    operations = types.SimpleNamespace(
        furthest_point_sample=lambda xyz, n: torch.tensor([kernel_sampling(cloud.numpy(), n) for cloud in xyz]),
        gather_operation=lambda x, index: x.gather(2, index[:, None].expand(-1, x.shape[1], -1)),
    )
    for name, content in {
        "pointnet2_ops": {"pointnet2_utils": operations},
        "knn_cuda": {"KNN": lambda **_: None},
        "timm": {}, "timm.models": {}, "timm.models.layers": {"DropPath": lambda _: torch.nn.Identity()},
        "termcolor": {"colored": lambda text, _: text},
        "models": {"__path__": [str(Path(folder) / "models")]},
        "models.pointbert": {"__path__": [str(Path(folder) / "models" / "pointbert")]},
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    import models.pointbert.point_encoder as module

    yield module
    for name in [n for n in sys.modules if n.startswith("models.")]:
        sys.modules.pop(name)


@pytest.mark.parametrize(("name", "points"), [("ulip", 8192), ("ulip2", 10_000), ("ulip2", 1024)])
def test_parity_with_the_original(name, points, original):
    config = ulip.CONFIGS[name]
    state = random_state(config)
    sizes = types.SimpleNamespace(
        trans_dim=config.width, depth=config.depth, drop_path_rate=0.1, cls_dim=40, num_heads=config.heads,
        group_size=config.neighbours, num_group=config.groups, encoder_dims=256,
    )  # fmt: skip
    kind = original.PointTransformer_Colored if name == "ulip2" else original.PointTransformer
    reference = kind(sizes, args=types.SimpleNamespace(evaluate_3d=True)).eval()
    prefix = "point_encoder."
    reference.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    mine = Ulip(config)
    mine.load_state_dict(state)
    cloud = unit_sphere(clouds(1, points))
    with torch.inference_mode():
        expected = reference(cloud[..., : config.channels]) @ state["pc_projection"]
        found, _ = mine(cloud)
    error = (found - expected).abs().max() / expected.abs().max()
    print(f"{name}, {points} points, {config.depth} blocks: largest relative error {error:.1e}")
    assert error < 1e-5 and expected.std() > 1e-2
