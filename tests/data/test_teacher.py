"""Teacher: every layout on disk gives the same known means; the cache reads nothing twice and nothing stale."""

import os
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
import zarr

from rgb2pc_lib.data import teacher
from rgb2pc_lib.data.teacher import TeacherFile, list_teacher, read_points, subsampled, teacher_table
from rgb2pc_lib.errors import InputError

FEAT = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
PC = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
UV = np.random.default_rng(2).integers(0, 224, size=(7, 2)).astype(np.float32) + 0.5


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return TeacherFile(path)


def step_file(root, step="step_0000", tag="a", suffix="pt", task="push", episode="ep_0"):
    return root / task / episode / f"{step}.ply.ulip_{tag}.{suffix}"


# -- one step


@pytest.mark.parametrize("kind", ["torch", "numpy", "half", "bfloat16", "float64", "grad"])
def test_points_are_those_that_were_written(tmp_path, kind):
    as_kind = {
        "torch": torch.from_numpy,
        "numpy": np.asarray,
        "half": lambda x: torch.from_numpy(x).half(),
        "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
        "float64": lambda x: x.astype(np.float64),
        "grad": lambda x: torch.from_numpy(x).requires_grad_(),
    }[kind]
    file = save(tmp_path / "a.pt", {"pc_feat": as_kind(FEAT), "pc": as_kind(PC), "uv": as_kind(UV)})
    points = read_points(file)
    exact = {"half": 1e-3, "bfloat16": 1e-2}.get(kind, 0)
    for name, written in (("pc_feat", FEAT), ("pc", PC), ("uv", UV)):
        read = getattr(points, name)
        assert read.dtype == np.float32 and read.shape == written.shape
        np.testing.assert_allclose(read, written, rtol=exact)


