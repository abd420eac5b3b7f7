"""Packs: values as written, known places of frames, boxes of the encoders, refusals that run no code."""

import collections
import os
import pickle
import re
import sys
import time

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.data import mapped, system
from rgb2pc_lib.data.geometry import token_box
from rgb2pc_lib.data.listing import step_name
from rgb2pc_lib.data.packs import COPIES, FeaturePack, list_packs, look_ahead
from rgb2pc_lib.data.sampling import lattice
from rgb2pc_lib.errors import InputError

NAMES = [f"step_{i:04d}" for i in range(6)]
STEP_2 = [(0, 2), (1, 1), (2, 0)]  # where step_0002 stands in windows of 3 with stride 1


def marked(w=4, t=3, h=2, k=3, c=5):
    """Features whose every value tells where it stands; exact in fp16 and bf16 alike: small whole numbers."""
    return (torch.arange(w * t * h * k * c) % 251).view(w, t, h, k, c)


def save(path, features, paths=None, **more):
    w, t = features.shape[:2]
    paths = paths or [[f"/data/ep/step_{i + j:04d}.png" for j in range(t)] for i in range(w)]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"per_frame_features": features, "frame_paths": paths, **more}, path)
    return path


# -- values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_those_that_were_written(tmp_path, dtype):
    written = marked().to(dtype)
    pack = FeaturePack.open(save(tmp_path / "ep.pt", written))
    assert (pack.grid, pack.channels, pack.dtype, pack.nbytes) == ((2, 3), 5, dtype, written.nbytes)
    assert pack.steps == NAMES
    for step, places in pack.copies.items():
        place = pack.where(step)
        assert place in places
        frame = pack.frame(step)
        assert frame.dtype == dtype and torch.equal(frame, written[place])
        tokens, there = pack.tokens(step, lattice((2, 3)))
        assert torch.equal(tokens, written[place].flatten(0, 1)) and there.all()
        out = torch.empty(4, 5, dtype=dtype)
        pack.read(place, np.array([5, 0, 0, 3]), out.view(torch.int16 if dtype == torch.bfloat16 else dtype).numpy())
        assert torch.equal(out, written[place].flatten(0, 1)[[5, 0, 0, 3]])


@pytest.mark.parametrize("copy, place", [("middle", (1, 1)), ("last", (0, 2))])
def test_copies_on_known_places(tmp_path, copy, place):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked().half()))
    assert pack.copies["step_0002"] == STEP_2
    assert pack.where("step_0002", copy) == place
    assert torch.equal(pack.frame("step_0002", copy), marked().half()[place])
    assert pack.where("step_0000", copy) == (0, 0) and pack.where("step_0005", copy) == (3, 2)  # only one copy


def test_random_copy_is_each_copy_equally_often(tmp_path):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked().half()))
    drawn = collections.Counter(pack.where("step_0002", "random", d) for d in np.linspace(0, 1, 300, endpoint=False))
    assert drawn == dict.fromkeys(STEP_2, 100)
    assert pack.where("step_0002", "random", np.nextafter(1, 0)) == STEP_2[-1]


def test_middle_of_an_even_window(tmp_path):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked(w=5, t=4).half()))
    assert all(pack.where(s)[1] in (1, 2) for s in pack.steps if len(pack.copies[s]) == 4)


