"""Conversion: values and names survive, no code of a file runs, the source stays as it is, bad files do not stop it."""

import os
import re
import subprocess
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import tiny
import torch
from scripts import load_script

from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.data.packs import COPIES, FeaturePack
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings import convert as module
from rgb2pc_lib.recordings.convert import convert, name_frames

W, T = 4, 3
FEATURES = torch.from_numpy(np.random.default_rng(0).normal(size=(W, T, 2, 3, 5))).half()
NAMES = [f"step_{i:04d}" for i in range(W + T - 1)]
PATHS = [[f"/data/ep/{n}.png" for n in NAMES[w : w + T]] for w in range(W)]

tool = load_script(Path(__file__).parents[2] / "tools" / "pack_features.py")


@dataclass
class Meta:
    model_name: str = "VGGT"
    num_frames: int = 6


@dataclass
class OldPack:
    per_frame_features: torch.Tensor
    frame_paths: list
    meta: Meta = field(default_factory=Meta)
    window_size: int = T
    features: torch.Tensor = None


@dataclass
class SlotPack:
    __slots__ = ("per_frame_features", "frame_paths")
    per_frame_features: torch.Tensor
    frame_paths: list


class RunsCode:
    target, how = "", os.mkdir

    def __reduce__(self):
        return type(self).how, (self.target,)


class BuildsCode:
    """Code that would run while its state is set."""

    target = ""

    def __setstate__(self, state):
        os.mkdir(state["target"])


def save(root, content, task="push", episode="ep_0", **options):
    path = root / "old" / task / f"{episode}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def frames(root, names=NAMES, task="push", episode="ep_0"):
    folder = root / "rgb" / task / episode
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.png").touch()
    (folder / "notes.txt").touch()
    return root / "rgb"


def run(root, **more):
    faults = Faults()
    return *convert(root / "old", root / "new", progress=False, faults=faults, **more), list(faults.found.values())


def converted(root, **more):
    """The one pack, converted without error and opened; its source is as it was."""
    before = tiny.contents(root / "old")
    assert run(root, **more) == (1, 0, [])
    assert tiny.contents(root / "old") == before
    assert [str(p.relative_to(root / "new")) for p in (root / "new").rglob("*.*")] == ["push/ep_0.pt"]
    return FeaturePack.open(root / "new" / "push" / "ep_0.pt")


def refused(root, message, **more):
    written, kept, errors = run(root, **more)
    assert (written, kept, len(errors)) == (0, 0, 1) and not list((root / "new").rglob("*.*"))
    with pytest.raises(InputError, match=message):
        raise InputError(errors[0])


def check(pack, features=FEATURES):
    assert pack.steps == NAMES and pack.copies[NAMES[2]] == [(0, 2), (1, 1), (2, 0)]
    assert torch.equal(torch.from_numpy(np.array(pack.features)).view(pack.dtype), features)


# -- what is converted


@pytest.mark.parametrize("old", [OldPack(FEATURES, PATHS), SlotPack(FEATURES, PATHS)])
def test_objects_become_dicts(tmp_path, old):
    save(tmp_path, old)
    pack = converted(tmp_path)
    check(pack)
    raw = torch.load(pack.path, weights_only=True)
    assert list(raw) == ["per_frame_features", "frame_paths", "meta"] and raw["frame_paths"] == PATHS
    if isinstance(old, OldPack):
        assert raw["meta"] == {"model_name": "VGGT", "num_frames": 6, "window_size": T, "save_dtype": "fp16"}


def test_window_features_are_kept(tmp_path):
    save(tmp_path, OldPack(FEATURES, PATHS, features=torch.ones(W, 7)))
    assert torch.equal(torch.load(converted(tmp_path).path)["features"], torch.ones(W, 7))


@pytest.mark.parametrize("paths", [Path, PureWindowsPath])
def test_path_objects_and_numpy_become_plain(tmp_path, paths):
    content = {"per_frame_features": FEATURES, "frame_paths": [[paths(p) for p in w] for w in PATHS]}
    save(tmp_path, {**content, "meta": {"num_frames": np.int64(6), "img_size": (240, 320), "dtype": torch.float16}})
    pack = converted(tmp_path)
    check(pack)
    assert pack.meta == {"num_frames": 6, "img_size": [240, 320], "dtype": "torch.float16", "save_dtype": "fp16"}


