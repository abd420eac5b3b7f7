"""Your own policy data: a made-up workspace in which one expert tells the actions, and the other does not."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny

from rgb2pc_lib import Config, InputError, Run, train
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.judging.loop.actions import error_table, held_out_errors
from rgb2pc_lib.judging.loop.compared import named_runs, recorded_features
from rgb2pc_lib.judging.loop.demonstrations import Demonstrations
from rgb2pc_lib.judging.loop.heads import HeadSettings
from rgb2pc_lib.judging.loop.representations import Source, Student
from rgb2pc_lib.learning.prepare import Data

JOINTS = 14


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Actions of 14 joints that follow from the step's latent, which the teacher and expert "left" tell."""
    root = tmp_path_factory.mktemp("actions")
    workspace = tiny.make(root, "left", episodes=8)
    mix = np.random.default_rng(0).normal(size=(tiny.TEACHER_WIDTH, JOINTS))
    for episode in workspace.teacher.glob("*/*"):
        means = np.stack(
            [tiny.torch.load(p, weights_only=True)["pc_feat"].mean(0).numpy() for p in sorted(episode.iterdir())]
        )
        path = root / "state" / episode.parent.name / f"{episode.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = np.array([p.name.split(".")[0] for p in sorted(episode.iterdir())])
        np.savez(
            path, steps=steps, action=(means @ mix).astype(np.float32), qpos=np.zeros((len(steps), JOINTS), np.float32)
        )
    workspace = dataclasses.replace(workspace, state=root / "state")
    config = Config(steps=60, batch_size=16, fuse_dim=32, eval_every=0, save_dir=str(root / "weighted-seed0"))
    config = config.with_workspace(workspace)
    list(train(config))
    return workspace, config


def toml(workspace, path):
    experts = "\n".join(f'{k} = "{v}"' for k, v in workspace.experts.items())
    path.write_text(f'[roots]\nteacher = "{workspace.teacher}"\nstate = "{workspace.state}"\n[experts]\n{experts}\n')
    return path


