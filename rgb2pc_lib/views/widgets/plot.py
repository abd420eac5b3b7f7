"""A plotly figure that is touched: Python holds it, a browser shows what it was told last.

plotly's own `FigureWidget` keeps half of its state in the page: after a reload it shows what it was made with, or
nothing. Here the whole figure is one synchronised text, so that every page, a reloaded one too, shows the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs


class Library(widgets.Widget):
    """The text of plotly.js, which all figures of a kernel share."""

    source = traitlets.Unicode().tag(sync=True)


@functools.cache
def _library() -> Library:
    return Library(source=get_plotlyjs())


class Plot(anywidget.AnyWidget):
    """Shows `figure`; `draw` shows what has been changed in it since. A click calls `clicked(trace, point)`.

    >>> plot = Plot(go.Figure(go.Scatter(x=[0, 1], y=[1, 2])))  # doctest: +SKIP
    >>> plot.figure.data[0].y = [2, 1]  # doctest: +SKIP
    >>> plot.draw()  # doctest: +SKIP
    """

    _esm = Path(__file__).parent / "plot.js"
    library = traitlets.Instance(Library).tag(sync=True, **widgets.widget_serialization)
    shown = traitlets.Unicode().tag(sync=True)  # the figure as JSON

    def __init__(self, figure: go.Figure, clicked: Callable[[int, int], None] | None = None):
        self.figure = figure
        super().__init__(library=_library(), shown=figure.to_json())
        if clicked:
            self.on_msg(lambda _, told, __: clicked(told["trace"], told["point"]))

    def draw(self) -> None:
        """Show the figure as it is now."""
        self.shown = self.figure.to_json()