@pytest.mark.parametrize(
    "path, name",
    [
        ("step_0042.png", "step_0042"),
        ("/a/b.c/step_0042.jpg", "step_0042"),
        (r"D:\data\ep 1\step_0042.png", "step_0042"),
        (r"D:\data/mixed\step_0042.PNG", "step_0042"),
        ("step_0042", "step_0042"),
        ("step_0042.ply.ulip_vit.b-1.pt", "step_0042"),
        ("step_0042.ply", "step_0042"),
        ("cam.left.0042.jpg", "cam.left.0042"),  # only the last suffix goes, or all frames would be called "cam"
    ],
)
def test_step_names(path, name):
    assert step_name(path) == name


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),  # channels first
        lambda x: torch.cat([x, x + 1], 3)[:, :, :, : x.shape[3]],  # a crop of a wider grid
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    ],
)
def test_features_that_are_views(tmp_path, odd):
    """Strided frames are copied to be read. Advice about memory must never reach such a copy: it lies on the heap."""
    written = odd((torch.arange(2 * 2 * 30 * 31 * 64) % 2039).view(2, 2, 30, 31, 64).half())
    assert not written.is_contiguous()
    pack = FeaturePack.open(save(tmp_path / "ep.pt", written))
    assert torch.equal(pack.frame("step_0001"), written[pack.where("step_0001")])
    rng, out = np.random.default_rng(0), np.empty((5, 64), np.float16)
    for _ in range(20):
        neighbours = [np.ones(int(rng.integers(10, 3000))) for _ in range(100)]
        del neighbours[::3]
        pack.frames.will_need(pack.number((1, 0)))
        pack.read((1, 0), np.arange(5), out)
        assert np.array_equal(out, written[1, 0].flatten(0, 1)[:5].numpy())
        assert all((n == 1).all() for n in neighbours)


def test_a_tensor_that_requires_grad(tmp_path):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", torch.nn.Parameter(marked().float())))
    assert torch.equal(pack.frame("step_0000"), marked().float()[0, 0])


def test_numpy_numbers_in_meta_are_data(tmp_path):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked().half(), meta={"num_frames": np.int64(6)}))
    assert pack.meta == {"num_frames": 6}


def test_reading_leaves_the_file_alone(tmp_path):
    path = save(tmp_path / "task" / "ep.pt", marked(h=20, k=20).half(), meta={"model_name": "x"})
    before = tiny.contents(tmp_path)
    pack = FeaturePack.open(path)
    frame = pack.frame("step_0001")
    tokens, _ = pack.tokens("step_0001", lattice((20, 20)))
    frame += 1
    tokens += 1
    pack.read((0, 0), np.arange(9), np.empty((9, 5), np.float16))
    assert torch.equal(pack.frame("step_0001"), frame - 1), "what is handed out is a copy"
    assert tiny.contents(tmp_path) == before


# -- zarr


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_zarr_reads_like_pt(tmp_path, version, dtype):
    tokens = np.random.default_rng(0).normal(size=(6, 2, 3, 5)).astype(dtype)
    path = tiny.write_zarr(tmp_path, "task", "ep", NAMES, tokens, window=3, dtype=dtype, version=version)
    before = tiny.contents(tmp_path)
    pack = FeaturePack.open(path)
    assert (pack.steps, pack.grid, pack.channels) == (NAMES, (2, 3), 5)
    assert pack.dtype == {"f4": torch.float32, "f2": torch.float16}[dtype]
    assert pack.copies["step_0002"] == STEP_2 and pack.meta == {"window_size": 3}
    for i, step in enumerate(NAMES):
        for copy in COPIES:
            assert np.array_equal(pack.frame(step, copy).numpy(), tokens[i])
        assert np.array_equal(pack.tokens(step, lattice((2, 3)))[0].numpy(), tokens[i].reshape(6, 5))
        out = np.empty((2, 5), dtype)
        pack.frames.will_need(pack.number(pack.where(step)))
        pack.read(pack.where(step), np.array([4, 1]), out)
        assert np.array_equal(out, tokens[i].reshape(6, 5)[[4, 1]])
    assert tiny.contents(tmp_path) == before


def test_two_zarr_packs_do_not_share_windows(tmp_path):
    a, b = (np.full((6, 2, 3, 5), v, "f4") for v in (1, 2))
    packs = [
        FeaturePack.open(tiny.write_zarr(tmp_path, "task", n, NAMES, x)) for n, x in {"a": a, "b": b}.items()
    ]  # fmt: skip
    assert [p.frame("step_0000").unique().tolist() for p in packs * 2] == [[1], [2], [1], [2]]


def test_zarr_without_names_is_refused_and_left_alone(tmp_path):
    path = tiny.write_zarr(tmp_path, "task", "ep", NAMES, np.zeros((6, 2, 3, 5)) + 1)
    (path / "frame_paths.json").unlink()
    before = tiny.contents(tmp_path)
    with pytest.raises(InputError, match=r"ep\.zarr: no frame_paths\.json .*no step names.*cannot be paired"):
        FeaturePack.open(path)
    assert tiny.contents(tmp_path) == before


