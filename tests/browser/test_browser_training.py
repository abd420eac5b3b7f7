"""Notebook 02 as a person uses it: move a slider, Start, watch the curve grow, Stop, Resume."""

import json

import pytest

pytestmark = pytest.mark.long

_THREADS = "import threading; print(sum(t.name == 'rgb2pc-training' for t in threading.enumerate()))"
_CURVES = """() => {
  const plot = document.querySelector('.rgb2pc-panel .js-plotly-plot');
  const shown = (plot?.data ?? []).map((t, i) => [t, plot._fullData?.[i]?.x?.length ?? 0]);
  return Object.fromEntries(
    shown.filter(([t]) => t.showlegend !== false && t.legend !== 'legend2').map(([t, n]) => [t.name, n]));
}"""


def press(nb, name):
    nb.page.locator(".rgb2pc-panel .jupyter-button", has_text=name).click()


def slide(nb, description, key, times=1):
    """Move a slider by keyboard; returns what it reads then."""
    slider = nb.page.locator(".rgb2pc-panel .widget-slider", has_text=description)
    slider.locator(".noUi-handle").focus()
    for _ in range(times):
        nb.page.keyboard.press(key)
    return slider.locator(".widget-readout").inner_text()


def status(nb):
    return nb.text(".rgb2pc-panel .rgb2pc-status")


def test_training_panel(nb):
    nb.open("02_weighted_vs_moe.ipynb")
    nb.run_all()
    nb.page.locator(".rgb2pc-panel").scroll_into_view_if_needed()
    nb.until(lambda: nb.page.evaluate(_CURVES) == {"weighted": 20, "moe": 20})
    assert "finished" in status(nb)

    before = nb.page.locator(".rgb2pc-panel .widget-slider", has_text="steps").locator(".widget-readout").inner_text()
    steps = slide(nb, "steps", "ArrowRight", 4)
    rate = slide(nb, "learning rate", "ArrowRight")
    assert int(steps) > int(before)
    nb.until(lambda: nb.kernel("print(panel.config().steps, panel.config().lr)").split() == [steps, rate])

    press(nb, "Start")
    name = nb.until(lambda: next((n for n, k in nb.page.evaluate(_CURVES).items() if rate in n and k > 5), None))
    grown = nb.page.evaluate(_CURVES)[name]
    nb.until(lambda: nb.page.evaluate(_CURVES)[name] > grown + 5)
    assert "running" in status(nb) and "loss" in status(nb)
    assert nb.kernel("print(6 * 7)").strip() == "42"  # the kernel answers while it trains
    nb.shot("panel-running", ".rgb2pc-panel")

    nb.reload()  # the page, not the kernel: the panel is there again, and what runs goes on and is shown
    nb.page.locator(".rgb2pc-panel .js-plotly-plot").wait_for()
    there = nb.until(lambda: nb.page.evaluate(_CURVES).get(name))
    assert there > grown and "running" in status(nb)
    nb.until(lambda: nb.page.evaluate(_CURVES)[name] > there + 2)
    nb.shot("panel-reloaded", ".rgb2pc-panel")

    press(nb, "Stop")
    nb.until(lambda: "stopped" in status(nb))
    at = nb.kernel("print(panel.session.snapshot().step)").strip()
    assert f"at step {at} of {steps}" in status(nb) and 0 < int(at) < int(steps)
    assert nb.kernel(_THREADS).strip() == "0"
    assert nb.kernel("print((panel.session.snapshot().config.folder / 'state.pt').exists())").strip() == "True"

    press(nb, "Resume")
    nb.until(lambda: "running" in status(nb) and int(nb.kernel("print(panel.session.snapshot().step)")) > int(at))
    press(nb, "Stop")
    nb.until(lambda: "stopped" in status(nb))
    slide(nb, "steps", "Home")  # a short one to its end
    press(nb, "Start")
    nb.until(lambda: "finished" in status(nb))
    assert "R@1" in status(nb) and len(nb.page.evaluate(_CURVES)) == 4
    command = nb.text(".rgb2pc-command pre")
    assert command == nb.kernel("print(panel.command())").strip() and f"--steps {10}" in command


def test_mistakes_and_running_the_cell_again(nb):
    """A setting that cannot work is explained on the panel; the cell run again stops what it had started."""
    nb.open("02_weighted_vs_moe.ipynb")
    for cell in ("import dataclasses", "WORKSPACE =", "Data.open", "TrainingPanel("):
        nb.run_cell(cell)
    nb.page.locator(".rgb2pc-panel").scroll_into_view_if_needed()
    slide(nb, "batch size", "End")
    press(nb, "Start")
    nb.until(lambda: "failed" in status(nb))
    assert "is larger than the 160 training samples; lower it" in status(nb)
    assert not nb.page.locator(".rgb2pc-panel .jupyter-button", has_text="Start").is_disabled()

    slide(nb, "batch size", "Home")
    slide(nb, "steps", "End")
    nb.page.locator(".rgb2pc-panel .widget-dropdown", has_text="fusion").locator("select").select_option("uniform")
    press(nb, "Start")
    nb.until(lambda: "running" in status(nb))
    assert nb.kernel(_THREADS).strip() == "1"
    nb.kernel("old = panel")
    nb.run_cell("TrainingPanel(")
    states = nb.kernel("print(old.session.snapshot().state, panel.session.snapshot().state)")
    assert states.split() == ["stopped", "idle"]
    assert nb.kernel(_THREADS).strip() == "0"
    nb.until(lambda: "Choose settings" in status(nb))

    # a kernel that is restarted leaves a checkpoint
    nb.kernel("panel.set('steps', 5000); panel.set('seed', 5); panel.buttons['start'].click()")
    step = "print(panel.session.snapshot().step)"
    nb.until(lambda: int(nb.kernel(step)) > 3)
    nb.restart()
    for cell in ("import dataclasses", "WORKSPACE =", "Data.open", "TrainingPanel("):
        nb.run_cell(cell)
    nb.kernel("panel.set('steps', 5000); panel.set('seed', 5); panel.buttons['start'].click()")
    nb.until(lambda: "continued from step" in status(nb))
    nb.kernel("panel.close()")
    nb.run_cell("TrainingPanel(")

    # two panels at once: another cell's panel does not close this one
    nb.kernel("other = TrainingPanel(config, out / 'panel', 'elsewhere')")
    nb.kernel("panel.set('steps', 5000); panel.buttons['start'].click()")
    nb.kernel("other.set('steps', 5000); other.set('seed', 1); other.buttons['start'].click()")
    steps = "print([p.session.snapshot().step for p in (panel, other)])"
    nb.until(lambda: min(json.loads(nb.kernel(steps))) > 3)
    assert nb.kernel(_THREADS).strip() == "2"
    nb.kernel("panel.close(); other.close()")
    assert nb.kernel(_THREADS).strip() == "0"