def test_bare_tensors_take_their_names_from_the_frames(tmp_path):
    save(tmp_path, FEATURES)
    refused(tmp_path, r"ep_0\.pt: does not name its frames; give them with --rgb_root")
    check(converted(tmp_path, rgb_root=frames(tmp_path)))


def test_the_format_of_before_2020(tmp_path):
    path = save(tmp_path, {"per_frame_features": FEATURES, "frame_paths": PATHS}, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="before 2020"):
        FeaturePack.open(path)
    check(converted(tmp_path))


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_becomes_a_mapped_file(tmp_path, version):
    tokens = np.random.default_rng(0).normal(size=(W + T - 1, 2, 3, 5)).astype("f4")
    path = tiny.write_zarr(tmp_path / "old", "push", "ep_0", NAMES, tokens, window=T, version=version)
    pack = converted(tmp_path)
    check(pack, torch.from_numpy(np.stack([tokens[w : w + T] for w in range(W)])))
    assert isinstance(pack.features, np.ndarray) and pack.meta == {"window_size": T, "save_dtype": "fp32"}
    pack.path.unlink()
    (path / "frame_paths.json").unlink()
    refused(tmp_path, r"ep_0\.zarr: does not name its frames")
    check(converted(tmp_path, rgb_root=frames(tmp_path)), torch.from_numpy(np.array(pack.features)))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_dtype(tmp_path, dtype):
    features = FEATURES.float() + 1e-4
    save(tmp_path, OldPack(features, PATHS))
    pack = converted(tmp_path, dtype=dtype)
    check(pack, features.to(module.DTYPES[dtype]))
    assert pack.dtype == module.DTYPES[dtype] and pack.meta["save_dtype"] == dtype


def test_values_that_do_not_fit_are_not_cut(tmp_path):
    features = FEATURES.float()
    features[2, 1, 0, 0, 0] = 1e5
    save(tmp_path, OldPack(features, PATHS))
    refused(tmp_path, r"ep_0\.pt: values up to 1e\+05 do not fit into fp16", dtype="fp16")
    check(converted(tmp_path, dtype="bf16"), features.bfloat16())


def test_double_needs_a_choice(tmp_path):
    save(tmp_path, OldPack(FEATURES.double(), PATHS))
    refused(tmp_path, r"ep_0\.pt: features of type torch\.float64; choose one with --dtype")
    check(converted(tmp_path, dtype="fp16"))


def test_only_what_is_seen_is_written(tmp_path):
    """A slice drags the whole tensor it was cut from into the file; the converted pack does not."""
    big = torch.zeros(50, *FEATURES.shape[1:]).half()
    big[:W] = FEATURES
    path = save(tmp_path, OldPack(big[:W], PATHS))
    pack = converted(tmp_path)
    check(pack)
    assert pack.path.stat().st_size < path.stat().st_size / 3


# -- code


@pytest.mark.parametrize("how", [os.mkdir, os.system, exec, eval, subprocess.check_output])
@pytest.mark.parametrize("inside", [True, False])
def test_calls_are_refused_and_not_run(tmp_path, how, inside):
    command = {os.mkdir: "{}", os.system: "mkdir {}", exec: "import os; os.mkdir('{}')",
               eval: "__import__('os').mkdir('{}')", subprocess.check_output: ["mkdir", "{}"]}[how]  # fmt: skip
    folder = str(tmp_path / "was_run")
    RunsCode.target = [c.format(folder) for c in command] if isinstance(command, list) else command.format(folder)
    RunsCode.how = staticmethod(how)
    evil = RunsCode()
    path = save(tmp_path, OldPack(FEATURES, PATHS, meta=evil) if inside else evil)
    refused(tmp_path, r"ep_0\.pt: .*would run code")
    assert not os.path.exists(folder)
    torch.load(path, weights_only=False)  # what it would have done: the test can fail
    assert os.path.exists(folder)


def test_setstate_of_the_old_class_is_not_run(tmp_path):
    evil = BuildsCode()
    evil.target = str(tmp_path / "was_run")
    evil.per_frame_features, evil.frame_paths = FEATURES, PATHS
    path = save(tmp_path, evil)
    check(converted(tmp_path))
    assert not (tmp_path / "was_run").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "was_run").exists()


