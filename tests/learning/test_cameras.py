"""A student of several cameras: equal to before for one, and each camera by itself where places are told apart."""

import pytest
import tiny
import torch

from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.deploy.embed import embed_packs
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.finish import camera_shares
from rgb2pc_lib.learning.models import POOLINGS, Student
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

CHANNELS = {"a@head": 8, "b@head": 6, "a@wrist": 8}


def batch(seed=0, names=tuple(CHANNELS)):
    rng = torch.Generator().manual_seed(seed)
    tokens = {name: torch.randn(3, 10, CHANNELS[name], generator=rng) for name in CHANNELS}
    present, positions = torch.ones(3, 10, 3, dtype=torch.bool), torch.rand(3, 10, 2, generator=rng)
    return {name: tokens[name] for name in names}, present, positions


def student(fusion="moe", pooling="attention"):
    return Student(CHANNELS, 16, fusion=fusion, width=12, pooling=pooling, seed=3).eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("fusion", ["moe", "weighted"])
def test_a_missing_camera_is_masked_like_a_missing_expert(fusion, pooling):
    model = student(fusion, pooling)
    tokens, present, positions = batch()
    whole = model(tokens, present, positions)
    assert torch.allclose(whole.gates.sum(-1), torch.ones(3, 10))
    left_out = model(batch(names=("a@head", "b@head"))[0], present, positions)
    present[..., 2] = False
    masked = model(tokens, present, positions)
    assert torch.allclose(left_out.embedding, masked.embedding, atol=1e-6) and not left_out.gates[..., 2].any()
    assert not torch.allclose(left_out.embedding, whole.embedding, atol=1e-3)


def test_attention_looks_at_the_places_of_each_camera_by_themselves():
    model = student()
    tokens, present, positions = batch()
    hidden = model.hidden(tokens, positions)
    gates = model.fuse(hidden, present, positions).gates
    found = model._regions(hidden, gates, present, positions)
    assert list(found) == ["head", "wrist"] and not torch.allclose(found["head"], found["wrist"], atol=1e-3)
    for regions in found.values():
        assert torch.allclose(regions.sum(1), torch.ones(3, 8), atol=1e-5)
    alone = model.queries(hidden["a@wrist"]).softmax(1)  # of a camera of one expert its gate is no part of it
    assert torch.allclose(found["wrist"], alone, atol=1e-5)


def test_spatial_tokens_come_camera_by_camera():
    model = student()
    tokens, present, positions = batch()
    both, seen = model.spatial(tokens, present, positions, side=2)
    assert both.shape == (3, 8, 12) and seen.shape == (3, 8)
    alone = batch(names=("a@head", "b@head"))[0]
    for given, whole in ((alone, present), (tokens, present & torch.tensor([True, True, False]))):
        head, there = model.spatial(given, whole, positions, side=2)
        assert torch.allclose(head[:, :4], both[:, :4]) and not head[:, 4:].any() and not there[:, 4:].any()


def test_the_gates_say_how_much_each_camera_counts(tmp_path):
    made = tiny.make(tmp_path, "left", episodes=6)
    experts = {"right@head": made.experts["right"], "left@wrist": made.experts["left"]}  # the wrist's tells the latent
    roots = {"head": tmp_path / "rgb", "wrist": tmp_path / "rgb_wrist"}
    workspace = Workspace(teacher=made.teacher, rgb=roots["head"], experts=experts, cameras=roots)
    config = Config(steps=60, batch_size=16, student_tokens=16, fuse_dim=16, lr=1e-2, save_dir=str(tmp_path / "run"))
    for _ in train(config.with_workspace(workspace)):
        pass
    run = Run.open(tmp_path / "run")
    shares = run.summary["cameras"]
    assert shares == camera_shares(run.summary["gates"]) and sum(shares.values()) == pytest.approx(1)
    assert shares["wrist"] > 0.6
    assert embed_packs(run, workspace)[1].shape == (144, 16)
