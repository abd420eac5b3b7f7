"""Panels of the pairing: a browser of single steps, and the negative audit with sliders."""

from __future__ import annotations

import html
from collections.abc import Iterable

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from rgb2pc_lib.checks.shift import ShiftCheck
from rgb2pc_lib.checks.teacher import NegativeAudit
from rgb2pc_lib.data.pairing import OK, Pairing
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.look import ALARM, SIDE, TokenColours, cloud_scene, cloud_trace, look, look_figure
from rgb2pc_lib.views.pairing import negatives_figure, negatives_title
from rgb2pc_lib.views.widgets.paint import Repaint, png
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.steps import StepBrowser


class PairingBrowser(StepBrowser):
    """Choose a task, an episode and a step; see everything that was paired under that name.

    `checks` (from `shift_checks`) put their verdict on the episode above the pictures.

    >>> PairingBrowser(workspace, pairing)  # in a notebook  # doctest: +SKIP
    >>> PairingBrowser(workspace, pairing).static("hammer", "episode_0001", "step_0003")  # doctest: +SKIP
    """

    def __init__(self, workspace: Workspace, pairing: Pairing, checks: Iterable[ShiftCheck] = ()):
        self.workspace, self.pairing, self.checks = workspace, pairing, list(checks)
        self.colours = {name: TokenColours.fit(packs) for name, packs in pairing.packs.items() if packs}
        table = pairing.table[pairing.table["step"] != ""]
        if table.empty:
            raise InputError(f"the workspace '{workspace.name}' holds no step to look at")
        super().__init__(table)

        self.match = widgets.HTML()
        sources = ["RGB", "points over the image", *pairing.packs]
        self.pictures = {s: widgets.Image(format="png", width=SIDE) for s in sources}
        self.captions = {s: widgets.HTML(f"<b>{html.escape(s)}</b>") for s in sources}
        self.cloud = Plot(go.Figure(
            go.Scatter3d(mode="markers", marker={"size": 2}, hoverinfo="skip"),
            {"width": 2 * SIDE, "height": SIDE + 28, "margin": dict.fromkeys("lrbt", 0), "uirevision": "kept",
             "template": "plotly_white"},
        ))  # fmt: skip
        self._draw()

        def cell(source):
            apart = widgets.Layout(margin="0 12px 8px 0")
            return widgets.VBox([self.captions[source], self.pictures[source]], layout=apart)

        held = widgets.Layout(overflow="hidden")
        space = widgets.VBox([widgets.HTML("<b>the points in space</b>"), self.cloud], layout=held)
        wrap = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([
            self.row,
            widgets.HBox([cell("RGB"), cell("points over the image"), space], layout=wrap),
            widgets.HBox([cell(e) for e in pairing.packs], layout=wrap),
            self.match,
        ])  # fmt: skip
        self.view.add_class("rgb2pc-pairing")

    def _draw(self) -> None:
        task, episode, step = self.chosen
        try:
            seen = look(self.workspace, self.pairing, self.colours, task, episode, step)
        except InputError as e:  # a file that cannot be read: say so, keep the panel alive
            self.match.value = f"<b style='color:{ALARM}'>{html.escape(str(e))}</b>"
            return
        self._show_name(step)
        self.pictures["RGB"].value = png(seen.rgb)
        self.pictures["points over the image"].value = png(seen.drawn_over)
        for name, picture in seen.grids.items():
            self.pictures[name].value = png(picture)
            reason = "" if picture is not None else f": {seen.match.loc[name, 'status']}"
            self.captions[name].value = f"<b>{html.escape(name + reason)}</b>"
        self.cloud.figure.data[0].update(cloud_trace(seen.cloud))
        self.cloud.figure.layout.scene.update(cloud_scene(seen.cloud))
        self.cloud.draw()
        self.match.value = self._verdict_html(task, episode) + _match_html(seen.match)

    def _verdicts(self, task, episode) -> dict[str, tuple[str, bool]]:
        return {c.name: c.verdict(task, episode) for c in self.checks if (task, episode) in c.episodes}

    def _verdict_html(self, task, episode) -> str:
        parts = [
            f"<span style='color:{ALARM if alarm else 'inherit'}'>by {html.escape(name)}: <b>{said}</b></span>"
            for name, (said, alarm) in self._verdicts(task, episode).items()
        ]
        return f"<p>Is the teacher of this episode shifted in time? {', '.join(parts)}</p>" if parts else ""

    def static(self, task: str | None = None, episode: str | None = None, step: str | None = None) -> Figure:
        """The same as one picture. What is not named is as chosen in the panel.

        Raises InputError for a step that is in no source.
        """
        task, episode, step = self.at(task, episode, step)
        seen = look(self.workspace, self.pairing, self.colours, task, episode, step)
        said = self._verdicts(task, episode)
        title = f"{task} / {episode} / {step}" + "".join(f"   by {name}: {text}" for name, (text, _) in said.items())
        return look_figure(seen, title, any(alarm for _, alarm in said.values()))


