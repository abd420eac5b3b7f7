from dataclasses import replace

import numpy as np
import pytest
import tiny
from matplotlib.colors import to_rgb

from rgb2pc_lib.checks.shift import feature_check
from rgb2pc_lib.checks.sources import shifted_copies, usable
from rgb2pc_lib.checks.teacher import negative_audit, spread
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.pairing import NO_EPISODE, NO_STEP, OK, pair
from rgb2pc_lib.data.sampling import Gatherer
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.views.look import ALARM
from rgb2pc_lib.views.pairing import (
    STATUS,
    before_after_figure,
    negatives_figure,
    planted,
    presence_figure,
    retrained,
    shift_figure,
    spread_figure,
)


def drawn(figure, width: int = 400):
    """Renders it; the text in it."""
    figure.set_dpi(width / figure.get_figwidth())
    figure.canvas.draw()
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.fixture(scope="module")
def checked(left):
    pairing = pair(left)
    names = list(pairing.teacher["push", "ep_3"])
    files = pairing.teacher["push", "ep_3"]
    late = {n: files[names[max(i - 2, 0)]] for i, n in enumerate(names)}
    wrong = replace(pairing, teacher=pairing.teacher | {("push", "ep_3"): late})
    return pairing, feature_check(pairing, progress=False), wrong, feature_check(wrong, progress=False)


def test_presence_shows_every_reason_at_its_place(tmp_path):
    ws = tiny.make(tmp_path, "left", tasks=("push",), episodes=3)
    (ws.teacher / "push" / "ep_1" / "step_0004.ply.ulip_tiny.pt").unlink()
    (ws.experts["left"] / "push" / "ep_2.pt").unlink()
    (ws.experts["right"] / "push" / "ep_0.pt").write_bytes(b"damaged")
    figure = presence_figure(pair(ws))
    text = drawn(figure)
    left, right, teacher = (a for a in figure.axes if a.images)
    kinds = list(STATUS)

    def status(axes, row, column):
        return kinds[int(axes.images[0].get_array()[row, column])]

    assert (status(teacher, 1, 4), status(teacher, 1, 5)) == (NO_STEP, OK)
    assert (status(left, 2, 0), status(right, 0, 7), status(left, 0, 7)) == (NO_EPISODE, "unreadable", OK)
    assert "teacher\n35 of 36 steps" in text and "unreadable" in text and "push" in text


def test_an_episode_of_which_nothing_is_readable_fills_its_row(tmp_path):
    ws = tiny.make(tmp_path, "left", tasks=("push",), episodes=2)
    for root in ws.experts.values():
        (root / "push" / "ep_1.pt").write_bytes(b"damaged")
    for file in (ws.teacher / "push" / "ep_1").iterdir():
        file.unlink()
    figure = presence_figure(pair(ws))
    drawn(figure)
    grid = figure.axes[0].images[0].get_array()
    assert (grid[1] == list(STATUS).index("unreadable")).all() and (grid[0] == 0).all()


def test_a_flagged_episode_is_named_at_its_row_and_shift(checked):
    _, fine, _, wrong = checked
    figure = shift_figure(wrong)
    text = drawn(figure)
    assert "ep_3: +2" in text and "1 of 16 episodes flagged" in text
    row = wrong.episodes.index(("push", "ep_3"))
    rings = [line for line in figure.axes[0].lines if line.get_markeredgecolor() == ALARM]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(2, row)]
    text = drawn(shift_figure(fine))
    assert "0 of 16 episodes flagged" in text and ": +" not in text and "all together: best at 0" in text


def test_episodes_too_short_to_judge(tmp_path):
    check = feature_check(pair(tiny.make(tmp_path, "left", episodes=2, steps=5)), progress=False)
    assert check.common_shift is None and set(check.table["verdict"]) == {"cannot tell"}
    text = drawn(shift_figure(check))
    assert "all together: too short to judge" in text and "4 not judged" in text


def test_before_and_after_differ_where_they_should(checked, left):
    pairing, fine, wrong_pairing, wrong = checked
    cases = {"as filed": (left, pairing, [fine]), "shifted": (left, wrong_pairing, [wrong])}
    figure = before_after_figure(cases, "push", "ep_3", "step_0004")
    text = drawn(figure)
    assert "as filed, by features: ok" in text and "shifted, by features: shifted by +2" in text
    assert [a.lines[-1].get_xdata()[0] for a in figure.axes if len(a.lines) > 1] == [0, 2]


def test_spread_and_negatives(checked):
    samples = usable(checked[0])
    keys, teacher = samples.keys(), Gatherer(samples).teacher_embeddings(samples.teacher_rows)
    table = spread(teacher, keys["task"])
    figure = spread_figure(table)
    assert f"{table['effective rank'].iloc[1]:.1f}" in drawn(figure)
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx(table["effective rank"])

    audit = negative_audit(keys, teacher)
    figure = negatives_figure(audit, exclude_near=3, cut=0.5, batch=32)
    assert "exclude_near = 3:\na step meets" in drawn(figure) and "in a batch of 32" in drawn(figure)
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), audit.exclusion(0.5)["false at the edge"])


def test_colours_of_status_differ_in_brightness_too():
    bright = sorted(np.dot(to_rgb(c), [0.299, 0.587, 0.114]) for c in STATUS.values())
    assert min(np.diff(bright)) > 0.08


def test_what_decisions_are_worth_is_measured_where_nothing_was_decided(tmp_path, capsys):
    ws = tiny.make(tmp_path / "data", "left", tasks=("push",), episodes=8, steps=8)
    config = Config(steps=3, batch_size=8, student_tokens=4, fuse_dim=8, eval_every=0, amp="off").with_workspace(ws)
    faults = planted(config, 2, 3)
    held_out = Data.open(config).samples.keys().loc[Data.open(config).held_out, "episode"].unique()
    assert len(faults) == 3 and not {f"push/{e}" for e in held_out} & set(
        faults
    )  # every second of the five for training
    late = shifted_copies(ws, faults, tmp_path / "demo")
    decided = Exclusions.of([f"{name} shift +3" for name in faults] + [f"push/{held_out[0]}"])
    found = retrained(config.with_workspace(late), decided, tmp_path / "runs", 2)
    assert not set("push/" + found.keys["episode"]) & set(faults)
    assert f"push/{held_out[0]}" not in set("push/" + found.keys["episode"]) and found.rank.shape[:2] == (2, 2)
    (a, _), (b, again) = found.runs
    assert a.config.exclude == () and set(b.config.exclude) == set(decided.lines) and again.config.seed == 1
    assert set(a.config.changes(b.config)) == {"exclude"}  # all else is the same
    assert b.summary["excluded"] == {f"push/{held_out[0]}": ""}
    retrained(config.with_workspace(late), decided, tmp_path / "runs", 2)
    assert "4 of 4 runs are there already" in capsys.readouterr().out
