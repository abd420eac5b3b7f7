from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from rgb2pc_lib.checks import shift as shift_checks
from rgb2pc_lib.checks.shift import ShiftCheck, colour_check, feature_check, summary, what_first
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.workspace import SAMPLE, Workspace
from rgb2pc_lib.errors import InputError


def refiled(pairing, shifts: dict):
    """The pairing with some episodes' teachers filed late, ends repeated: what wrong names on disk amount to."""
    teacher = dict(pairing.teacher)
    for key, by in shifts.items():
        names = list(teacher[key])
        teacher[key] = {n: teacher[key][names[min(max(i - by, 0), len(names) - 1)]] for i, n in enumerate(names)}
    return replace(pairing, teacher=teacher)


def flagged(check: ShiftCheck) -> dict:
    rows = check.table[check.table["flagged"]]
    return {(r.task, r.episode): r["shift"] for _, r in rows.iterrows()}


def test_nothing_is_flagged_where_nothing_is_wrong(left):
    check = feature_check(pair(left), progress=False)
    assert flagged(check) == {} and set(check.table["verdict"]) == {"ok"} and check.common_shift == 0
    assert what_first([check, check]) == "Train: no episode is flagged as shifted."
    power = check.power()
    assert power.loc[0].tolist() == [0, 1] and (power.loc[1:] == 1).all(axis=None)
    assert check.verdict("push", "ep_0") == ("ok", False)
    with pytest.raises(InputError, match="push/ep_99"):
        check.verdict("push", "ep_99")


def test_shifted_episodes_are_found_with_size_and_direction(left):
    wrong = {("push", "ep_2"): 2, ("pull", "ep_5"): -3, ("pull", "ep_6"): 1}
    check = feature_check(refiled(pair(left), wrong), progress=False)
    assert flagged(check) == wrong
    assert check.verdict("pull", "ep_5") == ("shifted by -3", True)
    row = summary([check]).loc["features"]
    assert (row["flagged"], row["cannot tell"], row["all together at"]) == (3, 0, 0)


def test_a_shift_that_all_share_is_seen_together(left):
    pairing = pair(left)
    for by in (2, -1):
        check = feature_check(refiled(pairing, dict.fromkeys(pairing.teacher, by)), progress=False)
        assert check.common_shift == by


def test_nothing_is_claimed_where_rgb_says_nothing_of_the_teacher(left):
    pairing, rng = pair(left), np.random.default_rng(0)
    files = [f for steps in pairing.teacher.values() for f in steps.values()]
    order = iter(rng.permutation(len(files)))
    shuffled = {key: {s: files[next(order)] for s in steps} for key, steps in pairing.teacher.items()}
    check = feature_check(replace(pairing, teacher=shuffled), progress=False)
    assert (check.table["verdict"] == "cannot tell").mean() > 0.8 and len(flagged(check)) <= 2


def test_missing_steps_and_short_episodes_do_no_harm(tmp_path):
    ws = tiny.make(tmp_path, "left", episodes=6)
    for step in (0, 4, 5):
        (ws.teacher / "push" / "ep_1" / f"step_{step:04d}.ply.ulip_tiny.pt").unlink()
    for step in range(4, 12):
        (ws.teacher / "pull" / "ep_3" / f"step_{step:04d}.ply.ulip_tiny.pt").unlink()
    check = feature_check(pair(ws), progress=False)
    assert flagged(check) == {} and check.verdict("push", "ep_1")[0] == "ok"
    assert check.verdict("pull", "ep_3")[0] == "cannot tell"  # four steps


def test_blocks_keep_the_order_of_episodes(left, monkeypatch):
    pairing = refiled(pair(left), {("push", "ep_4"): 2})
    monkeypatch.setattr(shift_checks, "BLOCK", 96)  # two blocks
    check = feature_check(pairing, progress=False)
    assert check.episodes == list(pairing.teacher) and flagged(check) == {("push", "ep_4"): 2}
    assert "Look at 1 flagged episode(s) first" in what_first([check]) and "push/ep_4 (by" in what_first([check])


