"""Clouds in, teacher files out: what the files hold, resuming, sharing out, sampling, memory, and bad clouds."""

import re
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny_ulip import SMALL, official, random_state

from rgb2pc_lib.data.clouds import Cloud, count_points, read_ply, write_ply
from rgb2pc_lib.data.states import state_once
from rgb2pc_lib.data.teacher import frame_of, list_teacher, read_points, teacher_table
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.clouds import ulip
from rgb2pc_lib.encoders.clouds.extract_clouds import (
    CloudEncoder,
    extract_teacher,
    list_clouds,
    load_cloud_encoder,
    plan,
    read_cloud,
    sample_points,
    turn,
)
from rgb2pc_lib.encoders.clouds.points import PointConfig, PointEncoder, load_pointnet, save_point_encoder
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError

TINY = PointConfig(hidden=32, embed_dim=32, octaves=4)


def encoder(seed=0, **changes):
    network = PointEncoder(TINY, seed)
    made = CloudEncoder("pointnet", lambda p: {"pc_feat": network(p)}, network_fingerprint(network), TINY.embed_dim)
    return replace(made, **changes)


def extract(encoder, root, out, **more):
    return extract_teacher(encoder, root, out, progress=False, **more)


def test_extraction_writes_what_the_teacher_reads(tmp_path):
    root, out = tiny.write_clouds(tmp_path / "clouds"), tmp_path / "teacher"
    before = tiny.contents(root)
    assert extract(encoder(), root, out) == (3, 0)
    assert tiny.contents(root) == before
    files = list_teacher(out)[("task", "episode_0000")]
    assert sorted(files) == ["step_0000", "step_0001", "step_0002"]
    assert files["step_0001"].path.name == "step_0001.ply.ulip_pointnet.pt"
    stored = read_points(files["step_0001"])
    points, cloud = read_cloud(root / "task" / "episode_0000" / "step_0001.ply")
    np.testing.assert_array_equal(stored.pc, points)
    np.testing.assert_array_equal(stored.uv, cloud.uv)
    expected = PointEncoder(TINY)(torch.from_numpy(points)[None])[0].detach().numpy()
    np.testing.assert_allclose(stored.pc_feat, expected, rtol=1e-3, atol=1e-3)
    raw = torch.load(files["step_0001"].path, weights_only=True)
    assert {k: v.dtype for k, v in raw.items() if k != "encoder"} == {
        "pc": torch.float32, "uv": torch.float32, "pc_feat": torch.float16,
    }  # fmt: skip


def test_extraction_continues_and_never_mixes_encoders(tmp_path):
    root, out = tiny.write_clouds(tmp_path / "clouds"), tmp_path / "teacher"
    extract(encoder(), root, out)
    first, second, _ = sorted(out.rglob("*.pt"))
    before = first.stat().st_mtime_ns
    second.unlink()
    assert extract(encoder(), root, out) == (1, 2)
    assert first.stat().st_mtime_ns == before and second.exists()
    assert not list(out.rglob("*.tmp"))
    with pytest.raises(InputError, match="step_0000.ply.ulip_pointnet.pt: made by another encoder"):
        extract(encoder(seed=1), root, out)
    assert extract(encoder(seed=1), root, out, tag="other") == (3, 0)
    torch.save({"pc_feat": torch.zeros(2, 4)}, first)  # a user's own file is never taken for ours, nor overwritten
    with pytest.raises(InputError, match="unnamed"):
        extract(encoder(), root, out)
    first.write_bytes(b"half")
    with pytest.raises(InputError, match="step_0000.*delete the file"):
        extract(encoder(), root, out)


def test_ranks_share_the_clouds_whatever_the_others_wrote(tmp_path, monkeypatch):
    root, out = tiny.write_clouds(tmp_path / "clouds", n=5), tmp_path / "teacher"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("0", 3), ("1", 2)):
        monkeypatch.setenv("RANK", rank)
        assert extract(encoder(), root, out) == (written, 0)
    assert len(list(out.rglob("*.pt"))) == 5
    assert extract(encoder(), root, out) == (0, 2)


