"""Every panel as it looks: light and dark, in a narrow window, after a reload, and without a kernel."""

import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.train import train

PANELS = (  # .rgb2pc-<name>
    "panel", "pairing", "negatives", "gates", "spaces", "correspondence", "runs", "player-panel",
)  # fmt: skip
CELLS = """
from pathlib import Path
from rgb2pc_lib import Config, Run, pair
from rgb2pc_lib.checks.sources import usable
from rgb2pc_lib.checks.teacher import negative_audit
from rgb2pc_lib.data.sampling import Gatherer
from rgb2pc_lib.judging.correspondence import Matcher
from rgb2pc_lib.views.notebook import show, versions
from rgb2pc_lib.views.curves import curves_figure
from rgb2pc_lib.views.widgets.correspondence import CorrespondenceBrowser
from rgb2pc_lib.views.widgets.gates import GateBrowser
from rgb2pc_lib.views.widgets.pairing import NegativesPanel, PairingBrowser
from rgb2pc_lib.views.widgets.panel import TrainingPanel
from rgb2pc_lib.views.widgets.player import Player
from rgb2pc_lib.views.widgets.runs import RunTable
from rgb2pc_lib.views.widgets.spaces import SpaceBrowser
print(versions())
folder = Path({folder!r})
distilled, aligned = Run.open(folder / "moe"), Run.open(folder / "aligned")
workspace = distilled.config.workspace
pairing = pair(workspace)
---
panel = TrainingPanel(distilled.config, folder / "panel")
panel
---
PairingBrowser(workspace, pairing)
---
samples = usable(pairing)
NegativesPanel(negative_audit(samples.keys(), Gatherer(samples).teacher_embeddings(samples.teacher_rows)))
---
GateBrowser(distilled)
---
SpaceBrowser(distilled)
---
CorrespondenceBrowser(Matcher.open(aligned))
---
table = RunTable(folder.parent)
table.compare("look/weighted", "look/moe")
table.draw_maps()
table
---
Player.of(distilled)
---
show(curves_figure([distilled]))
---
run = await panel.run(fusion="weighted")
"""
_CONTRAST = """(selector) => {
  const pen = document.createElement('canvas').getContext('2d');
  const rgb = (text) => { // whatever a colour is written as
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const linear = (v) => v <= 10 ? v / 3294 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const paper = (el) => {
    if (!el) return [255, 255, 255];
    const own = rgb(getComputedStyle(el).backgroundColor);
    return own[3] === 0 ? paper(el.parentElement) : over(own, paper(el.parentElement));
  };
  return [...document.querySelectorAll(selector)].filter(el => el.getClientRects().length).map(el => {
    const below = paper(el), said = getComputedStyle(el);
    const ink = over(rgb(el.closest('svg') ? said.fill : said.color), below);
    const [dark, bright] = [light(ink), light(below)].sort((a, b) => a - b);
    return (bright + .05) / (dark + .05);
  });
}"""
_TEXTS = {  # what must be read -> where it stands
    "the command line": ".rgb2pc-command pre span",
    "the status": ".rgb2pc-status b",
    "names of sliders": ".rgb2pc-live .widget-label",
    "readouts": ".rgb2pc-live .widget-readout",
    "titles": ".rgb2pc-live .widget-html-content b",
    "ticks of curves": ".rgb2pc-panel .xtick text",
    "titles of curves": ".rgb2pc-panel .annotation-text",
    "the legend of the maps": ".rgb2pc-spaces-legend button",
    "buttons of the maps": ".rgb2pc-maps-bar button",
    "the ticked runs": ".rgb2pc-runs tr.ticked td",
    "ticks of two runs' curves": ".rgb2pc-runs .xtick text",
    "titles of the player": ".rgb2pc-player figcaption",
    "keys of the player": ".rgb2pc-player-keys",
}
_TRACKS = "() => [...document.querySelectorAll('.rgb2pc-live .noUi-target')].map(e => e.getBoundingClientRect().width)"
_WIDE = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
  .filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.querySelector('.rgb2pc-live')?.className ?? e.className}: ${e.scrollWidth} in ${e.clientWidth}`)"""
_COVERED = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.getClientRects().length)
  .filter(plot => plot.querySelector('.main-svg').clientHeight > plot.parentElement.clientHeight + 1)
  .map(plot => plot.closest('.rgb2pc-live')?.className)"""  # figures that reach below their place
_MAPS = """() => [...document.querySelectorAll('.rgb2pc-map')].map(map => {
  const points = map.querySelector('canvas'), side = [points.width, points.height];
  return new Set(new Uint32Array(points.getContext('2d').getImageData(0, 0, ...side).data.buffer)).size;
})"""  # colours in each
_TWINS = """() => [...document.querySelectorAll('.jp-OutputArea-child')]
  .filter(e => e.querySelector('.rgb2pc-panel-next'))
  .map(e => e.nextElementSibling.nextElementSibling.querySelector('img'))
  .map(i => [i.naturalWidth, i.getBoundingClientRect().width])"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two students and an aligned run, on few steps of which everything is there."""
    root = tmp_path_factory.mktemp("runs") / "look"
    workspace = dataclasses.replace(tiny.make_points(root / "data", steps=12), name="look")
    for file in workspace.teacher.rglob("*.pt"):
        frame = root / "rgb" / file.relative_to(workspace.teacher).with_name(f"{file.name[:9]}.png")
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)).resize((200, 160)).save(frame)
    workspace = dataclasses.replace(workspace, rgb=root / "rgb")
    few = Config(steps=20, batch_size=16, student_tokens=16, fuse_dim=16, moe_hidden=8, amp="off", fusion="moe")
    few = dataclasses.replace(few.with_workspace(workspace), eval_every=10)
    for name, changes in {"moe": {}, "weighted": {"fusion": "weighted"}, "aligned": {"route": "geometric"}}.items():
        list(train(dataclasses.replace(few, save_dir=str(root / name), **changes)))
    return root


def looks_right(nb, name, slowest=20):
    """All that can be measured of a look; and a screenshot of each panel, for eyes."""

    def faint():
        found = {what: nb.page.evaluate(_CONTRAST, where) for what, where in _TEXTS.items()}
        return [what for what, ratios in found.items() if not ratios or min(ratios) < 4.5]

    try:
        nb.until(lambda: not faint(), slowest)
    except AssertionError:
        pytest.fail(f"{name}: too faint: {', '.join(faint())}")
    tracks = nb.page.evaluate(_TRACKS)
    assert len(tracks) >= 12 and min(tracks) >= 50, tracks
    assert not nb.page.evaluate(_WIDE)
    nb.until(lambda: not nb.page.evaluate(_COVERED), slowest)
    assert nb.page.evaluate(_TWINS) and not any(seen for _, seen in nb.page.evaluate(_TWINS))
    assert nb.page.locator(".modebar-btn").count() and not nb.page.locator(".modebar-btn[data-title*=hare]").count()
    assert "Failed to initialize" not in nb.page.content()
    nb.until(lambda: (there := nb.page.evaluate(_MAPS)) and len(there) == 4 and min(there) > 2, slowest)
    nb.until(lambda: "both hold out" in nb.text(".rgb2pc-runs-pair"), slowest)
    ticked = nb.page.locator(".rgb2pc-runs tr.ticked").evaluate_all("rows => rows.map(r => r.dataset.key)")
    assert sorted(ticked) == ["look/moe", "look/weighted"]
    for panel in PANELS:
        nb.page.locator(f".rgb2pc-{panel}").scroll_into_view_if_needed()
        nb.shot(f"look-{name}-{panel}", f".rgb2pc-{panel}")


def test_light_dark_narrow_reloaded_and_without_a_kernel(nb, folder):
    nb.write("look.ipynb", CELLS.format(folder=str(folder)).strip().split("\n---\n"))
    nb.open("look.ipynb")
    nb.run_all()
    looks_right(nb, "light")
    nb.theme("Dark")
    looks_right(nb, "dark")
    nb.page.set_viewport_size({"width": 900, "height": 1000})
    looks_right(nb, "narrow")
    nb.theme("Light")
    nb.reload()
    looks_right(nb, "reloaded", 60)

    nb.without_kernel()
    twins = nb.until(lambda: (t := nb.page.evaluate(_TWINS)) and all(w for w, _ in t) and t)
    assert len(twins) == len(PANELS) and all(there > 300 and seen > 300 for there, seen in twins)
    assert "Error displaying widget" not in nb.page.locator(".jp-Notebook").inner_text()
    for i in range(len(PANELS)):
        nb.page.locator(".jp-RenderedImage").nth(i).scroll_into_view_if_needed()
        nb.shot(f"look-dead-{i}")
