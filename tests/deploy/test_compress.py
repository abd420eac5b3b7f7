import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scripts import load_script

from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, ordered_plans
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy import compress, frames, targets
from rgb2pc_lib.deploy.backbones import Compact, SpatialHead
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.compress import augmented, train_compact
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.export import ThroughOnnx, export_run, exported
from rgb2pc_lib.deploy.stream import Stream
from rgb2pc_lib.deploy.targets import own_targets
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is derived from tiny frames does not pile up in the project."""
    for module in (targets, frames):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def fused(tmp_path_factory, left):
    """A finished run on a workspace whose frames tell the teacher."""
    root = tmp_path_factory.mktemp("fused")
    workspace = dataclasses.replace(left, rgb=tiny.write_frames(root / "rgb", left))
    config = Config(
        validation=0.0,
        amp="off",
        steps=60,
        batch_size=32,
        fuse_dim=32,
        student_tokens=16,
        eval_every=0,
        save_dir=str(root / "run"),
    )
    list(train(config.with_workspace(workspace)))
    return Run.open(root / "run")


def settings(fused, folder, **changes):
    some = {"size": 32, "steps": 6, "batch_size": 16, "amp": "off", "eval_every": 0, "save_every": 100}
    return CompactConfig(run=str(fused.folder), save_dir=str(folder), **{**some, **changes})


def weights(run):
    return run.compact().state_dict()


def test_it_learns_what_the_frames_tell(fused, tmp_path):
    progress = list(train_compact(settings(fused, tmp_path / "a", steps=60, shift=0.0, photometric=0.3)))
    assert progress[-1].loss < 0.5 * progress[0].loss
    run = open_run(tmp_path / "a")
    assert isinstance(run, CompactRun) and run.summary["n_held_out"] == run.embeddings()["held_out"].sum() > 0
    held_out = run.summary["held-out"]
    assert held_out["R@10"] > 3 * 10 / run.summary["n_held_out"] and held_out["cosine"] > 0.3, held_out
    assert progress[-1].curve["held-out/cosine"] == pytest.approx(held_out["cosine"], abs=1e-5)
    assert progress[-1].parts["spatial"] < 0.8 * progress[0].parts["spatial"]
    assert progress[-1].curve["held-out/spatial R2"] == pytest.approx(held_out["spatial R2"], abs=1e-4)
    assert held_out["spatial R2"] > 0.05, held_out  # a place's mean in every frame would be 0


def test_spatial_tokens_are_the_fused_students(fused, tmp_path):
    """Those of the targets come from packs, those of a frame from its experts: known here by the gatherer's batches."""
    wanted = own_targets(fused, spatial=True)
    assert wanted.spatial.shape == (len(wanted.files), 16, 32) and wanted.spatial.dtype == np.float32
    samples, student = Data.open(fused.config).samples, fused.student()[0]
    at, row = embedding_lattice(samples.pairing.finest_grid), 7
    (batch,) = Gatherer(samples, fused.config.frame_copy).run(ordered_plans(samples, np.array([row]), 1, at))
    tokens, seen = student.spatial(batch.tokens, batch.present, batch.positions)
    key = samples.keys().loc[row, ["task", "episode", "step"]].tolist()
    (place,) = np.flatnonzero((wanted.keys[["task", "episode", "step"]] == key).all(axis=1))
    assert seen.all() and np.allclose(wanted.spatial[place], tokens[0].detach().numpy(), atol=1e-5)
    validation = own_targets(fused, "validation", spatial=True)
    assert len(validation.spatial) == len(validation.files) == (~wanted.held_out).sum()
    again = wanted + wanted.take(np.array([place]))
    assert np.array_equal(again.spatial[-1], wanted.spatial[place])


