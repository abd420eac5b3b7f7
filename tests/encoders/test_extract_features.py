"""Packs from frames: the documented layout, resumed after any interruption, and errors that name the file."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rgb2pc_lib.data.packs import FeaturePack, list_packs
from rgb2pc_lib.encoders import extract as module
from rgb2pc_lib.encoders.encode import encode, frames_encoded, windows
from rgb2pc_lib.encoders.extract import disk_needs, extract, list_frames
from rgb2pc_lib.encoders.images import Expert, ImageEncoder, square
from rgb2pc_lib.errors import InputError

PROJECT = Path(__file__).parents[2]


def toy(seen=None):
    """The mean colour of each quarter of the image; `seen` collects how many frames each call had."""

    def features(x):
        if seen is not None:
            seen.append(len(x))
        return F.adaptive_avg_pool2d(x, 2)

    return ImageEncoder(**vars(Expert("toy", 3, square(8, 2), 8, 4)), features=features, weights="none")


def record(root, task="push", episode="ep_0", steps=7, size=(8, 8), suffix="png"):
    """Frame i is red i in its top right quarter, blue elsewhere."""
    folder = root / task / episode
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    for i in range(steps):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 2] = 200
        image[: height // 2, width // 2 :] = [i, 0, 0]
        Image.fromarray(image).save(folder / f"step_{i}.{suffix}")  # without leading zeros: order must be by number
    return root


def run(root, out, **options):
    return extract(toy(), root, out, **{"window": 4, "stride": 2, "dtype": "fp32", "progress": False} | options)


# -- layout


def test_windows_cover_every_frame():
    assert windows(16, 8, 8) == [list(range(8)), list(range(8, 16))]
    assert windows(7, 4, 2) == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]  # the last one is shifted back
    assert windows(3, 8, 8) == [[0, 1, 2]]
    assert windows(8, 8, 1) == [list(range(8))]
    with pytest.raises(InputError, match="stride"):
        windows(16, 4, 5)


def test_a_pack_has_the_documented_layout(tmp_path):
    root, out = record(tmp_path / "rgb", steps=12), tmp_path / "features_toy"
    assert run(root, out) == (1, 0)
    pack = torch.load(out / "push" / "ep_0.pt", weights_only=True)
    tokens, paths, meta = pack["per_frame_features"], pack["frame_paths"], pack["meta"]
    assert tokens.shape == (5, 4, 2, 2, 3)
    assert [len(p) for p in paths] == [4] * 5 and paths[0][0] == "push/ep_0/step_0.png"
    assert paths[4] == [f"push/ep_0/step_{i}.png" for i in (8, 9, 10, 11)]  # by number: 9 before 10
    for w in range(5):
        for t in range(4):
            assert (tokens[w, t, 0, 1] * 255).round().tolist() == [2 * w + t, 0, 0]  # row 0, column 1: top right
            assert (tokens[w, t, 1, 0] * 255).round().tolist() == [0, 0, 200]
    assert meta == {
        "model_name": "toy", "weights": "none", "episode_dir": "push/ep_0", "task_name": "push",
        "episode_name": "ep_0", "num_frames": 12, "window_size": 4, "stride": 2, "num_windows": 5, "img_size": 8,
        "patch_size": 4, "enc_embed_dim": 3, "save_dtype": "fp32", "raw_size": [8, 8], "box": [0, 0, 1, 1],
        "grid": [2, 2], "licence": "", "layer": "", "pixels": "bilinear, antialiased", "look_ahead": 0,
    }  # fmt: skip


def test_the_training_reads_what_was_written(tmp_path):
    out = tmp_path / "features_toy"
    run(record(tmp_path / "rgb"), out, dtype="fp16")
    ((key, path),) = list_packs(out).items()
    pack = FeaturePack.open(path)
    assert key == ("push", "ep_0") and pack.steps == [f"step_{i}" for i in range(7)] and pack.box == (0, 0, 1, 1)
    for i in range(7):
        tokens, covered = pack.tokens(f"step_{i}", np.array([[0.75, 0.25], [0.25, 0.75]]))
        assert covered.all()
        assert (tokens.float() * 255).round().tolist() == [[i, 0, 0], [0, 0, 200]]


def test_each_frame_is_encoded_once(tmp_path):
    root, seen = record(tmp_path / "rgb", steps=7), []
    extract(toy(seen), root, tmp_path / "out", window=4, stride=1, batch=3, progress=False)
    assert seen == [3, 3, 1]


def first_of_window():
    """An expert that sees frames together: a frame's tokens hold its own red, and that of its window's first frame."""

    def features(x):
        own = F.adaptive_avg_pool2d(x, 2)
        return torch.cat([own, own[:1].expand_as(own)], 1)

    return ImageEncoder(**vars(Expert("pair", 6, square(8, 2), 8, 4, together=True)), features=features, weights="none")


def test_causal_windows_end_at_their_frame(tmp_path):
    """The first frames have shorter windows; nothing is repeated to fill them."""
    root, out = record(tmp_path / "rgb", steps=6), tmp_path / "out"
    how = dict(window=3, causal=True, dtype="fp32", progress=False)
    assert extract(first_of_window(), root, out, **how) == (1, 0)
    pack = torch.load(out / "push" / "ep_0.pt", weights_only=True)
    tokens, meta = pack["per_frame_features"], pack["meta"]
    assert tokens.shape == (6, 1, 2, 2, 6) and pack["frame_paths"] == [[f"push/ep_0/step_{i}.png"] for i in range(6)]
    red = (tokens[:, 0, 0, 1] * 255).round().int()
    assert red[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and red[:, 3].tolist() == [0, 0, 0, 1, 2, 3]
    assert (meta["look_ahead"], meta["causal"], meta["window_size"], meta["num_windows"]) == (0, True, 3, 6)
    assert extract(first_of_window(), root, out, **how) == (0, 1)
    with pytest.raises(InputError, match="made with .*num_windows 6 instead of 4, causal True instead of False"):
        extract(first_of_window(), root, out, **how | {"causal": False, "stride": 1})
    assert "ep_0: [6, 1, 2, 2, 6]" in disk_needs(first_of_window(), root, out, window=3, causal=True)
    assert frames_encoded(first_of_window(), 6, 3, 1, causal=True) == 1 + 2 + 4 * 3


def test_packs_say_how_far_ahead_each_copy_looks(tmp_path):
    root = record(tmp_path / "rgb", steps=6)
    for name, encoder, expected in (("pair", first_of_window(), [[2, 1, 0]] * 2), ("toy", toy(), [[0, 0, 0]] * 2)):
        extract(encoder, root, tmp_path / name, window=3, stride=3, progress=False)
        pack = FeaturePack.open(tmp_path / name / "push" / "ep_0.pt")
        assert pack.ahead.tolist() == expected and pack.ahead_told
    extract(toy(), root, tmp_path / "causal", causal=True, window=3, progress=False)  # of single frames: one copy each
    pack = FeaturePack.open(tmp_path / "causal" / "push" / "ep_0.pt")
    assert pack.shape[:2] == (6, 1) and pack.steps == [f"step_{i}" for i in range(6)]


def test_an_expert_that_sees_frames_together_gets_each_window(tmp_path):
    """Its tokens say the red of the window's first frame beside the frame's own: every (window, frame) is stored."""
    root, seen = record(tmp_path / "rgb", steps=7), []

    def features(x):
        seen.append(len(x))
        own = F.adaptive_avg_pool2d(x, 2)
        return torch.cat([own, own[:1].expand_as(own)], 1)

    pair = ImageEncoder(**vars(Expert("pair", 6, square(8, 2), 8, 4, together=True)), features=features, weights="none")
    extract(pair, root, tmp_path / "out", window=4, stride=2, batch=1, dtype="fp32", progress=False)
    assert seen == [4, 4, 4]  # whole windows, whatever the batch
    tokens = torch.load(tmp_path / "out" / "push" / "ep_0.pt", weights_only=True)["per_frame_features"]
    red = (tokens[:, :, 0, 1] * 255).round().int()
    assert red[:, :, 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert red[:, :, 3].tolist() == [[0] * 4, [2] * 4, [3] * 4]
    images = torch.from_numpy(module.Frames(sorted((root / "push" / "ep_0").iterdir()))[0:7])
    torch.testing.assert_close(encode(pair, images, window=4, stride=2), tokens, rtol=0, atol=0)  # the same from memory


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_the_batch_shrinks_until_it_fits(tmp_path, error, capsys):
    root, seen = record(tmp_path / "rgb", steps=7), []
    expected = encode(toy(), module.Frames(list_frames(root)["push", "ep_0"]), batch=7)

    def features(x):
        if len(x) > 2:
            raise error
        seen.append(len(x))
        return F.adaptive_avg_pool2d(x, 2)

    small = dataclasses.replace(toy(), features=features)
    tokens = encode(small, module.Frames(list_frames(root)["push", "ep_0"]), batch=7)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    assert seen == [2, 2, 2, 1] and "toy: out of memory, 2 frame(s) at a time" in capsys.readouterr().err


def test_what_cannot_shrink_says_so(tmp_path):
    root = record(tmp_path / "rgb", steps=4)

    def features(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    none = dataclasses.replace(toy(), features=features)
    with pytest.raises(InputError, match=r"1 frame\(s\) of 8 x 8 pixels together do not fit .* another --device"):
        extract(none, root, tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="4 frame.* do not fit .* smaller --window"):
        extract(dataclasses.replace(none, together=True), root, tmp_path / "out", progress=False)
    other = dataclasses.replace(toy(), features=lambda x: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="mat1"):  # other errors are not taken for a lack of memory
        extract(other, root, tmp_path / "out", progress=False)


def test_side_by_side_changes_nothing(tmp_path):
    for e in range(5):
        record(tmp_path / "rgb", episode=f"ep_{e}", steps=3 + e)
    assert run(tmp_path / "rgb", tmp_path / "one", workers=1) == run(tmp_path / "rgb", tmp_path / "three", workers=3)
    for path in list_packs(tmp_path / "one").values():
        assert path.read_bytes() == (tmp_path / "three" / path.relative_to(tmp_path / "one")).read_bytes()


def test_the_thread_setting_is_given_back(tmp_path):
    before, later = torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        run(record(tmp_path / "rgb"), tmp_path / "out")
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 3 and later == [3]
    finally:
        torch.set_num_threads(before)


def test_short_and_single_frame_episodes(tmp_path):
    record(tmp_path / "rgb", episode="short", steps=3)
    record(tmp_path / "rgb", episode="single", steps=1)
    run(tmp_path / "rgb", tmp_path / "out", window=8, stride=8)
    for episode, steps in [("short", 3), ("single", 1)]:
        pack = torch.load(tmp_path / "out" / "push" / f"{episode}.pt", weights_only=True)
        assert pack["per_frame_features"].shape[:2] == (1, steps)
        assert pack["meta"]["window_size"] == pack["meta"]["num_frames"] == steps


def test_only_the_tasks_asked_for(tmp_path):
    record(tmp_path / "rgb", task="push")
    record(tmp_path / "rgb", task="pull", suffix="jpg")
    assert run(tmp_path / "rgb", tmp_path / "out", tasks=["pull"]) == (1, 0)
    assert list(list_packs(tmp_path / "out")) == [("pull", "ep_0")]
    with pytest.raises(InputError, match="expected frames of pul, found pull, push; check --rgb_root and --tasks"):
        run(tmp_path / "rgb", tmp_path / "out", tasks=["pul"])


# -- interruption


def test_a_finished_pack_is_kept(tmp_path):
    record(tmp_path / "rgb", episode="ep_0")
    run(tmp_path / "rgb", tmp_path / "out")
    kept = tmp_path / "out" / "push" / "ep_0.pt"
    before = kept.stat().st_mtime_ns
    record(tmp_path / "rgb", episode="ep_1")
    assert run(tmp_path / "rgb", tmp_path / "out") == (1, 1)
    assert kept.stat().st_mtime_ns == before


def test_interrupted_between_writing_and_naming(tmp_path, monkeypatch):
    record(tmp_path / "rgb", episode="ep_0")
    record(tmp_path / "rgb", episode="ep_1")
    run(tmp_path / "rgb", tmp_path / "whole")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        run(tmp_path / "rgb", tmp_path / "out")
    assert list_packs(tmp_path / "out") == {}
    assert run(tmp_path / "rgb", tmp_path / "out") == (2, 0)
    assert sorted(p.name for p in (tmp_path / "out" / "push").iterdir()) == ["ep_0.pt", "ep_1.pt"]  # nothing left over
    for name in ("ep_0.pt", "ep_1.pt"):
        assert (tmp_path / "out" / "push" / name).read_bytes() == (tmp_path / "whole" / "push" / name).read_bytes()


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
import test_extract_features as t
from pathlib import Path
from rgb2pc_lib.encoders import pack_file
bits, calls = pack_file.bits, []
def dying(tokens):
    calls.append(1)
    if len(calls) == 18:  # an episode has 12 places
        os.kill(os.getpid(), 9)
    return bits(tokens)
pack_file.bits = dying
t.run(Path({root!r}), Path({out!r}))
"""