def test_arrays_written_by_old_numpy(tmp_path):
    """numpy 1 called its own modules otherwise inside pickles; files of that time are common."""
    path, old = save(tmp_path / "new.pt", {"pc_feat": FEAT, "uv": UV}).path, tmp_path / "old.pt"
    with zipfile.ZipFile(path) as a, zipfile.ZipFile(old, "w") as b:
        for name in a.namelist():
            b.writestr(name, a.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy._core" in path.read_bytes() and b"numpy._core" not in old.read_bytes()
    np.testing.assert_array_equal(read_points(TeacherFile(old)).pc_feat, FEAT)


@pytest.mark.parametrize("content", [{"uvs": UV}, {"uv": None, "uvs": UV}, {"uv": UV, "uvs": UV + 1}])
def test_uvs_is_another_name_of_uv(tmp_path, content):
    points = read_points(save(tmp_path / "a.pt", {"pc_feat": FEAT, **content}))
    np.testing.assert_array_equal(points.uv, UV)
    assert points.pc is None


@pytest.mark.parametrize("width", [256, 512, 768, 1280])
@pytest.mark.parametrize("n", [1, 1000])
def test_any_number_of_points_and_width(tmp_path, n, width):
    assert read_points(save(tmp_path / "a.pt", {"pc_feat": torch.ones(n, width)})).pc_feat.shape == (n, width)


@pytest.mark.parametrize(
    "content, found",
    [
        ({"pc": PC}, r"found \['pc'\]"),
        ({"pc_feat": FEAT[0]}, r"with pc_feat of shape \[16\]"),
        ({"pc_feat": FEAT[None]}, r"with pc_feat of shape \[1, 7, 16\]"),
        ({"pc_feat": FEAT[:0]}, r"with pc_feat of shape \[0, 16\]"),
        ({"pc_feat": FEAT.tolist()}, "with pc_feat of shape"),
        ([FEAT], "found list"),
        (torch.from_numpy(FEAT), "found Tensor"),
    ],
)
def test_what_is_no_teacher_file_is_named(tmp_path, content, found):
    file = save(tmp_path / "a.pt", content)
    with pytest.raises(InputError, match=rf"a\.pt: expected a dict with 'pc_feat' \[N, E\], .*{found}"):
        read_points(file)


class RunsCode:
    target = ""

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    RunsCode.target = str(tmp_path / "was_run")
    file = save(tmp_path / "a.pt", {"pc_feat": FEAT, "note": RunsCode()})
    with pytest.raises(InputError, match=r"a\.pt: reading it would run code, posix\.mkdir"):
        read_points(file)
    assert not (tmp_path / "was_run").exists()


def test_arrays_of_objects_are_refused(tmp_path):
    file = save(tmp_path / "a.pt", {"pc_feat": np.array([[{}]], object)})
    with pytest.raises(InputError, match=r"a\.pt"):
        read_points(file)


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b"", lambda b: b"no torch file"])
def test_unreadable_files_are_named(tmp_path, damage):
    file = save(tmp_path / "a.pt", {"pc_feat": FEAT})
    file.path.write_bytes(damage(file.path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.pt: not a readable torch file"):
        teacher_table([file], tmp_path / "cache")


# -- zarr


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_array_per_step(tmp_path, version):
    path = step_file(tmp_path, suffix="zarr")
    zarr.create_array(str(path), data=FEAT, zarr_format=version)
    files = list_teacher(tmp_path)
    assert files == {("push", "ep_0"): {"step_0000": TeacherFile(path)}}
    np.testing.assert_array_equal(read_points(files["push", "ep_0"]["step_0000"]).pc_feat, FEAT)


def pooled(path, rows, names=None, version=3):
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("per_frame_features", data=rows, chunks=(2, rows.shape[1]))
    names = [rf"C:\x\step_{i:04d}.ply" for i in range(len(rows))] if names is None else names
    (path / "frame_paths.json").write_text(str(names).replace("'", '"'))
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_pooled_array_per_episode(tmp_path, version):
    path = pooled(tmp_path / "push" / "ep_0.zarr", FEAT, version=version)
    files = list_teacher(tmp_path)["push", "ep_0"]
    assert list(files) == [f"step_{i:04d}" for i in range(7)] and files["step_0003"] == TeacherFile(path, 3)
    np.testing.assert_array_equal(teacher_table(list(files.values()), tmp_path / "cache"), FEAT)
    with pytest.raises(InputError, match=r"ep_0\.zarr: one pooled embedding a step.*--teacher_points"):
        subsampled(files["step_0003"], 3, np.random.default_rng(0))


def test_pooled_names_that_do_not_fit(tmp_path):
    path = pooled(tmp_path / "push" / "ep_0.zarr", FEAT, names=[f"step_{i}" for i in range(9)])
    with pytest.raises(InputError, match=r"ep_0\.zarr: 7 embeddings and 9 names in frame_paths\.json"):
        list_teacher(tmp_path)
    (path / "frame_paths.json").write_text(str(["a/step_1.ply", "step_2", "b/step_1"] * 2 + ["x"]).replace("'", '"'))
    with pytest.raises(InputError, match=r"two rows, a/step_1\.ply and b/step_1, would both be the step 'step_1'"):
        list_teacher(tmp_path)
    faults = {}
    assert list_teacher(tmp_path, faults=faults) == {} and "would both be" in faults["push", "ep_0"]
    (path / "frame_paths.json").write_text('[["step_0", "step_1"]]')
    with pytest.raises(InputError, match=r"frame_paths\.json: expected a flat list"):
        list_teacher(tmp_path)
    (path / "frame_paths.json").unlink()
    assert list_teacher(tmp_path) == {}


def test_a_pooled_group_where_the_array_should_be(tmp_path):
    path = tmp_path / "push" / "ep_0.zarr"
    zarr.open_group(str(path), mode="w").create_group("per_frame_features")
    with pytest.raises(InputError, match=r"ep_0\.zarr: not a readable zarr array \('per_frame_features' is a group\)"):
        read_points(TeacherFile(path, 0))


# -- which file is whose


def test_several_tags_are_an_error_that_lists_them(tmp_path):
    a, b = (save(step_file(tmp_path, tag=t), {"pc_feat": FEAT}) for t in ("pointbert", "v2.colored-10k"))
    with pytest.raises(InputError, match=r"several teachers, pointbert .*, v2\.colored-10k .*teacher_tag"):
        list_teacher(tmp_path)
    assert list_teacher(tmp_path, "pointbert") == {("push", "ep_0"): {"step_0000": a}}
    assert list_teacher(tmp_path, "v2.colored-10k") == {("push", "ep_0"): {"step_0000": b}}
    with pytest.raises(InputError, match=r"no features with the tag other, found pointbert, v2\.colored-10k"):
        list_teacher(tmp_path, "other")


def test_two_teachers_in_different_episodes_are_not_mixed(tmp_path):
    for tag, episode in (("a", "ep_0"), ("b", "ep_1")):
        save(step_file(tmp_path, tag=tag, episode=episode), {"pc_feat": FEAT})
    with pytest.raises(InputError, match="several teachers, a .*, b "):
        list_teacher(tmp_path)
    assert list(list_teacher(tmp_path, "b")) == [("push", "ep_1")]


def test_a_step_that_is_there_twice(tmp_path):
    save(step_file(tmp_path), {"pc_feat": FEAT})
    zarr.create_array(str(step_file(tmp_path, suffix="zarr")), data=FEAT)
    with pytest.raises(InputError, match=r"a\.zarr: this step also exists in step_0000\..*a\.pt; keep one"):
        list_teacher(tmp_path)
    shutil.rmtree(step_file(tmp_path, suffix="zarr"))
    pooled(tmp_path / "push" / "ep_0.zarr", FEAT)
    with pytest.raises(InputError, match=r"ep_0\.zarr: this step also exists in .*; keep one"):
        list_teacher(tmp_path)


def test_only_teacher_files_are_listed(tmp_path):
    names = ["step_0001.ply", "step_0001.ply.ulip_a.pt.tmp", "step_0001.ulip_a.pt", "cam.left.0007.ply.ulip_a.pt"]
    for name in names:
        save(tmp_path / "push" / "ep.0" / name, {"pc_feat": FEAT})
    save(tmp_path / "push" / "loose.pt", {})
    assert {k: list(v) for k, v in list_teacher(tmp_path).items()} == {("push", "ep.0"): ["cam.left.0007"]}


# -- the table and its cache


@pytest.fixture
def files(tmp_path):
    means = np.random.default_rng(3).normal(size=(4, 16))
    names = [f"step_{i:04d}" for i in range(4)]
    tiny.write_teacher(tmp_path / "teacher", "push", "ep_0", names, means, np.random.default_rng(4))
    return list(list_teacher(tmp_path / "teacher")["push", "ep_0"].values()), means


def test_table_holds_the_known_means(tmp_path, files):
    table = teacher_table(files[0], tmp_path / "cache")
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, files[1], atol=1e-6)
    np.testing.assert_array_equal(teacher_table(files[0][::-1], tmp_path / "cache"), table[::-1])
    assert teacher_table([]).shape == (0, 0)


def test_two_trainings_may_fill_the_cache_at_once(tmp_path, files, monkeypatch):
    replace, both = os.replace, threading.Barrier(2, timeout=30)
    monkeypatch.setattr(os, "replace", lambda *paths: (both.wait(), replace(*paths)))  # both have written by then
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda _: teacher_table(files[0], tmp_path / "cache"), range(2)))
    np.testing.assert_array_equal(*tables)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1  # nothing half-written is left


