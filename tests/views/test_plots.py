"""Pictures: small, and the same to the eye."""

import io
import itertools

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.views.plots import MARKS, colour, line, mark, png, task_colours


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


def test_many_tasks_and_experts_stay_apart_and_never_by_colour_alone():
    tasks = [f"task {i:02d}" for i in range(48)]
    signs = {(tint, mark(task, tasks)) for task, tint in task_colours(tasks).items()}
    assert len(signs) == 48 and len({shape for _, shape in signs}) == len(MARKS)
    for one, other in itertools.pairwise(tasks):  # whose colours are nearest
        assert mark(one, tasks) != mark(other, tasks)
    experts = [f"expert {i:02d}" for i in range(12)]
    assert len({colour(e, experts) for e in experts}) == 12
    assert len({line(e, experts) for e in experts[:6]}) == 6
