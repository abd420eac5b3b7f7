"""What every notebook does: say what it ran with, show a figure, train the runs it needs.

A picture on white paper is a lamp in a dark page. So in JupyterLab's dark theme a chart is turned over, black for
white and every hue kept, and what has lightness of its own (frames, clouds, colour scales) is a dimmed card.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import plotly.graph_objects as go
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from rgb2pc_lib.data.workspace import CACHE, SAMPLE, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.plots import commit, png
from rgb2pc_lib.views.session import Session

AT_ONCE = 4  # trainings, where there are so many cores
_STYLE = """<style class="rgb2pc-style">
body[data-jp-theme-light="false"] .jp-RenderedImage img.jp-needs-light-background {
  background: white; padding: 4px; border-radius: 6px; filter: brightness(.87) }
body[data-jp-theme-light="false"] .jp-RenderedImage img.jp-needs-dark-background {
  filter: invert(.93) hue-rotate(180deg) }
.jp-OutputArea-child:has(> .jp-OutputArea-output > .rgb2pc-style) { display: none }
.jp-OutputArea-child:has(.rgb2pc-panel-next) + .jp-OutputArea-child:not(:has(.rgb2pc-live)),
.jp-OutputArea-child:has(.rgb2pc-live) + .jp-OutputArea-child { display: none }
</style>"""


def style(more: str = "") -> None:
    """Tell the page how pictures look in a dark theme, and when a panel's static twin is seen (`widgets.twin`)."""
    display(HTML(_STYLE + more))


def versions(*more: str) -> str:
    """One line for the top of a notebook: the project's commit, Python, and the packages that decide the numbers.

    The notebook gets its `style` with it.

    >>> versions("umap-learn")  # doctest: +SKIP
    'rgb2pc 0.1.0 (9d1f6d5a0c3b), Python 3.11.9, torch 2.13.0, numpy 2.4.6, scikit-learn 1.9.1, umap-learn 0.5.12'
    """
    style()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn", *more))
    return f"rgb2pc {version('rgb2pc')} ({commit()}), Python {platform.python_version()}, {packages}"


def recorded_frames(workspace: Path) -> list[str]:
    """Folders of frames without clouds that were recorded beside a workspace: those of `make compact`, the sample's.

    >>> recorded_frames(Path("data/mine.toml"))
    []
    """
    root = CACHE / "compact_frames" / "rgb"
    return [portable(root)] if workspace == SAMPLE and root.is_dir() else []


def show(figure: Figure | go.Figure, dpi: int = 110) -> None:
    """Display a figure below the cell: matplotlib's without any state of pyplot, plotly's without its upload button.

    plotly's figures have no paper, and letters that can be read on a white page and on a black one.
    """
    if isinstance(figure, go.Figure):
        clear = dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), "rgba(0, 0, 0, 0)")
        bare = {f"{axis}axis": {"showbackground": False, "gridcolor": "#999999"} for axis in "xyz"}
        go.Figure(figure).update_layout(font_color="#767676", **clear).update_scenes(bare).show(
            config={"displaylogo": False, "showSendToCloud": False}
        )
    else:
        display(picture(figure, dpi))


def picture(figure: Figure, dpi: int = 110) -> Image:
    """A figure as a notebook's output, with what it shows in words and how it takes a dark theme.

    >>> picture(Figure()).metadata
    {'needs_background': 'dark'}
    """
    paper = "light" if _has_lightness(figure) else "dark"
    return Image(png(figure, dpi), alt=described(figure), metadata={"needs_background": paper})


def _has_lightness(figure: Figure) -> bool:
    """Whether light and dark mean something: in pictures, scales of colour, and clouds."""
    return any(
        axes.images or axes.name == "3d" or any(c.get_array() is not None for c in axes.collections)
        for axes in figure.axes
    )


def described(figure: Figure) -> str:
    """What a figure shows, for those who do not see it: its titles, and those of its axes.

    >>> figure = Figure()
    >>> _ = figure.add_subplot(title="Training loss")
    >>> described(figure)
    'Training loss'
    """
    axes = [a.get_title() or a.get_ylabel() or a.get_xlabel() for a in figure.axes]
    return "; ".join(dict.fromkeys(filter(None, [figure.get_suptitle(), *axes])))


def train_missing(rows: list[tuple[str, Config]]) -> None:
    """Train the runs of a line-up (`evaluate.line_up`) that are not finished yet, one on each core.

    It may be interrupted; the next call goes on from there. Raises InputError when a training fails.
    """
    waiting = [dataclasses.replace(config, num_threads=1) for _, config in rows if not Run(config.folder).holds(config)]
    print(f"{len(rows) - len(waiting)} of {len(rows)} runs are there already")
    sessions = [Session() for _ in range(min(os.cpu_count() or 1, AT_ONCE, len(waiting)))]
    ended = 0  # steps of runs that are finished
    with tqdm(total=sum(config.steps for config in waiting), unit="step", disable=not waiting) as bar:
        try:
            while sessions:
                for session in [s for s in sessions if not s.snapshot().active]:
                    now = session.snapshot()
                    if now.error:
                        raise InputError(f"{now.settings.folder}: {now.error}") from session.exception
                    ended += now.step
                    session.start(waiting.pop(0)) if waiting else sessions.remove(session)
                running = [s.snapshot() for s in sessions]
                bar.set_description(", ".join(now.settings.folder.name for now in running), refresh=False)
                bar.update(ended + sum(now.step for now in running) - bar.n)
                time.sleep(0.1)
        finally:  # interrupted or failed: the others leave their checkpoints
            for session in sessions:
                session.stop(wait=False)
            for session in sessions:
                session.wait()
