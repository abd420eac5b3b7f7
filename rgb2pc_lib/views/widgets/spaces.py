"""Walk through the two spaces: linked maps of teacher and student, with the frame, the cloud and the neighbours."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
from pathlib import Path

import ipywidgets as widgets
import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rgb2pc_lib.checks.sources import rgb_file, step_cloud
from rgb2pc_lib.data.pairing import Pairing
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.teacher import list_teacher
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.look import ALARM, cloud_scene, cloud_trace, overlay, plain
from rgb2pc_lib.views.plots import MARKS, mark, task_colours
from rgb2pc_lib.views.spaces import (
    MEANING,
    Spaces,
    draw_map,
    name_tasks,
    shades,
    shapes,
    state_columns,
    tints,
)
from rgb2pc_lib.views.widgets.maps import GLYPHS, Maps
from rgb2pc_lib.views.widgets.paint import Repaint
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.twin import Twinned

SIDE, SMALL = 224, 104  # pixels of a picture
COUNT = 5  # neighbours shown
ROWS = {"teacher": "nearest in the teacher's space", "student": "clouds that the student finds first from RGB"}
THUMBNAILS = 14  # of a selection
LISTED = 24  # names, at most, that a legend spells out
WRAP = widgets.Layout(flex_flow="row wrap")
_EMPTY = b""


class SpaceBrowser(Twinned):
    """Two maps side by side. Hover: the step's RGB frame. Click: its cloud, its neighbours and its retrieval rank.

    What is selected (with a box, a lasso, the legend, or from Python) is lit in both maps, and is a table in Python.
    `workspace` says where frames, clouds and states lie; without it, the run's own.

    >>> browser = SpaceBrowser(Run.open("runs/judge/moe-seed0"))  # in a notebook  # doctest: +SKIP
    >>> browser.selection  # task, episode, step, split, rank, error, ..., frame  # doctest: +SKIP
    >>> browser.selection = browser.table[browser.table["rank"] > 50]  # doctest: +SKIP
    """

    def __init__(self, run: Run, workspace: Workspace | None = None, spaces: Spaces | None = None):
        self.workspace = workspace or run.config.workspace
        self.spaces = spaces or Spaces.of(run)
        known = state_columns(self.workspace, self.spaces.keys)
        self.table = self.spaces.table.join(known[known.columns.difference(self.spaces.table.columns)])
        self.clicked = int(np.flatnonzero(self.spaces.held_out)[0])
        self._drawn: dict[str, object] = {}
        self.repaint = Repaint(self._draw)
        self._build()
        self._draw()

    # -- what people do; the same without a mouse

    def hover(self, row: int) -> None:
        """Show a row's frame beside the pointer; -1: none."""
        self.maps.hovered = int(row)
        self.repaint()

    def click(self, row: int) -> None:
        """Show a row's cloud and neighbours."""
        self.clicked = int(row)
        self.repaint()

    @property
    def selection(self) -> pd.DataFrame:
        """The selected rows of `table`, with the file of each one's frame ("" where there is none); may be set.

        To what it is set: rows of `table`, a mask of its length, or numbers of rows; None, or nothing: all are lit.
        Raises InputError for rows that are not there.
        """
        rows = self.maps.rows
        found = self.table.iloc[[] if rows is None else rows]
        return found.assign(frame=[str(self._picture(row) or "") for row in found.index])

    @selection.setter
    def selection(self, rows) -> None:
        rows = rows.index if isinstance(rows, pd.DataFrame) else rows
        rows = np.asarray([] if rows is None else rows)
        n = len(self.table)
        if rows.dtype == bool and len(rows) == n:
            rows = np.flatnonzero(rows)
        if rows.dtype.kind not in "iu" and len(rows) or len(rows) and not 0 <= rows.min() <= rows.max() < n:
            raise InputError(f"a selection: expected rows of `table`, a mask of length {n}, or numbers below {n}")
        self.maps.rows = rows if len(rows) else None

    def worst(self, count: int = 20) -> None:
        """Select the held-out samples whose own cloud is found last; of two with one rank, that of the larger error."""
        held = self.table[self.spaces.held_out]
        self.selection = held.sort_values(["rank", "error"], ascending=False).head(count)

    def excluding(self, why: str = "") -> Workspace:
        """The workspace without the selected steps, on top of what it leaves out already; its `exclude` can be written.

        >>> browser.excluding("hand in the way").exclude.write(Path("bad.toml"))  # doctest: +SKIP
        """
        own = self.workspace.exclude
        steps = ("/".join(key) for key in self.selection[["task", "episode", "step"]].itertuples(index=False))
        return dataclasses.replace(
            self.workspace, exclude=dataclasses.replace(own, out=own.out | dict.fromkeys(steps, why))
        )

    # -- the parts

    def _build(self) -> None:
        columns = [c for c in self.table.columns if c != "step"]
        self.colour = widgets.Dropdown(options=columns, description="colour by")
        self.colour.observe(self.repaint, "value")
        self.legend, self.said, self.chosen = widgets.HBox(), widgets.HTML(), widgets.HTML()
        self.legend.layout = WRAP
        self.maps = Maps(self.spaces.maps, self.spaces.held_out, self._acted)
        self.maps.observe(self.repaint, "selected")
        self.how_many = widgets.BoundedIntText(20, 1, len(self.table), layout=widgets.Layout(width="70px"))
        find = widgets.Button(description="select the worst", layout=widgets.Layout(width="auto"))
        find.on_click(lambda _: self.worst(self.how_many.value))
        self.frame = widgets.Image(width=SIDE, height=SIDE)
        self.cloud = Plot(go.Figure(
            go.Scatter3d(mode="markers", marker={"size": 2}, hoverinfo="skip"),
            {"width": 400, "height": 340, "margin": dict.fromkeys("lrbt", 0), "uirevision": "kept",
             "template": "plotly_white"},
        ))  # fmt: skip
        self.neighbours = {
            of: [(widgets.Image(width=SMALL, height=SMALL), widgets.HTML()) for _ in range(COUNT)] for of in ROWS
        }
        apart = widgets.Layout(margin="0 12px 8px 0")

        def column(title, *parts):
            return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), *parts], layout=apart)

        rows = [column(ROWS[of], widgets.HBox([widgets.VBox(pair) for pair in self.neighbours[of]])) for of in ROWS]
        self.view = widgets.VBox([
            widgets.HBox([self.colour, find, self.how_many], layout=WRAP),
            self.legend, self.maps, self.chosen, self.said,
            widgets.HBox([column("the step clicked", self.frame), column("its cloud, in space", self.cloud),
                          widgets.VBox(rows)], layout=WRAP),
        ])  # fmt: skip
        self.view.add_class("rgb2pc-spaces")
        for name, part in {"legend": self.legend, "chosen": self.chosen, "said": self.said}.items():
            part.add_class(f"rgb2pc-spaces-{name}")

    def _acted(self, what: str, row: int) -> None:
        if what == "click":
            self.click(row)
        else:
            self.hover(row if what == "hover" else -1)

    # -- what happens then, always on the loop of the cell that built the panel

    def _draw(self) -> None:
        for name, value, draw in (
            ("colour", self.colour.value, self._recolour), ("selected", self.maps.selected, self._list),
            ("hovered", self.maps.hovered, self._look), ("clicked", self.clicked, self._open),
        ):  # fmt: skip
            if name not in self._drawn or self._drawn[name] != value:
                self._drawn[name] = value
                draw()

    def _recolour(self) -> None:
        values = self.table[self.colour.value]
        self.maps.paint(tints(values), shapes(values))
        size = widgets.HTML("large: held out, small: training")
        if pd.api.types.is_numeric_dtype(values):
            self.legend.children = [widgets.HTML(_ramp(values)), size]
            return
        names = task_colours(values)
        listed = names if len(names) <= LISTED else {}
        buttons = [
            self._legend_button(name, tint, GLYPHS[MARKS.index(mark(name, names))]) for name, tint in listed.items()
        ]
        self.legend.children = [*buttons, widgets.HTML(f"{len(names)} different; " if not buttons else ""), size]

    def _legend_button(self, name: str, tint: str, glyph: str) -> widgets.Button:
        """A name of the legend; a click selects what bears it."""
        button = widgets.Button(description=f"{glyph} {name}", tooltip=f"select {name}", layout={"width": "auto"})
        button.layout.border_left = f"12px solid {tint}"
        column = self.colour.value

        def pick(_button) -> None:
            self.selection = (self.table[column] == name).to_numpy()

        button.on_click(pick)
        return button

    def _list(self) -> None:
        """How many are selected, and the first of them as pictures."""
        rows = self.maps.rows
        if rows is None:
            self.chosen.value = "Nothing is selected: draw a box or a lasso in a map, or click a name of the legend."
            return
        pictures = "".join(self._small(row) for row in rows[:THUMBNAILS])
        held = int(self.spaces.held_out[rows].sum())
        self.chosen.value = f"<b>{len(rows)} selected</b>, {held} of them held out<br>{pictures}"

    def _small(self, row: int) -> str:
        picture = base64.b64encode(self._bytes(row)).decode()
        name = html.escape(self.spaces.label(row), quote=True)
        return f"<img width=64 height=64 style='margin:2px' title='{name}' alt='{name}' src='data:;base64,{picture}'>"

    def _look(self) -> None:
        row = self.maps.hovered
        if row >= 0:
            with self.maps.hold_sync():
                self.maps.picture = self._bytes(row)
                self.maps.caption = self.spaces.label(row).replace(", ", " / ").replace(" / ", "\n")

    def _open(self) -> None:
        row = self.clicked
        self.maps.opened = row
        keys = self.spaces.keys
        own = (keys[["task", "episode"]] == keys.loc[row, ["task", "episode"]]).all(axis=1)
        self.maps.join(keys[own].sort_values("time").index)
        self.frame.value = self._bytes(row)
        said = html.escape(self.spaces.label(row))
        try:
            cloud = self._cloud(row)
        except InputError as e:  # a file that cannot be read: say so, keep the panel alive
            cloud, said = None, f"{said}: <span style='color:{ALARM}'>{html.escape(str(e))}</span>"
        self.cloud.figure.data[0].update(cloud_trace(cloud))
        self.cloud.figure.layout.scene.update(cloud_scene(cloud))
        self.cloud.draw()
        self.said.value = f"<b>{said}</b>; cosine distance of student and teacher {self.spaces.error[row]:.2f}"
        for of, cells in self.neighbours.items():
            found, cosine = self.spaces.nearest(row, of, COUNT)
            for i, (image, caption) in enumerate(cells):
                image.value = self._bytes(found[i]) if i < len(found) else _EMPTY
                caption.value = self._neighbour(row, found[i], cosine[i]) if i < len(found) else ""

    def _neighbour(self, row: int, other: int, cosine: float) -> str:
        key = self.spaces.keys.iloc[other]
        own = f"<b style='color:{ALARM}'>its own</b><br>" if other == row else f"{html.escape(key.task)}<br>"
        where = f"{html.escape(key.episode)}<br>{html.escape(key.step)}"
        return f"<div style='line-height:1.25;font-size:11px'>cosine {cosine:.2f}<br>{own}{where}</div>"

    # -- the files behind a row

    @functools.cached_property
    def _files(self) -> Pairing:
        teacher = self.workspace.teacher
        files = list_teacher(teacher, self.workspace.teacher_tag) if teacher and teacher.is_dir() else {}
        return Pairing(self.spaces.keys, {}, files)

    def _where(self, row: int) -> tuple[str, str, str]:
        return tuple(self.spaces.keys.loc[row, ["task", "episode", "step"]])

    def _picture(self, row: int) -> Path | None:
        return rgb_file(self.workspace, *self._where(row))

    def _bytes(self, row: int) -> bytes:
        file = self._picture(row)
        return file.read_bytes() if file else _EMPTY

    def _cloud(self, row: int):
        found = step_cloud(self.workspace, self._files, *self._where(row))
        return found and found[0]

    def static(self, row: int | None = None) -> Figure:
        """The two maps as coloured, with one row marked, its frame, its points and its neighbours, as one picture."""
        row = self.clicked if row is None else row
        figure = Figure(figsize=(13, 10.4), layout="constrained")
        (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.35, 1])
        if self.colour.value == "task":
            name_tasks(above, self.spaces)
        for axes, which in zip(above.subplots(1, 2), self.spaces.maps, strict=True):
            draw_map(axes, self.spaces, which, self.table[self.colour.value])
            axes.scatter(*self.spaces.maps[which][row], s=260, facecolors="none", edgecolors="black", lw=2.5)
        grid = below.subplots(2, COUNT + 1)
        for axes in grid.flat:
            axes.axis("off")
        below.suptitle(plain(self.spaces.label(row)))
        image = self._image(row)
        cloud = self._cloud(row)
        points = None if image is None or cloud is None else overlay(image, cloud)
        for axes, picture, title in zip(grid[:, 0], (image, points), ("RGB", "its points over the image"), strict=True):
            _draw(axes, picture, title)
        for line, of in zip(grid[:, 1:], ROWS, strict=True):
            found, cosine = self.spaces.nearest(row, of, COUNT)
            for i, axes in enumerate(line[: len(found)]):
                key = self.spaces.keys.iloc[found[i]]
                who = "its own" if found[i] == row else f"{plain(key.task)}\n{plain(key.step)}"
                _draw(axes, self._image(found[i]), f"{ROWS[of]}\n" * (i == 0) + f"{who}: {cosine[i]:.2f}",
                      "left" if i == 0 else "center")  # fmt: skip
        return figure

    def _image(self, row: int) -> np.ndarray | None:
        file = self._picture(row)
        return read_image(file) if file else None


def _draw(axes, picture, title: str, place: str = "center") -> None:
    axes.set_title(title, fontsize=8, loc=place)
    axes.imshow(np.full((8, 8, 3), 225, np.uint8) if picture is None else picture)


def _ramp(values: pd.Series) -> str:
    """The colour scale of a column of numbers."""
    scale, low, high = shades(values)
    stops = ",".join(to_hex(matplotlib.colormaps[scale](v)) for v in np.linspace(0, 1, 9))
    box = f"display:inline-block;width:120px;height:10px;background:linear-gradient(90deg,{stops})"
    name = html.escape(MEANING.get(str(values.name), str(values.name)))
    above = " and above" if values.name == "error" else ""
    return f"<span style='{box}'></span> {name}, {low:.3g} to {high:.3g}{above}; "