def test_unreadable_zarr_is_named(tmp_path):
    def broken(name, change):
        path = tiny.write_zarr(tmp_path, "task", name, NAMES, np.ones((6, 2, 3, 5)), version=3)
        change(path)
        return path

    chunk = "per_frame_features/c/1/0/0/0/0"
    cases = {
        "unfinished, only 2 of 3 chunks": lambda p: (p / chunk).unlink(),
        "not readable as JSON": lambda p: (p / "frame_paths.json").write_text("[["),
        "expected a zarr group": lambda p: (p / "zarr.json").write_text("{"),
        "expected frame_paths as 3 lists of 4 names": lambda p: (p / "frame_paths.json").write_text('["step_0.png"]'),
    }
    for i, (message, change) in enumerate(cases.items()):
        with pytest.raises(InputError, match=rf"case_{i}\.zarr.*{message}"):
            FeaturePack.open(broken(f"case_{i}", change))
    pack = FeaturePack.open(broken("late", lambda p: (p / chunk).write_bytes(b"no chunk")))
    with pytest.raises(InputError, match=r"late\.zarr: window 1 is unreadable"):
        pack.read((1, 0), np.arange(2), np.empty((2, 5), np.float32))


# -- refusals


class RunsCode:
    """Unpickling it would create a file."""

    target = ""

    def __reduce__(self):
        return os.mkdir, (self.target,)


class OldPack:
    def __init__(self, features, paths):
        self.per_frame_features, self.frame_paths = features, paths


@pytest.mark.parametrize("where", ["meta", "whole"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, where):
    RunsCode.target = str(tmp_path / "was_run")
    path = tmp_path / "task" / "ep.pt"
    if where == "meta":
        save(path, marked().half(), meta={"model_name": RunsCode()})
    else:
        path.parent.mkdir()
        torch.save(RunsCode(), path)
    with pytest.raises(InputError, match=r"ep\.pt: reading it would run code, posix\.mkdir"):
        FeaturePack.open(path)
    assert not (tmp_path / "was_run").exists()
    torch.load(path, weights_only=False)  # what it would have done: the test can fail
    assert (tmp_path / "was_run").exists()


def test_old_objects_are_refused_with_the_conversion(tmp_path):
    path = tmp_path / "task" / "ep.pt"
    path.parent.mkdir()
    torch.save(OldPack(marked().half(), []), path)
    command = re.escape(f"python tools/pack_features.py --from {tmp_path} --out NEW_ROOT")
    name = re.escape(f"{OldPack.__module__}.OldPack")
    with pytest.raises(InputError, match=rf"ep\.pt: reading it would run code, {name}.*{command}"):
        FeaturePack.open(path)
    torch.save(marked().half(), path)
    with pytest.raises(InputError, match=rf"ep\.pt: a bare tensor \[4, 3, 2, 3, 5\].*{command} --rgb_root FRAMES"):
        FeaturePack.open(path)
    torch.save({"per_frame_features": marked().half()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=rf"ep\.pt: in the torch format of before 2020.*{command}"):
        FeaturePack.open(path)


def _pack(**change):
    paths = [[f"step_{i + j}.png" for j in range(3)] for i in range(4)]
    raw = {"per_frame_features": marked().half(), "frame_paths": paths, "meta": {}, **change}
    return {k: v for k, v in raw.items() if v is not None}


@pytest.mark.parametrize(
    "content, message",
    [
        (_pack(per_frame_features=None), "expected a dict with the tensor 'per_frame_features', found a dict with"),
        (_pack(per_frame_features=[1]), "expected a dict with the tensor"),
        ([marked()], "expected a dict with the tensor 'per_frame_features', found a list"),
        (_pack(per_frame_features=marked()[0].half()), r"shape \[W, T, H, W, C\], found \[3, 2, 3, 5\]"),
        (_pack(per_frame_features=marked()[:, :, :, :0].half()), r"found \[4, 3, 2, 0, 5\]"),
        (_pack(per_frame_features=marked().double()), "expected fp16, bf16 or fp32 features, found torch.float64"),
        (_pack(frame_paths=None), "no list 'frame_paths', so its frames have no step names"),
        (_pack(frame_paths=[]), "no list 'frame_paths'"),
        (_pack(frame_paths=[["a.png"] * 3] * 3), r"as 4 lists of 3 names, found 3 lists with \[3\]"),
        (_pack(frame_paths=[["a.png"] * 3] * 3 + [["a.png"]]), r"as 4 lists of 3 names, found 4 lists with \[1, 3\]"),
        (_pack(frame_paths=["abc"] * 4), r"as 4 lists of 3 names, found 4 lists with \[0\]"),
        (_pack(frame_paths=[[1, 2, 3]] * 4), r"as 4 lists of 3 names, found 4 lists with \[0\]"),
        (_pack(frame_paths=7), "no list 'frame_paths'"),
        (_pack(meta=["VGGT"]), "expected 'meta' to be a dict, found a list"),
    ],
)
def test_what_is_not_a_pack_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "ep.pt")
    with pytest.raises(InputError, match=rf"ep\.pt: .*{message}"):
        FeaturePack.open(tmp_path / "ep.pt")


@pytest.mark.parametrize(
    "kind, remedy",
    [
        ("cut", "it is cut short; re-extract it"),
        ("empty", "it is empty; re-extract it"),
        ("text", "write it with torch.save"),  # nothing shows that it was damaged
        ("pickle", "write it with torch.save"),
        ("folder", "write it with torch.save"),
        ("missing", "there is no such file; check its path"),
    ],
)
def test_what_is_not_a_torch_file_is_named(tmp_path, kind, remedy):
    path = save(tmp_path / "ep.pt", marked().half())
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {"cut": whole[:-100], "text": b"features", "empty": b"", "pickle": pickle.dumps({"a": 1})}[kind]
        )
    with pytest.raises(InputError, match=rf"ep\.pt: not a readable torch file.*; {remedy}"):
        FeaturePack.open(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_end_in_one_clear_error_or_none(tmp_path):
    path = save(tmp_path / "ep.pt", marked().half())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    failed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(900)] = rng.integers(256)  # in the pickle, which comes first
        path.write_bytes(damaged)
        try:
            FeaturePack.open(path)
        except InputError:
            failed += 1
    assert failed > 50


