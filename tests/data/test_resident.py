"""A resident store gives exactly the batches that are gathered from the files."""

import numpy as np
import pytest
import torch
from placed import cache, make, planner  # noqa: F401

from rgb2pc_lib.data.pairing import pair, select
from rgb2pc_lib.data.resident import Resident, fits
from rgb2pc_lib.data.sampling import Gatherer, lattice, ordered_plans


def check(samples, plans, frame_copy="middle"):
    plans = list(plans)
    hosts = Gatherer(samples, frame_copy, resident=False).run(plans)
    for plan, host, held in zip(plans, hosts, Gatherer(samples, frame_copy, resident=True).run(plans), strict=True):
        for expert, tokens in host.tokens.items():
            there = host.present[..., list(host.tokens).index(expert)]
            assert held.tokens[expert].dtype == tokens.dtype and held.tokens[expert].shape == tokens.shape
            assert torch.equal(held.tokens[expert][there], tokens[there]), expert
        for field in ("present", "positions", "teacher"):
            assert torch.equal(getattr(host, field), getattr(held, field)), field
        assert np.array_equal(host.samples, plan.samples) and np.array_equal(held.samples, plan.samples)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("frame_copy", ["middle", "last", "random"])
def test_steps(tmp_path, dtype, frame_copy):
    samples = select(pair(make(tmp_path, dtype=dtype)))
    for tokens in (6, 16):
        check(samples, (planner(samples, tokens=tokens, drop=0.3)(n) for n in range(8)), frame_copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_windows_some_of_whose_steps_an_expert_lacks(tmp_path, dtype):
    workspace = make(tmp_path, dtype=dtype)
    for path in workspace.experts["wide"].glob("*/*.pt"):
        raw = torch.load(path)
        raw["frame_paths"] = [[p.replace("step_0004", "gone_0004") for p in w] for w in raw["frame_paths"]]
        torch.save({**raw, "meta": {"box": [0.0, 0.25, 1.0, 0.75]}}, path)
    samples = select(pair(workspace), unit="window", window=4)
    assert (samples.expert_rows["wide"][:, 1:] < 0).any()
    check(samples, ordered_plans(samples, np.arange(len(samples)), 7, lattice((5, 5))))


def test_episodes_with_different_grids(tmp_path):
    workspace = make(tmp_path)
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", grids={"square": (2, 6), "wide": (3, 5)})
    (tmp_path / "other" / "square" / "push" / "ep_1.pt").rename(workspace.experts["square"] / "push" / "ep_1.pt")
    samples = select(pair(workspace))
    assert {p.grid for p in samples.pairing.packs["square"].values()} == {(4, 4), (2, 6)}
    check(samples, (planner(samples, 30, tokens=9)(n) for n in range(4)))


def test_only_the_frames_that_are_asked_for_are_held(tmp_path):
    samples = select(pair(make(tmp_path)))
    store = Resident(samples.take(np.arange(5)), "middle", "cpu")
    assert {name: tuple(flat.shape) for name, flat in store.flat.items()} == {"square": (5 * 16, 5), "wide": (75, 5)}
    every = Resident(samples.take(np.arange(5)), "random", "cpu")  # steps 0 to 4 stand in 1, 2, 3, 4 and 4 windows
    assert len(every.flat["wide"]) == 15 * (1 + 2 + 3 + 4 + 4)


def test_without_a_gpu_nothing_is_held_unasked(tmp_path):
    samples = select(pair(make(tmp_path)))
    assert not fits(samples, "middle", torch.device("cpu")) and Gatherer(samples).store is None
