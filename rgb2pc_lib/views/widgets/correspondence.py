"""Pick a point and see where in the image it is; pick a pixel and see where in the cloud it is."""

from __future__ import annotations

import html

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.geometry import Placement
from rgb2pc_lib.judging.correspondence import Matcher
from rgb2pc_lib.views.correspondence import HEAT, heat, outstanding, pick_figure
from rgb2pc_lib.views.look import MOST_POINTS
from rgb2pc_lib.views.widgets.paint import Repaint
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.twin import Twinned

SIDE = 460  # pixels of the picture
_PLAIN = "#9a9a9a"


class CorrespondenceBrowser(Twinned):
    """Image and cloud of a held-out step, linked: what is picked in one lights up in the other.

    >>> CorrespondenceBrowser(matcher)  # in a notebook  # doctest: +SKIP
    >>> CorrespondenceBrowser(matcher).static("hammer", "episode_0001", "step_0003", point=17)  # doctest: +SKIP
    """

    def __init__(self, matcher: Matcher):
        self.matcher = matcher
        keys = matcher.keys.loc[matcher.held_out]
        self.steps = {k: g.index.tolist() for k, g in keys.groupby(["task", "episode"], sort=False)}
        self.repaint = Repaint(self._draw)
        self.picked: tuple[str, int] = ("point", -1)  # ("point", number) or ("cell", number); -1: an outstanding point
        self._step_drawn: int | None = None
        self._build()

    # -- what people do; the same without a mouse

    def pick_point(self, point: int) -> None:
        """Show how similar every place of the image is to this point."""
        self.picked = ("point", int(point))
        self.repaint()

    def pick_pixel(self, u: float, v: float) -> None:
        """Show how similar every point is to the place at this pixel."""
        cell = self._placement.cells(np.array([[u, v]]))[0]
        if cell >= 0:
            self.pick_cell(cell)

    def pick_cell(self, cell: int) -> None:
        self.picked = ("cell", int(cell))
        self.repaint()

    # -- the parts

    def _build(self) -> None:
        names = [f"{task} / {episode}" for task, episode in self.steps]
        self.episode = widgets.Dropdown(options=list(zip(names, self.steps, strict=True)), description="episode")
        self.step = widgets.IntSlider(description="step", readout=False, layout=widgets.Layout(width="360px"))
        self.said = widgets.HTML()
        self.said.add_class("rgb2pc-correspondence-said")
        blank = {"visible": False, "fixedrange": True}
        heat_of_cells = go.Scatter(mode="markers", marker={"symbol": "square", "line": {"width": 0}}, hoverinfo="none")
        ring = {"size": 18, "symbol": "circle-open", "color": "white", "line": {"width": 3}}
        cross = {"size": 12, "symbol": "x-thin", "line": {"width": 3, "color": "#56b4e9"}}
        picture = go.Figure(
            [heat_of_cells, go.Scatter(mode="markers", marker=ring, hoverinfo="skip"),
             go.Scatter(mode="markers", marker=cross, hoverinfo="skip")],
            {"width": SIDE, "height": SIDE, "margin": dict.fromkeys("lrbt", 0), "template": "plotly_white",
             "xaxis": blank, "yaxis": blank, "showlegend": False, "dragmode": False, "hovermode": "closest"},
        )  # fmt: skip
        ring = {"size": 9, "symbol": "circle-open", "color": "#0072b2", "line": {"width": 4}}
        cloud = go.Figure(
            [go.Scatter3d(mode="markers", marker={"size": 3}, hoverinfo="none"),
             go.Scatter3d(mode="markers", marker=ring, hoverinfo="skip")],
            {"width": SIDE + 60, "height": SIDE, "margin": dict.fromkeys("lrbt", 0), "uirevision": "kept",
             "template": "plotly_white", "showlegend": False},
        )  # fmt: skip
        self.picture, self.cloud = Plot(picture, self._picture_clicked), Plot(cloud, self._cloud_clicked)
        self.episode.observe(self._fill_steps, "value")
        self.step.observe(self._other_step, "value")
        self.step.max = len(self.steps[self.episode.value]) - 1
        self._draw()
        apart = widgets.Layout(margin="0 14px 0 0")

        def column(title, part):
            return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), part], layout=apart)

        both = [column("the image: click a place", self.picture), column("the cloud: click a point", self.cloud)]
        wrap = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([
            widgets.HBox([self.episode, self.step], layout=wrap), self.said, widgets.HBox(both, layout=wrap),
        ])  # fmt: skip
        self.view.add_class("rgb2pc-correspondence")

    @property
    def sample(self) -> int:
        """Sample number of the step that the controls stand at."""
        steps = self.steps[self.episode.value]
        return steps[min(self.step.value, len(steps) - 1)]

    @property
    def _placement(self) -> Placement:
        return Placement(self.matcher.reader.size(self.sample), self.matcher.grid)

    @property
    def _every(self) -> int:  # of the points is drawn
        return -(-len(self.matcher.reader.uv(self.sample)) // MOST_POINTS)

    def _picture_clicked(self, trace: int, point: int) -> None:
        if trace == 0:
            self.pick_cell(point)

    def _cloud_clicked(self, trace: int, point: int) -> None:
        if trace == 0:
            self.pick_point(point * self._every)

    def _fill_steps(self, _change=None) -> None:
        self.step.max = len(self.steps[self.episode.value]) - 1
        self._other_step()

    def _other_step(self, _change=None) -> None:
        self.picked = ("point", -1)
        self.repaint()

    # -- what happens then, always on the loop of the cell that built the panel

    def _draw(self) -> None:
        sample, matcher = self.sample, self.matcher
        if self._step_drawn != sample:
            self._draw_step(sample)
        kind, number = self.picked
        step = matcher.step(sample)
        if kind == "point":
            number = outstanding(matcher, sample) if number < 0 else number
            shown, at, found = step.xyz[[number]], step.uv[number], matcher.found_patch(sample, number)
            over, colours = heat(matcher.image_map(sample, number)).ravel(), self._colours
            said = f"Point {number}{self._label(step, number)}: the most similar place is the cross"
        else:
            at = self._placement.centres()[number]
            similar = matcher.cloud_map(sample, at)
            best = int(similar.argmax())
            shown, found, over = step.xyz[[best]], step.uv[best], np.zeros(len(self._placement.centres()))
            colours = _hex(HEAT(0.92 * heat(similar)[:: self._every]))
            said = f"Pixel ({at[0]:.0f}, {at[1]:.0f}): the most similar point{self._label(step, best)} is ringed"
        self.said.value = f"{said}, seen <b>{np.linalg.norm(found - at):.0f} px</b> from where it should be."
        cells, ring, cross = self.picture.figure.data
        cells.marker.color = [f"rgba({r},{g},{b},{a:.2f})" for r, g, b, a in _glow(over)]
        (ring.x, ring.y), (cross.x, cross.y) = ([[float(v)] for v in place] for place in (at, found))
        points, ring = self.cloud.figure.data
        points.marker.color = colours
        ring.x, ring.y, ring.z = shown.T.tolist()
        self.picture.draw()
        self.cloud.draw()

    def _draw_step(self, sample: int) -> None:
        matcher, step, size = self.matcher, self.matcher.step(sample), self.matcher.reader.size(sample)
        image = matcher.image(sample)
        colours, behind = None, []
        if image is not None:
            column, row = np.floor(step.uv).astype(int).T
            colours = image[row.clip(0, size[0] - 1), column.clip(0, size[1] - 1)] / 255
            behind = [{"source": Image.fromarray(image), "x": -0.5, "y": -0.5, "sizex": size[1], "sizey": size[0],
                       "xref": "x", "yref": "y", "sizing": "stretch", "layer": "below"}]  # fmt: skip
        every = slice(None, None, self._every)
        self._colours = _PLAIN if colours is None else _hex(colours[every])
        x, y = self._placement.centres().T.tolist()
        cells, layout = self.picture.figure.data[0], self.picture.figure.layout
        cells.x, cells.y = x, y
        cells.marker.size = SIDE / max(self.matcher.grid)
        layout.images = behind
        layout.xaxis.range, layout.yaxis.range = [-0.5, size[1] - 0.5], [size[0] - 0.5, -0.5]
        layout.height = round(SIDE * size[0] / size[1])
        points = self.cloud.figure.data[0]
        points.x, points.y, points.z = step.xyz[every].round(4).T.tolist()
        self.cloud.figure.layout.scene = {
            "aspectmode": "data", "camera": {"eye": {"x": 1.25, "y": -0.9, "z": 1.1}},
            **{f"{a}axis": {"title": {"text": f"{a} (m)"}, "nticks": 5} for a in "xyz"},
        }  # fmt: skip
        self._step_drawn = sample

    def _label(self, step, point: int) -> str:
        return "" if step.labels is None else f" ({html.escape(self.matcher.label_names[step.labels[point]])})"

    def static(
        self, task: str | None = None, episode: str | None = None, step: str | None = None, point: int | None = None
    ) -> Figure:
        """The same as one picture: a point over the image, its pixel over the cloud. What is not named is as chosen.

        Raises InputError for a step that the run's data do not hold.
        """
        sample = self.sample
        if task or episode or step:
            now = self.matcher.keys.loc[sample, ["task", "episode", "step"]]
            sample = self.matcher.number(*(new or old for new, old in zip((task, episode, step), now, strict=True)))
        if point is None:
            point = self.picked[1] if self.picked[0] == "point" and self.picked[1] >= 0 else None
        return pick_figure(self.matcher, sample, outstanding(self.matcher, sample) if point is None else point)


def _hex(colours: np.ndarray) -> list[str]:
    return [to_hex(c[:3]) for c in colours]


def _glow(share: np.ndarray) -> list[tuple]:
    """Colours that let the image through where nothing is similar: r, g, b (0 to 255), opacity."""
    rgb = (255 * HEAT(0.25 + 0.75 * share)[:, :3]).round().astype(int)
    return [(*c, 0.85 * s) for c, s in zip(rgb.tolist(), share.tolist(), strict=True)]
