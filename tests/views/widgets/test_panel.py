"""The panel without a browser: buttons are clicked in code, the rest is the same."""

import asyncio
import dataclasses
import html
import re
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import judge_students, line_up, train_line_up
from rgb2pc_lib.judging.verdicts import compared, verdict
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.views import session as session_module
from rgb2pc_lib.views.curves import curves_figure, labels, smoothed, styles, verdict_figure
from rgb2pc_lib.views.session import THREAD
from rgb2pc_lib.views.widgets import panel as module
from rgb2pc_lib.views.widgets.panel import TrainingPanel

SMALL = Config(
    validation=0.0,
    amp="off",
    steps=40,
    batch_size=32,
    student_tokens=16,
    fuse_dim=32,
    moe_hidden=32,
    lr=2e-3,
    eval_every=20,
)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    for panel in module._panels.values():
        panel.session.stop()
    module._panels.clear()
    assert not [t.name for t in threading.enumerate() if t.name in (THREAD, "gather")]


def in_a_loop(test):
    return lambda *args, **kwargs: asyncio.run(test(*args, **kwargs))


async def until(true, seconds=60):
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline
        await asyncio.sleep(0.01)


def drawn(panel, curve="loss"):
    return {t.name: len(t.x) for t in panel.figure.data if t.legendgroup and bool(t.showlegend) == (curve == "loss")}


def test_start_stop_resume_by_clicks(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path)
        b = panel.buttons
        assert [b[k].disabled for k in ("start", "stop", "resume")] == [False, True, True]
        panel.set("steps", 200)
        panel.controls["fusion"].value = "moe"
        b["start"].click()
        await until(lambda: drawn(panel) and drawn(panel)["moe"] > 3)
        assert [b[k].disabled for k in ("start", "stop", "resume")] == [True, False, True]
        assert "loss" in panel.status.value and "steps/s" in panel.status.value
        await until(lambda: re.search(r"about \d+ s left", panel.status.value))
        gates = [t for t in panel.figure.data if t.legend == "legend2"]
        assert [t.name for t in gates] == ["left", "right"] and all(len(t.x) == len(gates[0].x) > 3 for t in gates)
        assert np.allclose(sum(np.array(t.y) for t in gates), 1, atol=1e-5)
        b["stop"].click()
        await until(lambda: not b["resume"].disabled)
        stopped = panel.bar.value
        assert 0 < stopped < 200 and "Resume" in panel.status.value and not b["start"].disabled
        panel.set("steps", 20)  # what the sliders say meanwhile does not matter to the run that was stopped
        b["resume"].click()
        await until(lambda: "finished" in panel.status.value)
        assert panel.bar.value == panel.bar.max == 200 and drawn(panel, "R@1") == {"moe": 20}
        assert panel.controls["steps"].value == 200  # and they show its settings again
        return Run(panel.session.snapshot().config.folder)

    run = drive()
    whole = dataclasses.replace(run.config, save_dir=str(tmp_path / "whole"))
    list(train(whole))
    assert run.summary == Run(whole.folder).summary  # resumed equals uninterrupted
    assert run.folder.parent == tmp_path


def test_the_command_line_on_the_panel_gives_the_same_numbers(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path / "panel")
        run = await panel.run(fusion="moe", steps=30, lr=0.0123, expert_drop=0.2, loss_mse=0.3, seed=11, tau=0.11)
        return run, panel.command(), panel.commandline.value

    run, command, seen = drive()
    assert command in html.unescape(re.sub("<[^>]*>", "", seen))
    words = shlex.split(command)
    assert words[0] == "python" and words[words.index("--lr") + 1] == "0.0123"
    out = subprocess.run([sys.executable, *words[1:]], cwd=PROJECT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    again = Run.open(words[words.index("--save_dir") + 1])
    assert again.folder != run.folder and again.summary == run.summary
    assert again.metrics()["loss"].tolist() == run.metrics()["loss"].tolist()


def test_runs_are_overlaid_and_named_by_what_differs(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path)
        first = await panel.run(fusion="weighted")
        await panel.run(fusion="moe")
        await panel.run(lr=5e-3)
        assert drawn(panel) == {"weighted, lr 0.002": 40, "moe, lr 0.002": 40, "moe, lr 0.005": 40}
        lines = {(t.line.color, t.line.dash) for t in panel.figure.data if t.legendgroup and t.showlegend}
        assert len(lines) == 3
        again = await panel.run(fusion="weighted", lr=2e-3)
        assert again == first and "trained before" in panel.status.value and len(drawn(panel)) == 3
        gates = [t for t in panel.figure.data if t.legend == "legend2"]
        assert len(gates[0].x) == 40 and "weighted" in panel.figure.layout.annotations[2].text
        figure = panel.static()
        assert len(figure.axes) == 5 and figure.axes[0].get_legend()  # loss, retrieval, three times gates
        panel.buttons["clear"].click()
        await until(lambda: not drawn(panel))
        assert len(panel.static().axes) == 4
        assert (tmp_path / first.name / "summary.json").exists()  # only the picture is cleared

    drive()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_new_kernel_shows_a_finished_run_again(left, tmp_path):
    @in_a_loop
    async def drive(name):
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path, name)
        run = await panel.run()
        assert drawn(panel) == {"weighted": 40}
        return run, panel.status.value

    assert drive("one")[0] == drive("two")[0]
    assert "trained before" in drive("three")[1]


