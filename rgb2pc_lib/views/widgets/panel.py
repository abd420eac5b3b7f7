"""The training panel: settings, Start, Stop, Resume, live curves, and the command line that repeats the run."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import html
import math
import os
import time
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from IPython import get_ipython
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from rgb2pc_lib.data.workspace import RUNS, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.curves import DASHES, SIDES, curves, curves_figure, labels, side_of, smoothed, styles
from rgb2pc_lib.views.plots import colour
from rgb2pc_lib.views.session import Session, Snapshot
from rgb2pc_lib.views.widgets.controls import Control, control, explained
from rgb2pc_lib.views.widgets.paint import Repaint
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.twin import Twinned

# field of Config -> (what the slider is called, its stops)
SLIDERS = {
    "steps": ("steps", (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10000)),
    "seed": ("seed", tuple(range(10))),
    "lr": ("learning rate", (1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2, 1e-1)),
    "tau": ("temperature τ", (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)),
    "batch_size": ("batch size", (8, 16, 32, 64, 96, 128, 192, 256, 512)),
    "student_tokens": ("tokens", (1, 4, 16, 32, 64, 128, 256, 512, 1024)),
    "fuse_dim": ("fused width D", (16, 32, 64, 128, 256, 512, 1024)),
    "loss_mse": ("MSE weight", (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)),
    "expert_drop": ("expert drop", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
}
TITLES = {"fusion": "fusion", "vis_roots": "experts"}  # of what else is always seen
FOLDS = {  # under "All settings": a part -> its first field, in the order of Config
    "what is learned": "route", "data": "pc_root", "pairing and split": "strict_pairing", "sampling": "batch_size",
    "student": "fusion", "losses": "tau", "alignment with points": "loss_geometric", "training": "steps",
}  # fmt: skip
# fields that the panel chooses, and what is the workspace's alone
OWN = ("save_dir", "save_every", "log_every", "eval_every", "camera_roots")
POINTS = 150  # of each curve, at most, that travel to the browser
CHECKS = 20  # checkpoints, and points of the curve of R@1 (one, at the end, where base.eval_every is 0)
_REFRESH = 0.25  # seconds


class TrainingPanel(Twinned):
    """Train from a notebook. Everything that is not on the panel (the data above all) comes from `base`.

    Training runs in a worker thread and never blocks the kernel. Runs lie in `<folder>/<name>`, one folder for each
    combination of settings: Start with settings that were trained before shows that run again.

    A newer panel of the same `name` closes the older one; the default name is the notebook's cell, so running a cell
    again stops what it had started. Needs a running event loop, which every notebook has.

    >>> panel = TrainingPanel(Config(steps=100).with_workspace(workspace))  # doctest: +SKIP
    >>> panel  # shows it  # doctest: +SKIP
    >>> await panel.run(fusion="moe", lr=1e-3)  # the same, without clicks  # doctest: +SKIP
    """

    def __init__(self, base: Config, folder: Path = RUNS / "panel", name: str = ""):
        self.base = dataclasses.replace(base, num_threads=base.num_threads or max((os.cpu_count() or 2) // 2, 1))
        self.folder = Path(folder)
        self.session = Session()
        self.shown: dict[str, tuple[Config, tuple[dict[str, float], ...]]] = {}  # run's folder -> its config and rows
        # Clicks arrive on other threads; everything below happens on the loop of the cell that builds the panel.
        self._loop = asyncio.get_running_loop()
        self._following: asyncio.Task[None] | None = None
        self._drawn: tuple[str, tuple[dict[str, float], ...]] | None = None  # the run and rows behind the curves
        self._seen: tuple[int, float] | None = None  # the step, and the clock, when the training was first seen running
        self._build()
        name = name or _cell() or str(id(self))
        if name in _panels:
            _panels[name].close()
        _panels[name] = self

    # -- what people do

    async def run(self, **settings) -> Run:
        """Set, start, and wait for the end: what a click on Start does, for notebooks that are executed unattended.

        Raises InputError with the panel's words when the training fails.

        >>> run = await panel.run(fusion="moe", steps=50)  # doctest: +SKIP
        """
        for name, value in settings.items():
            self.set(name, value)
        self._start()
        assert self._following is not None
        await self._following
        now = self.session.snapshot()
        if now.state != "finished":
            raise InputError(now.error or f"{now.state} at step {now.step}") from self.session.exception
        return Run(now.settings.folder)

    def set(self, name: str, value) -> None:
        """Move a control; the names are those of Config."""
        if name not in self.controls:
            raise InputError(f"{name}: not on the panel; it has {', '.join(self.controls)}")
        self.controls[name].value = value

    def config(self) -> Config:
        """The settings as they stand, with the folder that belongs to them."""
        config = dataclasses.replace(self.base, save_dir="", **{k: w.value for k, w in self.controls.items()})
        log, check = (-(-config.steps // n) for n in (POINTS, CHECKS))
        config = dataclasses.replace(
            config, log_every=log, save_every=check, eval_every=check if self.base.eval_every else 0
        )
        digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:6]
        name = f"{config.fusion}-seed{config.seed}-{digest}"
        return dataclasses.replace(config, save_dir=portable(self.folder / name))

    def command(self) -> str:
        """The command line that trains the run on display once more, into another folder, to the same numbers."""
        config = self.session.snapshot().config or self.config()
        again = self.folder.with_name(f"{self.folder.name}-again") / config.folder.name
        return dataclasses.replace(config, save_dir=portable(again)).command()

    def static(self) -> Figure:
        """The curves of all runs on display, as a matplotlib figure."""
        return curves_figure(list(self.shown.values()), self.smoothing.value, self.log.value)

    def close(self) -> None:
        """Stop the training (its checkpoint stays) and let go of the controls. No thread is left."""
        self.session.stop()
        if self._following:
            self._following.cancel()
        for setting in self.controls.values():
            setting.disable()
        for button in self.buttons.values():
            button.disabled = True
        self._say("closed")

    # -- what happens then, always on the loop

    def _start(self) -> None:
        self._begin(lambda: self.session.start(self.config()))

    def _resume(self) -> None:
        self._begin(self.session.resume)

    def _begin(self, begin) -> None:
        begin()
        config, self._seen = self.session.snapshot().settings, None
        for name in self.controls:  # a run that is resumed keeps its own settings, whatever was moved meanwhile
            self.set(name, getattr(config, name))
        self.shown.setdefault(config.save_dir, (config, ()))
        self._draw_runs()
        self._following = self._loop.create_task(self._follow())

    async def _follow(self) -> None:
        while (now := self.session.snapshot()).active:
            self._paint(now)
            await asyncio.sleep(_REFRESH)
        self._paint(now)
        self.renew_twin()

    def _stop(self) -> None:
        self.session.stop(wait=False)
        self._paint(self.session.snapshot())

    def _clicked(self, act):
        def on_loop():
            try:
                act()
            except Exception as e:  # there is no cell that could show it
                self._say("failed", str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {e}")

        return lambda _: self._loop.call_soon_threadsafe(on_loop)

    def _clear(self) -> None:
        now = self.session.snapshot()
        self.shown = {now.settings.save_dir: (now.settings, now.rows)} if now.active else {}
        self._draw_runs()

    def _say(self, state: str, text: str = "") -> None:
        tint = {"failed": "#b3261e", "finished": "#1b6e3c", "stopped": "#8a5a00"}.get(state, "currentColor")
        ink = f"color-mix(in srgb, {tint} 60%, currentColor)"  # darker in a light theme, lighter in a dark one
        said = f"<b style='color:{ink}'>{html.escape(state)}</b> {html.escape(text)}"
        self.status.value = f"<span style='line-height:1.5; white-space:normal'>{said}</span>"

    def _left(self, now: Snapshot) -> float:
        """Seconds that the training at hand will take, from those it took since it was first seen; NaN: not known."""
        if now.state != "running":
            return math.nan
        step, clock = self._seen = self._seen or (now.step, time.monotonic())
        done = now.step - step
        return (now.settings.steps - now.step) * (time.monotonic() - clock) / done if done else math.nan

    def _paint(self, now: Snapshot) -> None:
        if now.config is None:
            return
        self.buttons["start"].disabled = now.active
        self.buttons["stop"].disabled = not now.active or now.state in ("stopping", "finishing")
        self.buttons["resume"].disabled = now.state != "stopped"
        self.bar.max, self.bar.value = now.settings.steps, now.step
        self._say(now.state, _words(now, self._left(now)))
        key = now.settings.save_dir
        if key in self.shown and now.rows and self._drawn != (key, now.rows):
            self.shown[key] = (now.settings, now.rows)
            self._draw_curves(now)
            self._drawn = (key, now.rows)

    # -- how it looks

    def _build(self) -> None:
        made = {
            f.name: control(Config, f.name, getattr(self.base, f.name), *SLIDERS.get(f.name, (TITLES.get(f.name, ""),)))
            for f in dataclasses.fields(Config)
            if f.name not in OWN
        }
        front = [*TITLES, *SLIDERS]
        self.controls: dict[str, Control] = {k: made[k] for k in front} | made
        look = {"start": ("success", "play"), "stop": ("danger", "stop"), "resume": ("info", "forward"),
                "clear": ("", "eraser")}  # fmt: skip
        self.buttons = {
            name: widgets.Button(
                description="Clear curves" if name == "clear" else name.capitalize(), button_style=style, icon=icon,
                disabled=name in ("stop", "resume"), layout=widgets.Layout(width="125px"),
            )
            for name, (style, icon) in look.items()
        }  # fmt: skip
        for name, button in self.buttons.items():
            button.on_click(self._clicked(getattr(self, f"_{name}")))
        self.bar = widgets.IntProgress(min=0, max=self.base.steps, layout=widgets.Layout(flex="1 1 auto"))
        self.status = widgets.HTML(layout=widgets.Layout(flex="1 1 auto", min_height="24px"))
        self.status.add_class("rgb2pc-status")
        self.commandline = widgets.HTML()
        self.commandline.add_class("rgb2pc-command")
        self.figure = self._empty_figure()
        self.plot = Plot(self.figure)
        self.smoothing = widgets.FloatSlider(
            0, min=0, max=0.95, step=0.05, description="smoothing", readout_format=".2f"
        )
        self.log = widgets.Checkbox(False, description="log axis of the loss", indent=False)
        redraw = Repaint(self._redraw)
        for choice in (self.smoothing, self.log):
            choice.observe(redraw, "value")
        wrap = widgets.Layout(flex_flow="row wrap")
        sliders = [self.controls[k].widget for k in ("fusion", *SLIDERS)]
        columns = [sliders[:4], sliders[4:7], sliders[7:]]  # data and model, then what shapes the loss
        doing = widgets.HBox([*self.buttons.values(), self.bar], layout=widgets.Layout(margin="6px 0 0 0"))
        self.view = widgets.VBox(
            [
                self.controls["vis_roots"].widget,
                widgets.HBox([widgets.VBox(c, layout=widgets.Layout(flex="1 1 300px")) for c in columns], layout=wrap),
                self._folds({k: c for k, c in self.controls.items() if k not in front}),
                doing,
                self.status,
                widgets.HBox([self.smoothing, self.log], layout=wrap),
                self.plot,
                self.commandline,
            ],
            layout=widgets.Layout(padding="4px 8px"),
        )
        self.view.add_class("rgb2pc-panel")
        self._say("ready", "Choose settings and press Start.")
        self._show_command()

    def _folds(self, controls: dict[str, Control]) -> widgets.Accordion:
        """Every other setting with its help, part by part, folded away."""
        names = [f.name for f in dataclasses.fields(Config)]
        starts = [names.index(first) for first in FOLDS.values()]
        grid = widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(300px, 1fr))", width="100%")
        parts: list[widgets.Widget] = []
        for title, start, end in zip(FOLDS, starts, [*starts[1:], len(names)], strict=True):
            mine = {k: controls[k] for k in names[start:end] if k in controls}
            parts += [widgets.HTML(f"<b>{title}</b>"), widgets.GridBox(explained(Config, mine), layout=grid)]
        fold = widgets.Accordion([widgets.VBox(parts)], titles=["All settings"], selected_index=None)
        fold.add_class("rgb2pc-all-settings")
        return fold

    def _empty_figure(self) -> go.Figure:
        titles = ("Training loss", f"R@1 on {SIDES[0]} samples", "Mean gates")
        figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.07)
        figure.update_layout(
            autosize=True, height=430, margin={"l": 55, "r": 15, "t": 55, "b": 110}, template="plotly_white",
            legend={"orientation": "h", "x": 0, "y": -0.26, "xanchor": "left", "yanchor": "top"},
            legend2={"orientation": "h", "x": 1, "y": -0.18, "xanchor": "right", "yanchor": "top"},
        )  # fmt: skip
        figure.update_xaxes(title_text="training step", title_standoff=6, rangemode="tozero", linecolor="#999999")
        figure.update_yaxes(title_text="loss", title_standoff=6, rangemode="nonnegative", col=1)
        figure.update_yaxes(title_text="R@1", title_standoff=6, rangemode="tozero", col=2)
        figure.update_yaxes(title_text="gate", title_standoff=6, range=[0, 1], col=3)
        for column, y in ((1, [None, None]), (2, [0, 0.2])):  # plotly draws no axes where there is no trace
            hidden = {"mode": "markers", "marker": {"opacity": 0}, "showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(x=[0, 1], y=y, row=1, col=column, **hidden)
        experts = sorted(self.base.vis_roots)
        self._gates = {}
        for i, name in enumerate(experts):
            line = {"color": colour(name, experts), "width": 2.5, "dash": DASHES[i % len(DASHES)]}
            figure.add_scatter(x=[], y=[], name=name, line=line, mode="lines", legend="legend2", row=1, col=3)
            self._gates[name] = figure.data[-1]
        self._lasting = figure.data
        return figure

    def _draw_runs(self) -> None:
        """All runs anew: names that tell them apart, one style each."""
        self._drawn = None
        configs = [config for config, _ in self.shown.values()]
        self.figure.data = self._lasting  # plotly lets traces be removed or reordered like this, never added
        for trace in self._gates.values():
            trace.x, trace.y = [], []
        self._traces = {}
        names = labels(configs) if configs else []
        for (key, (_, rows)), name, (tint, dash) in zip(self.shown.items(), names, styles(configs), strict=True):
            drawn = self._curves(rows)
            for column, curve in ((1, "loss"), (2, "R@1")):
                x, y = drawn.get(curve, ([], []))
                self.figure.add_scatter(
                    x=x, y=y, name=name, legendgroup=key, showlegend=column == 1, row=1, col=column,
                    mode="lines" if column == 1 else "lines+markers", marker={"size": 6},
                    line={"color": tint, "dash": DASHES[dash], "width": 1.5 if column == 1 else 2},
                )  # fmt: skip
                self._traces[key, curve] = self.figure.data[-1]
        self._name_side()
        self.figure.update_yaxes(type="log" if self.log.value else "linear", col=1)
        self.figure.update_yaxes(title_text="loss, smoothed" if self.smoothing.value else "loss", col=1)
        self.plot.draw()
        if self.session.snapshot().config:
            self._show_command()

    def _name_side(self) -> None:
        sides = dict.fromkeys(side_of(rows) for _, rows in self.shown.values() if rows)
        self.figure.layout.annotations[1].text = f"R@1 on {' and '.join(sides) or SIDES[0]} samples"

    def _redraw(self) -> None:
        self._draw_runs()
        self._paint(self.session.snapshot())

    def _curves(self, rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """As they are drawn: the loss smoothed."""
        drawn = curves(rows)
        if "loss" in drawn:
            steps, values = drawn["loss"]
            drawn["loss"] = steps, smoothed(values, self.smoothing.value)
        return drawn

    def _draw_curves(self, now: Snapshot) -> None:
        drawn = self._curves(now.rows)
        for curve in ("loss", "R@1"):
            if curve in drawn:
                trace = self._traces[now.settings.save_dir, curve]
                trace.x, trace.y = drawn[curve]
        for name, trace in self._gates.items():
            trace.x, trace.y = drawn.get(f"gate/{name}", ([], []))
        self._name_side()
        name = html.escape(self._traces[now.settings.save_dir, "loss"].name)
        self.figure.layout.annotations[2].text = f"Mean gates<br><span style='font-size:12px'>{name}</span>"
        self.plot.draw()

    def _show_command(self) -> None:
        look = "background:var(--jp-layout-color2, #eeeeee); color:var(--jp-ui-font-color0, #111111); "
        look += "padding:6px 8px; margin:2px 0; line-height:1.35; font-size:12px; "
        look += "white-space:pre-wrap; word-break:normal; overflow-x:auto"
        words = (f"<span style='white-space:nowrap'>{html.escape(word)}</span>" for word in self.command().split(" "))
        self.commandline.value = (
            "<div style='line-height:1.4'>The same run from a terminal in the project's folder:</div>"
            f"<pre style='{look}'>{' '.join(words)}</pre>"
        )


def _words(now: Snapshot, left: float) -> str:
    """The status line; `left`: seconds to go, NaN where that is not known."""
    at = f"at step {now.step} of {now.settings.steps}"
    if now.state == "failed":
        return now.error
    if now.state == "starting":
        return "opening the data ..."
    if now.state == "finishing":
        return "all steps done, embedding every sample ..."
    if now.state == "finished":
        found = Run(now.settings.folder).summary
        scores = ", ".join(f"{k} {found['held-out'][k]:.2f}" for k in ("R@1", "R@5"))
        again = " It was trained before with these settings and is shown again." if now.note == "trained before" else ""
        return f"{scores} on {found['n_held_out']} held-out samples, in {now.settings.save_dir}.{again}"
    parts = [at]
    if now.state == "running":
        parts += [f"loss {now.rows[-1]['loss']:.3f}"] * bool(now.rows)
        parts += [f"{1 / now.seconds:.1f} steps/s"] * bool(now.seconds)
        parts += [f"about {duration(left)} left"] * (not math.isnan(left))
    if now.state == "stopped":
        parts += ["Resume goes on from here"]
    return ", ".join(parts + [now.note] * bool(now.note))


def duration(seconds: float) -> str:
    """How long, as a person says it.

    >>> duration(42.4), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _cell() -> str:
    """The id of the notebook's cell that is running, where the notebook tells it."""
    shell = get_ipython()
    parent = getattr(shell, "parent_header", None) or {}
    return parent.get("metadata", {}).get("cellId", "")


_panels: dict[str, TrainingPanel] = {}
