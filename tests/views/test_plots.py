"""Pictures: small, and the same to the eye."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.views.plots import png


def test_a_small_picture_keeps_its_paper_white_and_its_colours():
    figure = Figure(figsize=(6, 4))
    figure.subplots().imshow(np.linspace(0, 1, 200)[None], "magma", aspect="auto")
    full = io.BytesIO()
    figure.savefig(full, format="png", dpi=100, bbox_inches="tight")
    seen, drawn = (np.asarray(Image.open(f).convert("RGB"), float) for f in (io.BytesIO(png(figure, 100)), full))
    assert (seen[:3] == 255).all() and (drawn[:3] == 255).all()
    assert seen.shape == drawn.shape and np.abs(seen - drawn).mean() < 2
    away = [Image.fromarray(x.astype(np.uint8)).reduce(4) for x in (seen, drawn)]  # as from a distance: no steps
    assert np.abs(np.subtract(*(np.asarray(x, float) for x in away))).max() < 12
