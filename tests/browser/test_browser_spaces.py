"""Notebook 04 as a person uses it: hover changes the thumbnail, click the cloud, a selection lights the other map."""

_CLOUD = "() => Array.from(document.querySelectorAll('.rgb2pc-spaces .js-plotly-plot')[2].data[0].x).slice(0, 50)"
_LIT = "(i) => document.querySelectorAll('.rgb2pc-spaces .js-plotly-plot')[i].data[0].selectedpoints"
_THUMBNAIL = "() => document.querySelector('.rgb2pc-spaces img.rgb2pc-thumbnail').src"
_WHERE = """([i, n]) => {
  const plot = document.querySelectorAll('.rgb2pc-spaces .js-plotly-plot')[i], t = plot.data[0], l = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  return [box.x + l.xaxis._offset + l.xaxis.d2p(t.x[n]), box.y + l.yaxis._offset + l.yaxis.d2p(t.y[n])];
}"""


def test_space_browser(nb):
    nb.open("04_teacher_vs_student_umap.ipynb")
    nb.run_all()
    nb.page.locator(".rgb2pc-spaces").scroll_into_view_if_needed()
    nb.until(lambda: nb.page.locator(".rgb2pc-spaces .js-plotly-plot").count() == 3)
    nb.page.wait_for_timeout(500)
    names = nb.kernel("print(*('/'.join(k) for k in spaces.keys[['task','episode','step']].to_numpy()))").split()

    def at(plot, row):
        nb.page.locator(".rgb2pc-spaces .js-plotly-plot").nth(plot).scroll_into_view_if_needed()
        return nb.page.evaluate(_WHERE, [plot, row])

    def named(selector):
        return "/".join(nb.text(selector).split(", ")[0].split(" / "))

    row = int(nb.kernel("import numpy as np; print(np.flatnonzero(spaces.held_out)[-1])"))
    before = nb.page.evaluate(_THUMBNAIL)
    nb.page.mouse.move(*at(0, row))
    nb.until(lambda: nb.page.evaluate(_THUMBNAIL) != before)
    shown = int(nb.kernel("print(browser.hovered)"))  # the row itself, or one drawn on top of it
    assert "/".join(nb.text(".rgb2pc-spaces-caption").split("\n")[:3]) == names[shown]

    cloud, said = nb.page.evaluate(_CLOUD), nb.text(".rgb2pc-spaces-said")
    nb.page.mouse.click(*at(1, row))
    nb.until(lambda: nb.text(".rgb2pc-spaces-said") != said)
    nb.until(lambda: nb.page.evaluate(_CLOUD) != cloud)
    clicked = int(nb.kernel("print(browser.clicked)"))
    assert named(".rgb2pc-spaces-said") == names[clicked] and "rank " in nb.text(".rgb2pc-spaces-said")
    assert "cosine" in nb.text(".rgb2pc-spaces")

    box = nb.page.locator(".rgb2pc-spaces .js-plotly-plot").nth(0).bounding_box()
    nb.page.mouse.move(box["x"] + 25, box["y"] + 50)
    nb.page.mouse.down()
    nb.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] - 30, steps=8)
    nb.page.mouse.up()
    nb.until(lambda: nb.page.evaluate(_LIT, 1))
    chosen = nb.page.evaluate(_LIT, 1)
    assert 0 < len(chosen) < len(names) and sorted(nb.page.evaluate(_LIT, 0)) == sorted(chosen)
    assert nb.kernel("print(len(browser.selected))").strip() == str(len(chosen))
    nb.page.wait_for_timeout(500)
    nb.shot("space_browser", ".rgb2pc-spaces")

    nb.page.locator(".rgb2pc-spaces .widget-dropdown select").select_option("error")
    nb.until(lambda: "cosine distance" in nb.text(".rgb2pc-spaces-legend"))