def test_large_clouds_are_sampled_alike_whatever_came_before(tmp_path):
    root, rows = tiny.write_clouds(tmp_path / "clouds"), {}
    for out in (tmp_path / "a", tmp_path / "b"):
        extract(encoder(most=7), root, out)
        (out / "task" / "episode_0000" / "step_0000.ply.ulip_pointnet.pt").unlink()
        extract(encoder(most=7), root, out)
        for path in sorted(out.rglob("*.pt")):
            file, whole = (
                torch.load(path, weights_only=True),
                read_cloud(root / "task" / "episode_0000" / path.name[:13]),
            )
            assert file["pc"].shape == (7, 6) and file["pc_feat"].shape == (7, 32) and file["uv"].shape == (7, 2)
            index = [(whole[0] == point.numpy()).all(1).argmax() for point in file["pc"]]
            assert index == sorted(set(index))
            np.testing.assert_array_equal(file["uv"], whole[1].uv[index])  # each point keeps its pixel
            assert rows.setdefault(path.name, index) == index
    assert len({tuple(index) for index in rows.values()}) == 3  # other clouds, other points
    often = np.bincount(np.concatenate([sample_points(20, 7, f"a/b/{i}.ply") for i in range(400)]), minlength=20)
    assert often.min() > 100 and often.max() < 180  # 140 expected: every point has its chance
    assert sample_points(20, 20, "x").tolist() == list(range(20))