def test_listing(tmp_path):
    save(tmp_path / "push" / "ep_1.pt", marked().half())
    tiny.write_zarr(tmp_path, "pull", "ep_1", NAMES, np.ones((6, 1, 1, 1)))
    (tmp_path / "push" / ".ep_2.pt.tmp").write_text("half-written")
    (tmp_path / "push" / "notes.txt").write_text("")
    assert list(list_packs(tmp_path)) == [("pull", "ep_1"), ("push", "ep_1")]
    tiny.write_zarr(tmp_path, "push", "ep_1", NAMES, np.ones((6, 1, 1, 1)))
    with pytest.raises(InputError, match=r"ep_1\.zarr: this episode also exists as ep_1\.pt; keep one"):
        list_packs(tmp_path)


# -- where tokens lie in the image


@pytest.mark.parametrize(
    "meta, expert, grid, raw, box",
    [
        ({"model_name": "CroCo"}, "", (14, 14), (640, 480), (0, 0, 1, 1)),  # a square resize sees all of it
        ({"model_name": "dinov3-vitb16"}, "dinov3", (14, 14), (480, 640), (0, 0, 1, 1)),
        ({"model_name": "VGGT-1B"}, "", (28, 37), (240, 320), (0, 0, 1, 1)),  # 4:3: nothing is cropped
        ({}, "da3", (27, 36), (240, 320), (0, 0, 1, 1)),
        ({"process_res_method": "upper_bound_crop"}, "da3", (27, 36), (240, 320), (0, 0, 1, 1)),  # 378 x 504 divides
        ({}, "vggt", (37, 37), (518, 518), (0, 0, 1, 1)),
        # portrait 480 x 640: scaled to 518 x 686 (49 rows of 14), of which the middle 518 rows are kept
        ({"model_name": "VGGT-1B"}, "", (37, 37), (640, 480), (0, 84 / 686, 1, 602 / 686)),
        ({}, "my_vggt", (37, 37), (640, 480), (0, 84 / 686, 1, 602 / 686)),  # named by its folder only
        ({"model_name": "VGGT-1B"}, "", (37, 37), None, (0, 0, 1, 1)),  # unknown size: all of it
        # 360 x 640 -> 284 x 504 (283.5 rounds to the even number); 20 rows of 14 = 280 remain, two cut at either side
        ({"process_res_method": "upper_bound_crop"}, "da3", (20, 36), (360, 640), (0, 2 / 284, 1, 282 / 284)),
        ({"process_res_method": "upper_bound_crop"}, "da3", (36, 20), (640, 360), (2 / 284, 0, 282 / 284, 1)),
        ({"process_res_method": "upper_bound_resize"}, "da3", (20, 36), (360, 640), (0, 0, 1, 1)),
        ({"model_name": "VGGT", "box": [0.1, 0.2, 0.3, 0.4]}, "", (37, 37), (640, 480), (0.1, 0.2, 0.3, 0.4)),
        ({"model_name": "VGGT", "raw_size": [640, 480]}, "", (37, 37), None, (0, 84 / 686, 1, 602 / 686)),
    ],
)
def test_boxes(meta, expert, grid, raw, box):
    assert token_box(meta, grid, expert, raw) == pytest.approx(box, abs=1e-12)