def test_looking_at_fewer_steps_still_compares_with_all(left):
    check = feature_check(refiled(pair(left), {("pull", "ep_1"): 3}), steps=8, progress=False)
    assert flagged(check)[("pull", "ep_1")] == 3


def test_one_episode_cannot_be_foretold_from_others(tmp_path):
    ws = tiny.make(tmp_path, "left", tasks=("push",), episodes=1)
    with pytest.raises(InputError, match="at least two"):
        feature_check(pair(ws), progress=False)


def test_the_closed_form_is_a_regression_on_the_other_groups():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
    kernel, groups, trusted = x @ x.T, np.split(np.arange(12), 4), np.array([True, True, False, True])
    found = shift_checks._foretell(kernel, y, groups, trusted)
    for g, rows in enumerate(groups):
        fit = np.concatenate([r for h, r in enumerate(groups) if h != g and trusted[h]])
        weights = np.linalg.solve(kernel[np.ix_(fit, fit)] + shift_checks.RIDGE * np.eye(len(fit)), y[fit])
        assert np.allclose(found[rows], kernel[np.ix_(rows, fit)] @ weights)


# -- by colours


@pytest.fixture
def seen(tmp_path):
    """Two episodes of a bright square that moves over noise; the teacher's points know their colour and pixel."""
    rng = np.random.default_rng(0)
    for episode in ("ep_0", "ep_1"):
        ground = rng.integers(0, 120, size=(24, 32, 3))
        for folder in ("rgb", "teacher"):
            (tmp_path / folder / "push" / episode).mkdir(parents=True)
        for i in range(12):
            image = ground.copy()
            image[8:14, 2 * i : 2 * i + 6] = 250
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "rgb" / "push" / episode / f"step_{i:04d}.png")
            uv = np.stack([rng.integers(32, size=200), rng.integers(24, size=200)], 1)
            pc = np.concatenate([rng.normal(size=(200, 3)), image[uv[:, 1], uv[:, 0]] / 255], 1)
            parts = {"pc_feat": np.zeros((200, 4)), "pc": pc, "uv": uv.astype(float)}
            target = tmp_path / "teacher" / "push" / episode / f"step_{i:04d}.ply.ulip_x.pt"
            torch.save({k: torch.tensor(v, dtype=torch.float32) for k, v in parts.items()}, target)
    (tmp_path / "none").mkdir()
    return Workspace(teacher=tmp_path / "teacher", rgb=tmp_path / "rgb", experts={"none": tmp_path / "none"})


def test_colours_find_even_one_step(seen):
    pairing = pair(seen)
    check = colour_check(seen, pairing, progress=False)
    assert flagged(check) == {} and check.common_shift == 0
    assert np.allclose(check.searched[:, check.reach], 0, atol=0.51)
    for by in (1, -2, 4):
        wrong = refiled(pairing, {("push", "ep_1"): by})
        assert flagged(colour_check(seen, wrong, progress=False)) == {("push", "ep_1"): by}


def test_colours_need_colours(seen, left):
    with pytest.raises(InputError, match="no episode has images and clouds with colours"):
        colour_check(left, pair(left), progress=False)
    pairing = pair(seen)
    for steps in pairing.teacher.values():
        for file in steps.values():
            parts = torch.load(file.path, weights_only=True)
            torch.save(parts | {"pc": parts["pc"][:, :3]}, file.path)
    with pytest.raises(InputError, match="no episode has images and clouds with colours"):
        colour_check(seen, pairing, progress=False)


def test_both_checks_where_possible_else_one(left):
    assert [c.name for c in shift_checks.shift_checks(left, pair(left), progress=False)] == ["features"]


def test_on_the_sample_planted_shifts_are_found_and_hardly_anything_else():
    ws = Workspace.load(SAMPLE)
    if not all(root.is_dir() for root in (ws.teacher, *ws.experts.values())):
        pytest.skip("the sample's features are not extracted: run `make features`")
    for check in shift_checks.shift_checks(ws, pair(ws), progress=False):
        power = check.power()["flagged"]
        assert power[0] < 0.05 and power[1] > 0.9 and (power[2:] >= 0.98).all(), (check.name, power)
        assert check.common_shift == 0
