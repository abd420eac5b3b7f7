"""Gates against workspaces whose answer is known: which expert carries the latent, and where."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import (
    GateReader,
    entropy,
    gate_map,
    gate_means,
    health,
    needed,
    same_leader,
    shared_trust,
    switch_off,
    switch_off_cost,
    variation,
)
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

SMALL = Config(
    validation=0.0,
    amp="off",
    steps=150,
    batch_size=32,
    student_tokens=16,
    fuse_dim=32,
    moe_hidden=32,
    lr=3e-3,
    eval_every=0,
)


def trained(workspace, folder, **changes):
    for _ in train(dataclasses.replace(SMALL.with_workspace(workspace), save_dir=str(folder), **changes)):
        pass
    return Run.open(folder)


@pytest.fixture(scope="module")
def weighted(left, tmp_path_factory):
    return trained(left, tmp_path_factory.mktemp("runs") / "weighted", fusion="weighted")


@pytest.fixture(scope="module")
def moe(place, tmp_path_factory):
    return trained(place, tmp_path_factory.mktemp("runs") / "moe", fusion="moe", expert_drop=0.0)


def test_a_map_holds_the_gates_that_made_the_embedding(moe):
    e = moe.embeddings()
    for i in (0, 57, 190):
        gates = gate_map(moe, *(str(e[k][i]) for k in ("task", "episode", "step")))
        assert gates.shape == (4, 4, 2) and np.allclose(gates.sum(-1), 1, atol=1e-5)
        assert np.allclose(gates.mean((0, 1)), e["gates"][i], atol=1e-5)
    with pytest.raises(InputError, match="no step push/ep_0/step_9999"):
        gate_map(moe, "push", "ep_0", "step_9999")


def test_maps_lie_where_the_tokens_lie(moe):
    """Expert "left" carries the latent where its bit differs from that of "right": the gate must follow, per place."""
    reader = GateReader.open(moe)
    held_out = reader.data.held_out
    maps = reader.maps(held_out)
    packs, carries = reader.data.samples.pairing.packs, []
    for task, episode, step in reader.keys.loc[held_out, ["task", "episode", "step"]].to_numpy():
        bits = [packs[name][task, episode].frame(step)[..., 0].numpy() > 0 for name in reader.experts]
        carries.append(bits[0] != bits[1])
    carries = np.stack(carries)
    trust = maps[..., reader.experts.index("left")]
    assert trust[carries].mean() > 0.7 and trust[~carries].mean() < 0.3
    assert variation(maps, reader.keys.loc[held_out].reset_index(drop=True))["places of an image"] > 0.9


def test_a_reader_is_opened_once_for_a_training(moe, left, tmp_path):
    assert GateReader.open(moe) is GateReader.open(Run(moe.folder))
    run = trained(left, tmp_path / "again", steps=2)
    first = GateReader.open(run)
    run.save_student(first.student, first.data.samples.pairing.channels, first.teacher_mean)  # as another training does
    assert GateReader.open(run) is not first
    with pytest.raises(InputError, match="unfinished"):
        GateReader.open(Run(tmp_path))


def test_entropy_and_health():
    assert np.allclose(entropy([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]), [0, 1, np.log(2) / np.log(3)])
    gates = np.zeros((2, 4, 4, 3))
    gates[..., 0], gates[..., 1] = 0.99, 0.01
    gates[0, 0, 0] = [0.1, 0.1, 0.8]  # one place of 32: 3 %
    table = health(gates, ["a", "b", "c"])
    assert table["dead"].to_dict() == {"a": False, "b": False, "c": False}
    assert table.loc["c", "leads"] == 1 / 32 and np.isclose(table["mean gate"].sum(), 1)
    gates[0, 0, 0] = [0.99, 0.01, 0.0]
    assert health(gates, ["a", "b", "c"])["dead"].to_dict() == {"a": False, "b": True, "c": True}


def test_variation_finds_the_level_at_which_gates_change():
    keys = pd.DataFrame([(t, e) for t in "ab" for e in "xy" for _ in range(3)], columns=["task", "episode"])
    cases = {
        "tasks": (keys["task"] == "a").to_numpy(float)[:, None, None],
        "episodes of a task": (keys["episode"] == "x").to_numpy(float)[:, None, None],
        "steps of an episode": np.tile([0.0, 0.5, 1.0], 4)[:, None, None],
        "places of an image": np.array([[0.0, 1.0], [1.0, 0.0]]),
    }
    for name, values in cases.items():
        gate = np.broadcast_to(values, (12, 2, 2))
        shares = variation(np.stack([gate, 1 - gate], -1), keys)
        assert shares.idxmax() == name and np.isclose(shares[name], 1) and np.isclose(shares.sum(), 1)
    assert not variation(np.full((12, 2, 2, 2), 0.5), keys).any()


def test_same_leader_against_chance():
    rng = np.random.default_rng(0)
    gates = rng.random((50, 8, 8, 4))
    assert same_leader(gates, gates)[0] == 1
    share, chance = same_leader(gates, rng.random(gates.shape))
    assert abs(share - chance) < 0.03 and abs(chance - 0.25) < 0.01


def test_means_by_task_and_progress(moe):
    e = moe.embeddings()
    by_task = gate_means(moe).set_index(["group", "expert"])
    here = e["gates"][e["task"] == "pull"][:, list(e["experts"]).index("left")]
    assert np.isclose(by_task.loc[("pull", "left"), "mean"], here.mean(), atol=1e-5)
    assert (by_task["episodes"] == 8).all() and (by_task["low"] < by_task["high"]).all()
    by_progress = gate_means(moe, "progress", bins=4)
    assert sorted(by_progress["group"].unique()) == [0.125, 0.375, 0.625, 0.875]
    assert np.allclose(by_progress.groupby("group")["mean"].sum(), 1, atol=1e-5)


def test_switching_off_the_carrier_costs_and_the_other_one_is_free(weighted):
    table = switch_off(weighted, progress=False)
    assert list(table.index) == ["all", "without left", "without right"]  # either is the other one alone
    assert np.isclose(table.loc["all", "R@1"], weighted.summary["held-out"]["R@1"], atol=0.02)
    assert table.loc["without left", "R@1"] < 0.3 * table.loc["all", "R@1"]
    assert table.loc["without right", "R@1"] > 0.8 * table.loc["all", "R@1"]
    cost = switch_off_cost([table, table + 0.0])
    assert cost.loc["all", "change"] == 0 and cost.loc["without left", "change"] < 0 and (cost["seeds"] == 2).all()
    assert np.isnan(switch_off_cost([table])["low"]).all()


def test_two_runs_agree_where_more_than_chance_shows_over_episodes():
    rng = np.random.default_rng(0)
    keys = pd.DataFrame({"task": "push", "episode": [f"ep_{i // 2}" for i in range(24)]})
    ours, other = (np.eye(2)[rng.integers(2, size=(24, 6, 6))] for _ in range(2))
    assert shared_trust(ours, ours, keys)["they agree"] == "more than by chance"
    assert shared_trust(ours, ours[..., ::-1], keys)["they agree"] == "less than by chance"
    assert shared_trust(ours, other, keys)["they agree"] == "not told apart"
    alone = np.broadcast_to([1.0, 0.0], ours.shape)
    assert shared_trust(alone, alone, keys)["they agree"].startswith("nothing to tell")


def test_what_a_student_can_do_without_needs_an_interval():
    columns = ["change", "change low", "change high"]
    rows = {"all": [0, 0, 0], "without a": [-0.2, -0.3, -0.1], "without b": [-0.01, -0.03, 0.01]}
    cost = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    assert needed(cost) == "keep a (R@1 -0.200 [-0.300, -0.100]); no loss shows without b (R@1 -0.010 [-0.030, +0.010])"
    assert "one seed" in needed(cost.assign(**{"change low": np.nan}))
    assert needed(cost.loc[["all"]]) == "it has one expert."
