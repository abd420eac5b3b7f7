import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from scripts import load_script

from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import CACHE, PROJECT, SAMPLE, Workspace
from rgb2pc_lib.deploy import embed, lookup
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.deploy.embed import Embedder, embed_packs
from rgb2pc_lib.encoders.extract import extract, list_frames
from rgb2pc_lib.encoders.images import ImageEncoder, square
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, build_student
from rgb2pc_lib.learning.train import train

tool = load_script(PROJECT / "tools" / "embed.py")

SMALL = Config(steps=10, batch_size=16, student_tokens=16, fuse_dim=16, eval_every=0)


def test_packs_need_no_teacher_and_give_the_runs_own_numbers(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path)).with_workspace(left)
    list(train(config))
    run = Run.open(tmp_path)
    keys, embeddings = embed_packs(run, dataclasses.replace(left, teacher=None))
    stored = run.embeddings_of_all()
    assert keys["step"].tolist() == stored["step"].tolist()
    np.testing.assert_allclose(embeddings, stored["student"], rtol=1e-5, atol=1e-5)


def test_new_episodes_embed_without_their_clouds(left, tmp_path):
    """Another data set whose last episode has no teacher at all: all of its steps get an embedding."""
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path / "run")).with_workspace(left)
    list(train(config))
    other = tiny.make(tmp_path / "new", tasks=("push",), episodes=2, steps=6, seed=5)
    keys, embeddings = embed_packs(Run.open(tmp_path / "run"), other)
    assert keys.groupby("episode").size().to_dict() == {"ep_0": 6, "ep_1": 6}
    assert np.isfinite(embeddings).all() and embeddings.shape == (12, tiny.TEACHER_WIDTH)


def test_a_run_of_windows_says_that_it_embeds_steps(left, tmp_path, caplog):
    config = dataclasses.replace(SMALL, sample_unit="window", window=3, save_dir=str(tmp_path / "windows"))
    list(train(config.with_workspace(left)))
    embed_packs(Run.open(tmp_path / "windows"), left)
    assert "windows: Trained and judged on windows of 3 steps, pooled" in caplog.text


def test_a_missing_expert_is_named(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path)).with_workspace(left)
    list(train(config))
    with pytest.raises(InputError, match="right"):
        embed_packs(Run.open(tmp_path), left.only("left"))
    with pytest.raises(InputError, match="left"):
        Embedder.from_run(tmp_path)  # "left" is not an encoder that exists here


def test_rgb_straight_to_embedding_equals_the_way_through_packs(tmp_path):
    """The sample's own frames through the real encoders, against the packs extracted from them (fp16)."""
    experts = {n: CACHE / "sample" / f"features_{n}" for n in ("efficientnet", "xfeat")}
    if not all((root / "hammer").is_dir() for root in experts.values()):
        pytest.skip("the sample's packs are not extracted yet: make features")
    workspace = dataclasses.replace(Workspace.load(SAMPLE), experts=experts)
    config = dataclasses.replace(SMALL, tasks=("hammer",), save_dir=str(tmp_path)).with_workspace(workspace)
    list(train(config))
    stored = Run.open(tmp_path).embeddings_of_all()
    (task, episode), frames = next(iter(list_frames(workspace.rgb, ["hammer"]).items()))
    chosen = (stored["task"] == task) & (stored["episode"] == episode)
    images = torch.from_numpy(np.stack([read_image(f) for f in frames[:4]]))
    direct = Embedder.from_run(tmp_path)(images)
    np.testing.assert_allclose(direct, stored["student"][chosen][:4], atol=0.02 * np.abs(stored["student"]).max())


def window_encoder(name="left"):
    """An expert that sees frames together: its tokens hold the mean of the window too."""

    def features(x):  # [B, 3, 32, 32] -> [B, 6, 4, 4]
        grid = F.avg_pool2d(x, 8)
        return torch.cat([grid, grid.mean(0, keepdim=True).expand_as(grid)], 1)

    return ImageEncoder(
        name=name, channels=6, view=square(32, 4), img_size=32, patch_size=8, together=True, features=features,
        weights="none",
    )  # fmt: skip


@pytest.mark.parametrize("copy", ["middle", "last"])
def test_experts_that_see_windows_give_the_numbers_of_their_packs(left, tmp_path, monkeypatch, copy):
    rgb = tiny.write_frames(tmp_path / "rgb", left)
    extract(window_encoder(), rgb, tmp_path / "packs", window=4, stride=2, dtype="fp32", progress=False)
    workspace = dataclasses.replace(left, rgb=rgb, experts={"left": tmp_path / "packs"})
    config = dataclasses.replace(SMALL, frame_copy=copy, save_dir=str(tmp_path / "run")).with_workspace(workspace)
    list(train(config))
    monkeypatch.setattr(lookup, "load_encoder", lambda name, device, weights: window_encoder())
    embedder = Embedder.from_run(tmp_path / "run", window=4, stride=2)
    names, direct = embed.embed_frames(embedder, [rgb / "push"], batch=3, progress=False)
    keys, stored = embed_packs(Run.open(tmp_path / "run"), workspace)
    rows = stored[(keys["task"] == "push").to_numpy()]
    assert embedder.together and names[:2] == ["ep_0/step_0000.png", "ep_0/step_0001.png"]
    np.testing.assert_allclose(direct, rows, atol=1e-5 * np.abs(rows).max())
    alone = np.concatenate([embedder(read_image(rgb / "push" / name)[None]) for name in names[:3]])
    assert np.abs(alone - rows[:3]).max() > 1e-2 * np.abs(rows).max()  # the window matters


