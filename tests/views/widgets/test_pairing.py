import io
import json

import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.checks.shift import feature_check
from rgb2pc_lib.checks.sources import shifted_copies, shifted_copy, usable
from rgb2pc_lib.checks.teacher import negative_audit
from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.sampling import Gatherer
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.widgets.pairing import NegativesPanel, PairingBrowser


@pytest.fixture
def browser(tmp_path):
    ws = tiny.make(tmp_path, "left", tasks=("pull", "<b>push"), episodes=2, steps=8)
    (ws.experts["right"] / "pull" / "ep_1.pt").unlink()
    pairing = pair(ws)
    return PairingBrowser(ws, pairing)


def picture(widget) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(widget.value)))


def test_controls_follow_the_table_and_pictures_follow_the_controls(browser):
    assert browser.task.options == ("<b>push", "pull") and browser.episode.options == ("ep_0", "ep_1")
    assert browser.chosen == ("<b>push", "ep_0", "step_0000") and browser.step.max == 7
    first = picture(browser.pictures["left"])
    browser.step.value = 5
    assert browser.chosen[2] == "step_0005" and "step_0005" in browser.name.value
    assert not np.array_equal(picture(browser.pictures["left"]), first)
    browser.task.value = "pull"
    browser.episode.value = "ep_1"
    assert "no such episode" in browser.captions["right"].value and "no such episode" in browser.match.value
    assert browser.captions["left"].value == "<b>left</b>"
    browser.episode.value = "ep_0"
    assert browser.captions["right"].value == "<b>right</b>"


def test_names_never_become_html(browser):
    assert "<b>push" not in browser.match.value and "&lt;b&gt;push" in browser.match.value


def test_a_file_that_breaks_meanwhile_is_reported_in_the_panel(browser):
    file = browser.pairing.teacher["pull", "ep_0"]["step_0003"].path
    file.write_bytes(b"damaged")
    browser.task.value = "pull"
    browser.step.value = 3
    assert "not a readable torch file" in browser.match.value
    browser.step.value = 4
    assert "step_0004" in browser.match.value and "not a readable" not in browser.match.value


def test_static_twin_shows_any_step_and_the_verdict(left):
    pairing = pair(left)
    browser = PairingBrowser(left, pairing, [feature_check(pairing, progress=False)])
    figure = browser.static("push", "ep_1", "step_0004")
    assert isinstance(figure, Figure) and figure.get_suptitle() == "push / ep_1 / step_0004   by features: ok"
    assert {"RGB", "points over the image", "left", "right"} <= {a.get_title() for a in figure.axes}
    assert "by features: <b>ok</b>" in browser.match.value
    with pytest.raises(InputError, match="no step push/ep_1/step_0400"):
        browser.static("push", "ep_1", "step_0400")


def test_the_browser_starts_at_the_most_suspicious_episode_and_writes_what_is_decided(left, tmp_path):
    late = shifted_copy(left, "push", "ep_1", 3, tmp_path / "demo")
    pairing = pair(late)
    checks = [feature_check(pairing, progress=False)]
    file = tmp_path / "bad.toml"
    browser = PairingBrowser(late, pairing, checks, file)
    assert browser.chosen[:2] == ("push", "ep_1") and browser.by.value == 3
    assert browser.suspects.loc[0, "by features"] == "shifted by +3" and browser.suspects["flagged"].sum() == 1
    assert late.name in browser.view.children[0].value
    browser.go("pull", "ep_0")
    assert browser.by.value == 0 and "kept as filed" in browser.decision.value
    browser.buttons["next"].click()
    assert browser.chosen[:2] == ("push", "ep_1") and not file.exists()
    browser.buttons["shift"].click()
    assert Exclusions.read(file) == browser.decided == Exclusions({}, {"push/ep_1": 3})
    assert "shifted by +3" in browser.decision.value and browser.verdicts.loc[0, "decision"] == "shift +3"
    mended = pair(late.excluding([str(file)]))  # every tool reads the list: the fault is gone
    assert not feature_check(mended, progress=False).table["flagged"].any()
    browser.buttons["exclude"].click()
    assert Exclusions.read(file) == Exclusions({"push/ep_1": "shifted by +3"})
    again = PairingBrowser(late, pairing, checks, file)
    assert again.verdicts.loc[0, "decision"] == "exclude"
    again.keep()
    assert Exclusions.read(file) == NOTHING and (again.verdicts["decision"] == "").all()


def test_several_episodes_are_ticked_and_decided_at_once(left, tmp_path):
    late = shifted_copies(left, {"push/ep_1": 3, "pull/ep_2": -2}, tmp_path / "demo")
    pairing = pair(late)
    browser = PairingBrowser(late, pairing, [feature_check(pairing, progress=False)], tmp_path / "bad.toml")
    assert browser.table in browser.view.children and browser.many["exclude"].disabled
    browser.many["flagged"].click()
    assert set(browser.ticked) == {"push/ep_1", "pull/ep_2"} and not browser.many["exclude"].disabled
    browser.many["found"].click()
    assert Exclusions.read(tmp_path / "bad.toml").shift == {"push/ep_1": 3, "pull/ep_2": -2}
    assert {r[1][-1] for r in json.loads(browser.table.rows)} == {"shift +3", "shift -2", ""}
    mended = pair(late.excluding(browser.decided.lines))
    assert not feature_check(mended, progress=False).table["flagged"].any()
    browser.each_by.value = 1
    browser.many["shift"].click()
    assert set(browser.decided.shift.values()) == {1}
    browser.many["exclude"].click()
    assert browser.decided == Exclusions({"push/ep_1": "shifted by +3", "pull/ep_2": "shifted by -2"})
    browser.table.tick("push/ep_1", on=False)
    browser.many["keep"].click()
    assert set(browser.decided.out) == {"push/ep_1"}
    browser.table._told(None, {"open": "pull/ep_0"}, None)
    assert browser.chosen[:2] == ("pull", "ep_0") and browser.table.opened == "pull/ep_0"
    browser.exclude(["pull/ep_3"], why="the hand is in the way")
    assert Exclusions.read(tmp_path / "bad.toml").out["pull/ep_3"] == "the hand is in the way"
    with pytest.raises(InputError, match="pull/ep_9: no such episode"):
        browser.shift(1, ["pull/ep_0", "pull/ep_9"])
    assert "pull/ep_0" not in browser.decided.shift
    before = browser.decided
    browser.table.ticked = []
    browser.many["exclude"].click()  # nothing is ticked: nothing is decided, of the episode shown neither
    assert browser.decided == before


def test_negatives_panel_answers_to_its_sliders(left):
    samples = usable(pair(left))
    audit = negative_audit(samples.keys(), Gatherer(samples).teacher_embeddings(samples.teacher_rows))
    panel = NegativesPanel(audit, cut=0.5, batch=32)
    assert panel.exclude_near.value == audit.suggested(0.5) and "in a batch of 32" in panel.said.value
    panel.exclude_near.value = 4
    bars = panel.figure.data[0]
    assert [c == "#cccccc" for c in bars.marker.color] == [d <= 4 for d in bars.x]
    assert f"{audit.per_anchor(0.5, 4, 32):.2f} false negatives" in panel.said.value
    panel.cut.value = 0.3
    assert np.allclose(panel.figure.data[0].y, audit.by_distance(0.3)["false"])
    assert "exclude_near = 4" in panel.static().axes[1].get_title()
