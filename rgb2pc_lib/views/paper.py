"""Figures and tables for a paper: as wide as a page's text, in a size that can be read there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from rgb2pc_lib.data.files.writing import write_atomic

WIDTH = 7.0  # inches, across both columns of a page
LEAST = 6.0  # points of the smallest letters


@contextmanager
def column_width(figure: Figure) -> Iterator[None]:
    """Inside, the figure is as wide as a page's text: lines and marks shrink with it, letters only down to `LEAST`.

    It becomes a little taller than its shape asks for, to make room for the letters; afterwards all is as it was.
    """
    size, before = figure.get_size_inches().copy(), []
    scale = WIDTH / size[0]
    for artist in figure.findobj():
        for name, value in _sizes(artist, scale):
            before.append((artist, name, getattr(artist, f"get_{name}")()))
            getattr(artist, f"set_{name}")(value)
    figure.set_size_inches(WIDTH, size[1] * scale**0.6)
    try:
        yield
    finally:
        figure.set_size_inches(*size)
        for artist, name, value in before:
            getattr(artist, f"set_{name}")(value)


def _sizes(artist: Artist, scale: float) -> list[tuple[str, object]]:
    if isinstance(artist, Text):
        return [("fontsize", max(LEAST, float(artist.get_fontsize()) * scale))]
    if isinstance(artist, Line2D):
        return [("linewidth", artist.get_linewidth() * scale), ("markersize", artist.get_markersize() * scale)]
    if isinstance(artist, PathCollection):
        return [("sizes", artist.get_sizes() * scale**2)]
    return (
        [("linewidth", np.multiply(artist.get_linewidth(), scale))] if isinstance(artist, (Collection, Patch)) else []
    )


def save_table(table: pd.DataFrame, name: str, folder: Path, digits: int = 3) -> Path:
    """Write `<name>.csv`, whole, and `<name>.tex` (booktabs), rounded.

    >>> save_table(mean_table(long), "judgement", RUNS / "figures")  # doctest: +SKIP
    """
    text = table.to_latex(float_format=f"%.{digits}f", na_rep="--", escape=True)
    write_atomic(folder / f"{name}.csv", lambda path: table.to_csv(path))
    write_atomic(folder / f"{name}.tex", lambda path: path.write_text(text, encoding="utf-8"))
    return folder / f"{name}.csv"
