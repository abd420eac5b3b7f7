"""How a panel paints: once for all changes that came together, on its own loop, with pictures as PNG."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from rgb2pc_lib.data.pictures import encoded


class Repaint:
    """Runs `draw` on the loop of the cell that built it, once for all changes that came meanwhile.

    Messages from a browser may arrive on any thread of the kernel; without a kernel `draw` runs at once.
    """

    def __init__(self, draw: Callable[[], None]):
        self.draw, self.due = draw, False
        try:
            self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self.loop = None

    def __call__(self, _change=None) -> None:
        if self.loop is None:
            self.draw()
        elif not self.due:
            self.due = True
            self.loop.call_soon_threadsafe(self._now)

    def _now(self) -> None:
        self.due = False
        self.draw()


def first_point(act: Callable[[int], None]) -> Callable[..., None]:
    """What plotly calls with a trace and the points under the pointer, to tell `act` the number of the first one."""

    def told(_trace: Any, points: Any, *_state: Any) -> None:
        if points.point_inds:
            act(points.point_inds[0])

    return told


def png(picture: np.ndarray | None) -> bytes:
    """A picture `[H, W, 3]` uint8 as the bytes of a PNG file; a grey square where there is none."""
    if picture is None:
        picture = np.full((8, 8, 3), 225, np.uint8)
    return encoded(picture, "png")
