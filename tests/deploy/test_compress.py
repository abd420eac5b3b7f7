import dataclasses

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from rgb2pc_lib.deploy import frames, targets
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.compress import augmented, export_run, train_compact
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Config, Run
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
        asked.append(len(images))
        return torch.ones(len(images), tiny.TEACHER_WIDTH) * torch.from_numpy(images[:, :1, :1, 0].reshape(-1, 1) + 1.0)

    monkeypatch.setattr(targets.Embedder, "from_run", lambda run, device: Embedder("fake", embed))
    for i in range(20):
        path = tmp_path / "more" / "push" / "ep_new" / f"step_{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, 99, 3)).save(path)
    found = targets.more_targets(fused, tmp_path / "more", batch=8, progress=False)
    assert asked == [8, 8, 4] and found.embeddings[:, 0].tolist() == list(range(1, 21)) and not found.held_out.any()
    again = targets.more_targets(fused, tmp_path / "more", batch=8, progress=False)
    assert asked == [8, 8, 4] and np.array_equal(again.embeddings, found.embeddings)
    config = settings(fused, tmp_path / "run", steps=2, more_rgb=(str(tmp_path / "more"),))
    list(train_compact(config))
    summary = CompactRun.open(tmp_path / "run").summary
    assert summary["n_more"] == 20 and summary["n_train"] == fused.summary["n_train"] + 20
    assert summary["n_held_out"] == fused.summary["n_held_out"]


def test_held_out_frames_cannot_slip_in(fused, tmp_path, monkeypatch):
    one = Embedder("fake", lambda x: torch.ones(len(x), tiny.TEACHER_WIDTH))
    monkeypatch.setattr(targets.Embedder, "from_run", lambda run, device: one)
    config = settings(fused, tmp_path / "run", more_rgb=(fused.config.rgb_root,))
    with pytest.raises(InputError, match="held out as"):
        list(train_compact(config))


def test_what_does_not_fit_is_named(fused, tmp_path):
    with pytest.raises(InputError, match="--run"):
        list(train_compact(CompactConfig(save_dir=str(tmp_path / "a"))))
    with pytest.raises(InputError, match="--batch_size 999"):
        list(train_compact(settings(fused, tmp_path / "b", batch_size=999)))
    with pytest.raises(InputError, match="--backbone: expected one of resnet18"):
        settings(fused, tmp_path / "c", backbone="resnet19")


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
    assert 0 < found["relative"] < 1e-4 and found["frames"] == min(fused.summary["n_held_out"], 64)
    state = torch.load(run.file("torchvision.pth"), weights_only=True)
    assert torch.equal(state["conv1.weight"], run.compact().backbone.embedder.embedder.convolution.weight)
    assert run.summary["look_ahead"] == fused.summary["look_ahead"] != {}  # whose view it learned from
    with pytest.raises(InputError, match="differs from the network"):
        export_run(run, limit=0.0)
    assert not run.file("model.onnx").exists()