def test_second_call_reads_nothing(tmp_path, files, monkeypatch):
    table = teacher_table(files[0], tmp_path / "cache")
    monkeypatch.setattr(teacher, "read_points", lambda file: pytest.fail(f"read {file.path}"))
    np.testing.assert_array_equal(teacher_table(files[0], tmp_path / "cache"), table)
    np.testing.assert_array_equal(teacher_table(files[0][1:3], tmp_path / "cache"), table[1:3])


def test_only_a_changed_file_is_read_anew(tmp_path, files, monkeypatch):
    teacher_table(files[0], tmp_path / "cache")
    changed = files[0][2]
    save(changed.path, {"pc_feat": torch.full((5, 16), 3.0)})
    read, reader = [], teacher.read_points
    monkeypatch.setattr(teacher, "read_points", lambda file: read.append(file) or reader(file))
    table = teacher_table(files[0], tmp_path / "cache")
    assert read == [changed]
    np.testing.assert_array_equal(table[2], np.full(16, 3.0))
    np.testing.assert_allclose(table[3], files[1][3], atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_a_changed_zarr_is_read_anew(tmp_path, version):
    """A chunk lies deep in the folder, whose own time of change does not tell."""
    path = pooled(tmp_path / "push" / "ep_0.zarr", FEAT, version=version)
    files = list(list_teacher(tmp_path)["push", "ep_0"].values())
    teacher_table(files, tmp_path / "cache")
    zarr.open_group(str(path), mode="r+")["per_frame_features"][4] = 5.0
    np.testing.assert_array_equal(teacher_table(files, tmp_path / "cache")[4], np.full(16, 5.0))


def test_the_users_folder_is_untouched(tmp_path, files):
    before = tiny.contents(tmp_path / "teacher")
    teacher_table(files[0], tmp_path / "cache")
    read_points(files[0][0])
    assert tiny.contents(tmp_path / "teacher") == before
    assert [p.suffix for p in (tmp_path / "cache" / "teacher_tables").iterdir()] == [".npz"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_features_are_named(tmp_path, files, value):
    feat = torch.ones(5, 16)
    feat[3, 3] = value
    save(files[0][1].path, {"pc_feat": feat})
    with pytest.raises(InputError, match=r"step_0001\..*: pc_feat holds non-finite values"):
        teacher_table(files[0], tmp_path / "cache")


def test_teachers_of_different_widths_are_named(tmp_path, files):
    save(files[0][1].path, {"pc_feat": torch.ones(5, 32)})
    with pytest.raises(InputError, match=r"different widths: 16 in .*; 32 in .*step_0001"):
        teacher_table(files[0], tmp_path / "cache")


# -- subsampling


def test_subsampled_is_of_a_subset_and_unbiased(tmp_path):
    feat = np.eye(7, dtype=np.float32)  # the mean of a subset tells its members
    file = save(tmp_path / "a.pt", {"pc_feat": feat})
    rng = np.random.default_rng(0)
    drawn = np.stack([subsampled(file, 3, rng) for _ in range(3000)])
    assert (drawn > 0).sum(1).tolist() == [3] * 3000
    np.testing.assert_allclose(drawn[drawn > 0], 1 / 3, atol=1e-7)
    np.testing.assert_allclose(drawn.mean(0), 1 / 7, atol=4 * np.sqrt(3 / 7 * 4 / 7 / 9 / 3000))
    np.testing.assert_allclose(subsampled(file, 7, rng), 1 / 7, atol=1e-7)
    np.testing.assert_allclose(subsampled(file, 100, rng), 1 / 7, atol=1e-7)


# -- pooling


def test_a_step_is_pooled_as_asked_and_each_way_is_kept_apart(tmp_path):
    feat = np.random.default_rng(1).standard_normal((9, 16)).astype(np.float32)
    file = save(tmp_path / "push" / "ep_0" / "step_0000.ply.ulip_tiny.pt", {"pc_feat": torch.from_numpy(feat)})
    both = np.concatenate([feat.mean(0), feat.max(0)])[None]
    for _ in range(2):  # the second time from the cache
        np.testing.assert_allclose(teacher_table([file], tmp_path / "cache", pooling="mean+max"), both, atol=1e-6)
        np.testing.assert_allclose(teacher_table([file], tmp_path / "cache"), both[:, :16], atol=1e-6)
    drawn = subsampled(file, 4, np.random.default_rng(0), "mean+max")
    assert drawn.shape == (32,) and (drawn[16:] <= both[0, 16:] + 1e-6).all()