def test_killed_while_writing(tmp_path):
    for episode in ("ep_0", "ep_1", "ep_2"):
        record(tmp_path / "rgb", episode=episode)
    out = tmp_path / "out"
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path / "rgb"), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    assert list(list_packs(out)) == [("push", "ep_0")]
    assert run(tmp_path / "rgb", out) == (2, 1)
    assert [p.name for p in sorted((out / "push").iterdir())] == ["ep_0.pt", "ep_1.pt", "ep_2.pt"]
    assert all(len(FeaturePack.open(p).steps) == 7 for p in list_packs(out).values())


# -- bad input


@pytest.mark.parametrize("change, said", [({"stride": 1}, "stride 2 instead of 1"), ({"dtype": "fp16"}, "save_dtype")])
def test_packs_made_with_other_settings_are_not_taken_for_these(tmp_path, change, said):
    run(record(tmp_path / "rgb"), tmp_path / "out")
    with pytest.raises(InputError, match=f"ep_0.pt: this pack was made with {said}"):
        run(tmp_path / "rgb", tmp_path / "out", **change)


def test_an_episode_that_grew_is_noticed(tmp_path):
    run(record(tmp_path / "rgb", steps=6), tmp_path / "out")
    record(tmp_path / "rgb", steps=7)
    with pytest.raises(InputError, match="num_frames 6 instead of 7"):
        run(tmp_path / "rgb", tmp_path / "out")


