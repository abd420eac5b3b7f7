"""Linked maps: the same samples in several pictures, and one selection of them, which Python holds.

Both maps are one widget with one selection, so they cannot differ. A browser sends what a person drew, and lights what
Python says; it keeps nothing of its own. docs/architecture.md tells what this was compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.colors import to_rgb
from matplotlib.path import Path as Outline

GLYPHS = "●■▲◆▼✚✖"  # of the shapes, in the order of `plots.MARKS` and of maps.js
MARGIN = 0.06  # of a map around its samples


class Maps(anywidget.AnyWidget):
    """Samples in maps side by side; `acted(what, row)` is told of "hover", "click" and "leave", `selected` by itself.

    Args:
        places: title of a map -> `[n, 2]`, y upwards; one row a sample, the same in all.
        large: `[n]` bool, samples that are drawn large.
    """

    _esm, _css = (Path(__file__).parent / f"maps.{kind}" for kind in ("js", "css"))
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    xy = traitlets.Bytes().tag(sync=True)  # float32 [maps, n, 2], in the unit square, y downwards
    tint = traitlets.Bytes().tag(sync=True)  # uint8 [n, 3]
    shape = traitlets.Bytes().tag(sync=True)  # uint8 [n], which of `GLYPHS`
    large = traitlets.Bytes().tag(sync=True)  # uint8 [n]
    selected = traitlets.Bytes(None, allow_none=True).tag(sync=True)  # uint32 rows in order; None: all
    thread = traitlets.Bytes().tag(sync=True)  # uint32, rows joined by a line
    opened = traitlets.Int(-1).tag(sync=True)  # the row that is ringed
    hovered = traitlets.Int(-1).tag(sync=True)  # the row beside the pointer, with its words and its picture
    caption = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)
    tool = traitlets.Enum(("box", "lasso", "move"), "box").tag(sync=True)
    views = traitlets.List(traitlets.List()).tag(
        sync=True
    )  # of each map [left, top, width] of the unit square that is seen

    def __init__(
        self, places: dict[str, np.ndarray], large: np.ndarray, acted: Callable[[str, int], None] = lambda *_: None
    ):
        self._xy = np.stack([_unit(p) for p in places.values()]).astype(np.float32)  # [maps, n, 2]
        self._acted = acted
        super().__init__(
            titles=list(places), xy=self._xy.tobytes(), large=large.astype(np.uint8).tobytes(),
            tint=bytes(3 * len(large)), shape=bytes(len(large)), views=[[0, 0, 1]] * len(places),
        )  # fmt: skip
        self.on_msg(self._told)

    @property
    def rows(self) -> np.ndarray | None:
        """Selected rows in order; None: all, as nothing is chosen."""
        return None if self.selected is None else np.frombuffer(self.selected, np.uint32).astype(int)

    @rows.setter
    def rows(self, rows: Iterable[int] | None) -> None:
        self.set_trait("selected", None if rows is None else _rows(rows))

    def inside(self, which: int, polygon: list[list[float]]) -> np.ndarray:
        """Rows of the samples of a map that lie in a polygon of places of the unit square, y downwards."""
        return np.flatnonzero(Outline(np.asarray(polygon, float)).contains_points(self._xy[which]))

    def paint(self, colours: list[str], shapes: np.ndarray) -> None:
        """A colour, as matplotlib knows them, and the number of a shape `[n]` for every sample."""
        known = {c: to_rgb(c) for c in set(colours)}
        self.shape = shapes.astype(np.uint8).tobytes()
        self.tint = np.round([np.multiply(known[c], 255) for c in colours]).astype(np.uint8).tobytes()

    def join(self, rows: Iterable[int]) -> None:
        """Draw a line through these rows, in this order."""
        self.thread = np.asarray(list(rows), np.uint32).tobytes()

    def _told(self, _: Any, told: dict[str, Any], __: Any) -> None:
        """What a person did in a browser."""
        if "polygon" in told:
            rows = self.inside(told["map"], told["polygon"])
            self.rows = rows if len(rows) else None
        elif "clear" in told:
            self.rows = None
        else:
            (what, row), *_rest = told.items()
            self._acted(what, int(row))


def _rows(rows: Iterable[int]) -> bytes:
    return np.unique(np.asarray(list(rows), int)).astype(np.uint32).tobytes()


def _unit(places: np.ndarray) -> np.ndarray:
    """`[n, 2]` moved and scaled as a whole into the unit square, y downwards."""
    low, high = places.min(0), places.max(0)
    scale = (1 - 2 * MARGIN) / max((high - low).max(), 1e-9)
    return 0.5 + (places - (low + high) / 2) * scale * [1, -1]