def _match_html(match: pd.DataFrame) -> str:
    rows = "".join(
        f"<tr><td><b>{html.escape(source)}</b>"
        f"<td style='color:{'inherit' if r.status == OK else ALARM}'>{html.escape(r.status)}"
        f"<td><code>{html.escape(r.file)}</code><td>{html.escape(r.place)}</tr>"
        for source, r in match.iterrows()
    )
    head = "<tr style='text-align:left'><th>source<th>status<th>file<th>place in the file</tr>"
    return f"<table cellpadding=3 style='line-height:1.3'>{head}{rows}</table>"


class NegativesPanel:
    """The negative audit with sliders: where does a negative become false, and what should `exclude_near` be?"""

    def __init__(self, audit: NegativeAudit, cut: float = 0.9, batch: int = 64):
        self.audit, self.batch = audit, batch
        longest = int(audit.distance.max())
        self.exclude_near = widgets.IntSlider(
            audit.suggested(cut), 0, longest, description="exclude_near", style={"description_width": "initial"}
        )
        self.cut = widgets.FloatSlider(cut, min=0.3, max=0.99, step=0.01, description="cut")
        self.said = widgets.HTML()
        self.figure = go.Figure(layout={
            "height": 340, "width": 860, "template": "plotly_white", "margin": dict(l=60, r=10, t=40, b=45),
            "title": "Share of negatives that are false, by their distance in time", "yaxis": dict(range=[0, 1.02]),
            "xaxis_title": "distance in time within an episode, steps", "yaxis_title": "share of pairs",
        })  # fmt: skip
        self.figure.add_bar(name="false negatives at this distance")
        self.plot = Plot(self.figure)
        self.repaint = Repaint(self._draw)
        for slider in (self.exclude_near, self.cut):
            slider.observe(self.repaint, "value")
        self._draw()
        self.view = widgets.VBox([widgets.HBox([self.exclude_near, self.cut]), self.said, self.plot])
        self.view.add_class("rgb2pc-negatives")

    def _ipython_display_(self):
        from IPython.display import display

        display(self.view)

    def _draw(self) -> None:
        near, cut = self.exclude_near.value, self.cut.value
        table = self.audit.by_distance(cut)
        bars = self.figure.data[0]
        bars.x, bars.y = table.index.to_numpy(), table["false"].to_numpy()
        bars.marker.color = ["#cccccc" if d <= near else ALARM for d in table.index]  # grey: left out
        self.plot.draw()
        self.said.value = (
            f"<span class='rgb2pc-said'>{negatives_title(self.audit, near, cut, self.batch)}; "
            f"suggested for this cut: <b>{self.audit.suggested(cut)}</b>. Grey bars are left out.</span>"
        )

    def static(self) -> Figure:
        """The same, with the similarities behind it, as one picture."""
        return negatives_figure(self.audit, self.exclude_near.value, self.cut.value, self.batch)
