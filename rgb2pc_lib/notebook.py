"""What every notebook does: say what it ran with, show a figure, train the runs it needs."""

from __future__ import annotations

import io
import platform
from importlib.metadata import version

from IPython.display import Image, display
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from rgb2pc_lib.evaluate import train_line_up, trained
from rgb2pc_lib.plots import commit
from rgb2pc_lib.runs import Config


def versions(*more: str) -> str:
    """One line for the top of a notebook: the project's commit, Python, and the packages that decide the numbers.

    >>> versions("umap-learn")  # doctest: +SKIP
    'rgb2pc 0.1.0 (9d1f6d5a0c3b), Python 3.11.9, torch 2.13.0, numpy 2.4.6, scikit-learn 1.9.1, umap-learn 0.5.12'
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn", *more))
    return f"rgb2pc {version('rgb2pc')} ({commit()}), Python {platform.python_version()}, {packages}"


def show(figure: Figure, dpi: int = 110) -> None:
    """Display a matplotlib figure below the cell, without any state of pyplot."""
    png = io.BytesIO()
    figure.savefig(png, dpi=dpi, bbox_inches="tight")
    display(Image(png.getvalue()))


def train_missing(rows: list[tuple[str, Config]]) -> None:
    """Train the runs of a line-up (`evaluate.line_up`) that are not finished yet, with a progress bar.

    It may be interrupted; the next call goes on from there.
    """
    missing = [row for row in rows if not trained(row[1])]
    print(f"{len(rows) - len(missing)} of {len(rows)} runs are there already")
    with tqdm(total=sum(config.steps for _, config in missing), unit="step", disable=not missing) as bar:
        for i, progress in train_line_up(missing):
            bar.set_description(missing[i][1].folder.name, refresh=False)
            bar.update(sum(config.steps for _, config in missing[:i]) + progress.step - bar.n)
