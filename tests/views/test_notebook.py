"""What notebooks call: runs that are missing are trained several at a time, and interrupted ones are continued."""

import dataclasses
import threading
from types import SimpleNamespace

import pytest
import tiny
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from rgb2pc_lib.data.workspace import PROJECT, SAMPLE
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import train_line_up
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views import notebook as module
from rgb2pc_lib.views.notebook import picture, train_missing
from rgb2pc_lib.views.session import THREAD

SMALL = Config(
    validation=0.0, amp="off", steps=12, batch_size=16, student_tokens=8, fuse_dim=16, moe_hidden=16, eval_every=0
)


@pytest.fixture
def rows(tmp_path):
    base = SMALL.with_workspace(tiny.make(tmp_path / "data"))
    made = {f: dataclasses.replace(base, fusion=f, save_dir=str(tmp_path / f)) for f in ("weighted", "moe", "uniform")}
    return list(made.items())


def test_frames_recorded_for_the_sample_are_the_samples_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHE", tmp_path)
    assert module.recorded_frames(SAMPLE) == []
    (tmp_path / "compact_frames" / "rgb").mkdir(parents=True)
    assert module.recorded_frames(SAMPLE) == [str(tmp_path / "compact_frames" / "rgb")]
    assert module.recorded_frames(PROJECT / "data" / "mine.toml") == []


def test_side_by_side_gives_the_numbers_of_one_after_the_other(rows, tmp_path, capsys):
    train_missing(rows)
    train_missing(rows)
    assert capsys.readouterr().out.splitlines() == ["0 of 3 runs are there already", "3 of 3 runs are there already"]
    alone = [(name, dataclasses.replace(c, save_dir=str(tmp_path / "alone" / name))) for name, c in rows]
    assert len(list(train_line_up(alone))) == 3 * SMALL.steps
    for (_, a), (_, b) in zip(rows, alone, strict=True):
        assert Run(a.folder).summary == Run(b.folder).summary


def test_a_failure_is_said_with_its_run_and_stops_the_others(rows):
    rows[1] = rows[1][0], dataclasses.replace(rows[1][1], batch_size=512)
    with pytest.raises(InputError, match=r"moe: .*512.* is larger than the"):
        train_missing(rows)
    assert not Run(rows[1][1].folder).holds(rows[1][1]) and not [t for t in threading.enumerate() if t.name == THREAD]


def test_interrupted_and_called_again(rows, monkeypatch):
    long = [(name, dataclasses.replace(c, steps=400)) for name, c in rows[:2]]
    naps = iter([None] * 3)
    with monkeypatch.context() as m:
        m.setattr(module, "time", SimpleNamespace(sleep=lambda s: next(naps)))  # StopIteration, as Ctrl-C would come
        with pytest.raises(StopIteration):
            train_missing(long)
    assert not [t for t in threading.enumerate() if t.name == THREAD] and not any(
        Run(c.folder).holds(c) for _, c in long
    )
    train_missing(long)
    assert all(Run(c.folder).holds(c) for _, c in long)


def test_what_has_lightness_of_its_own_is_a_card_in_a_dark_theme_and_a_chart_is_turned_over():
    chart, heat, cloud = Figure(), Figure(), Figure()
    chart.subplots().plot([0, 1], [1, 2])
    heat.subplots().imshow([[0, 1]])
    cloud.add_subplot(projection="3d").scatter([0, 1], [0, 1], [0, 1])
    assert [picture(f).metadata["needs_background"] for f in (chart, heat, cloud)] == ["dark", "light", "light"]
    scale = Figure()
    scale.colorbar(ScalarMappable(), ax=scale.subplots())
    assert picture(scale).metadata["needs_background"] == "light"
