"""A table of all runs: sort, search, tick two and see them side by side; resume one, or delete it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import html
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, Pretty
from matplotlib.figure import Figure

from rgb2pc_lib.checks.sources import rgb_file
from rgb2pc_lib.data.workspace import RUNS, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader
from rgb2pc_lib.judging.versus import Versus
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.curves import curves_plotly
from rgb2pc_lib.views.gates import LEADING, OPACITY, painted, rgb_of
from rgb2pc_lib.views.look import ALARM, CALM
from rgb2pc_lib.views.plots import colour
from rgb2pc_lib.views.runs import all_runs, built_on, deletable, delete_run, differences, versus_figure
from rgb2pc_lib.views.session import Session
from rgb2pc_lib.views.spaces import LEAST, fold
from rgb2pc_lib.views.widgets.maps import Maps
from rgb2pc_lib.views.widgets.paint import Repaint, png
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.table import Table
from rgb2pc_lib.views.widgets.twin import Twinned

SIDE, SMALL = 260, 84  # pixels of a picture
EXTREMES = 6  # steps shown of those that improved most, and of those that worsened most
_REFRESH = 0.5  # seconds
_GREY = "#9a9a9a"
_WRAP, _SNUG = widgets.Layout(flex_flow="row wrap"), widgets.Layout(width="auto")


class RunTable(Twinned):
    """Every run below a folder. Two that are ticked, A and B, are shown side by side.

    >>> table = RunTable(RUNS)  # in a notebook  # doctest: +SKIP
    >>> table.compare("judge/weighted-seed0", "judge/moe-seed0")  # the same as two ticks  # doctest: +SKIP
    >>> table.versus.steps  # rank and error of each step in both  # doctest: +SKIP
    """

    def __init__(self, out: Path = RUNS):
        self.out, self.session = Path(out), Session()
        self.versus: Versus | None = None  # of the two that are ticked, where both are finished
        self._shown: tuple[str, ...] | None = None  # the ticked runs that `pair` shows
        self._asking = ""  # the run that somebody wants to delete
        self._following: asyncio.Task[None] | None = None
        self._mapping: asyncio.Task[None] | None = None
        self.repaint = Repaint(self._draw)
        self.table = Table(all_runs(self.out), "run", self._clicked, most=2, letters=True)
        self.table.observe(self.repaint, "ticked")
        self._build()
        self._draw()

    # -- what people do; the same without a mouse

    def refresh(self) -> None:
        """Look at the folder again."""
        self.table.fill(all_runs(self.out))
        self._draw()
        self.renew_twin()

    def compare(self, a: str, b: str) -> None:
        """Tick two runs, by their names in the table. Raises InputError for one that is not there."""
        self.table.ticked = []
        self.table.tick(a, b)
        self._draw()

    def resume(self, name: str) -> None:
        """Go on with an unfinished run, in the background. Raises InputError for a finished one, and for no run."""
        run = Run.open(self.out / name)
        if run.finished:
            raise InputError(f"{name}: is finished; there is nothing to resume")
        if self.session.snapshot().active:
            raise InputError("one run at a time is resumed from here; stop the other one first")
        self.session.start(dataclasses.replace(run.config, save_dir=portable(run.folder)))
        if self.repaint.loop:
            self._following = self.repaint.loop.create_task(self._follow())

    def delete(self, name: str) -> None:
        """Ask whether a run is to be deleted; `answer` deletes it. Raises InputError for what is no run."""
        folder = deletable(self.out, name)
        size = sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
        small = built_on(self.out, name)
        also = f" {', '.join(small)} was distilled from it, and cannot be judged again without it." if small else ""
        self._asking = name
        self.question.value = (
            f"<b>Delete {html.escape(name)}?</b> Its folder, {html.escape(portable(folder))} ({size:.1f} MB), "
            f"goes for good.{html.escape(also)}"
        )
        self.asking.layout.display = ""

    def answer(self, yes: bool) -> None:
        """Delete the run that was asked about, or keep it."""
        name, self._asking = self._asking, ""
        self.asking.layout.display = "none"
        if yes and name:
            delete_run(self.out, name)
            self.said.value = f"{html.escape(name)} is deleted."
            self.refresh()

    def open(self, step: str) -> None:
        """Show a step, "task/episode/step", in both runs."""
        self._open(step)

    # -- what happens then, on the loop of the cell that built the table

    def _clicked(self, key: str) -> None:
        self.table.tick(key, on=key not in self.table.ticked)

    def _try(self, act):
        """A click: what goes wrong is said where people look, as no cell could show it."""

        def on_loop() -> None:
            try:
                act()
            except InputError as e:
                self.said.value = f"<b style='color:{ALARM}'>{html.escape(str(e))}</b>"

        loop = self.repaint.loop
        return lambda _=None: loop.call_soon_threadsafe(on_loop) if loop else on_loop()

    async def _follow(self) -> None:
        while True:
            now = self.session.snapshot()
            name, rest = html.escape(now.settings.folder.name), ""
            if now.rows:
                rest = f", loss {now.rows[-1]['loss']:.3f}"
            self.said.value = f"{name}: <b>{now.state}</b>, step {now.step} of {now.settings.steps}{rest}"
            self.buttons["stop"].disabled = not now.active
            if not now.active:
                break
            await asyncio.sleep(_REFRESH)
        if now.error:
            self.said.value = f"<b style='color:{ALARM}'>{html.escape(now.error)}</b>"
        self.refresh()

    def _draw(self) -> None:
        ticked = tuple(self.table.ticked)
        one = len(ticked) == 1
        unfinished = one and not Run(self.out / ticked[0]).finished
        self.buttons["resume"].disabled, self.buttons["delete"].disabled = not unfinished, not one
        if ticked != self._shown:
            self._shown, self.versus = ticked, None
            self._draw_ticked(ticked)
            self.renew_twin()

    def _draw_ticked(self, ticked: tuple[str, ...]) -> None:
        self.pair.children = ()
        if len(ticked) < 2:
            self.hint.value = "Tick two runs to see them side by side; tick one to resume or delete it."
            return
        self.hint.value = ""
        try:
            self._draw_pair(*(Run.open(self.out / name) for name in ticked))
        except InputError as e:
            self.hint.value = f"<span style='color:{ALARM}'>{html.escape(str(e))}</span>"

    # -- two runs

    def _draw_pair(self, a: Run, b: Run) -> None:
        self.a, self.b = a, b
        named = " ".join(
            f"<b>{letter}</b> {html.escape(run)}" for letter, run in zip("AB", self.table.ticked, strict=True)
        )
        told = differences(a, b)
        settings = told.to_html(border=0) if len(told) else "<p>No setting differs.</p>"
        parts = [_titled("Settings that differ", settings)]
        curves = Plot(curves_plotly([a, b], ["A", "B"]))
        self.pair.children = (widgets.HTML(f"<p>{named}</p>"), widgets.HBox(parts, layout=_WRAP), curves)
        self.versus = Versus.of([a], [b])  # refuses unfinished ones; what is there stays
        words = html.escape(self.versus.words())
        parts.append(_titled("On the steps that both hold out", self._measures()))
        above = (widgets.HTML(f"<p>{named}<br>{words}</p>"), widgets.HBox(parts, layout=_WRAP), curves)
        self.pair.children = (*above, self._steps_part(), self._maps_part())
        self._open(self._names()[0])

    def _measures(self) -> str:
        assert self.versus
        table = self.versus.table.reset_index(names="measure")
        gates = [run.summary.get("gates", {}) for run in (self.a, self.b)]
        trust = [{"measure": f"mean gate of {e}", "A": gates[0].get(e), "B": gates[1].get(e)}
                 for e in sorted({*gates[0], *gates[1]})]  # fmt: skip
        whole = pd.concat([table, pd.DataFrame(trust)], ignore_index=True) if trust else table
        shown: str = whole.to_html(border=0, index=False, na_rep="", float_format=lambda v: f"{v:.3f}")
        return shown

    def _names(self) -> list[str]:
        assert self.versus
        return _keys(self.versus.steps)

    def _steps_part(self) -> widgets.Widget:
        assert self.versus
        steps = self.versus.steps
        steps = steps.assign(key=_keys(steps))
        self.steps = Table(steps, "key", self._try_open, ticks=False, hidden=["key"])
        experts = sorted({*self.a.config.vis_roots, *self.b.config.vis_roots})
        self.gated = "moe" in (self.a.config.fusion, self.b.config.fusion)
        self.expert = widgets.Dropdown(options=[LEADING, *experts], description="gate of")
        self.expert.observe(self._try(lambda: self._open(self.steps.opened)), "value")
        self.picture = widgets.Image(format="png", width=SIDE)
        self.gates = [widgets.Image(format="png", width=SIDE) for _ in "AB"]
        self.captions = [widgets.HTML() for _ in range(3)]
        self.legend = widgets.HTML()
        apart = widgets.Layout(margin="0 12px 6px 0")
        cells = zip(self.captions, [self.picture, *self.gates][: 3 if self.gated else 1], strict=False)
        shown = widgets.HBox([widgets.VBox(cell, layout=apart) for cell in cells], layout=_WRAP)
        gates = [self.expert, self.legend] if self.gated else []
        better, worse = steps[steps["change"] > 0], steps[steps["change"] < 0].iloc[::-1]
        return widgets.VBox([
            widgets.HTML("<b>Steps, improved most first</b> (a click on <i>change</i>: worsened most first)"),
            self.steps,
            widgets.HTML(self._extremes("improved most", better) + self._extremes("worsened most", worse)),
            *gates, shown,
        ])  # fmt: skip

    def _extremes(self, said: str, steps: pd.DataFrame) -> str:
        cells = []
        for row in steps.head(EXTREMES).itertuples(index=False, name=None):
            file = rgb_file(self.a.config.workspace, *row[:3])
            data = base64.b64encode(file.read_bytes()).decode() if file else ""
            name = html.escape(" / ".join(row[:3]), quote=True)
            cells.append(
                f"<div style='display:inline-block;margin:2px 8px 2px 0;font-size:11px;line-height:1.3'>"
                f"<img width={SMALL} height={SMALL} alt='{name}' title='{name}' src='data:;base64,{data}'><br>"
                f"rank {row[3]:.0f} to {row[4]:.0f}</div>"
            )
        return f"<p style='margin:6px 0 0'><b>{said}</b></p>{''.join(cells) or 'none'}"

    def _try_open(self, key: str) -> None:
        self._try(lambda: self._open(key))()

    def _open(self, key: str) -> None:
        assert self.versus
        row = _keys(self.versus.keys).index(key)
        where = tuple(self.versus.keys.iloc[row])
        self.steps.opened = key
        if self.maps:
            self.maps.opened = row
        found = self.versus.steps.set_index(["task", "episode", "step"]).loc[where]
        self.captions[0].value = f"<b>{html.escape(' / '.join(where))}</b>"
        file = rgb_file(self.a.config.workspace, *where)
        self.picture.value = file.read_bytes() if file else png(None)
        if not self.gated:
            return
        for run, image, caption, letter in zip((self.a, self.b), self.gates, self.captions[1:], "AB", strict=True):
            reader = GateReader.open(run)
            experts = list(self.expert.options[1:])
            maps = reader.map(*where)
            whole = np.stack([maps[..., reader.experts.index(e)] if e in reader.experts else 0 * maps[..., 0]
                              for e in experts], -1)  # fmt: skip
            picture = painted(rgb_of(reader, *where), whole, experts, self.expert.value, OPACITY)
            image.value = png(picture)
            caption.value = f"<b>{letter}: rank {found[f'rank {letter}']:.0f}</b>"
        tints = "".join(f"<span style='color:{colour(e, experts)}'>■</span> {html.escape(e)} &nbsp;" for e in experts)
        self.legend.value = tints if self.expert.value == LEADING else "gate: 0 dark, 1 bright"

    # -- two maps

    def _maps_part(self) -> widgets.Widget:
        self.maps: Maps | None = None
        self.map_box = widgets.VBox()
        button = widgets.Button(description="draw the maps of A and B")
        button.layout = widgets.Layout(width="auto", align_self="flex-start")
        button.on_click(self._try(self._begin_maps))
        self.map_box.children = (button,)
        return self.map_box

    def draw_maps(self) -> None:
        """Draw the UMAPs of both students on the common held-out steps, B's turned onto A's; they are linked.

        Raises InputError unless two runs are compared, and for too few steps.
        """
        self._show_maps(*_mapped(self._mappable()))

    def _begin_maps(self) -> None:
        """The same for a click: folded in a thread, so that the kernel answers meanwhile."""
        found = self._mappable()
        if self.repaint.loop is None:
            return self.draw_maps()
        self.map_box.children = (widgets.HTML("UMAP folds both spaces; the first time in a kernel it is compiled ..."),)

        async def follow() -> None:
            maps = await asyncio.to_thread(_mapped, found)
            if self.versus is found:
                self._show_maps(*maps)

        self._mapping = self.repaint.loop.create_task(follow())

    def _mappable(self) -> Versus:
        if self.versus is None:
            raise InputError("two finished runs are to be ticked first")
        n = len(self.versus.keys)
        if n < LEAST:
            raise InputError(f"{n} steps are held out in both; a map needs at least {LEAST}")
        return self.versus

    def _show_maps(self, a: np.ndarray, b: np.ndarray) -> None:
        """`[n, 2]` of each student."""
        assert self.versus
        change = self.versus.steps.set_index(["task", "episode", "step"])["change"]
        change = change.loc[pd.MultiIndex.from_frame(self.versus.keys)].to_numpy()
        titles = [f"{letter}: {run.name}" for letter, run in zip("AB", (self.a, self.b), strict=True)]
        self.maps = Maps(dict(zip(titles, (a, b), strict=True)), np.ones(len(a), bool), self._acted)
        self.maps.paint([CALM if c > 0 else ALARM if c < 0 else _GREY for c in change], 1 - np.sign(change))
        self.maps.opened = _keys(self.versus.keys).index(self.steps.opened)
        self.maps.observe(Repaint(self._selected), "selected")
        tints = {"better in B": CALM, "worse in B": ALARM, "alike": _GREY}
        said = ", ".join(f"<span style='color:{tint}'>■</span> {word}" for word, tint in tints.items())
        said += ". What is selected is listed above; a click opens a step."
        self.map_box.children = (widgets.HTML(said), self.maps)

    def _selected(self) -> None:
        assert self.versus and self.maps
        rows, steps = self.maps.rows, self.versus.steps
        steps = steps.assign(key=_keys(steps))
        chosen = steps if rows is None else steps[steps["key"].isin(np.array(_keys(self.versus.keys))[rows])]
        self.steps.fill(chosen)

    def _acted(self, what: str, row: int) -> None:
        assert self.versus and self.maps
        if what == "click":
            self._try_open(_keys(self.versus.keys)[row])
        elif what == "hover" and row >= 0:
            where = tuple(self.versus.keys.iloc[row])
            file = rgb_file(self.a.config.workspace, *where)
            with self.maps.hold_sync():
                self.maps.caption, self.maps.picture = "\n".join(where), file.read_bytes() if file else b""
                self.maps.hovered = row
        else:
            self.maps.hovered = -1

    # -- how it looks

    def _build(self) -> None:
        acts = {
            "refresh": ("refresh", "look at the folder again", self.refresh),
            "resume": ("resume the ticked run", "go on from its checkpoint", lambda: self.resume(self.table.ticked[0])),
            "stop": ("stop", "write a checkpoint and stop", lambda: self.session.stop(wait=False)),
            "delete": ("delete the ticked run ...", "asks first", lambda: self.delete(self.table.ticked[0])),
        }
        self.buttons = {}
        for name, (text, tip, act) in acts.items():
            self.buttons[name] = widgets.Button(description=text, tooltip=tip, layout=_SNUG, disabled=name != "refresh")
            self.buttons[name].on_click(self._try(act))
        self.said, self.hint, self.question = widgets.HTML(), widgets.HTML(), widgets.HTML()
        sure = widgets.Button(description="delete it", button_style="danger", layout=_SNUG)
        keep = widgets.Button(description="keep it", layout=_SNUG)
        sure.on_click(self._try(lambda: self.answer(True)))
        keep.on_click(self._try(lambda: self.answer(False)))
        self.asking = widgets.HBox([self.question, sure, keep],
                                   layout=widgets.Layout(flex_flow="row wrap", display="none"))  # fmt: skip
        self.pair = widgets.VBox()
        self.view = widgets.VBox([
            self.table, widgets.HBox([*self.buttons.values(), self.said], layout=_WRAP), self.asking, self.hint,
            self.pair,
        ])  # fmt: skip
        self.view.add_class("rgb2pc-runs")
        for name, part in {"said": self.said, "asking": self.asking, "hint": self.hint, "pair": self.pair}.items():
            part.add_class(f"rgb2pc-runs-{name}")

    def static(self) -> Figure:
        """The two ticked runs as one picture. Raises InputError unless two finished ones are ticked."""
        if self.versus is None:
            raise InputError("tick two finished runs, or name them: RunTable(out).compare(a, b)")
        return versus_figure(self.versus, self.a, self.b)

    def _pictured(self) -> Image | HTML | Pretty:
        """The two ticked runs; where no two finished ones are ticked, the table of all."""
        if self.versus is not None:
            return super()._pictured()
        said = html.escape(self.table.said)
        return HTML(f"<p>The runs ({said}); no two finished ones are ticked.</p>{self.table.html()}")


def _keys(frame: pd.DataFrame) -> list[str]:
    return [f"{t}/{e}/{s}" for t, e, s in zip(frame["task"], frame["episode"], frame["step"], strict=True)]


def _titled(title: str, text: str) -> widgets.HTML:
    return widgets.HTML(f"<b>{title}</b>{text}", layout=widgets.Layout(margin="0 24px 0 0"))


def _mapped(found: Versus) -> tuple[np.ndarray, np.ndarray]:
    """UMAP `[n, 2]` of both students, B's turned onto A's."""
    a, b = (_scaled(fold(x)) for x in found.student)
    u, _, v = np.linalg.svd(b.T @ a)
    return a, b @ u @ v


def _scaled(y: np.ndarray) -> np.ndarray:
    centred: np.ndarray = y - y.mean(0)
    return centred / np.sqrt(np.square(centred).sum(1).mean())
