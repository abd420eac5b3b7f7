import dataclasses

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.embed import RGBEmbedder, embed_packs
from rgb2pc_lib.encoders.extract import list_frames, read_image
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.runs import Config, Run
from rgb2pc_lib.train import train
from rgb2pc_lib.workspace import CACHE, SAMPLE, Workspace

SMALL = Config(steps=10, batch_size=16, student_tokens=16, fuse_dim=16, eval_every=0)


def test_packs_need_no_teacher_and_give_the_runs_own_numbers(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path)).with_workspace(left)
    list(train(config))
    run = Run.open(tmp_path)
    keys, embeddings = embed_packs(run, dataclasses.replace(left, teacher=None))
    stored = run.embeddings()
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


def test_a_missing_expert_is_named(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path)).with_workspace(left)
    list(train(config))
    with pytest.raises(InputError, match="right"):
        embed_packs(Run.open(tmp_path), left.only("left"))
    with pytest.raises(InputError, match="left"):
        RGBEmbedder.open(tmp_path)  # "left" is not an encoder that exists here


def test_rgb_straight_to_embedding_equals_the_way_through_packs(tmp_path):
    """The sample's own frames through the real encoders, against the packs extracted from them (fp16)."""
    experts = {n: CACHE / "sample" / f"features_{n}" for n in ("efficientnet", "xfeat")}
    if not all((root / "hammer").is_dir() for root in experts.values()):
        pytest.skip("the sample's packs are not extracted yet: make features")
    workspace = dataclasses.replace(Workspace.load(SAMPLE), experts=experts)
    config = dataclasses.replace(SMALL, tasks=("hammer",), save_dir=str(tmp_path)).with_workspace(workspace)
    list(train(config))
    stored = Run.open(tmp_path).embeddings()
    (task, episode), frames = next(iter(list_frames(workspace.rgb, ["hammer"]).items()))
    chosen = (stored["task"] == task) & (stored["episode"] == episode)
    images = torch.from_numpy(np.stack([read_image(f) for f in frames[:4]]))
    direct = RGBEmbedder.open(tmp_path)(images)
    np.testing.assert_allclose(direct, stored["student"][chosen][:4], atol=0.02 * np.abs(stored["student"]).max())


def test_an_unreadable_pack_is_refused_not_skipped(left, tmp_path):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path / "run")).with_workspace(left)
    list(train(config))
    other = tiny.make(tmp_path / "new", tasks=("push",), episodes=2, steps=6)
    broken = other.experts["left"] / "push" / "ep_1.pt"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(InputError, match="ep_1.pt"):
        embed_packs(Run.open(tmp_path / "run"), other)
