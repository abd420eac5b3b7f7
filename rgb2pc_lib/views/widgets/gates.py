"""A panel of the gates: choose an expert and a step, and see where it is trusted, in the image and in space."""

from __future__ import annotations

import html

import ipywidgets as widgets
from matplotlib.figure import Figure

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.gates import LEADING, OPACITY, cloud_canvas, cloud_marks, gate_figure, painted, rgb_of
from rgb2pc_lib.views.look import ALARM, cloud_scene
from rgb2pc_lib.views.plots import colour
from rgb2pc_lib.views.widgets.paint import png
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.steps import StepBrowser

SIDE = 300  # pixels of a picture


class GateBrowser(StepBrowser):
    """Gates of one run over the RGB and on the points, always on the fixed scale from 0 to 1.

    >>> GateBrowser(Run.open("runs/judge/moe-seed0"))  # in a notebook  # doctest: +SKIP
    >>> GateBrowser(run).static("hammer", "episode_0001", "step_0003")  # doctest: +SKIP
    """

    def __init__(self, run: Run):
        self.reader = GateReader.open(run)
        super().__init__(self.reader.keys)
        self._shown: tuple = ()

        views = [*self.reader.experts, LEADING]
        self.expert = widgets.Dropdown(options=views, description="expert")
        self.opacity = widgets.FloatSlider(OPACITY, min=0, max=1, step=0.05, description="opacity")
        self.said = widgets.HTML()
        self.rgb, self.over = (widgets.Image(format="png", width=SIDE, height=SIDE) for _ in range(2))
        self.caption = widgets.HTML()
        canvas = cloud_canvas().update_layout(width=SIDE + 180, height=SIDE + 20, margin={"t": 0})
        self.cloud = Plot(canvas)
        for control in (self.expert, self.opacity):
            control.observe(self.repaint, "value")
        self._draw()

        apart = widgets.Layout(margin="0 12px 4px 0")
        self.view = widgets.VBox([
            self.row,
            widgets.HBox([self.expert, self.opacity], layout=widgets.Layout(flex_flow="row wrap")),
            widgets.HBox([
                widgets.VBox([widgets.HTML("<b>RGB</b>"), self.rgb], layout=apart),
                widgets.VBox([self.caption, self.over], layout=apart),
                widgets.VBox([widgets.HTML("<b>on the points, in space</b>"), self.cloud],
                             layout=widgets.Layout(overflow="hidden")),
            ], layout=widgets.Layout(flex_flow="row wrap")),
            self.said,
        ])  # fmt: skip
        self.view.add_class("rgb2pc-gates")

    def _draw(self) -> None:
        view, where = self.expert.value, self.chosen
        try:
            if self._shown[:1] != (where,):
                self.gates, self.image = self.reader.map(*where), rgb_of(self.reader, *where)
            self.over.value = png(painted(self.image, self.gates, self.reader.experts, view, self.opacity.value))
            if self._shown != (where, view):  # opacity concerns the image only
                self._draw_step(view, where)
            self._shown = (where, view)
        except InputError as e:  # a file that cannot be read: say so, keep the panel alive
            self._shown = ()
            self.said.value = f"<b style='color:{ALARM}'>{html.escape(str(e))}</b>"

    def _draw_step(self, view: str, where: tuple[str, str, str]) -> None:
        self._show_name(where[2])
        self.caption.value = f"<b>{html.escape(view if view == LEADING else f'gate of {view}')}</b>"
        self.rgb.value = png(self.image)
        self.said.value = self._means()
        try:
            cloud, marks = cloud_marks(self.reader, *where, view, self.gates)
        except InputError as e:  # no cloud, or none that is tied to the image: the rest is there
            cloud, marks = None, {"x": [], "y": [], "z": [], "text": []}
            self.said.value += f"<p>{html.escape(str(e))}</p>"
        points, scale = self.cloud.figure.data
        points.update(marks)
        scale.marker.showscale = view != LEADING
        self.cloud.figure.layout.scene.update(cloud_scene(cloud))
        self.cloud.draw()

    def _means(self) -> str:
        """Mean gates of the image as bars: also the legend of the leading expert's colours."""
        means = self.gates.mean((0, 1))
        leads = self.gates.argmax(-1)
        rows = "".join(
            f"<tr><td><b>{m + 1} {html.escape(e)}</b>"
            f"<td><div style='background:{colour(e, self.reader.experts)};height:11px;width:{300 * mean:.0f}px'></div>"
            f"<td>{mean:.2f}<td>leads at {(leads == m).mean():.0%} of places</tr>"
            for m, (e, mean) in enumerate(zip(self.reader.experts, means, strict=True))
        )
        scale = ("<span style='display:inline-block;width:300px;height:12px;background:linear-gradient(90deg,"
                 "#440154,#3b528b,#21918c,#5ec962,#fde725)'></span>")  # fmt: skip
        return (
            f"<p>gate: 0 {scale} 1</p><table cellpadding=3 style='line-height:1.2'>"
            f"<tr style='text-align:left'><th>expert<th style='width:300px'>mean gate of this image<th><th></tr>"
            f"{rows}</table>"
        )

    def static(self, task: str | None = None, episode: str | None = None, step: str | None = None) -> Figure:
        """All experts at one step as one picture. What is not named is as chosen in the panel.

        Raises InputError for a step that the run's data do not hold.
        """
        return gate_figure(self.reader, *self.at(task, episode, step), self.opacity.value)