def test_positions_outside_the_box_are_absent(tmp_path):
    path = save(tmp_path / "ep.pt", marked(h=37, k=37, c=2).half(), meta={"model_name": "VGGT"})
    pack = FeaturePack.open(path, "vggt", (640, 480))
    top, bottom = 84 / 686, 602 / 686
    at = np.array([[0.5, top - 1e-6], [0.5, top + 1e-6], [0.5, bottom - 1e-6], [0.5, bottom + 1e-6], [0, 0.5]])
    assert pack.cells(at).tolist() == [-1, 18, 36 * 37 + 18, -1, 18 * 37]
    tokens, there = pack.tokens("step_0000", at)
    assert there.tolist() == [False, True, True, False, True]
    assert torch.equal(tokens[there], marked(h=37, k=37, c=2).half()[0, 0].flatten(0, 1)[[18, 36 * 37 + 18, 18 * 37]])
    centres = lattice((37, 37)) * [1, bottom - top] + [0, top]
    assert pack.cells(centres).tolist() == list(range(37 * 37)), "each cell's centre finds that cell"


def test_cells_of_the_whole_image(tmp_path):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked(h=2, k=4).half()))
    at = [[0, 0], [0.2499, 0.499], [0.25, 0.499], [0.9999, 0.9999], [1, 0.5], [0.5, 1], [-1e-9, 0], [0.6, 0.5]]
    assert pack.cells(np.array(at)).tolist() == [0, 0, 1, 7, -1, -1, -1, 6]
    assert pack.cells(np.array(at).reshape(2, 4, 2)).shape == (2, 4)


# -- cost


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells resident memory")
def test_resident_memory_stays_within_its_limit(tmp_path, monkeypatch):
    """Every frame of a 130 MB pack is visited; what stays in memory is far less, mapped pages included."""
    monkeypatch.setattr(mapped, "KEPT", 8e6)
    mapped.Frames.give_back(0)

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path = save(tmp_path / "ep.pt", torch.zeros(8, 8, 32, 32, 1024, dtype=torch.float16))
    assert path.stat().st_size > 130e6
    out, cells = np.ones((64, 1024), np.float16), np.arange(0, 1024, 16)
    FeaturePack.open(save(tmp_path / "warm.pt", marked().half())).read((0, 0), cells[:1], np.empty((1, 5), np.float16))
    before = resident()
    pack = FeaturePack.open(path)
    for w in range(8):
        for t in range(8):
            pack.frames.will_need(pack.number((w, t)))
            pack.read((w, t), cells, out)
            assert not out.any()
    assert resident() - before < 20e6
    np.asarray(pack.features).sum()
    assert resident() - before > 100e6, "the measure sees mapped pages"