def test_clouds_of_one_size_go_together_as_memory_allows(tmp_path):
    root, calls = tiny.write_clouds(tmp_path / "clouds", n=5), []
    write_ply(root / "task" / "episode_0000" / "step_0009.ply", Cloud(np.ones((9, 3), np.float32)))
    network = PointEncoder(TINY)

    def features(points):
        calls.append(tuple(points.shape[:2]))
        if points.shape[0] > 2:
            raise torch.OutOfMemoryError
        return {"pc_feat": network(points), "pooled": network.embed(points)}

    assert extract(encoder(features=features), root, tmp_path / "teacher", batch=4) == (6, 0)
    assert calls == [(4, 20), (2, 20), (2, 20), (1, 20), (1, 9)]
    extract(encoder(), root, tmp_path / "single")
    for path in (tmp_path / "teacher").rglob("*.pt"):
        one, other = (torch.load(p, weights_only=True) for p in (path, next((tmp_path / "single").rglob(path.name))))
        torch.testing.assert_close(one["pc_feat"], other["pc_feat"], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(one["pooled"].float(), one["pc_feat"].float().mean(0), atol=2e-3, rtol=2e-3)

    def nothing(points):
        raise torch.OutOfMemoryError

    with pytest.raises(InputError, match="too little memory for one cloud of 20 points"):
        extract(encoder(features=nothing), root, tmp_path / "none")


def test_clouds_without_colour_are_grey(tmp_path):
    root = tiny.write_clouds(tmp_path / "clouds", colour=False)
    for grey in (0.5, 0.4):
        out = tmp_path / f"teacher_{grey}"
        extract(encoder(grey=grey), root, out)
        raw = torch.load(next(out.rglob("*.pt")), weights_only=True)
        assert "uv" not in raw and (raw["pc"][:, 3:] == grey).all()


def test_a_bad_cloud_is_named(tmp_path):
    root, out = tiny.write_clouds(tmp_path / "clouds"), tmp_path / "teacher"
    bad = root / "task" / "episode_0000" / "step_0001.ply"
    whole = bad.read_bytes()
    xyz = np.zeros((5, 3), np.float32)
    for name, spoil, message in (
        ("cut", lambda: bad.write_bytes(whole[: len(whole) // 2]), "expected a PLY"),
        ("nan", lambda: write_ply(bad, Cloud(np.full_like(xyz, np.nan))), "found 5 points without"),
        ("empty", lambda: write_ply(bad, Cloud(xyz[:0])), "found an empty cloud"),
        ("few", lambda: write_ply(bad, Cloud(xyz)), "needs 8 points, found 5"),
    ):
        spoil()
        with pytest.raises(InputError, match=f"step_0001.ply: .*{message}"):
            extract(encoder(fewest=8), root, out, tag=name)
    with pytest.raises(InputError, match="found none"):
        list_clouds(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must not be written into the clouds"):
        extract(encoder(), root, root / "teacher")
    bad.write_bytes(b"not a cloud")
    with pytest.raises(InputError, match="step_0001.ply: expected a PLY file"):
        count_points(bad)


def test_clouds_are_turned_into_the_frame_that_the_encoder_sees(tmp_path):
    """A turn by a quarter about z, and a shift: seen from the camera x is the world's y, and 2 m farther."""
    root, out, state = tiny.write_clouds(tmp_path / "clouds"), tmp_path / "teacher", tmp_path / "state"
    pose = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])
    (state / "task").mkdir(parents=True)
    told = {"steps": [f"step_{i:04d}" for i in range(3)], "frame": "camera", "world_to_camera": pose}

    def write(**changes):
        state_once.cache_clear()
        np.savez(state / "task" / "episode_0000.npz", **{k: v for k, v in {**told, **changes}.items() if v is not None})

    seen = []

    def features(points):
        seen.append(points.numpy())
        return {"pc_feat": points.repeat(1, 1, 6)[..., :32]}

    from_world = encoder(features=features, frame="world")
    write()
    extract(from_world, root, out, state_root=state)
    path = root / "task" / "episode_0000" / "step_0000.ply"
    cloud = read_cloud(path)[0]
    world = np.stack([-cloud[:, 1], cloud[:, 0], cloud[:, 2] - 2], 1)
    np.testing.assert_allclose(seen[0][0, :, :3], world, atol=1e-6)
    np.testing.assert_array_equal(seen[0][0, :, 3:], cloud[:, 3:])
    file = list_teacher(out)[("task", "episode_0000")]["step_0000"]
    np.testing.assert_array_equal(read_points(file).pc, cloud)  # as they were recorded, for who needs their pixels
    assert frame_of(file) == "world"
    for frame, is_in, moved in (("world", "world", None), ("camera", "camera", None), ("camera", "world", pose)):
        write(frame=is_in)
        turned = turn(path, frame, state)
        assert (turned is None) == (moved is None)
        np.testing.assert_allclose(turned if moved is not None else 0, moved if moved is not None else 0)
    write(world_to_camera=None)
    assert turn(path, "camera", state) is None and turn(path, None, None) is None and turn(path, "camera", None) is None
    for more in ({"state_root": state}, {}):
        with pytest.raises(InputError, match=r"(episode_0000\.npz|step_0000\.ply): .*world_to_camera"):
            extract(from_world, root, tmp_path / "none", **more)


def test_encoders_are_named(tmp_path):
    save_point_encoder(tmp_path / "w.safetensors", PointEncoder(TINY))
    made = load_pointnet(tmp_path / "w.safetensors")
    assert made.made_by == encoder().made_by and made.frame == "world"
    with pytest.raises(InputError, match="expected world or camera, found 'base'"):
        PointConfig(frame="base")
    with pytest.raises(InputError, match="no point encoder is called 'pointmlp'; there are pointnet, ulip, ulip2"):
        load_cloud_encoder("pointmlp")
    with pytest.raises(InputError, match="device 'nowhere' cannot be used"):
        load_cloud_encoder("pointnet", device="nowhere")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace of three clouds, ULIP-2 made small, and a checkpoint with random weights in the official layout."""
    monkeypatch.setattr(ulip, "CONFIGS", SMALL)
    tiny.write_clouds(tmp_path / "clouds", points=100)
    (tmp_path / "mine.toml").write_text('[roots]\nclouds = "clouds"\nteacher = "teacher"\n')
    official(tmp_path / "weights.pt", random_state(SMALL["ulip2"]))
    return tmp_path


def tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["extract_teacher", *map(str, arguments)])
    runpy.run_path(str(PROJECT / "tools" / "extract_teacher.py"), run_name="__main__")


def test_the_tool_plans_writes_and_keeps(workspace, monkeypatch, capsys):
    words = ["--encoder", "ulip2", "--weights", workspace / "weights.pt", "--workspace", workspace / "mine.toml"]
    tool(monkeypatch, *words, "--dry_run")
    said = capsys.readouterr().out
    assert said.startswith("ulip2: 3 files to write, 0.00 GB (") and not (workspace / "teacher").exists()
    made = load_cloud_encoder("ulip2", workspace / "weights.pt")
    planned = plan(made, workspace / "clouds", workspace / "teacher", "ulip2").bytes(made)
    tool(monkeypatch, *words)
    files = list((workspace / "teacher").rglob("*.pt"))
    assert len(files) == 3 and abs(planned / sum(f.stat().st_size for f in files) - 1) < 0.05
    tool(monkeypatch, *words)
    assert re.findall(r"(\d) files written, (\d) kept", capsys.readouterr().out) == [("3", "0"), ("0", "3")]
    steps = list_teacher(workspace / "teacher")[("task", "episode_0000")]
    table = teacher_table(list(steps.values()), cache=workspace / "cache", progress=False)
    assert table.shape == (3, 1280) and np.isfinite(table).all() and np.ptp(table, axis=0).max() > 1e-3
    stored = read_points(steps["step_0002"])
    assert stored.pc.shape == (80, 6) and stored.uv.shape == (80, 2)  # of 100 points
    whole = read_ply(workspace / "clouds" / "task" / "episode_0000" / "step_0002.ply").xyz
    assert {tuple(p) for p in stored.pc[:, :3]} <= {
        tuple(p) for p in whole
    }  # as in the cloud, neither turned nor scaled


def test_the_tool_says_which_weights_it_needs(workspace, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        tool(monkeypatch, "--encoder", "ulip2", "--workspace", workspace / "mine.toml")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "huggingface.co/datasets/SFXX/ulip" in said
