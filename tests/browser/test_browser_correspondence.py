"""Notebook 07 as a person uses it: pick a place in the image and a point of the cloud, and see the other light up."""

import pytest

pytestmark = pytest.mark.long

_PANEL = ".rgb2pc-correspondence"
_PLOT = f"(i) => document.querySelectorAll('{_PANEL} .js-plotly-plot')[i]"
_POINTS = f"() => Array.from(({_PLOT})(1).data[0].marker.color).join()"
_GLOW = f"() => Array.from(({_PLOT})(0).data[0].marker.color).join()"
_WHERE = f"""([u, v]) => {{
  const plot = ({_PLOT})(0), l = plot._fullLayout, box = plot.getBoundingClientRect();
  return [box.x + l.xaxis._offset + l.xaxis.d2p(u), box.y + l.yaxis._offset + l.yaxis.d2p(v)];
}}"""
_DRAWN = f"(i) => ({_PLOT})(i)?._fullData?.[0]?.marker?.color?.length > 1"
_SAID = f"{_PANEL}-said"


def test_correspondence_browser(nb):
    nb.open("07_geometric_alignment.ipynb")
    for cell in (
        "import CorrespondenceBrowser",
        "WORKSPACE =",
        "rows = uses.line_up(",
        "browser = CorrespondenceBrowser(",
    ):
        nb.run_cell(cell)
    nb.page.locator(_PANEL).scroll_into_view_if_needed()
    nb.until(lambda: nb.page.locator(f"{_PANEL} .js-plotly-plot").count() == 2)
    nb.until(lambda: all(nb.page.evaluate(_DRAWN, i) for i in (0, 1)))
    nb.page.wait_for_timeout(500)
    assert nb.text(_SAID).startswith("Point ")
    points, glow = nb.page.evaluate(_POINTS), nb.page.evaluate(_GLOW)

    cell = int(nb.kernel("print(matcher.grid[0] * matcher.grid[1] // 2 + 9)"))  # a place in the image
    at = nb.kernel(f"print(*(float(browser.picture.figure.data[0][a][{cell}]) for a in 'xy'))").split()
    nb.page.mouse.click(*nb.page.evaluate(_WHERE, [float(v) for v in at]))
    nb.until(lambda: nb.text(_SAID).startswith("Pixel "))
    nb.until(lambda: nb.page.evaluate(_POINTS) != points and nb.page.evaluate(_GLOW) != glow)
    assert nb.kernel("print(*browser.picked)").split() == ["cell", str(cell)]
    nb.shot("correspondence_pixel", _PANEL)

    nb.page.locator(f"{_PANEL} .js-plotly-plot").nth(1).scroll_into_view_if_needed()
    box = nb.page.locator(f"{_PANEL} .js-plotly-plot").nth(1).bounding_box()
    for share in (0.5, 0.55, 0.45, 0.6, 0.4):  # points are small and their places on the screen are plotly's secret
        for height in (0.5, 0.55, 0.6):
            nb.page.mouse.move(box["x"] + share * box["width"], box["y"] + height * box["height"], steps=3)
            nb.page.wait_for_timeout(150)
            nb.page.mouse.down()
            nb.page.mouse.up()
            nb.page.wait_for_timeout(150)
            if nb.text(_SAID).startswith("Point "):
                break
        if nb.text(_SAID).startswith("Point "):
            break
    assert nb.text(_SAID).startswith("Point ") and nb.kernel("print(browser.picked[0])").strip() == "point"
    nb.until(lambda: nb.page.evaluate(_POINTS) == points)  # its own colours again
    nb.shot("correspondence_point", _PANEL)

    said = nb.text(_SAID)
    nb.page.locator(f"{_PANEL} .widget-slider .noUi-handle").focus()
    nb.page.keyboard.press("ArrowRight")
    nb.until(lambda: nb.text(_SAID) != said and nb.page.evaluate(_POINTS) != points)