def test_of_several_cameras_the_first_ones_frames_and_places_are_learned(left, tmp_path):
    rgb = tiny.write_frames(tmp_path / "rgb", left)
    experts = {"right@wrist": left.experts["right"], "left@head": left.experts["left"]}
    cameras = {"head": rgb, "wrist": tmp_path / "rgb_wrist"}
    workspace = dataclasses.replace(left, rgb=rgb, experts=experts, cameras=cameras)
    small = {"steps": 2, "batch_size": 16, "fuse_dim": 8, "amp": "off", "eval_every": 0}
    list(train(Config(**small, save_dir=str(tmp_path / "two")).with_workspace(workspace)))
    two = Run.open(tmp_path / "two")
    samples, student = Data.open(two.config).samples, two.student()[0]
    plans = ordered_plans(samples, np.arange(1), 1, embedding_lattice((4, 4)))
    (batch,) = Gatherer(samples, two.config.frame_copy).run(plans)
    tokens, _ = student.spatial(batch.tokens, batch.present, batch.positions)
    assert tokens.shape == (1, 32, 8) and student.cameras == ["wrist", "head"]
    wanted = own_targets(two, "validation", spatial=True)
    key = samples.keys().loc[0, ["task", "episode", "step"]].tolist()
    (place,) = np.flatnonzero((wanted.keys[["task", "episode", "step"]] == key).all(axis=1))
    assert np.allclose(wanted.spatial[place], tokens[0, 16:].detach().numpy(), atol=1e-5)
    assert wanted.files[place].is_relative_to(rgb)
    list(train_compact(settings(two, tmp_path / "small", steps=2)))
    run = CompactRun.open(tmp_path / "small")
    assert run.spatial().shape[1:] == (16, 8) and "spatial R2" in run.summary["held-out"]
    with pytest.raises(InputError, match="--more_rgb: .*two needs the frames of wrist, head by name.*leave it out"):
        list(train_compact(settings(two, tmp_path / "more", steps=2, more_rgb=(str(rgb),))))
    list(train(Config(**small, save_dir=str(tmp_path / "wrist")).with_workspace(workspace.only("right@wrist"))))
    with pytest.raises(InputError, match="the frames of the first camera, head, but none of the run's experts does"):
        own_targets(Run.open(tmp_path / "wrist"))


def test_packs_of_another_training_are_not_distilled(fused, tmp_path):
    shutil.copytree(fused.folder, tmp_path / "run")
    other = Run(tmp_path / "run")
    with np.load(other.file("embeddings.npz")) as z:
        arrays = dict(z)
    np.savez(other.file("embeddings.npz"), **arrays | {"student": -arrays["student"]})
    with pytest.raises(InputError, match="its packs are not those that it was trained on: .* --no_spatial"):
        own_targets(other, spatial=True)
    assert own_targets(other).spatial is None


def test_without_spatial_tokens_and_from_before_there_were_any(fused, tmp_path):
    config = settings(fused, tmp_path / "run", steps=2, spatial=False)
    assert [set(p.parts) for p in train_compact(config)] == [{"InfoNCE", "MSE"}] * 2
    run = CompactRun.open(tmp_path / "run")
    old = json.loads(run.file("config.json").read_text())
    assert not old.pop("spatial") and old.pop("loss_spatial") == 1
    run.file("config.json").write_text(json.dumps(old))  # as it was written when there was no such setting
    run = open_run(tmp_path / "run")
    network, frame = run.compact(), np.full((40, 50, 3), 99, np.uint8)
    assert not run.config.spatial and network.look(torch.zeros(1, 32, 32, 3))[1] is None
    assert Embedder.from_run(run).stream()(frame).spatial is None and "spatial R2" not in run.summary["held-out"]
    with pytest.raises(InputError, match="gives no spatial tokens; train one that does"):
        run.spatial()
    seed = {"seed": 3, "weights": ""}
    one, other = Compact("resnet18", 32, 8, **seed), Compact("resnet18", 32, 8, **seed, places=4, width=6)
    more = other.state_dict()  # whether there are tokens changes nothing about how the rest begins
    assert all(torch.equal(more[k], v) for k, v in one.state_dict().items()) and len(more) > len(one.state_dict())


def test_the_map_is_shared_out_by_area():
    head = SpatialHead(5, 4, 5).eval()
    head.layers = torch.nn.Identity()

    def shared(grid):
        return head(grid).mT.unflatten(2, (4, 4))

    fine = torch.rand(2, 5, 8, 8)
    torch.testing.assert_close(shared(fine), fine.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)))
    torch.testing.assert_close(shared(torch.full((1, 5, 1, 1), 3.0)), torch.full((1, 5, 4, 4), 3.0))
    odd = torch.zeros(1, 5, 7, 7)
    odd[..., 1, 0] = 1  # in the first column; of the rows three quarters lie in the first place
    assert shared(odd)[0, 0, :, 0].tolist() == pytest.approx([4 / 7 * 3 / 7, 4 / 7 * 1 / 7, 0, 0])
    torch.testing.assert_close(shared(torch.ones(1, 5, 7, 7)), torch.ones(1, 5, 4, 4))
    head.expect(torch.arange(80.0).view(16, 5), 2.0)
    torch.testing.assert_close(head(torch.ones(1, 5, 4, 4)), torch.arange(80.0).view(1, 16, 5) + 2)


