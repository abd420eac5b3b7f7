"""Panels of the pairing: a browser of single steps, and the negative audit with sliders."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterable
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from rgb2pc_lib.checks.shift import ShiftCheck, verdicts
from rgb2pc_lib.checks.teacher import NegativeAudit
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.pairing import OK, Pairing
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.look import ALARM, SIDE, TokenColours, cloud_scene, cloud_trace, look, look_figure
from rgb2pc_lib.views.pairing import negatives_figure, negatives_title
from rgb2pc_lib.views.widgets.paint import Repaint, png
from rgb2pc_lib.views.widgets.plot import Plot
from rgb2pc_lib.views.widgets.steps import StepBrowser
from rgb2pc_lib.views.widgets.table import Table
from rgb2pc_lib.views.widgets.twin import Twinned


def _without_button(does: Callable[[], None]) -> Callable[[widgets.Button], None]:
    return lambda _: does()


class PairingBrowser(StepBrowser):
    """Choose a task, an episode and a step; see everything that was paired under that name.

    `checks` (from `shift_checks`) put their verdict on the episode, and the browser starts at the most suspicious one.
    What is decided there (`exclude`, `shift`, `keep`, or the buttons) is in `decided`, on top of the workspace's own
    exclusion list; with `decisions`, a file, every decision is written there at once. The table of verdicts has boxes
    to tick, so that several episodes are decided at once.

    >>> browser = PairingBrowser(workspace, pairing, checks, Path("bad.toml"))  # in a notebook  # doctest: +SKIP
    >>> browser.verdicts  # doctest: +SKIP
    >>> browser.tick_flagged()  # doctest: +SKIP
    >>> browser.shift_found(browser.ticked)  # each by what the checks found  # doctest: +SKIP
    >>> workspace.excluding(browser.decided.lines)  # what training uses then  # doctest: +SKIP
    >>> PairingBrowser(workspace, pairing).static("hammer", "episode_0001", "step_0003")  # doctest: +SKIP
    """

    def __init__(
        self, workspace: Workspace, pairing: Pairing, checks: Iterable[ShiftCheck] = (), decisions: Path | None = None
    ):
        self.workspace, self.pairing, self.checks = workspace, pairing, list(checks)
        self.decisions = decisions
        self._suggested: tuple[str, str] | None = None  # the episode for which the field of "shift" was filled in
        self.decided = Exclusions.read(decisions) if decisions and decisions.is_file() else workspace.exclude
        self.colours = {name: TokenColours.fit(packs) for name, packs in pairing.packs.items() if packs}
        table = pairing.table[pairing.table["step"] != ""]
        if table.empty:
            raise InputError(f"the workspace '{workspace.name}' holds no step to look at")
        self.suspects = verdicts(self.checks)
        super().__init__(table, next(self.suspects[["task", "episode"]].itertuples(index=False, name=None), None))
        self._build_decisions()

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
            widgets.HTML(f"<b>{html.escape(self.workspace.name)}</b>: {len(self.steps)} episodes, {len(table)} steps"),
            self.row, widgets.HBox([*self.buttons.values()], layout=wrap), self.decision,
            *([self.table, widgets.HBox([*self.many.values()], layout=wrap)] if self.checks else []),
            widgets.HBox([cell("RGB"), cell("points over the image"), space], layout=wrap),
            widgets.HBox([cell(e) for e in pairing.packs], layout=wrap),
            self.match,
        ])  # fmt: skip
        self.view.add_class("rgb2pc-pairing")

    # -- what people do; the same without a mouse

    @property
    def verdicts(self) -> pd.DataFrame:
        """What the checks say of every episode, the most suspicious first, and what was decided."""
        names = self.suspects["task"] + "/" + self.suspects["episode"]
        said = {n: f"shift {by:+d}" for n, by in self.decided.shift.items()} | dict.fromkeys(
            self.decided.out, "exclude"
        )
        return self.suspects.assign(decision=names.map(said).fillna(""))

    def next_flagged(self) -> None:
        """Go to the next episode that a check flags, from the most to the least suspicious, and round again."""
        flagged = list(
            self.suspects.loc[self.suspects["flagged"], ["task", "episode"]].itertuples(index=False, name=None)
        )
        here = self.chosen[:2]
        self.go(*flagged[(flagged.index(here) + 1) % len(flagged) if here in flagged else 0])

    def exclude(self, episodes: Iterable[str] | None = None, why: str = "") -> None:
        """Leave out episodes, each named "task/episode"; None: the one shown. The reason is what the checks say.

        Raises InputError for an episode that is not there, as the other decisions do.
        """
        names = self._named(episodes)
        out = {name: why or self._reason(name) for name in names}
        kept = self.decided.without(*names)
        self._decide(dataclasses.replace(kept, out=kept.out | out))

    def shift(self, by: int, episodes: Iterable[str] | None = None) -> None:
        """Pair every step of episodes (None: the one shown) with the cloud of so many steps later."""
        self._shift(dict.fromkeys(self._named(episodes), by))

    def shift_found(self, episodes: Iterable[str] | None = None) -> None:
        """Shift episodes (None: the one shown), each by what the checks found; those not flagged by nothing."""
        names = self._named(episodes)
        found = dict(zip(self._verdict_names(), self.suspects["shift"].tolist(), strict=True))
        self._shift({name: found.get(name, 0) for name in names})

    def keep(self, episodes: Iterable[str] | None = None) -> None:
        """Take back what was decided of episodes; None: of the one shown."""
        self._decide(self.decided.without(*self._named(episodes)))

    @property
    def ticked(self) -> list[str]:
        """Names of the episodes that are ticked in the table of verdicts, "task/episode"."""
        return list(self.table.ticked)

    def tick_flagged(self) -> None:
        """Tick the episodes that a check flags, and no others."""
        flagged = [n for n, f in zip(self._verdict_names(), self.suspects["flagged"], strict=True) if f]
        self.table.ticked = []
        self.table.tick(*flagged)

    def _named(self, episodes: Iterable[str] | None) -> list[str]:
        shown = ["/".join(self.chosen[:2])]
        names = shown if episodes is None else [episodes] if isinstance(episodes, str) else list(episodes)
        known = {"/".join(key) for key in self.steps}
        if unknown := [n for n in names if n not in known]:
            raise InputError(
                f"{unknown[0]}: no such episode in the workspace '{self.workspace.name}'; nothing is decided"
            )
        return names

    def _verdict_names(self) -> list[str]:
        return (self.suspects["task"] + "/" + self.suspects["episode"]).tolist()

    def _reason(self, name: str) -> str:
        task, _, episode = name.partition("/")
        return "; ".join(text for text, alarm in self._verdicts(task, episode).values() if alarm)

    def _shift(self, by: dict[str, int]) -> None:
        kept = self.decided.without(*by)
        self._decide(dataclasses.replace(kept, shift=kept.shift | {name: n for name, n in by.items() if n}))

    def _decide(self, decided: Exclusions) -> None:
        self.decided = decided
        if self.decisions:
            decided.write(self.decisions)
        self._draw_decision()

    def _build_decisions(self) -> None:
        snug = widgets.Layout(width="auto")
        self.by = widgets.IntText(layout=widgets.Layout(width="70px"))
        flagged = int(self.suspects["flagged"].sum())
        acts = {
            f"next flagged ({flagged})": lambda _: self.next_flagged(),
            "exclude this episode": lambda _: self.exclude(),
            "shift it by": lambda _: self.shift(self.by.value),
            "keep as filed": lambda _: self.keep(),
        }
        made = {text: widgets.Button(description=text, layout=snug) for text in acts}
        for text, act in acts.items():
            made[text].on_click(act)
        made[f"next flagged ({flagged})"].disabled = not flagged
        first, out, shift, kept = made.values()
        self.buttons = {"next": first, "exclude": out, "shift": shift, "by": self.by, "keep": kept}
        self.decision = widgets.HTML()
        self.decision.add_class("rgb2pc-decision")
        self.table = Table(self._rows(), "name", lambda name: self.go(*name.split("/", 1)), hidden=["name"])
        self.each_by = widgets.IntText(layout=widgets.Layout(width="70px"))
        many: dict[str, tuple[str, Callable[[], None]]] = {
            "flagged": ("tick the flagged ones", lambda: self.tick_flagged()),
            "exclude": ("exclude the ticked ones", lambda: self.exclude(self.ticked)),
            "found": ("shift each ticked one as found", lambda: self.shift_found(self.ticked)),
            "shift": ("shift the ticked ones by", lambda: self.shift(self.each_by.value, self.ticked)),
            "keep": ("keep the ticked ones as filed", lambda: self.keep(self.ticked)),
        }
        self.many = {}
        for name, (text, does) in many.items():
            button = self.many[name] = widgets.Button(description=text, layout=snug)
            button.on_click(_without_button(does))
            if name == "shift":
                self.many["by"] = self.each_by
        self.table.observe(self._draw_ticked, "ticked")
        self._draw_ticked()

    def _rows(self) -> pd.DataFrame:
        """The table of verdicts, as it is ticked."""
        table = self.verdicts
        return table.assign(name=self._verdict_names(), suspicion=table["suspicion"].round(1))

    def _draw_ticked(self, _change=None) -> None:
        for name, button in self.many.items():
            button.disabled = name not in ("flagged", "by") and not self.table.ticked

    def _draw_decision(self) -> None:
        self.table.fill(self._rows())
        name = "/".join(self.chosen[:2])
        out, by = name in self.decided.out, self.decided.shift.get(name)
        said = "excluded" if out else f"shifted by {by:+d}" if by else "kept as filed"
        count = len(self.decided.out), len(self.decided.shift)
        where = f", in {self.decisions}" if self.decisions else ""
        self.decision.value = (
            f"{html.escape(name)}: <b>{said}</b>. Decided so far: {count[0]} excluded, {count[1]} shifted"
            f"{html.escape(where)}."
        )

    def _draw(self) -> None:
        task, episode, step = self.chosen
        found = self.suspects.query("task == @task and episode == @episode")["shift"]
        if self._suggested != (task, episode):
            self._suggested, self.by.value = (task, episode), int(found.iloc[0]) if len(found) else 0
        self.table.opened = f"{task}/{episode}"
        self._draw_decision()
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


class NegativesPanel(Twinned):
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
            "height": 340, "autosize": True, "template": "plotly_white", "margin": dict(l=60, r=10, t=40, b=45),
            "title": "Share of negatives that are false, by their distance in time", "yaxis": dict(range=[0, 1.02]),
            "xaxis_title": "distance in time within an episode, steps", "yaxis_title": "share of pairs",
        })  # fmt: skip
        self.figure.add_bar(name="false negatives at this distance")
        self.plot = Plot(self.figure)
        self.repaint = Repaint(self._draw)
        for slider in (self.exclude_near, self.cut):
            slider.observe(self.repaint, "value")
        self._draw()
        self.plot.layout.max_width = "860px"
        wrap = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([widgets.HBox([self.exclude_near, self.cut], layout=wrap), self.said, self.plot])
        self.view.add_class("rgb2pc-negatives")

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
