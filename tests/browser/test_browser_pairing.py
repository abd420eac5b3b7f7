"""Notebook 01 as a person uses it: choose an episode, move through its steps, see the fault, weigh the negatives."""

import pytest

pytestmark = pytest.mark.long

_PLOT = "() => document.querySelector('.rgb2pc-pairing .js-plotly-plot')?._fullData?.[0]"
_CLOUD = f"() => Array.from(({_PLOT})()?.x ?? []).slice(0, 50)"  # empty until plotly has drawn it
_BARS = "() => document.querySelector('.rgb2pc-negatives .js-plotly-plot')?._fullData?.[0]?.marker.color.join() ?? ''"


def choose(nb, description, option):
    nb.page.locator(".rgb2pc-pairing .widget-dropdown", has_text=description).locator("select").select_option(option)


def slide(nb, panel, description, keys):
    nb.page.locator(f"{panel} .widget-slider", has_text=description).locator(".noUi-handle").focus()
    for key in keys:
        nb.page.keyboard.press(key)


def pictures(nb):
    return nb.page.evaluate("() => [...document.querySelectorAll('.rgb2pc-pairing img')].map(i => i.src)")


def shown(nb):
    """The episode that the browser shows, as the kernel has it."""
    return nb.kernel("print('/'.join(browser.chosen[:2]))").strip()


def test_episodes_are_looked_at_and_decided_and_negatives_weighed(nb):
    nb.open("01_pairing_checks.ipynb")
    for cell in ("import show", "WORKSPACE =", "examine(workspace", "pair(workspace", "checks = shift_checks",
                 "browser = PairingBrowser(", "usable(pairing)", "NegativesPanel("):  # fmt: skip
        nb.run_cell(cell)
    nb.page.locator(".rgb2pc-pairing").scroll_into_view_if_needed()
    first = nb.kernel("print(*browser.suspects.loc[0, ['task', 'episode']])").split()
    experts = nb.kernel("print(*pairing.experts)").split()
    assert len(pictures(nb)) == 2 + len(experts)
    assert nb.kernel("print(*browser.chosen[:2])").split() == first  # the most suspicious one
    assert nb.kernel("print(workspace.name)").strip() in nb.text(".rgb2pc-pairing")

    choose(nb, "task", "hammer")
    nb.until(lambda: nb.kernel("print(browser.chosen[0])").strip() == "hammer")
    before, cloud = pictures(nb), nb.until(lambda: nb.page.evaluate(_CLOUD))
    slide(nb, ".rgb2pc-pairing", "step", ["ArrowRight"] * 8)
    nb.until(lambda: nb.text(".rgb2pc-step") == "step_0008")
    nb.until(lambda: all(a != b for a, b in zip(before, pictures(nb), strict=True)))
    nb.until(lambda: nb.page.evaluate(_CLOUD) != cloud)
    here = nb.kernel("print('/'.join(browser.chosen))").strip() + "."
    tables = nb.page.locator(".rgb2pc-pairing table")
    nb.until(lambda: " ".join(tables.all_inner_texts()).count(here) == 3)  # RGB, points, teacher
    nb.page.locator(".rgb2pc-pairing .jupyter-button", has_text="exclude this").click()
    nb.until(lambda: "excluded" in nb.text(".rgb2pc-decision"))
    assert nb.kernel("print(*browser.decided.out)").strip() == here.rpartition("/")[0]
    boxes = nb.page.locator(".rgb2pc-pairing .rgb2pc-table tbody input")  # several episodes are decided at once
    for i in (1, 2):
        boxes.nth(i).check()
    nb.page.locator(".rgb2pc-pairing .jupyter-button", has_text="exclude the ticked ones").click()
    nb.until(
        lambda: "True" in nb.kernel("print(len(browser.ticked) == 2 and {*browser.ticked} <= {*browser.decided.out})")
    )
    nb.page.wait_for_timeout(1000)  # the cloud is painted
    nb.shot("pairing_browser", ".rgb2pc-pairing")

    button = nb.page.locator(".rgb2pc-pairing .jupyter-button", has_text="next flagged")
    flagged = nb.kernel("s = browser.suspects; print(*(s['task'] + '/' + s['episode'])[s['flagged']])").split()
    assert button.is_disabled() == (not flagged)
    seen = [shown(nb)]
    for _ in flagged:  # once round, wherever it begins
        button.click()
        nb.until(lambda: shown(nb) in flagged and (shown(nb) != seen[-1] or len(flagged) == 1))
        seen.append(shown(nb))
    assert sorted(seen[1:]) == sorted(flagged)

    nb.page.locator(".rgb2pc-negatives").scroll_into_view_if_needed()
    slide(nb, ".rgb2pc-negatives", "exclude_near", ["Home", "ArrowRight", "ArrowRight"])
    nb.until(lambda: "exclude_near = 2: a step meets" in nb.text(".rgb2pc-said"))
    nb.until(lambda: nb.page.evaluate(_BARS).split(",").count("#cccccc") == 2)
    slide(nb, ".rgb2pc-negatives", "cut", ["Home"])
    said = nb.kernel("print(f'{audit.per_anchor(0.3, 2, BATCH):.2f} false negatives')").strip()
    nb.until(lambda: said in nb.text(".rgb2pc-said"))
    nb.shot("negatives", ".rgb2pc-negatives")