def test_nothing_stays_allowed_afterwards(tmp_path):
    path = save(tmp_path, OldPack(FEATURES, PATHS))
    before = set(torch.serialization.get_safe_globals())
    converted(tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(InputError, match=f"would run code, {re.escape(OldPack.__module__)}.OldPack"):
        FeaturePack.open(path)


# -- names from frames


@pytest.mark.parametrize(
    "frames, w, t, stride, starts",
    [
        (6, 4, 3, 0, [0, 1, 2, 3]),
        (10, 10, 1, 0, list(range(10))),
        (8, 1, 8, 0, [0]),
        (20, 2, 8, 12, [0, 12]),
        (16, 2, 8, 8, [0, 8]),
        (7, 3, 3, 0, [0, 2, 4]),
        (21, 3, 8, 5, [0, 5, 10]),  # the last three frames stand in no window
    ],
)
def test_windows_are_named_where_one_stride_explains_them(frames, w, t, stride, starts):
    names = [f"step_{i}" for i in range(frames)]
    assert name_frames(Path("ep.pt"), (w, t), names, stride) == [names[s : s + t] for s in starts]


@pytest.mark.parametrize(
    "frames, w, t, stride, message",
    [
        (6, 5, 3, 0, "5 windows of 3 should cover the 6 frames of --rgb_root; no stride does"),
        (5, 4, 3, 0, "no stride does"),
        (2, 1, 3, 0, "no stride does"),
        (3, 2, 3, 0, "no stride does"),
        (20, 1, 8, 0, "no stride does"),  # which eight of the twenty?
        (20, 3, 8, 0, "strides 5, 6 do: give --stride"),
        (20, 3, 8, 4, "no stride does"),
    ],
)
def test_windows_that_cannot_be_named(frames, w, t, stride, message):
    with pytest.raises(InputError, match=rf"ep\.pt: .*{message}"):
        name_frames(Path("ep.pt"), (w, t), ["step"] * frames, stride)


def test_frames_count_by_their_numbers(tmp_path):
    save(tmp_path, FEATURES)
    names = [f"step_{i}" for i in (1, 2, 9, 10, 11, 100)]
    assert converted(tmp_path, rgb_root=frames(tmp_path, names)).steps == names


# -- the whole root


OtherTuple = namedtuple("OtherTuple", "per_frame_features frame_paths")


def test_bad_files_do_not_stop_the_others(tmp_path, capsys):
    save(tmp_path, OldPack(FEATURES, PATHS), episode="good_0")
    save(tmp_path, {"per_frame_features": FEATURES, "frame_paths": PATHS}, "pull", "good_1")
    save(tmp_path, FEATURES, episode="bare")
    save(tmp_path, {"other": 1}, episode="other")
    save(tmp_path, OtherTuple(FEATURES, PATHS), episode="named_tuple")
    save(tmp_path, OldPack(FEATURES, PATHS[1:]), episode="names")
    save(tmp_path, OldPack(FEATURES[0], PATHS), episode="shape")
    save(tmp_path, FEATURES, episode="text").write_text("no torch file")
    cut = save(tmp_path, OldPack(FEATURES, PATHS), episode="cut")
    cut.write_bytes(cut.read_bytes()[:-50])
    before = tiny.contents(tmp_path / "old")
    argv = ["--from", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    assert tool.main(argv) == 2
    out, err = capsys.readouterr()
    assert "2 packs written, 0 kept, 7 not converted" in out and "Traceback" not in err
    errors = [line.strip() for line in err.splitlines() if line.startswith("  /")]
    assert len(errors) == 7 and "7 left out" in err
    assert set(errors) <= {line.strip() for line in (tmp_path / "new" / "faults.txt").read_text().splitlines()}
    for name, message in {
        "bare": "does not name its frames",
        "other": r"expected an object or tensor with .*found one with \['other'\]",
        "named_tuple": "expected an object or tensor",
        "names": "expected frame_paths as 4 lists of 3 names, found 3 lists",
        "shape": "expected an object or tensor with",
        "text": "not a readable torch file",
        "cut": "not a readable torch file",
    }.items():
        with pytest.raises(InputError, match=rf"/old/push/{name}\.pt: {message}"):
            raise InputError(next(e for e in errors if f"/{name}.pt" in e))
    assert sorted(p.name for p in (tmp_path / "new").rglob("*.*")) == ["faults.txt", "good_0.pt", "good_1.pt"]
    assert tiny.contents(tmp_path / "old") == before


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    for e in range(3):
        save(tmp_path, OldPack(FEATURES, PATHS), episode=f"ep_{e}")
    writer, calls = torch.save, []

    def killed(pack, path, *more):
        calls.append(path)
        writer(pack, path, *more)
        if len(calls) == 2:
            os.truncate(path, 100)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    argv = ["--from", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    assert tool.main(argv) == 130
    assert [p.name for p in (tmp_path / "new" / "push").iterdir()] == ["ep_0.pt"], "nothing half-written"
    first = tiny.contents(tmp_path / "new")["push/ep_0.pt"]
    assert tool.main(argv) == 0
    assert "2 packs written, 1 kept, 0 not converted" in capsys.readouterr().out
    assert tiny.contents(tmp_path / "new")["push/ep_0.pt"] == first
    assert tool.main([*argv, "--dtype", "bf16"]) == 2
    assert "is there already as torch.float16, not bf16" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["old", "old/push", "old/new/root", "new/../old"])
def test_never_into_the_source(tmp_path, capsys, out):
    save(tmp_path, OldPack(FEATURES, PATHS))
    (tmp_path / "new").mkdir()
    before = tiny.contents(tmp_path / "old")
    assert tool.main(["--from", str(tmp_path / "old"), "--out", str(tmp_path / out)]) == 2
    assert "lies in the folder that is converted" in capsys.readouterr().err
    os.symlink(tmp_path / "old", tmp_path / "link")
    assert tool.main(["--from", str(tmp_path / "old"), "--out", str(tmp_path / "link")]) == 2
    assert tiny.contents(tmp_path / "old") == before


def test_missing_roots(tmp_path, capsys):
    assert tool.main(["--from", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 2
    (tmp_path / "old").mkdir()
    assert tool.main(["--from", str(tmp_path / "old"), "--out", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert "none: expected a folder" in err and "old: expected packs" in err and "Traceback" not in err


# -- one copy of each frame


@pytest.mark.parametrize("copy", ["middle", "last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_copy_reads_like_the_policy_that_chose_it(tmp_path, copy, dtype):
    """Copies of a frame differ (they saw different windows): the packed one is the policy's, under every policy."""
    path = tmp_path / "old" / "push" / "ep_0.pt"
    path.parent.mkdir(parents=True)
    torch.save({"per_frame_features": FEATURES.to(dtype), "frame_paths": PATHS, "meta": {"model_name": "VGGT"}}, path)
    before = tiny.contents(tmp_path / "old")
    assert run(tmp_path, frame_copy=copy) == (1, 0, [])
    old, new = FeaturePack.open(path), FeaturePack.open(tmp_path / "new" / "push" / "ep_0.pt")
    assert new.shape == (len(old.steps), 1, *old.shape[2:]) and new.steps == sorted(old.steps) and new.dtype == dtype
    for step in old.steps:
        for policy in COPIES:
            assert torch.equal(new.frame(step, policy), old.frame(step, copy))
    assert any(not torch.equal(old.frame(s, "middle"), old.frame(s, "last")) for s in old.steps)
    assert new.meta["frame_copy"] == copy and new.meta["windows_of"] == old.shape[1] and new.box == old.box
    expected = [[old.ahead[old.where(step, copy)]] for step in new.steps]
    assert new.ahead.tolist() == expected and max(expected) > min(expected)  # how far each copy looked ahead stays
    assert tiny.contents(tmp_path / "old") == before
    assert run(tmp_path, frame_copy=copy) == (0, 1, [])
    other = {"middle": "last", "last": "middle"}[copy]
    _, _, errors = run(tmp_path, frame_copy=other)
    assert len(errors) == 1 and f"with frame_copy {copy}, not {other}" in errors[0]


def test_one_copy_of_zarr_in_another_type(tmp_path):
    names, tokens = [f"step_{i:04d}" for i in range(6)], np.random.default_rng(0).normal(size=(6, 2, 3, 5))
    tiny.write_zarr(tmp_path / "old", "push", "ep_0", names, tokens)
    assert convert(tmp_path / "old", tmp_path / "new", dtype="fp16", frame_copy="middle", progress=False)[0] == 1
    pack = FeaturePack.open(tmp_path / "new" / "push" / "ep_0.pt")
    for i, name in enumerate(names):
        assert np.array_equal(pack.frame(name).numpy(), tokens[i].astype("f4").astype("f2"))


def test_copies_of_one_pack_may_not_be_random(tmp_path):
    with pytest.raises(InputError, match="one copy a frame cannot be random"):
        convert(tmp_path, tmp_path / "new", frame_copy="random")
