"""Panels paint once for many changes, on the thread of the cell that built them."""

import asyncio
import io
import threading

import numpy as np
from PIL import Image

from rgb2pc_lib.views.widgets.paint import Repaint, png


def test_pictures_become_png_to_the_bit_and_nothing_a_grey_square():
    picture = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)
    assert np.unique(np.asarray(Image.open(io.BytesIO(png(None))))).tolist() == [225]


def test_changes_from_other_threads_are_painted_once_on_the_own_loop():
    painted = []

    async def cell():
        repaint = Repaint(lambda: painted.append(threading.current_thread()))
        others = [threading.Thread(target=lambda: [repaint() for _ in range(50)]) for _ in range(2)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
        assert not painted  # the cell still runs
        await asyncio.sleep(0.05)
        repaint()
        await asyncio.sleep(0.05)

    kernel = threading.Thread(target=lambda: asyncio.run(cell()))  # another test may have left this thread a loop
    kernel.start()
    kernel.join()
    assert 1 <= len(painted) <= 3 and set(painted) == {kernel}


def test_without_a_loop_it_is_painted_at_once():
    painted = []
    plain = threading.Thread(target=lambda: Repaint(lambda: painted.append(None))())
    plain.start()
    plain.join()
    assert painted == [None]