@pytest.mark.skipif(sys.platform != "linux", reason="the cache can be emptied of a file on Linux only")
def test_a_frame_that_is_not_in_memory_is_fetched_ahead(tmp_path):
    path = save(tmp_path / "ep.pt", torch.ones(4, 8, 32, 32, 256, dtype=torch.float16))
    pack = FeaturePack.open(path)
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def fetched(w, t):
        return all(system.in_memory(pack.features[w, t, y].ctypes.data) for y in range(1, 31))

    if fetched(1, 3):
        pytest.skip("this file system keeps its files in memory")
    pack.frames.will_need(pack.number((1, 3)))
    end = time.monotonic() + 10
    while not fetched(1, 3) and time.monotonic() < end:
        time.sleep(0.01)
    assert fetched(1, 3) and not fetched(3, 7), "that frame, not the others"
    asked = []
    pack.frames.tells_cache = True
    real = system.libc()
    fake = type("libc", (), {"madvise": lambda self, *a: asked.append(a), "mincore": real.mincore})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "libc", lambda: fake)
        pack.frames.will_need(pack.number((1, 3)))
        assert not asked, "in memory already"
        pack.frames.will_need(pack.number((3, 7)))
        assert len(asked) == 1


# -- how far ahead a copy of a frame looks


@pytest.mark.parametrize(
    "meta, expert, windows, ahead, known",
    [
        ({"look_ahead": 0}, "vggt", (2, 3), [[0, 0, 0], [0, 0, 0]], True),  # the pack's own word counts
        ({"look_ahead": [2, 1, 0]}, "dinov3", (2, 3), [[2, 1, 0], [2, 1, 0]], True),
        ({"look_ahead": [[5], [3]]}, "", (2, 1), [[5], [3]], True),  # one copy of each frame
        ({"model_name": "VGGT-1B"}, "mine", (1, 3), [[2, 1, 0]], True),  # by name: the window as a whole
        ({"model_name": "depth-anything-3"}, "", (1, 2), [[1, 0]], True),
        ({}, "dinov3_large", (1, 3), [[0, 0, 0]], True),  # by name: single frames
        ({}, "dino_on_vggt", (1, 2), [[1, 0]], True),  # of two names the worse
        ({}, "mine", (1, 3), [[2, 1, 0]], False),  # of unknown ones a window is assumed
        ({}, "mine", (3, 1), [[0], [0], [0]], True),  # a window of one frame hides nothing
        ({"windows_of": 8}, "vggt", (2, 1), [[7], [7]], False),  # one copy was kept, and not which: the worst
        ({"windows_of": 8, "model_name": "croco"}, "", (2, 1), [[0], [0]], True),
    ],
)
def test_how_far_a_frame_looks_ahead(tmp_path, meta, expert, windows, ahead, known):
    pack = FeaturePack.open(save(tmp_path / "ep.pt", marked(*windows).half(), meta=meta), expert)
    assert pack.ahead.tolist() == ahead and pack.ahead_told is known


@pytest.mark.parametrize("wrong", [-1, 1.5, [1, 2], "all", [[1, 0, 0]] * 3, None])
def test_a_look_ahead_that_is_none_is_refused(tmp_path, wrong):
    path = save(tmp_path / "ep.pt", marked(2, 3).half(), meta={"look_ahead": wrong})
    with pytest.raises(
        InputError, match="ep.pt: expected 'look_ahead' in meta as a whole number, 3 of them or 2 lists"
    ):
        FeaturePack.open(path)


def test_the_copies_that_are_used_say_how_far_they_look(tmp_path):
    """Six frames in windows of 3 with stride 1: the middle copy sees one later frame but where a window ends."""
    packs = [FeaturePack.open(save(tmp_path / f"{i}.pt", marked().half()), "vggt") for i in range(2)]
    middle, last, drawn = (look_ahead(packs, copy) for copy in COPIES)
    assert (middle.mean, middle.most) == ((2 + 1 + 1 + 1 + 1 + 0) / 6, 2) and middle.window == 3
    assert (last.mean, last.most) == ((2 + 1) / 6, 2)  # the first two frames end no window
    assert (drawn.mean, drawn.most) == (1.0, 2)
    alone = look_ahead([FeaturePack.open(save(tmp_path / "a.pt", marked().half(), meta={"stride": 1}), "dinov3")])
    assert alone == (0, 0, True, 3, 1, False)