def test_stopped_and_resumed_equals_uninterrupted(fused, tmp_path):
    list(train_compact(settings(fused, tmp_path / "whole")))
    loop = train_compact(settings(fused, tmp_path / "parts"))
    for progress in loop:
        if progress.step == 3:
            loop.close()
    assert not CompactRun(tmp_path / "parts").finished
    assert [p.step for p in train_compact(settings(fused, tmp_path / "parts"), resume=True)] == [4, 5, 6]
    whole, parts = CompactRun.open(tmp_path / "whole"), CompactRun.open(tmp_path / "parts")
    for k, v in weights(whole).items():
        assert torch.equal(weights(parts)[k], v), k
    assert whole.metrics()["loss"].tolist() == parts.metrics()["loss"].tolist()
    with pytest.raises(InputError, match="lr was"):
        list(train_compact(settings(fused, tmp_path / "parts", lr=0.1), resume=True))


def test_more_frames_are_embedded_once_and_train_only(fused, tmp_path, monkeypatch):
    asked = []

    def embed(images):
        return torch.ones(len(images), tiny.TEACHER_WIDTH) * torch.from_numpy(images[:, :1, :1, 0].reshape(-1, 1) + 1.0)

    def look(images, cameras):
        asked.append(len(images))
        return embed(images), torch.ones(len(images), 16, 32) * embed(images)[:, :1, None]

    monkeypatch.setattr(targets.Embedder, "from_run", lambda run, device, weights: Embedder("fake", look))
    for i in range(20):
        path = tmp_path / "more" / "push" / "ep_new" / f"step_{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, 99, 3)).save(path)
    found = targets.more_targets(fused, tmp_path / "more", batch=8, progress=False)
    assert asked == [8, 8, 4] and found.embeddings[:, 0].tolist() == list(range(1, 21)) and not found.held_out.any()
    again = targets.more_targets(fused, tmp_path / "more", batch=8, progress=False)
    assert asked == [8, 8, 4] and np.array_equal(again.embeddings, found.embeddings)
    spatial = targets.more_targets(fused, tmp_path / "more", batch=8, progress=False, spatial=True).spatial
    assert spatial.shape == (20, 16, 32) and spatial[:, 3, 5].tolist() == list(range(1, 21)) and sum(asked) == 20
    weights = tmp_path / "xfeat.pt"
    for expected, content in ((40, b"one"), (40, b"one"), (60, b"another")):  # of other weights: embedded anew
        if not weights.exists() or weights.read_bytes() != content:
            weights.write_bytes(content)
        targets.more_targets(fused, tmp_path / "more", progress=False, weights={"xfeat": weights})
        assert sum(asked) == expected
    config = settings(fused, tmp_path / "run", steps=2, more_rgb=(str(tmp_path / "more"),))
    list(train_compact(config))
    summary = CompactRun.open(tmp_path / "run").summary
    assert summary["n_more"] == 20 and summary["n_train"] == fused.summary["n_train"] + 20
    assert summary["n_held_out"] == fused.summary["n_held_out"]


def test_held_out_frames_cannot_slip_in(fused, tmp_path, monkeypatch, caplog):
    one = Embedder("fake", lambda x, cameras: (torch.ones(len(x), tiny.TEACHER_WIDTH), torch.ones(len(x), 16, 32)))
    monkeypatch.setattr(targets.Embedder, "from_run", lambda run, device, weights: one)
    drawn = []
    batches = compress._batches
    monkeypatch.setattr(compress, "_batches", lambda c, data, *rest: drawn.append(data) or batches(c, data, *rest))
    config = settings(fused, tmp_path / "run", steps=2, more_rgb=(fused.config.rgb_root,))
    list(train_compact(config))
    (data,) = drawn
    names = np.array([file.as_posix() for file in data.files])
    own = own_targets(fused)
    held = {file.as_posix() for file, is_held in zip(own.files, own.held_out, strict=True) if is_held}
    assert held and not held & set(names[~data.held_out])
    summary = CompactRun.open(tmp_path / "run").summary
    assert summary["n_train"] == (~data.held_out).sum() == 2 * fused.summary["n_train"]
    assert summary["n_held_out"] == len(held)
    assert f"{len(held)} training frame(s) like it are left out" in caplog.text


def test_frames_behind_the_curve_cannot_slip_in(fused, tmp_path):
    own = own_targets(fused)
    held, pixels = np.flatnonzero(own.held_out), frames.frame_cache(own.files, 32)
    watched = np.flatnonzero(~own.held_out)[:3]  # as if they were for validation
    data = own + own.take(watched)
    seen = np.concatenate([pixels, pixels[watched]])
    kept = compress.without_twins(data, seen, own.take(watched), pixels[watched])
    left_out = np.flatnonzero(kept.held_out)
    assert left_out.tolist() == sorted([*watched, *held, *range(len(own.files), len(data.files))])


