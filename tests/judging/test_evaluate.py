import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tiny
from sklearn.linear_model import Ridge

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging import probes
from rgb2pc_lib.judging.evaluate import judge, judge_students, line_up, train_line_up
from rgb2pc_lib.judging.probes import load_targets, probe
from rgb2pc_lib.judging.rivals import PROPRIOCEPTION, UNTRAINED, components, pooled_features, pooled_rivals
from rgb2pc_lib.judging.verdicts import (
    AHEAD,
    SHUFFLED,
    TEACHER,
    WIDTH,
    difference,
    gap_closed,
    interval,
    mean_table,
    rivals_of,
    verdict,
)
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.plots import judgement_figure, save_figure

SMALL = Config(
    validation=0.0,
    amp="off",
    steps=40,
    batch_size=32,
    student_tokens=16,
    fuse_dim=32,
    moe_hidden=32,
    lr=3e-3,
    eval_every=0,
)


def keys(tasks=3, episodes=6, steps=10):
    rows = [(f"t{t}", f"e{e}", f"step_{s:04d}", s) for t in range(tasks) for e in range(episodes) for s in range(steps)]
    out = pd.DataFrame(rows, columns=["task", "episode", "step", "time"])
    return out, out["episode"].isin(["e4", "e5"]).to_numpy()


def test_probes_find_what_is_there_and_only_that():
    table, held_out = keys()
    rng = np.random.default_rng(0)
    told, hidden = rng.normal(size=(len(table), 3)), rng.normal(size=(len(table), 3))
    features = np.concatenate([told @ rng.normal(size=(3, 8)), rng.normal(size=(len(table), 4))], 1)
    out = probe(features, {"tcp": told, "object": hidden}, table, held_out)
    assert out["R2 tcp"] > 0.99 and out["tcp cm"] < 1
    assert out["R2 object"] < 0.1 and out["object cm"] > 50


def test_knowing_the_task_earns_no_within_task_r2():
    table, held_out = keys()
    rng = np.random.default_rng(0)
    one_hot = pd.get_dummies(table["task"]).to_numpy(float)
    target = 10 * one_hot.argmax(1)[:, None] + rng.normal(size=(len(table), 1))
    out = probe(one_hot + 0.01 * rng.normal(size=one_hot.shape), {"opening": target}, table, held_out)
    assert abs(out["R2 opening"]) < 0.2  # a plain R2 would be above 0.98
    assert out["task accuracy"] == 1


def test_probes_are_scored_on_held_out_episodes():
    """Features that identify the sample allow memorising the training episodes; held out they are worth nothing."""
    table, held_out = keys()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(table), 400))
    assert probe(features, {"tcp": rng.normal(size=(len(table), 3))}, table, held_out)["R2 tcp"] < 0.1


def test_what_never_changes_in_training_is_not_blown_up():
    """Constant up to rounding on the training steps, as components of a few cameras' rays are; held out it changes."""
    table, held_out = keys()
    rng = np.random.default_rng(0)
    told = rng.normal(size=(len(table), 3))
    still = np.where(held_out[:, None], rng.normal(size=(len(table), 2)), 1e-9 * rng.normal(size=(len(table), 2)))
    assert probe(np.concatenate([told, still], 1), {"tcp": told}, table, held_out)["R2 tcp"] > 0.99


