import dataclasses
import json

import numpy as np
import pytest

from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.versus import Versus
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run

STEPS, WIDTH = 6, 32


def finished(folder, wrong=(), episodes=8, held=4, seed=0):
    """A run whose student is its teacher, but at the steps in `wrong`, episode/step, where it is the opposite."""
    names = [(f"ep_{e}", f"step_{s}") for e in range(episodes) for s in range(STEPS)]
    episode, step = np.array(names).T
    teacher = np.random.default_rng(1).normal(size=(len(names), WIDTH)).astype(np.float32)
    held_out = np.array([int(e[3:]) < held for e in episode])
    student = teacher - teacher[~held_out].mean(0) + 1e-3 * np.random.default_rng(seed).normal(size=teacher.shape)
    student[[f"{e}/{s}" in wrong for e, s in names]] *= -1
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(Config(seed=seed, validation=0.0).to_json())
    (folder / "summary.json").write_text(json.dumps({"n_train": 1, "n_held_out": 1, "held-out": {}}))
    np.savez(
        folder / "embeddings.npz", student=student.astype(np.float32), teacher=teacher,
        task=np.full(len(names), "push"),
        episode=episode, step=step, time=np.tile(np.arange(STEPS), episodes), held_out=held_out,
        gates=np.ones((len(names), 1), np.float32), experts=np.array(["a"]),
    )  # fmt: skip
    return Run(folder)


def test_a_step_that_one_run_misses_stands_last_and_is_counted(tmp_path):
    a, b = finished(tmp_path / "a", ["ep_1/step_2"]), finished(tmp_path / "b", ["ep_3/step_0", "ep_3/step_1"])
    found = Versus.of([a], [b])
    n = 4 * STEPS
    assert len(found.steps) == n
    first, *_, before, last = found.steps.itertuples(index=False)
    assert (first.episode, first.step) == ("ep_1", "step_2") and first[3:5] == (n, 1) and first.change == np.log2(n)
    assert {(r.episode, r.step) for r in (before, last)} == {("ep_3", "step_0"), ("ep_3", "step_1")}
    row = found.table.loc["R@1"]
    assert row["A"] == pytest.approx(1 - 1 / n) and row["B"] == pytest.approx(1 - 2 / n)
    assert row["difference"] == pytest.approx(-1 / n) and row["low"] < row["difference"] < row["high"]
    assert row["B is"] == "not told apart" and "not told apart" in found.words("a", "b")


def test_a_difference_in_every_episode_is_told(tmp_path):
    bad = [f"ep_{e}/step_{s}" for e in range(4) for s in (0, 1)]
    runs = {name: [finished(tmp_path / f"{name}{i}", wrong, seed=i) for i in range(2)] for name, wrong in
            {"a": bad, "b": []}.items()}  # fmt: skip
    found = Versus.of(*runs.values())
    assert found.rank.shape == (2, 2, 4 * STEPS) and found.table.loc["R@1", "B is"] == "better"
    assert found.table.loc["R@1", "low"] == pytest.approx(1 / 3)  # the same in every episode and seed


def test_only_common_held_out_steps_without_what_was_decided_are_compared(tmp_path):
    a, b = finished(tmp_path / "a", held=4), finished(tmp_path / "b", held=3)
    found = Versus.of([a], [b], Exclusions.of(["push/ep_0", "push/ep_1 shift +2", "push/ep_2/step_5"]))
    assert set(found.keys["episode"]) == {"ep_2"} and len(found.keys) == STEPS - 1
    assert found.rank.max() == 1


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b")
    with pytest.raises(InputError, match="1 runs against 2"):
        Versus.of([a], [a, b])
    with pytest.raises(InputError, match="hold out no steps in common"):
        Versus.of([a], [b], Exclusions.of([f"push/ep_{e}" for e in range(4)]))
    own = dataclasses.replace(a.config, route="geometric")
    (b.folder / "config.json").write_text(own.to_json())
    with pytest.raises(InputError, match="its space is its own"):
        Versus.of([a], [b])
    (b.folder / "summary.json").unlink()
    (b.folder / "embeddings.npz").unlink()
    (b.folder / "config.json").write_text(a.config.to_json())
    with pytest.raises(InputError, match="unfinished"):
        Versus.of([a], [b])
