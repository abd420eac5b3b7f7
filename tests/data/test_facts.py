"""Kind E: two facts about a file are compared where they can be; no default stands in for what was not written."""

import json

import numpy as np
import pytest
import tiny
import torch
import zarr

from rgb2pc_lib.data.geometry import box_doubt, token_box
from rgb2pc_lib.data.packs import KEY, FeaturePack
from rgb2pc_lib.data.teacher import list_teacher, read_points
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings.convert import as_pack

NAMES = [f"step_{i:04d}" for i in range(6)]
TOKENS = np.random.default_rng(0).normal(size=(6, 2, 3, 4))


def whole(pack):
    """Everything that can be asked of a pack."""
    return [pack.grid_at(place) for places in pack.copies.values() for place in places]


def open_pack(path):
    return whole(FeaturePack.open(path))


def converted(path):
    return as_pack(path)[KEY]


def as_zarr(root, version, shards=None, fill=0.0):
    path = tiny.write_zarr(root / "plain", "push", "ep_0", NAMES, TOKENS, window=2, version=version)
    features = zarr.open_group(str(path), mode="r")[KEY][:]
    path = path.rename(root / "ep_0.zarr")
    group = zarr.open_group(str(path), mode="a")
    del group[KEY]
    more = {"shards": shards} if shards else {}
    array = group.create_array(
        KEY, shape=features.shape, chunks=(1, *features.shape[1:]), dtype="f4", fill_value=fill, **more
    )
    array[:] = features
    return path


def data_files(path):
    return sorted(p for p in (path / KEY).rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".json")


@pytest.mark.parametrize("fill", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("version, shards", [(2, None), (3, None), (3, (5, 2, 2, 3, 4))])
@pytest.mark.parametrize("read", [open_pack, converted])
def test_a_chunk_that_is_not_there_is_never_read_as_its_fill_value(tmp_path, read, version, shards, fill):
    path = as_zarr(tmp_path, version, shards, fill)
    read(path)
    files = data_files(path)
    assert len(files) == (1 if shards else 5)
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match=r"ep_0.zarr: unfinished, only .* chunks are there"):
            read(path)
        file.write_bytes(content)
    read(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_teachers_chunks_likewise(tmp_path, version):
    path = tmp_path / "push" / "ep_0" / "step_0000.ply.ulip_x.zarr"
    path.parent.mkdir(parents=True)
    array = zarr.create_array(str(path), shape=(40, 8), chunks=(10, 8), dtype="f4", zarr_format=version)
    array[:] = np.ones((40, 8))
    ((_, steps),) = list_teacher(tmp_path).items()
    read_points(steps["step_0000"])
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".json"):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match="unfinished, only 3 of 4 chunks"):
            read_points(steps["step_0000"])
        file.write_bytes(content)


@pytest.mark.parametrize("windows, frames", [(4, 2), (6, 2), (5, 1), (5, 3), (0, 2)])
@pytest.mark.parametrize("kind", ["pt", "zarr"])
def test_names_are_counted_against_the_features(tmp_path, kind, windows, frames):
    paths = [[f"{w}_{t}.png" for t in range(frames)] for w in range(windows)]
    if kind == "pt":
        path = tiny.write_pack(tmp_path, "push", "ep_0", NAMES, TOKENS, window=2)
        torch.save(torch.load(path, weights_only=True) | {"frame_paths": paths}, path)
    else:
        path = tiny.write_zarr(tmp_path, "push", "ep_0", NAMES, TOKENS, window=2)
        (path / "frame_paths.json").write_text(json.dumps(paths))
    with pytest.raises(
        InputError, match="ep_0.*(expected frame_paths as 5 lists of 2 names|so its frames have no step)"
    ):
        FeaturePack.open(path)


@pytest.mark.parametrize("shape", [[4, 2, 2, 3, 4], [5, 2, 3, 2, 4], [5, 2, 2, 3]])
def test_a_shape_that_is_told_is_held_against_the_array(tmp_path, shape):
    path = tiny.write_zarr(tmp_path, "push", "ep_0", NAMES, TOKENS, window=2)
    (path / "shape.json").write_text(json.dumps([5, 2, 2, 3, 4]))
    open_pack(path)
    (path / "shape.json").write_text(json.dumps(shape))
    with pytest.raises(InputError, match="shape.json says .*, the array has"):
        FeaturePack.open(path)


@pytest.mark.parametrize("change", [1, -1])
def test_a_pooled_teachers_names_are_counted_against_its_rows(tmp_path, change):
    group = zarr.open_group(str(tmp_path / "push" / "ep_0.zarr"), mode="w")
    group.create_array(KEY, shape=(6, 8), dtype="f4")[:] = np.ones((6, 8))
    names = tmp_path / "push" / "ep_0.zarr" / "frame_paths.json"
    names.write_text(json.dumps(NAMES))
    assert len(list_teacher(tmp_path)["push", "ep_0"]) == 6
    names.write_text(json.dumps([*NAMES, "step_0006"][: 6 + change]))
    with pytest.raises(InputError, match=f"6 embeddings and {6 + change} names in frame_paths.json"):
        list_teacher(tmp_path)


SIZES = [(240, 320), (480, 640), (720, 1280), (224, 224), (640, 480), (400, 300)]  # height, width
GRIDS = {  # expert -> its grid for an image, as its own code makes it
    "croco": lambda h, w: (14, 14),
    "dinov3": lambda h, w: (14, 14),
    "vggt": lambda h, w: (min(round(h * 518 / w / 14), 37), 37),
    "da3": lambda h, w: tuple(round(504 / max(h, w) * side / 14) for side in (h, w)),
}


@pytest.mark.parametrize("expert", GRIDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_grid_of_other_images_is_doubted_or_refused(expert, size):
    """Every expert's own grid is believed; the grid of an image of another shape is not taken for the whole of it."""
    own = GRIDS[expert](*size)
    assert not box_doubt({}, own, expert, size)
    for other in SIZES:
        grid = GRIDS[expert](*other)
        far = abs(np.log(other[0] / other[1] * size[1] / size[0])) > 0.25
        if far and grid != own:
            try:
                told = box_doubt({}, grid, expert, size)
                box = token_box({}, grid, expert, size)
            except InputError as e:
                told, box = str(e), None
            assert told or box != (0, 0, 1, 1), (grid, box)
        told = box_doubt({"raw_size": list(other)}, grid, expert, size)
        assert bool(told) == (abs(other[0] * size[1] - other[1] * size[0]) > max(*other, *size)), told
