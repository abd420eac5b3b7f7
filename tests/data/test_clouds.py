"""PLY round trips and the pixel <-> point convention."""

import numpy as np
import pytest

from rgb2pc_lib.data.clouds import Cloud, back_project, project, read_ply, transform, write_ply
from rgb2pc_lib.errors import InputError


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    return Cloud(
        rng.normal(size=(50, 3)).astype(np.float32),
        rng.integers(0, 256, (50, 3)).astype(np.uint8),
        rng.integers(0, 224, (50, 2)).astype(np.float32),
    )


@pytest.mark.parametrize("scale, kind", [(1, b"uchar"), (4, b"ushort"), (0.3, b"float")])
def test_round_trip_is_exact_and_uv_stay_small(tmp_path, cloud, scale, kind):
    sent = Cloud(cloud.xyz, cloud.rgb, (cloud.uv * np.float32(scale)).astype(np.float32))
    write_ply(tmp_path / "a.ply", sent)
    got = read_ply(tmp_path / "a.ply")
    for name in ("xyz", "rgb", "uv"):
        np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))
        assert getattr(got, name).dtype == getattr(sent, name).dtype
    assert b"property " + kind + b" u\n" in (tmp_path / "a.ply").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize("n", [0, 1, 7])
def test_colour_and_uv_are_optional(tmp_path, n):
    write_ply(tmp_path / "a.ply", Cloud(np.ones((n, 3), np.float32)))
    got = read_ply(tmp_path / "a.ply")
    assert got.xyz.shape == (n, 3) and got.rgb is None and got.uv is None


def test_ascii_with_extra_properties_and_faces(tmp_path):
    header = ["ply", "format ascii 1.0", "comment made by hand", "element vertex 2"]
    header += [f"property double {name}" for name in "xyz"] + ["property float nx"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header += ["property float u", "property float v"]
    header += ["element face 0", "property list uchar int vertex_indices", "end_header"]
    (tmp_path / "a.ply").write_text("\n".join([*header, "1 2 3 9 4 5 6 7.5 8", "-1 -2 -3 9 0 255 1 0 223", ""]))
    got = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(got.xyz, [[1, 2, 3], [-1, -2, -3]])
    np.testing.assert_array_equal(got.rgb, [[4, 5, 6], [0, 255, 1]])
    np.testing.assert_array_equal(got.uv, [[7.5, 8], [0, 223]])


def test_unreadable_files_are_named(tmp_path, cloud):
    write_ply(tmp_path / "cut.ply", cloud)
    whole = (tmp_path / "cut.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(whole[:-9])
    (tmp_path / "other.ply").write_text("not a cloud")
    (tmp_path / "blind.ply").write_bytes(whole.replace(b"float z", b"float q"))
    for name, found in [("cut.ply", "length"), ("other.ply", "ply"), ("blind.ply", "name z"), ("none.ply", "none")]:
        with pytest.raises(InputError, match=f"{name}: expected .*found.*{found}"):
            read_ply(tmp_path / name)


def test_back_projection_goes_through_the_pixel_centre():
    K = np.array([[200.0, 0, 16], [0, 210, 12], [0, 0, 1]])
    depth = np.random.default_rng(1).uniform(0.5, 2, (24, 32))
    xyz = back_project(depth, K)
    np.testing.assert_array_equal(xyz[..., 2], depth)
    v, u = np.indices(depth.shape)
    np.testing.assert_allclose(project(xyz, K), np.stack([u + 0.5, v + 0.5], -1), atol=1e-9)
    assert xyz[0, 0, 0] < 0 < xyz[0, -1, 0] and xyz[0, 0, 1] < 0 < xyz[-1, 0, 1]  # x right, y down


def test_transform_is_rigid_motion():
    pose = np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    np.testing.assert_allclose(transform(np.array([[1.0, 2, 3]]), pose), [[3, 7, 10]])