def write_state(root, workspace, frame="camera"):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    to_camera = np.block([[turn, np.array([[0.1], [0.2], [1.3]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    for folder in sorted(workspace.teacher.glob("*/*")):
        steps = sorted(p.name.split(".")[0] for p in folder.iterdir())
        path = root / folder.parent.name / f"{folder.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        n = len(steps)
        np.savez(path, steps=np.array(steps), tcp=rng.normal(size=(n, 3)), object=rng.normal(size=(n, 3)),
                 opening=rng.random(n), progress=np.linspace(0, 1, n), world_to_camera=to_camera,
                 frame=np.array(frame))  # fmt: skip
    return to_camera


def test_two_arms_and_a_camera_that_moves(tmp_path):
    """The state of an imported recording: no object, two grippers, a pose for every step."""
    rng, poses = np.random.default_rng(0), np.tile(np.eye(4), (5, 1, 1))
    poses[:, :3, :3] = np.linalg.qr(rng.normal(size=(5, 3, 3)))[0]
    poses[:, :3, 3] = rng.normal(size=(5, 3))
    arms = {f"{side}_tcp": rng.normal(size=(5, 3)) for side in ("left", "right")}
    names = np.array([f"step_{i:04d}" for i in range(5)])
    (tmp_path / "stack").mkdir()
    common = {"steps": names, "progress": np.linspace(0, 1, 5), "frame": np.array("camera")}
    np.savez(tmp_path / "stack" / "ep.npz", **arms, **common, world_to_camera=poses)
    table = pd.DataFrame([("stack", "ep", f"step_{i:04d}") for i in (4, 1)], columns=["task", "episode", "step"])
    targets = load_targets(tmp_path, table)
    assert list(targets) == ["left tcp", "right tcp", "progress"]
    for side in ("left", "right"):
        expected = [poses[i, :3, :3] @ arms[f"{side}_tcp"][i] + poses[i, :3, 3] for i in (4, 1)]
        np.testing.assert_allclose(targets[f"{side} tcp"], expected)
    np.savez(tmp_path / "stack" / "ep.npz", **arms, **common)
    assert list(load_targets(tmp_path, table)) == ["progress"]  # where the camera stands is unknown


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_targets_are_in_the_frame_of_the_clouds(tmp_path, frame):
    workspace = tiny.make(tmp_path, tasks=("push",), episodes=2, steps=4)
    to_camera = write_state(tmp_path / "state", workspace, frame)
    table = pd.DataFrame(
        [("push", e, f"step_{s:04d}", s) for s in (2, 0) for e in ("ep_1", "ep_0")],
        columns=["task", "episode", "step", "time"],
    )
    targets = load_targets(tmp_path / "state", table)
    for i, row in table.iterrows():
        state = np.load(tmp_path / "state" / "push" / f"{row.episode}.npz")
        world = state["tcp"][row.time]
        expected = to_camera[:3, :3] @ world + to_camera[:3, 3] if frame == "camera" else world
        np.testing.assert_allclose(targets["tcp"][i], expected)
        np.testing.assert_allclose(targets["distance"][i], np.linalg.norm(state["object"][row.time] - world))
        for seen_in, place in (("world", world), ("camera", to_camera[:3, :3] @ world + to_camera[:3, 3])):
            np.testing.assert_allclose(load_targets(tmp_path / "state", table, seen_in)["tcp"][i], place)
    one = tmp_path / "state" / "push" / "ep_0.npz"
    arrays = dict(np.load(one))
    np.savez(one, **{k: v for k, v in arrays.items() if k != "object"})  # the other episode still has it
    assert list(load_targets(tmp_path / "state", table)) == ["tcp", "opening", "progress"]
    one.unlink()
    with pytest.raises(InputError, match="ep_0.npz"):
        load_targets(tmp_path / "state", table)


def test_pooled_features_are_means_over_the_whole_grid(left):
    data = Data.open(SMALL.with_workspace(left))
    pooled = pooled_features(data)
    for i in (0, 57):
        row = data.samples.keys().loc[i]
        frame = data.samples.pairing.packs["right"][row.task, row.episode].frame(row.step).float()
        np.testing.assert_allclose(pooled["right"][i], frame.mean((0, 1)).numpy(), rtol=1e-4, atol=1e-4)


def test_gap_closed_by_hand():
    rows = [(TEACHER, -1, "R2 tcp", 0.9), ("a", -1, "R2 tcp", 0.5), ("b", -1, "R2 tcp", 0.3)]
    rows += [(TEACHER, -1, "tcp cm", 2.0), ("a", -1, "tcp cm", 6.0), ("b", -1, "tcp cm", 8.0)]
    rows += [("a only", 0, "R@1", 0.2), ("b only", 0, "R@1", 0.4)]
    rows += [(TEACHER, -1, "task accuracy", 0.8), ("a", -1, "task accuracy", 0.9), ("b", -1, "task accuracy", 0.9)]
    for seed, (r2, cm) in enumerate([(0.7, 4.0), (0.8, 3.0), (0.6, 5.0)]):
        rows += [("moe", seed, "R2 tcp", r2), ("moe", seed, "tcp cm", cm), ("moe", seed, "R@1", 0.7)]
        rows += [("moe", seed, "task accuracy", 0.95)]
    closed = gap_closed(pd.DataFrame(rows, columns=["model", "seed", "measure", "value"]), ["moe"]).set_index("measure")
    assert closed.loc["R2 tcp", "closed"] == pytest.approx(0.5) and closed.loc["R2 tcp", "best rival"] == "a"
    assert closed.loc["tcp cm", "closed"] == pytest.approx(0.5)
    assert closed.loc["R@1", "closed"] == pytest.approx(0.5) and closed.loc["R@1", "best rival"] == "b only"
    half = 4.303 * 0.25 / np.sqrt(3)
    assert closed.loc["R2 tcp", "low"] == pytest.approx(0.5 - half, abs=1e-3)
    assert np.isnan(closed.loc["task accuracy", "closed"])  # the teacher is no better: there is no gap


def test_verdict_by_hand():
    rows = [("uniform", s, "R@1", v) for s, v in enumerate((0.2, 0.4, 0.6))]
    rows += [("moe", s, "R@1", v + 0.1 + 0.01 * s) for s, v in enumerate((0.2, 0.4, 0.6))]
    rows += [("moe", 0, "R@5", 0.9), (TEACHER, -1, "R@1", 1.0)]
    table = verdict(pd.DataFrame(rows, columns=["model", "seed", "measure", "value"]))
    assert list(table.index) == ["uniform", "moe"] and list(table["seeds"]) == [3, 3]
    assert table.loc["uniform", "mean"] == pytest.approx(0.4) and table.loc["moe", "difference"] == pytest.approx(0.11)
    half = 4.303 / np.sqrt(3)
    assert table.loc["uniform", "low"] == pytest.approx(0.4 - half * 0.2, abs=1e-3)
    assert table.loc["moe", "difference high"] == pytest.approx(0.11 + half * 0.01, abs=1e-4)  # paired: a narrow one
    assert table.loc["uniform", "difference"] == 0


def test_ablations_join_the_line_up(left, tmp_path):
    config = SMALL.with_workspace(left)
    names = [{n for n, _ in line_up(config, 1, tmp_path, ablations=a)} for a in (True, False)]
    assert names[0] - names[1] == {"uniform"}  # of two experts, one without the other is the one alone
    config = dataclasses.replace(config, vis_roots=config.vis_roots | {"again": config.vis_roots["right"]})
    rows = line_up(config, 2, tmp_path, ablations=True)
    plain = line_up(config, 2, tmp_path)
    assert [r for r in rows if r in plain] == plain  # the same folders: nothing is trained twice
    assert {n for n, _ in rows} - {n for n, _ in plain} == {"uniform", *(f"moe without {e}" for e in config.vis_roots)}
    without = dict(rows)["moe without left"]
    assert (list(without.vis_roots), without.fusion) == (["right", "again"], "moe")
    alone = dataclasses.replace(config, vis_roots={"left": config.vis_roots["left"]})
    assert line_up(alone, 1, tmp_path, ablations=True) == line_up(alone, 1, tmp_path)
    picked = [r for r in rows if r[0] in ("uniform", "moe without left", "left only") and r[1].seed == 0]
    assert {i for i, _ in train_line_up(picked)} == {0, 1, 2}
    found = judge_students(picked).long.query("measure == 'R@1'").set_index("model")["value"]
    assert found["left only"] > 0.7 and found["moe without left"] < 0.2


def test_interval_of_one_seed_is_unknown():
    assert np.isnan(interval(np.array([0.3]))).all()


def test_the_whole_table(left, tmp_path):
    write_state(tmp_path / "state", left)
    config = SMALL.with_workspace(dataclasses.replace(left, state=tmp_path / "state"))
    rows = line_up(config, 2, tmp_path / "runs")
    trained = {i for i, _ in train_line_up(rows)}
    assert trained == set(range(10))  # weighted, moe, two experts and the control, twice
    assert not list(train_line_up(rows))  # finished runs are kept
    long = judge(config, rows).long
    table = mean_table(long)
    pooled = [m for m in table.index if "x" in m.split(",")[0][-3:] or m.endswith("PCs")]
    assert {"left 2x2, 16 PCs", "right 4x4, 16 PCs", "experts concatenated 4x4, 16 PCs"} <= set(pooled)
    assert [m for m in table.index if m not in pooled] == [
        TEACHER, PROPRIOCEPTION, "left", "right", "experts concatenated", UNTRAINED,
        "weighted", "moe", "left only", "right only", SHUFFLED,
    ]  # fmt: skip
    assert table.loc[["weighted", "moe", "left only"], "R@1"].min() > 0.8
    assert table.loc[["right only", SHUFFLED], "R@1"].max() < 0.2
    assert table.loc[TEACHER, "CKA"] == pytest.approx(1)
    figure = save_figure(judgement_figure(long), "judgement", tmp_path / "figures", seeds=2)
    assert figure.stat().st_size > 20_000 and figure.with_suffix(".svg").exists()
    assert json.loads(figure.with_suffix(".json").read_text())["seeds"] == 2


def test_a_student_that_saw_the_future_says_so_in_the_table(left, tmp_path):
    config = dataclasses.replace(SMALL, steps=2).with_workspace(left)
    rows = [("live", config), ("weighted", config), ("older", config)]
    rows = [(name, dataclasses.replace(c, save_dir=str(tmp_path / name))) for name, c in rows]
    list(train_line_up(rows))
    for name, seen in (("weighted", {"mean": 3.5, "most": 7}), ("older", None)):
        run = Run.open(tmp_path / name)
        summary = run.summary
        if seen:
            summary["look_ahead"]["left"] |= seen
        else:
            del summary["look_ahead"]  # of experts that are not known by name
        run.file("summary.json").write_text(json.dumps(summary))
    long = judge_students(rows).long
    ahead = long[long["measure"] == AHEAD].set_index("model")["value"]
    assert ahead["weighted"] == 7 and np.isnan(ahead["older"]) and "live" not in ahead


def test_rivals_are_pooled_with_the_same_care(left):
    """Blocks keep where things are; wide features are also told at the student's width."""
    data = Data.open(SMALL.with_workspace(left))
    blocks = pooled_features(data, 2)["right"]
    row = data.samples.keys().loc[57]
    frame = data.samples.pairing.packs["right"][row.task, row.episode].frame(row.step).float()
    h, w, c = frame.shape
    upper_left = frame[: h // 2, : w // 2].mean((0, 1)).numpy()
    np.testing.assert_allclose(blocks[57, :c], upper_left, rtol=1e-4, atol=1e-4)
    fit = np.isin(np.arange(len(data.samples)), data.training)
    rivals = pooled_rivals(data, 16, fit)
    assert "right 2x2, 16 PCs" in rivals and rivals["right 2x2, 16 PCs"].shape == (len(fit), 16)
    again = components(np.where(fit[:, None], blocks, 0), 16, fit)  # what is not for fitting plays no part
    np.testing.assert_allclose(np.abs(again[fit]), np.abs(rivals["right 2x2, 16 PCs"][fit]), atol=1e-3)


def test_the_best_rival_is_of_equal_width_and_was_not_told_the_answer():
    rows = [(TEACHER, -1, WIDTH, 8), ("wide", -1, WIDTH, 99), ("narrow", -1, WIDTH, 8), (PROPRIOCEPTION, -1, WIDTH, 4)]
    rows += [("a only", 0, WIDTH, 8), ("weighted", 0, WIDTH, 8)]
    told = {TEACHER: 0.9, "wide": 0.8, "narrow": 0.3, PROPRIOCEPTION: 1.0, "a only": 0.5, "weighted": 0.7}
    rows += [(model, 0 if "only" in model else -1, "R2 tcp", value) for model, value in told.items()]
    rows += [(model, -1, "R2 object", value / 2) for model, value in told.items()]
    table = mean_table(pd.DataFrame(rows, columns=["model", "seed", "measure", "value"]))
    assert rivals_of(table, "R2 tcp").to_dict() == {"narrow": 0.3, "a only": 0.5}
    assert rivals_of(table, "R2 object").idxmax() == PROPRIOCEPTION
    assert set(rivals_of(table, "R2 tcp, random look") if "R2 tcp, random look" in table else []) == set()


def test_intervals_are_over_seeds_and_episodes():
    """Where every episode says the same the interval is narrow; where one decides it reaches across zero."""

    def episodes(errors):
        rows = [
            (model, 0, "tcp", f"t/e{i}", "", error, 1.0)
            for model, of in errors.items() for i, error in enumerate(of)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["model", "seed", "probe", "episode", "look", "error", "around"])

    same = episodes({"a": [0.2] * 8, "b": [0.4] * 8})
    assert difference(same, "R2 tcp", "a", "b") == pytest.approx((0.2, 0.2, 0.2))
    one = episodes({"a": [0.4] * 7 + [0.0], "b": [0.4] * 7 + [1.6]})
    mean, low, high = difference(one, "R2 tcp", "a", "b")
    assert mean == pytest.approx(0.2) and low == 0 and high > 0.3


def test_each_model_is_measured_against_the_spread_of_its_own_samples():
    """Windows are fewer than steps: half of the samples, half of the errors, and the same R2."""
    columns = ["model", "seed", "probe", "episode", "look", "error", "around"]
    rows = [(m, s, "tcp", f"t/e{i}", "", 0.2 * (i + 1) * part, (i + 1) * part)
            for m, part in (("steps", 1.0), ("windows", 0.5)) for s in (0, 1) for i in range(6)]  # fmt: skip
    for one, other in (("windows", "steps"), ("steps", "windows")):
        found = difference(pd.DataFrame(rows, columns=columns), "R2 tcp", one, other)
        assert found == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("samples, features", [(60, 9), (30, 50)])
def test_every_strength_of_ridge_is_that_of_scikit_learn(samples, features):
    rng = np.random.default_rng(0)
    x, y, new = (
        rng.normal(size=(samples, features)) + 3,
        rng.normal(size=(samples, 2)) - 5,
        rng.normal(size=(7, features)),
    )
    for alpha, found in zip(probes._ALPHAS, probes._predicted(x, y, new), strict=True):
        np.testing.assert_allclose(found, Ridge(alpha).fit(x, y).predict(new), atol=1e-6)