def test_the_panel_covers_every_setting(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path)
        fields = {f.name: f.metadata["help"] for f in dataclasses.fields(Config)}
        assert set(panel.controls) | set(module.OWN) == set(fields) and not set(panel.controls) & set(module.OWN)
        base = dataclasses.asdict(panel.base)
        assert {k: c.value for k, c in panel.controls.items()} == {k: base[k] for k in panel.controls}
        assert sorted(c.widget.tooltip == fields[k] for k, c in panel.controls.items()).count(False) == 1  # the ticks
        changed = {"tasks": ("pull", "a b"), "centre": False, "held_out": 0.5, "pooling": "attention", "moe_top_k": 2,
                   "device": "cpu", "vis_roots": {"left": base["vis_roots"]["left"]}}  # fmt: skip
        for name, value in changed.items():
            panel.set(name, value)
        config = panel.config()
        assert {k: getattr(config, k) for k in changed} == changed
        panel.set("tasks", ())
        panel.set("exclude_near", 2)
        run = await panel.run(steps=20, moe_top_k=0)
        assert list(run.summary["gates"]) == ["left"] and run.config.exclude_near == 2
        panel.set("vis_roots", ())
        panel.buttons["start"].click()
        await until(lambda: "failed" in panel.status.value)
        assert "expert" in panel.status.value

    drive()


def test_smoothing_log_axis_and_where_the_curve_comes_from(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(dataclasses.replace(SMALL, validation=0.25).with_workspace(left), tmp_path)
        await panel.run()
        (loss,) = (t for t in panel.figure.data if t.legendgroup and t.showlegend)
        assert panel.figure.layout.annotations[1].text == "R@1 on validation samples"
        raw, gates = np.array(loss.y), len([t for t in panel.figure.data if t.legend == "legend2" and len(t.x)])
        panel.smoothing.value, panel.log.value = 0.9, True
        await until(lambda: panel.figure.layout.yaxis.type == "log")
        (loss,) = (t for t in panel.figure.data if t.legendgroup and t.showlegend)
        assert np.allclose(loss.y, smoothed(raw, 0.9)) and np.std(np.diff(loss.y)) < np.std(np.diff(raw))
        assert len([t for t in panel.figure.data if t.legend == "legend2" and len(t.x)]) == gates == 2
        assert panel.static().axes[0].get_yscale() == "log" and "smoothed" in panel.static().axes[0].get_title()

    drive()


def test_what_goes_wrong_appears_on_the_panel_in_words(left, tmp_path, monkeypatch):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path)
        panel.set("batch_size", 512)
        panel.buttons["start"].click()
        await until(lambda: "failed" in panel.status.value)
        assert "--batch_size 512 is larger than the 144 training samples" in panel.status.value
        assert not panel.buttons["start"].disabled and panel.buttons["resume"].disabled
        with pytest.raises(InputError, match="larger than the 144"):
            await panel.run()

        def breaks(*_, **__):
            yield from ()
            raise KeyError("<script>odd</script>")

        monkeypatch.setattr(session_module, "train", breaks)
        panel.buttons["start"].click()
        await until(lambda: "KeyError" in panel.status.value)
        assert "<script>" not in panel.status.value and "&lt;script&gt;" in panel.status.value
        monkeypatch.undo()
        await panel.run(batch_size=32)  # and it goes on working
        with pytest.raises(InputError, match="not on the panel; it has fusion, "):
            await panel.run(width=3)

    drive()


