"""Panels about one step at a time: how a task, an episode of it and a step of that are picked."""

from __future__ import annotations

import html

import ipywidgets as widgets
import pandas as pd

from rgb2pc_lib.views.widgets.paint import Repaint
from rgb2pc_lib.views.widgets.twin import Twinned


class StepBrowser(Twinned):
    """Controls that stand at one step of a table with the columns task, episode and step.

    A panel derives from it, paints the `chosen` step in `_draw` and puts `row`, the controls, into its `view`. `_draw`
    is called whenever another step is chosen, for the first time by the panel itself. `start`: the episode, by task and
    name, that is shown first.
    """

    def __init__(self, keys: pd.DataFrame, start: tuple[str, str] | None = None):
        self.steps = {k: g.tolist() for k, g in keys.groupby(["task", "episode"], sort=False)["step"]}
        self.repaint = Repaint(self._draw)
        tasks = list(dict.fromkeys(t for t, _ in self.steps))
        self.task = widgets.Dropdown(options=tasks, description="task")
        self.episode = widgets.Dropdown(description="episode")
        self.step = widgets.IntSlider(description="step", readout=False, layout=widgets.Layout(width="360px"))
        self.name = widgets.HTML()
        wrap = widgets.Layout(flex_flow="row wrap")
        self.row = widgets.HBox([self.task, self.episode, self.step, self.name], layout=wrap)
        self._fill_episodes()
        if start is not None and start in self.steps:
            self.task.value = start[0]
            self._fill_episodes()
            self.episode.value = start[1]
            self._fill_steps()
        self.task.observe(self._other_task, "value")
        self.episode.observe(self._other_episode, "value")
        self.step.observe(self.repaint, "value")

    @property
    def chosen(self) -> tuple[str, str, str]:
        """Task, episode and step that the controls stand at."""
        names = self.steps[self.task.value, self.episode.value]
        return self.task.value, self.episode.value, names[min(self.step.value, len(names) - 1)]

    def go(self, task: str, episode: str) -> None:
        """Stand at an episode."""
        self.task.value = task
        self.episode.value = episode

    def at(self, task: str | None, episode: str | None, step: str | None) -> tuple[str, str, str]:
        """A step by its names; what is not named is as chosen."""
        now = self.chosen
        return task or now[0], episode or now[1], step or now[2]

    def _draw(self) -> None:
        raise NotImplementedError

    def _show_name(self, step: str) -> None:
        self.name.value = f"<code class='rgb2pc-step'>{html.escape(step)}</code>"

    def _fill_episodes(self) -> None:
        self.episode.options = names = [e for t, e in self.steps if t == self.task.value]
        self.episode.value = names[0]
        self._fill_steps()  # the new episode may have the same name

    def _fill_steps(self) -> None:
        self.step.max = len(self.steps[self.task.value, self.episode.value]) - 1

    def _other_task(self, _change) -> None:
        self._fill_episodes()
        self.repaint()

    def _other_episode(self, _change) -> None:
        if (self.task.value, self.episode.value) in self.steps:
            self._fill_steps()
            self.repaint()
