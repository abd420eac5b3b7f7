"""Notebook 03 as a person uses it: choose an expert, fade it in and out, move through the steps of an episode."""

import pytest

pytestmark = pytest.mark.long

_PANEL = ".rgb2pc-gates"
_PLOT = f"() => document.querySelector('{_PANEL} .js-plotly-plot')?._fullData?.[0]"
_COLOURS = f"() => Array.from(({_PLOT})()?.marker.color ?? []).slice(0, 200).join()"  # empty until plotly has drawn it
_CLOUD = f"() => Array.from(({_PLOT})()?.x ?? []).slice(0, 50)"


def choose(nb, description, option):
    box = nb.page.locator(f"{_PANEL} .widget-dropdown", has_text=description).locator("select")
    box.select_option(option)


def slide(nb, description, keys):
    nb.page.locator(f"{_PANEL} .widget-slider", has_text=description).locator(".noUi-handle").focus()
    for key in keys:
        nb.page.keyboard.press(key)


_PIXELS = """async (panel) => { try {
const images = [...document.querySelectorAll(panel + ' img')];
return await Promise.all(images.map(async image => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
  await image.decode();
  canvas.getContext('2d').drawImage(image, 0, 0, 64, 64);
  return canvas.toDataURL();
})) } catch { return null } }"""  # null while a picture is being exchanged


def pictures(nb):
    """What is seen: RGB, and the gate over it."""
    return nb.until(lambda: nb.page.evaluate(_PIXELS, _PANEL))


def settled(nb):
    """The pictures, once they stay as they are."""
    before = pictures(nb)
    nb.page.wait_for_timeout(700)
    return before if pictures(nb) == before else None


def test_gate_browser(nb):
    nb.open("03_fusion_weights_and_gates.ipynb")
    for cell in ("import GateBrowser", "WORKSPACE =", "train_missing(rows)", "readers =", 'readers["moe"].keys'):
        nb.run_cell(cell)
    nb.run_cell("browser = GateBrowser(")
    nb.page.locator(_PANEL).scroll_into_view_if_needed()
    experts = nb.kernel("print(*browser.reader.experts)").split()
    assert len(pictures(nb)) == 2 and f"gate of {experts[0]}" in nb.text(_PANEL)

    colours, cloud = (nb.until(lambda of=of: nb.page.evaluate(of)) for of in (_COLOURS, _CLOUD))
    rgb, over = pictures(nb)
    choose(nb, "expert", "leading expert")
    nb.until(lambda: pictures(nb)[1] != over and nb.page.evaluate(_COLOURS) != colours)
    assert pictures(nb)[0] == rgb and nb.page.evaluate(_CLOUD) == cloud  # the step is the same
    choose(nb, "expert", experts[0])
    nb.until(lambda: pictures(nb)[1] == over and nb.page.evaluate(_COLOURS) == colours)

    slide(nb, "step", ["ArrowRight"] * 5)
    nb.until(lambda: nb.text(".rgb2pc-step") == "step_0005")
    nb.until(lambda: pictures(nb)[0] != rgb and nb.page.evaluate(_CLOUD) != cloud)
    before = nb.until(lambda: settled(nb))  # not those of a step on the way
    slide(nb, "opacity", ["Home"])
    nb.until(lambda: pictures(nb)[1] != before[1])
    assert pictures(nb)[0] == before[0]
    slide(nb, "opacity", ["ArrowRight"] * 13)
    nb.until(lambda: pictures(nb) == before)
    assert nb.kernel("print(browser.chosen[2])").strip() == "step_0005"
    nb.page.wait_for_timeout(1000)  # the cloud is painted
    nb.shot("gate_browser", _PANEL)