def test_what_does_not_fit_is_named(fused, tmp_path):
    with pytest.raises(InputError, match="--run"):
        list(train_compact(CompactConfig(save_dir=str(tmp_path / "a"))))
    with pytest.raises(InputError, match="--batch_size 999"):
        list(train_compact(settings(fused, tmp_path / "b", batch_size=999)))
    with pytest.raises(InputError, match="weights of croco: not asked for by .*run, whose experts are left, right"):
        list(train_compact(settings(fused, tmp_path / "d"), weights={"croco": "x"}))
    with pytest.raises(InputError, match="--backbone: expected one of resnet18"):
        settings(fused, tmp_path / "c", backbone="resnet19")


def test_the_wrong_kind_of_folder_is_told(fused, tmp_path):
    with pytest.raises(InputError, match="expected a compact student, .* with tools/train_compact.py --run .*run$"):
        CompactRun.open(fused.folder)
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(CompactConfig().to_json())  # as it was shared: the name of its run is left out
    with pytest.raises(InputError, match="expected a run of experts, found a compact student, which tools/embed.py, "):
        list(train_compact(settings(CompactRun(folder), tmp_path / "another")))
    with pytest.raises(InputError, match="small: was shared, without the run that it was distilled from"):
        CompactRun.open(folder).fused()


def test_weights_reach_what_further_frames_go_through(fused, tmp_path, monkeypatch):
    tool, given = load_script(PROJECT / "tools" / "train_compact.py"), []
    monkeypatch.setattr(tool, "train_compact", lambda config, resume, weights: given.append(weights) or iter(()))
    folder = tmp_path / "small"
    folder.mkdir()
    tool.main(["--save_dir", str(folder), "--run", "x", "--weights", "croco=here", "vggt=there", "--no_onnx"])
    assert given == [{"croco": "here", "vggt": "there"}]

    def opened(run, device, weights):
        given.append(weights)
        raise InputError("seen")

    monkeypatch.setattr(targets.Embedder, "from_run", opened)
    config = settings(fused, folder, more_rgb=(fused.config.rgb_root,))
    with pytest.raises(InputError, match="seen"):
        list(train_compact(config, weights={"left": "here"}))
    assert given[1:] == [{"left": "here"}]


def test_augmentations_leave_things_where_they_are():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (6, 50, 50, 3)).astype(np.float32))
    still = augmented(images, np.random.default_rng(1), photometric=0.0, shift=0.0)
    torch.testing.assert_close(still, images, atol=0.03, rtol=0)
    a, b = (augmented(images, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(a, b) and a.min() >= 0 and a.max() <= 255 and not torch.equal(a[0], images[0])
    moved = augmented(images, np.random.default_rng(2), photometric=0.0, shift=0.04)  # at most 2 pixels
    inner = images[:, 4:-4, 4:-4]
    for image, one in zip(inner, moved, strict=True):
        near = min(
            (one[4 + r : 46 + r, 4 + c : 46 + c] - image).abs().max() for r in range(-2, 3) for c in range(-2, 3)
        )
        assert near < 0.03


def test_the_exported_file_is_checked_on_held_out_frames(fused, tmp_path):
    pytest.importorskip("onnxruntime")
    list(train_compact(settings(fused, tmp_path / "run", steps=4)))
    run = CompactRun.open(tmp_path / "run")
    found = export_run(run)
    assert (
        0 < found["relative"] < 1e-4
        and found["opset"] == 20
        and found["frames"] == min(fused.summary["n_held_out"], 64)
    )
    state = torch.load(run.file("torchvision.pth"), weights_only=True)
    assert torch.equal(state["conv1.weight"], run.compact().backbone.embedder.embedder.convolution.weight)
    assert run.summary["look_ahead"] == fused.summary["look_ahead"] != {}  # whose view it learned from
    stream = Embedder.from_run(run).stream()
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for ours, theirs in zip(stream(frame), Stream(ThroughOnnx(run.file("model.onnx")))(frame), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
    for name in ("model.fp16.onnx", "exports.csv"):  # of tools/export.py
        run.file(name).write_text("x")
    assert exported(run) == found and run.file("exports.csv").exists()
    os.utime(run.file("model.safetensors"))  # trained anew since
    assert exported(run) == found and not (run.file("exports.csv").exists() or run.file("model.fp16.onnx").exists())
    with pytest.raises(InputError, match="differs from the network"):
        export_run(run, limit=0.0)
    assert not run.file("model.onnx").exists()
