import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from rgb2pc_lib.checks.sources import memory, pack_sizes, pixels_under, rgb_file, shifted_copy, step_cloud, usable
from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.teacher import read_points
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError


@pytest.fixture
def small(tmp_path):
    return tiny.make(tmp_path / "data", "left", tasks=("push",), episodes=2)


def test_usable_steps_are_those_that_every_source_has(small):
    (small.teacher / "push" / "ep_0" / "step_0003.ply.ulip_tiny.pt").unlink()
    (small.experts["right"] / "push" / "ep_1.pt").write_bytes(b"damaged")
    steps = usable(pair(small)).keys()
    assert set(steps["episode"]) == {"ep_0"} and steps["time"].tolist() == [t for t in range(12) if t != 3]
    (small.experts["right"] / "push" / "ep_0.pt").unlink()
    with pytest.raises(InputError, match="no step is in the teacher and in all of left, right"):
        usable(pair(small))


def test_sizes_count_all_copies_on_disk_and_one_in_memory(small):
    sizes = pack_sizes(pair(small))
    left = sizes.loc["left"]
    assert (left["episodes"], left["steps"], left["grid"], left["channels"], left["dtype"]) == (
        2, 24, "4 x 4", 12, "float16")  # fmt: skip
    assert left["frames ahead"] == "none"  # the packs say so
    assert left["copies"] == 3  # 9 windows of 4 frames for 12 steps
    assert left["MB a step"] == pytest.approx(16 * 12 * 2 / 1e6)
    assert left["memory GB"] == pytest.approx(24 * 16 * 12 * 2 / 1e9)
    on_disk = sum(p.stat().st_size for p in small.experts["left"].rglob("*.pt"))
    assert left["file GB"] == pytest.approx(on_disk / 1e9)
    assert sizes.loc["total", "memory GB"] == pytest.approx(24 * 16 * (12 + 10) * 2 / 1e9)
    assert all(v > 0 for v in memory().values())


def test_sizes_of_zarr_are_those_of_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"step_{i:04d}" for i in range(6)]
    tiny.write_teacher(tmp_path / "teacher", "push", "ep_0", names, rng.normal(size=(6, 8)), rng)
    path = tiny.write_zarr(tmp_path / "features_a", "push", "ep_0", names, rng.normal(size=(6, 2, 3, 5)))
    sizes = pack_sizes(pair(Workspace(teacher=tmp_path / "teacher", experts={"a": tmp_path / "features_a"})))
    assert sizes.loc["a", "file GB"] == sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 1e9
    assert sizes.loc["a", "memory GB"] == pytest.approx(6 * 6 * 5 * 4 / 1e9)
    assert sizes.loc["a", "frames ahead"] == "1.3, at most 3"  # 3 2 1 1 1 0: these do not say it, their windows do


def test_points_are_the_teachers_own_where_it_holds_any(tmp_path):
    ws = Workspace(teacher=tmp_path / "teacher", clouds=tmp_path / "clouds", experts={"a": tmp_path / "a"})
    for folder in (tmp_path / "teacher", tmp_path / "clouds"):
        (folder / "push" / "ep_0").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    file = tmp_path / "teacher" / "push" / "ep_0" / "step_0000.ply.ulip_x.pt"
    ply = tmp_path / "clouds" / "push" / "ep_0" / "step_0000.ply"
    write_ply(ply, Cloud(np.ones((3, 3), np.float32), np.full((3, 3), 9, np.uint8), np.ones((3, 2), np.float32)))

    for scale in (1.0, 255.0):  # colours as fractions, and as bytes
        points = torch.cat([torch.zeros(2, 3), torch.tensor([[0.0, 0.2, 1.0], [1.0, 0.0, 0.0]]) * scale], 1)
        torch.save({"pc_feat": torch.zeros(2, 4), "pc": points, "uv": torch.ones(2, 2)}, file)
        cloud, source = step_cloud(ws, pair(ws), "push", "ep_0", "step_0000")
        assert source == file and cloud.rgb.tolist() == [[0, 51, 255], [255, 0, 0]] and cloud.uv.shape == (2, 2)
    torch.save({"pc_feat": torch.zeros(2, 4)}, file)
    cloud, source = step_cloud(ws, pair(ws), "push", "ep_0", "step_0000")
    assert source == ply and len(cloud) == 3 and cloud.rgb[0, 0] == 9
    assert step_cloud(ws, pair(ws), "push", "ep_0", "step_0009") is None


def test_rgb_file_by_name(tmp_path):
    ws = Workspace(rgb=tmp_path)
    (tmp_path / "push" / "ep_0").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "push" / "ep_0" / "step_0002.png")
    assert rgb_file(ws, "push", "ep_0", "step_0002").name == "step_0002.png"
    assert rgb_file(ws, "push", "ep_0", "step_0003") is None and rgb_file(Workspace(), "push", "ep_0", "s") is None


def test_pixels_under_points_leave_out_those_beside_the_image():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    cloud = Cloud(np.zeros((3, 3)), uv=np.array([[2.0, 1.0], [0.9, 0.0], [3.0, 0.0]]))
    seen, inside = pixels_under(cloud, image)
    assert inside.tolist() == [True, True, False] and seen.tolist() == [image[1, 2].tolist(), image[0, 0].tolist()]


@pytest.mark.parametrize("by", [3, -2])
def test_a_shifted_copy_moves_one_episode_and_touches_nothing(small, tmp_path, by):
    before = tiny.contents(tmp_path / "data")
    wrong = shifted_copy(small, "push", "ep_1", by, tmp_path / "demo")
    assert tiny.contents(tmp_path / "data") == before
    there, here = pair(wrong), pair(small)
    assert there.table.equals(here.table)

    def mean(pairing, episode, step):
        return read_points(pairing.teacher["push", episode][f"step_{step:04d}"]).pc_feat.mean(0)

    for step in range(12):
        assert np.array_equal(mean(there, "ep_0", step), mean(here, "ep_0", step))
        source = min(max(step - by, 0), 11)
        assert np.array_equal(mean(there, "ep_1", step), mean(here, "ep_1", source))
    again = shifted_copy(small, "push", "ep_1", by, tmp_path / "demo")
    assert again == wrong and not [p for p in (tmp_path / "demo").rglob("*.tmp")]
    with pytest.raises(InputError, match="no episode push/ep_7"):
        shifted_copy(small, "push", "ep_7", by, tmp_path / "demo")


def test_a_shifted_copy_of_pooled_teachers(tmp_path):
    rng, names = np.random.default_rng(0), [f"step_{i:04d}" for i in range(6)]
    means = rng.normal(size=(6, 8)).astype(np.float32)
    for episode in ("ep_0", "ep_1"):
        tiny.write_pack(tmp_path / "features_a", "push", episode, names, rng.normal(size=(6, 2, 2, 3)))
        group = tiny.write_zarr(tmp_path / "teacher", "push", episode, names, means.reshape(6, 1, 1, 8))
        (group / "frame_paths.json").unlink()
        import json

        import zarr

        store = zarr.open_group(str(group), mode="w")
        store.create_array("per_frame_features", data=means)
        (group / "frame_paths.json").write_text(json.dumps(names))
    ws = Workspace(teacher=tmp_path / "teacher", experts={"a": tmp_path / "features_a"})
    wrong = pair(shifted_copy(ws, "push", "ep_0", 1, tmp_path / "demo"))
    assert np.array_equal(read_points(wrong.teacher["push", "ep_0"]["step_0003"]).pc_feat[0], means[2])
    assert np.array_equal(read_points(wrong.teacher["push", "ep_1"]["step_0003"]).pc_feat[0], means[3])
