"""Notebook 04 as a person uses it: hover, click, select in either map, and find all of it again after a reload."""

import json
import os
import random

import pytest

pytestmark = pytest.mark.long

SEQUENCES = int(os.environ.get("RGB2PC_SEQUENCES", 4))  # of box, lasso and clear; 50 for a thorough look
_CLOUD = "() => document.querySelector('.rgb2pc-spaces .js-plotly-plot')?._fullData?.[0]?.x?.slice(0, 50).join()"
_LIT = "() => [...document.querySelectorAll('.rgb2pc-map')].map(m => m.lit && Array.from(m.lit))"
_PYTHON = "import json; r = browser.maps.rows; print(json.dumps(None if r is None else r.tolist()))"


def both(nb):
    """What the two maps show as selected; None: all."""
    one, other = nb.page.evaluate(_LIT)
    assert one == other
    return one


def agree(nb, rows=...):
    """Wait until both maps show what Python has selected; returns it."""

    def same():
        told = json.loads(nb.kernel(_PYTHON))
        shown = nb.page.evaluate(_LIT)
        return (rows is ... or told == rows) and shown == [told, told] and [told]

    return nb.until(same)[0]


def draw(nb, which, places):
    """Drag through these places (shares of the map) in one of the maps."""
    box = nb.page.locator(".rgb2pc-map").nth(which).bounding_box()
    for i, (x, y) in enumerate(places):
        nb.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=2)
        if i == 0:
            nb.page.mouse.down()
    nb.page.mouse.up()


def at(nb, which, row):
    box = nb.page.locator(".rgb2pc-map").nth(which).bounding_box()
    x, y = map(float, nb.kernel(f"print(*browser.maps._xy[{which}, {row}])").split())
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_space_browser(nb):
    nb.open("04_teacher_vs_student_umap.ipynb")
    nb.run_all()
    nb.page.locator(".rgb2pc-map").nth(1).wait_for()
    nb.page.locator(".rgb2pc-maps").scroll_into_view_if_needed()
    nb.page.locator(".rgb2pc-map").first.evaluate("m => m.scrollIntoView()")
    cloud = nb.until(lambda: nb.page.evaluate(_CLOUD))
    names = nb.kernel("print(*('/'.join(k) for k in spaces.keys[['task','episode','step']].to_numpy()))").split()
    row = int(nb.kernel("import numpy as np; print(np.flatnonzero(spaces.held_out)[-1])"))

    nb.page.locator(".rgb2pc-maps-bar button", has_text="clear").click()  # what the notebook has chosen
    agree(nb, None)
    nb.page.mouse.move(*at(nb, 0, row))
    nb.until(lambda: nb.page.locator("img.rgb2pc-thumbnail").is_visible())
    shown = int(nb.kernel("print(browser.maps.hovered)"))  # the row itself, or one nearer to the pixel
    nb.until(lambda: "/".join(nb.text(".rgb2pc-spaces-caption").split("\n")[:3]) == names[shown])

    said = nb.text(".rgb2pc-spaces-said")
    nb.page.mouse.click(*at(nb, 1, row))
    nb.until(lambda: nb.text(".rgb2pc-spaces-said") != said)
    nb.until(lambda: nb.page.evaluate(_CLOUD) != cloud)
    clicked = int(nb.kernel("print(browser.clicked)"))
    assert "/".join(nb.text(".rgb2pc-spaces-said").split(", ")[0].split(" / ")) == names[clicked]
    assert agree(nb) is None  # to look at a step selects nothing

    rng, drawn = random.Random(0), 0
    for _ in range(SEQUENCES):
        for _ in range(rng.randint(1, 3)):
            tool, which = rng.choice(["box", "lasso", "clear"]), rng.randrange(2)
            if tool == "clear":
                nb.page.locator(".rgb2pc-maps-bar button", has_text="clear").click()
                continue
            nb.page.locator(".rgb2pc-maps-bar button", has_text=tool).click()
            x, y, w, h = rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5), rng.uniform(0.1, 0.45), rng.uniform(0.1, 0.45)
            draw(nb, which, [(x, y), (x + w, y + h)] if tool == "box" else [(x, y), (x + w, y), (x + w, y + h)])
            drawn += 1
        agree(nb)
    assert drawn
    nb.page.locator(".rgb2pc-maps-bar button", has_text="box").click()
    draw(nb, 0, [(0.02, 0.02), (0.6, 0.98)])
    nb.until(lambda: both(nb))
    chosen = agree(nb)
    draw(nb, 1, [(0.3, 0.02), (0.98, 0.98)])
    nb.until(lambda: both(nb) != chosen)
    chosen = agree(nb)
    assert 0 < len(chosen) < len(names) and f"{len(chosen)} selected" in nb.text(".rgb2pc-spaces-chosen")
    nb.shot("space_browser", ".rgb2pc-spaces")

    nb.reload()
    nb.page.locator(".rgb2pc-map").nth(1).wait_for()
    agree(nb, chosen)
    nb.until(lambda: nb.page.evaluate(_CLOUD))
    nb.shot("space_browser_reloaded", ".rgb2pc-spaces")

    nb.page.locator(".rgb2pc-maps-bar button", has_text="clear").click()
    agree(nb, None)
    nb.page.locator(".rgb2pc-spaces .widget-dropdown select").select_option("error")
    nb.until(lambda: "cosine distance" in nb.text(".rgb2pc-spaces-legend"))
    nb.kernel("browser.worst(7)")
    assert len(nb.until(lambda: both(nb))) == 7