def test_a_damaged_pack_is_named(tmp_path):
    run(record(tmp_path / "rgb"), tmp_path / "out")
    (tmp_path / "out" / "push" / "ep_0.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match="ep_0.pt: expected an extracted pack, found: .*; delete the file"):
        run(tmp_path / "rgb", tmp_path / "out")


def test_a_broken_image_is_named_and_leaves_no_pack(tmp_path):
    path = record(tmp_path / "rgb", steps=5) / "push" / "ep_0" / "step_3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="step_3.png: expected a readable PNG or JPEG"):
        run(tmp_path / "rgb", tmp_path / "out")
    assert list_packs(tmp_path / "out") == {}


def test_an_odd_sized_frame_is_named(tmp_path):
    root = record(tmp_path / "rgb", steps=5)
    Image.new("RGB", (10, 8)).save(root / "push" / "ep_0" / "step_4.png")
    with pytest.raises(InputError, match="step_4.png: expected 8 x 8 pixels .* found 10 x 8"):
        run(root, tmp_path / "out")


def test_missing_and_ambiguous_frames(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected a folder of RGB frames"):
        list_frames(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found no frames at all"):
        list_frames(tmp_path)
    record(tmp_path, suffix="png")
    record(tmp_path, suffix="jpg", steps=1)
    with pytest.raises(InputError, match="step_0.png: this step is also there as step_0.jpg"):
        list_frames(tmp_path)


# -- command line


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("tool", PROJECT / "tools" / "extract_features.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main


def test_command_line(tool, tmp_path, capsys):
    pytest.importorskip("skimage")
    record(tmp_path / "rgb", size=(40, 60))
    (tmp_path / "mine.toml").write_text('[roots]\nrgb = "rgb"\n[experts]\ndaisy = "cache/features_daisy"\n')
    words = ["--encoder", "daisy", "--workspace", str(tmp_path / "mine.toml"), "--window", "4", "--stride", "1"]
    assert tool(words) == 0
    assert "daisy: 1 packs written, 0 kept" in capsys.readouterr().out
    pack = FeaturePack.open(tmp_path / "cache" / "features_daisy" / "push" / "ep_0.pt")
    assert pack.grid == (14, 14) and pack.dtype == torch.float16 and pack.meta["raw_size"] == [40, 60]
    assert pack.features.shape[:2] == (4, 4)
    assert tool([*words, "--out", str(tmp_path / "elsewhere")]) == 0
    assert list_packs(tmp_path / "elsewhere" / "features_daisy")


def test_command_line_errors_are_one_line(tool, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('[roots]\nrgb = "rgb"\n[experts]\ndaisy = "cache/features_daisy"\n')
    for words, said in [
        (["--encoder", "xfeat", "--rgb_root", str(tmp_path)], "expert(s) xfeat not in the workspace; it has daisy"),
        (["--encoder", "daisy"], "rgb: the rgb root is not a folder"),
        (["--encoder", "daisy", "--rgb_root", str(tmp_path)], "found no frames at all"),
        (["--encoder", "daisy", "--rgb_root", str(tmp_path), "--device", "abacus"], "device 'abacus'"),
    ]:
        assert tool(["--workspace", str(tmp_path / "mine.toml"), *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for words, said in [(["--encoder", "vggt2"], "invalid choice"), (["--encoder", "disk", "--batch", "0"], "above 0")]:
        with pytest.raises(SystemExit) as exit:
            tool(words)
        assert exit.value.code == 2 and said in capsys.readouterr().err