def test_a_run_that_is_under_way_is_not_mistaken_for_the_one_asked_for(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(SMALL.with_workspace(left), tmp_path)
        panel.set("steps", 5000)
        panel.buttons["start"].click()
        await until(lambda: panel.bar.value)
        with pytest.raises(RuntimeError, match="under way"):
            await panel.run(steps=20)
        panel.close()

    drive()


def test_running_the_cell_again_stops_the_old_session(left, tmp_path, monkeypatch):
    @in_a_loop
    async def drive():
        base = SMALL.with_workspace(left)
        monkeypatch.setattr(module, "_cell", lambda: "cell-a")
        old = TrainingPanel(base, tmp_path)
        old.set("steps", 5000)
        old.buttons["start"].click()
        await until(lambda: old.bar.value)
        monkeypatch.setattr(module, "_cell", lambda: "cell-b")
        other = TrainingPanel(base, tmp_path)  # another cell: both live
        assert old.session.snapshot().active
        monkeypatch.setattr(module, "_cell", lambda: "cell-a")
        new = TrainingPanel(base, tmp_path)
        assert old.session.snapshot().state == "stopped" and "closed" in old.status.value
        assert not [t for t in threading.enumerate() if t.name == THREAD]
        assert old.buttons["start"].disabled and not new.buttons["start"].disabled
        assert not other.buttons["start"].disabled
        new.set("steps", 5000)
        new.buttons["start"].click()  # takes up what the old one left
        await until(lambda: "continued from step" in new.status.value)
        new.close()
        assert not [t for t in threading.enumerate() if t.name == THREAD]

    drive()


def test_two_panels_at_once_give_the_numbers_of_each_alone(left, tmp_path):
    @in_a_loop
    async def drive():
        base = SMALL.with_workspace(left)
        a, b = TrainingPanel(base, tmp_path, "a"), TrainingPanel(base, tmp_path, "b")
        return await asyncio.gather(a.run(fusion="moe", seed=1), b.run(fusion="weighted", seed=2))

    for run in drive():
        alone = dataclasses.replace(run.config, save_dir=str(tmp_path / "alone" / run.name))
        list(train(alone))
        assert Run(alone.folder).summary == run.summary
        assert Run(alone.folder).metrics()["loss"].tolist() == run.metrics()["loss"].tolist()


def test_training_never_blocks_the_loop(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(dataclasses.replace(SMALL, fuse_dim=256).with_workspace(left), tmp_path)
        task = asyncio.ensure_future(panel.run(steps=200))
        gaps = []
        while not task.done():
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - before)
        await task
        return np.array(gaps)

    gaps = drive()
    assert len(gaps) > 20 and np.median(gaps) < 0.1


def test_little_travels_to_the_browser(left, tmp_path):
    @in_a_loop
    async def drive():
        panel = TrainingPanel(dataclasses.replace(SMALL, eval_every=0).with_workspace(left), tmp_path)
        await panel.run(steps=450)
        assert sum(len(t.x) for t in panel.figure.data) <= 1000

    drive()


def test_labels_and_styles():
    runs = [Config(fusion="moe", vis_roots={"a": "x", "b": "y"}, tau=0.07)]
    runs.append(dataclasses.replace(runs[0], vis_roots={"a": "x"}, tau=0.1))
    assert labels(runs) == ["moe, experts a+b, τ 0.07", "moe, experts a, τ 0.1"]
    assert labels([Config(fusion="weighted"), Config(fusion="moe")]) == ["weighted", "moe"]
    looks = styles([Config(fusion=f) for f in ("moe", "weighted", "moe")])
    assert looks[0][0] == looks[2][0] != looks[1][0] and [d for _, d in looks] == [0, 0, 1]


def test_curves_of_folders_and_the_verdict_figure(left, tmp_path):
    config = dataclasses.replace(SMALL, steps=10, eval_every=0).with_workspace(left)
    rows = [r for r in line_up(config, 2, tmp_path, ablations=True) if r[0] in ("moe", "uniform", "left only")]
    list(train_line_up(rows))
    figure = curves_figure([Run.open(c.folder) for _, c in rows])
    assert len(figure.axes) == 2 + 8  # two rows of gates
    long = judge_students(rows).long
    table = verdict(long)
    figure = verdict_figure(long, "R@1", "uniform", ["left", "right"], 48)
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == list(table["mean"].sort_values(ascending=False).index)
    assert "chance, 0.021" in figure.axes[0].get_xlabel()
    table.loc["moe", ["mean", "low", "high"]] = 0.5, 0.4, 0.6
    cases = [
        (0.01, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.1, "not told apart"),
        (np.nan, np.nan, "no interval"),
    ]
    for low, high, said in cases:
        table.loc["moe", ["difference low", "difference high"]] = low, high
        assert said in compared(table, "moe", "uniform")