def test_the_tool_writes_names_and_embeddings(left, tmp_path, monkeypatch, capsys):
    rgb = tiny.write_frames(tmp_path / "rgb", left)
    one = Embedder("one", lambda images, cameras: (torch.from_numpy(images[:, :2, 0, 0].astype(np.float32)), None))
    monkeypatch.setattr(Embedder, "from_run", lambda run, device, weights: one)
    for name in ("e.npz", "e.parquet"):
        assert tool.main(["runs/x", str(rgb / "pull" / "ep_1"), "--out", str(tmp_path / name)]) == 0
    z, table = np.load(tmp_path / "e.npz"), pd.read_parquet(tmp_path / "e.parquet")
    assert z["names"].tolist() == table["name"].tolist() == [f"step_{i:04d}.png" for i in range(12)]
    assert z["embeddings"].shape == (12, 2) and np.array_equal(np.stack(table["embedding"]), z["embeddings"])
    assert tool.main(["runs/x", str(tmp_path / "none"), "--out", str(tmp_path / "f.npz")]) == 2
    assert tool.main(["runs/x", str(rgb), "--out", str(tmp_path / "e.txt")]) == 2
    assert "no such file" in (said := capsys.readouterr().err) and ".npz or .parquet" in said


def test_what_cannot_end_well_is_refused_before_a_frame_is_read(tmp_path, monkeypatch, capsys):
    opened = []
    one = Embedder("one", lambda images, cameras: (torch.zeros(len(images), 2), None))
    monkeypatch.setattr(Embedder, "from_run", lambda run, device, weights: opened.append(weights) or one)
    words = ["runs/x", str(tmp_path / "none"), "--out", str(tmp_path / "e.npz")]
    assert tool.main([*words, "--batch", "0"]) == 2 and "--batch: expected at least 1" in capsys.readouterr().err
    opened.clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, said in (("e.csv", ".npz or .parquet"), ("e.parquet", "needs pyarrow")):
        assert tool.main([*words[:3], str(tmp_path / name)]) == 2 and said in capsys.readouterr().err
    for given in ("croco", "nonsense=/no/where"):
        assert tool.main([*words, "--weights", given]) == 2
        assert "expected NAME=PATH with one of croco" in capsys.readouterr().err
    assert not opened


@pytest.mark.parametrize(
    "experts, needs",
    [(["rays", "xfeat"], "where the camera of each frame stands"), (["xfeat@head"], "the frames of head by name")],
)
def test_a_run_that_needs_more_than_frames_is_refused(experts, needs):
    live = SimpleNamespace(encoders=dict.fromkeys(experts))
    with pytest.raises(InputError, match=f"one: needs {needs}, .* embed its packs with embed_packs"):
        embed.embed_frames(Embedder("one", None, live=live), ["nowhere"])


def test_weights_of_strangers_are_refused(tmp_path):
    run, small = Run(tmp_path / "run"), CompactRun(tmp_path / "small")
    for each, config in ((run, Config(fuse_dim=8)), (small, CompactConfig(size=32))):
        each.folder.mkdir()
        each.file("config.json").write_text(config.to_json())
        each.file("summary.json").write_text('{"n_train": 1, "n_held_out": 1, "held-out": {}}')
    run.save_student(build_student(Config(fuse_dim=8), {"vggt": 8}, 4), {"vggt": 8}, torch.zeros(4))
    small.save_compact(Compact("resnet18", 32, 8), "resnet18")
    with pytest.raises(InputError, match="weights of croco: not asked for by run, whose experts are vggt; leave them"):
        Embedder.from_run(run, weights={"croco": "x"})
    with pytest.raises(InputError, match="weights of vggt: not asked for by small, whose experts are none"):
        Embedder.from_run(small, weights={"vggt": "x"})


def test_an_unreadable_pack_is_refused_not_skipped(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path / "run")).with_workspace(left)
    list(train(config))
    other = tiny.make(tmp_path / "new", tasks=("push",), episodes=2, steps=6)
    broken = other.experts["left"] / "push" / "ep_1.pt"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(InputError, match="ep_1.pt"):
        embed_packs(Run.open(tmp_path / "run"), other)