def test_one_command_one_table(made, tmp_path):
    workspace, config = made
    words = ["--workspace", toml(workspace, tmp_path / "my.toml"), "--runs", config.folder, "--out", tmp_path / "a.csv",
             "--heads", 2, "--head_steps", 200, "--chunk", 1, "--against", "right"]  # fmt: skip
    out = subprocess.run(
        [sys.executable, PROJECT / "tools/judge_actions.py", *map(str, words)], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    table = pd.read_csv(tmp_path / "a.csv").set_index("representation")
    assert list(table.index)[:3] == ["proprioception", "teacher", "left"] and "weighted" in table.index
    assert table.loc["teacher", "is"] == table.loc["left", "is"] == table.loc["weighted", "is"] == "better"
    assert table.loc["proprioception", "is"] in ("not told apart", "better")
    assert table.loc["left", "error"] < 0.6 * table.loc["right", "error"]
    assert (table["low"] <= table["error"]).all() and (table["error"] <= table["high"]).all()
    assert "Held-out action error" in out.stdout and "weighted" in out.stdout


def test_bad_input_is_one_line(made, tmp_path):
    workspace, config = made
    words = ["--workspace", toml(workspace, tmp_path / "my.toml"), "--runs", config.folder, "--against", "nobody"]
    out = subprocess.run(
        [sys.executable, PROJECT / "tools/judge_actions.py", *map(str, words)], capture_output=True, text=True
    )
    assert out.returncode == 2 and "--against: expected one of proprioception; teacher; left" in out.stderr


def test_where_actions_come_from(made, tmp_path):
    workspace, config = made
    data = Data.open(config)
    found = Demonstrations.of(data, workspace.state, chunk=3)
    assert found.actions.shape == (len(found.keys), 3, JOINTS) and found.own.shape[1] == JOINTS
    rows = np.flatnonzero((found.keys["task"] == "pull") & (found.keys["episode"] == "ep_0"))
    state = dict(np.load(workspace.state / "pull" / "ep_0.npz"))
    np.testing.assert_array_equal(found.actions[rows[2]], state["action"][2:5])
    np.testing.assert_array_equal(found.actions[rows[-1]], state["action"][[-1, -1, -1]])  # the last one stays

    def rewritten(change):
        for path in workspace.state.glob("*/*.npz"):
            there = tmp_path / path.relative_to(workspace.state)
            there.parent.mkdir(parents=True, exist_ok=True)
            np.savez(there, **change(dict(np.load(path))))
        return Demonstrations.of(data, tmp_path, chunk=2)

    joints = rewritten(lambda s: {"steps": s["steps"], "qpos": s["action"]})  # the joints of the steps that follow
    np.testing.assert_array_equal(joints.actions[rows[2]], state["action"][3:5])
    assert joints.own.shape[1] == JOINTS
    whole = rewritten(
        lambda s: {"steps": s["steps"], "actions": np.repeat(s["action"], 3, 0), "time": 3 * np.arange(12)}
    )
    np.testing.assert_array_equal(whole.actions[rows[2]], state["action"][[2, 2]])
    assert whole.own.shape[1] == 1 and not whole.own.any() and set(whole.horizons.values()) == {72}
    with pytest.raises(InputError, match="expected the array actions .* found steps; add the actions"):
        rewritten(lambda s: {"steps": s["steps"]})
    with pytest.raises(InputError, match="expected finite actions, found others from step_0000 on"):
        rewritten(lambda s: {"steps": s["steps"], "action": np.full_like(s["action"], np.nan)})
    with pytest.raises(InputError, match="action: expected .*S"):
        rewritten(lambda s: {"steps": s["steps"], "action": s["action"][:5]})
    with pytest.raises(InputError, match="qpos: expected .* S = 12 as in steps, found \\[5, 14\\]"):
        rewritten(lambda s: s | {"qpos": s["qpos"][:5]})
    with pytest.raises(InputError, match="expected finite places and joints of the robot, found others from step_0000"):
        rewritten(lambda s: s | {"qpos": np.full_like(s["qpos"], np.nan)})
    long = {"actions": np.zeros((36, JOINTS), np.float32)}
    for time in (np.arange(12) * 200, np.arange(12) - 1):
        with pytest.raises(InputError, match="expected time to count the 36 actions from 0 on, found .*tell at which"):
            rewritten(lambda s, time=time: {"steps": s["steps"], "time": time} | long)
    with pytest.raises(InputError, match="expected the array time"):
        rewritten(lambda s: {"steps": s["steps"]} | long)
    odd = iter(range(99))
    with pytest.raises(InputError, match="expected actions of one kind .* found action in some, qpos in others"):
        robot = {"tcp": np.zeros((12, 3), np.float32), "opening": np.zeros(12, np.float32)}
        rewritten(lambda s: {"steps": s["steps"], ("action", "qpos")[next(odd) % 2]: s["action"]} | robot)
    with pytest.raises(InputError, match="chunk: expected at least 1 action, found 0"):
        Demonstrations.of(data, workspace.state, chunk=0)


def test_a_head_without_inputs_is_a_floor_and_one_without_steps_is_refused(made):
    workspace, config = made
    found = Demonstrations.of(Data.open(config), workspace.state, chunk=1)
    blind = dataclasses.replace(found, own=np.zeros((len(found.keys), 1), np.float32))
    (errors,) = held_out_errors({"nothing": [np.zeros((len(found.keys), 0))]}, blind, 1, HeadSettings(steps=50))
    assert 0.5 < errors["error"].mean() < 1.5  # as far off as the mean action is
    with pytest.raises(InputError, match="steps of a head: expected at least 1, found 0"):
        HeadSettings(steps=0)
    for heads, held_out in ((0, found.held_out), (1, np.zeros_like(found.held_out))):
        with pytest.raises(InputError, match="expected a head, and a task with training and held-out episodes"):
            next(held_out_errors({}, dataclasses.replace(found, held_out=held_out), heads))


def test_runs_of_another_split_and_others_of_one_name_are_refused(made, tmp_path):
    workspace, config = made
    other = dataclasses.replace(config, steps=2, split_seed=7, save_dir=str(tmp_path / "weighted-seed0"))
    list(train(other))
    data = Data.open(config)
    source = Source(config, data, Demonstrations.of(data, workspace.state, 1))
    with pytest.raises(InputError, match="expected the split of the demonstrations, found other held-out steps"):
        Student(other.folder).features(source)
    runs = [Run.open(config.folder), Run.open(other.folder)]
    for second, found in ((runs[1], "other split_seed, steps"), (runs[0], "the same")):
        with pytest.raises(InputError, match=f"with another seed, .* one name, found {found}; rename a folder"):
            named_runs([runs[0], second])


def test_episodes_for_training_alone_need_no_actions(made, tmp_path):
    workspace, config = made
    states = tmp_path / "state"
    shutil.copytree(workspace.state, states)
    (states / "pull" / "ep_1.npz").unlink()
    config = dataclasses.replace(config, train_only=("pull/ep_1",), state_root=str(states))
    data = Data.open(config)
    some = data.demonstrated(config.train_only)
    found = Demonstrations.of(some, states, chunk=1)
    everything = data.samples.keys()
    gone = (everything["task"] == "pull") & (everything["episode"] == "ep_1")
    assert len(found.keys) == len(everything) - gone.sum() and gone.sum() == 12
    for side in ("training", "validation", "held_out"):
        there = np.isin(np.arange(len(everything)), getattr(data, side))[~gone]
        np.testing.assert_array_equal(getattr(found, side), there)
    features = recorded_features([], Source(config, some, found))
    assert {len(x) for (x,) in features.values()} == {len(found.keys)}


def test_intervals_are_paired(made):
    workspace, config = made
    found = Demonstrations.of(Data.open(config), workspace.state, chunk=1)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(found.keys), 3))
    features = {"noise": [noise], "the same": [noise], "other noise": [rng.normal(size=noise.shape)]}
    errors = pd.concat(held_out_errors(features, found, 2, HeadSettings(steps=50)))
    assert errors["episode"].nunique() == 4 and len(errors) == 3 * 2 * 4
    table = error_table(errors, "noise").set_index("representation")
    assert table.loc["the same", ["difference", "difference low", "difference high"]].eq(0).all()
    assert table.loc["the same", "is"] == "not told apart"
    alone = errors[errors["episode"].isin(errors.groupby("task")["episode"].min())]
    assert alone.groupby("task")["episode"].nunique().eq(1).all()
    few = error_table(alone, "noise")  # one episode a task: nothing can be drawn
    assert few["low"].isna().all() and set(few["is"]) == {"", "not told apart"}
