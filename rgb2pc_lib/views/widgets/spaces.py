"""Walk through the two spaces: linked maps of teacher and student, with the frame, the cloud and the neighbours."""

from __future__ import annotations

import functools
import html
from pathlib import Path

import ipywidgets as widgets
import matplotlib
import numpy as np
import plotly.graph_objects as go
from IPython.display import display
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
from rgb2pc_lib.views.spaces import COLOURINGS, MEANING, SCALES, Spaces, draw_map, name_tasks, safe, task_colours
from rgb2pc_lib.views.widgets.paint import Repaint, first_point

SIDE, SMALL = 224, 104  # pixels of a picture
COUNT = 5  # neighbours shown
ROWS = {"teacher": "nearest in the teacher's space", "student": "clouds that the student finds first from RGB"}
_MANY = 4000  # samples from which on plotly draws with WebGL
_EMPTY = b""


class SpaceBrowser:
    """Two maps side by side. Hover: the step's RGB frame. Click: its cloud, its neighbours and its retrieval rank.

    A selection (box or lasso) in one map is lit in the other. `workspace` says where frames and clouds lie; without it,
    the run's own.

    >>> SpaceBrowser(Run.open("runs/judge/moe-seed0"))  # in a notebook  # doctest: +SKIP
    """

    def __init__(self, run: Run, workspace: Workspace | None = None, spaces: Spaces | None = None):
        self.workspace = workspace or run.config.workspace
        self.spaces = spaces or Spaces.of(run)
        self.hovered = self.clicked = int(np.flatnonzero(self.spaces.held_out)[0])
        self.selected: list[int] | None = None
        self._drawn: dict[str, object] = {}
        self.repaint = Repaint(self._draw)
        self._build()
        self._draw()

    def _ipython_display_(self) -> None:
        display(self.view)

    # -- what people do; the same without a mouse

    def hover(self, row: int) -> None:
        """Show a row's frame."""
        self.hovered = int(row)
        self.repaint()

    def click(self, row: int) -> None:
        """Show a row's cloud and neighbours."""
        self.hovered = self.clicked = int(row)
        self.repaint()

    def select(self, rows=None) -> None:
        """Light these rows in both maps; None: all of them."""
        self.selected = None if rows is None else sorted(int(r) for r in rows)
        self.repaint()

    # -- the parts

    def _build(self) -> None:
        self.colour = widgets.Dropdown(options=COLOURINGS, description="colour by")
        self.colour.observe(self.repaint, "value")
        self.legend, self.caption, self.said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.thumbnail = widgets.Image(width=SIDE, height=SIDE)
        self.thumbnail.add_class("rgb2pc-thumbnail")
        self.frame = widgets.Image(width=SIDE, height=SIDE)
        self.maps = {which: self._map(which) for which in self.spaces.maps}
        self.cloud = go.FigureWidget(
            go.Scatter3d(mode="markers", marker={"size": 2}, hoverinfo="skip"),
            {"width": 400, "height": 340, "margin": dict.fromkeys("lrbt", 0), "uirevision": "kept",
             "template": "plotly_white"},
        )  # fmt: skip
        self.neighbours = {
            of: [(widgets.Image(width=SMALL, height=SMALL), widgets.HTML()) for _ in range(COUNT)] for of in ROWS
        }
        apart = widgets.Layout(margin="0 12px 8px 0")

        def column(title, *parts):
            return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), *parts], layout=apart)

        rows = [column(ROWS[of], widgets.HBox([widgets.VBox(pair) for pair in self.neighbours[of]])) for of in ROWS]
        wrap = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([
            widgets.HBox([self.colour, self.legend], layout=wrap),
            widgets.HBox([*self.maps.values(), column("under the mouse", self.thumbnail, self.caption)], layout=wrap),
            self.said,
            widgets.HBox([column("the step clicked", self.frame), column("its cloud, in space", self.cloud),
                          widgets.VBox(rows)], layout=wrap),
        ])  # fmt: skip
        self.view.add_class("rgb2pc-spaces")
        for name, part in {"legend": self.legend, "caption": self.caption, "said": self.said}.items():
            part.add_class(f"rgb2pc-spaces-{name}")

    def _map(self, which: str) -> go.FigureWidget:
        spaces = self.spaces
        xy, n = spaces.maps[which].round(4), len(spaces.keys)
        kind = go.Scattergl if n > _MANY else go.Scatter
        marker = {"size": np.where(spaces.held_out, 8, 5), "opacity": np.where(spaces.held_out, 1.0, 0.45)}
        points = kind(x=xy[:, 0], y=xy[:, 1], mode="markers", marker=marker, hoverinfo="text",
                      text=[safe(spaces.label(i)) for i in range(n)])  # fmt: skip
        ring = {"size": 17, "symbol": "circle-open", "color": "black", "line": {"width": 3}}
        here = kind(x=[], y=[], mode="markers", marker=ring, hoverinfo="skip")
        blank = {"showticklabels": False, "zeroline": False, "showgrid": False}
        figure = go.FigureWidget([points, here], {
            "width": 500, "height": 440, "template": "plotly_white", "margin": dict(l=8, r=8, t=34, b=8),
            "title": {"text": f"{which}: UMAP", "x": 0.02}, "dragmode": "select", "showlegend": False,
            "hovermode": "closest", "xaxis": blank, "yaxis": blank | {"scaleanchor": "x"},
        })  # fmt: skip
        points = figure.data[0]
        points.unselected.marker.opacity, figure.data[1].unselected.marker.opacity = 0.08, 1
        points.on_hover(first_point(self.hover))
        points.on_click(first_point(self.click))
        points.on_selection(lambda _, at, __: self.select(at.point_inds or None))
        points.on_deselect(lambda *_: self.select(None))
        return figure

    # -- what happens then, always on the loop of the cell that built the panel

    def _draw(self) -> None:
        for name, draw in (("colour", self._recolour), ("selected", self._light), ("hovered", self._look),
                           ("clicked", self._open)):  # fmt: skip
            value = self.colour.value if name == "colour" else getattr(self, name)
            if name not in self._drawn or self._drawn[name] != value:
                self._drawn[name] = value
                draw()

    def _recolour(self) -> None:
        by = self.colour.value
        tint = self.spaces.colours(by)
        for figure in self.maps.values():
            figure.data[0].marker.color = tint
        self.legend.value = _legend(by, self.spaces) + " large: held out, small: training"

    def _light(self) -> None:
        for figure in self.maps.values():
            figure.data[0].selectedpoints = self.selected

    def _look(self) -> None:
        self.thumbnail.value = self._bytes(self.hovered)
        self.caption.value = self._lines(self.hovered)

    def _open(self) -> None:
        row = self.clicked
        for which, figure in self.maps.items():
            with figure.batch_update():
                figure.data[1].x, figure.data[1].y = self.spaces.maps[which][[row]].T
        self.frame.value = self._bytes(row)
        said = html.escape(self.spaces.label(row))
        try:
            cloud = self._cloud(row)
        except InputError as e:  # a file that cannot be read: say so, keep the panel alive
            cloud, said = None, f"{said}: <span style='color:{ALARM}'>{html.escape(str(e))}</span>"
        with self.cloud.batch_update():
            self.cloud.data[0].update(cloud_trace(cloud))
            self.cloud.layout.scene.update(cloud_scene(cloud))
        self.said.value = f"<b>{said}</b>; cosine distance of student and teacher {self.spaces.error[row]:.2f}"
        for of, cells in self.neighbours.items():
            found, cosine = self.spaces.nearest(row, of, COUNT)
            for i, (image, caption) in enumerate(cells):
                image.value = self._bytes(found[i]) if i < len(found) else _EMPTY
                caption.value = self._neighbour(row, found[i], cosine[i]) if i < len(found) else ""

    def _lines(self, row: int) -> str:
        lines = self.spaces.label(row).replace(", ", " / ").split(" / ")
        return f"<div style='line-height:1.35'>{'<br>'.join(map(html.escape, lines))}</div>"

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
            draw_map(axes, self.spaces, which, self.colour.value)
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


def _legend(by: str, spaces: Spaces) -> str:
    if by == "task":
        squares = (f"<span style='color:{c}'>&#9632;</span> {html.escape(t)}"
                   for t, c in task_colours(spaces.keys["task"]).items())  # fmt: skip
        return "&ensp;".join(squares) + "; "
    ends = "0 to 1" if by == "progress" else "0 to 1 and above"
    shades = ",".join(to_hex(matplotlib.colormaps[SCALES[by]](v)) for v in np.linspace(0, 1, 9))
    box = "display:inline-block;width:120px;height:10px"
    ramp = f"<span style='{box};background:linear-gradient(90deg,{shades})'></span>"
    return f"{ramp} {MEANING[by]}, {ends}; "
